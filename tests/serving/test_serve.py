"""The serve stage: loading a folder, listening, stopping, and the mistakes that are told before a model is loaded."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving_helpers import HTTP
from starlette.testclient import TestClient

from ingot.recipe import InputError, build_recipe, load_recipe
from ingot.runs import describe_file
from ingot.serving import serve
from ingot.serving.chat import ChatRecipe
from ingot.serving.loading import load_model, model_name
from ingot.serving.serve import ServeRecipe, listen, run, serve_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(model_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(model_path, tmp_path / "copy"))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_model(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_starts_answers_and_stops_on_ctrl_c(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(f"model: {{path: {model_path}}}\nrun: {{port: 0, dir: {tmp_path / 'run'}}}\n")
    command = [sys.executable, "scripts/serve.py", "--config", str(tmp_path / "serve.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("serving tiny at "))
        url = line.split()[3]
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
        assert HTTP.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 0
    assert "served 1 requests" in rest
    assert "POST /v1/chat/completions 200" in (tmp_path / "run" / "log.txt").read_text()


def test_serve_folder_serves_a_run_folder(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "quickstart" / "pretrain"
    shutil.copytree(model_path, folder / "model")
    files = {f"model/{p.name}": describe_file(p) for p in (folder / "model").iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"stage": "pretrain", "files": files}))
    asked: dict[str, Any] = {}

    def serve_app(app: Any, listener: Any) -> None:
        with TestClient(app) as client:
            asked["closed"] = client.get("/v1/models").status_code
            client.headers["Authorization"] = "Bearer secret"
            asked["models"] = client.get("/v1/models").json()["data"][0]["id"]
            too_long = {"inputs": "Hello", "parameters": {"max_new_tokens": 50}}
            asked["too_long"] = client.post("/generate", json=too_long).json()["error"]

    monkeypatch.setattr(serve, "serve_app", serve_app)
    monkeypatch.setenv("INGOT_API_KEY", "secret")
    results = serve_folder(folder, port=0, dir=str(tmp_path / "log"), max_total_tokens=40)
    assert results == {"requests": 0, "failed": 0, "generated_tokens": 0}
    assert asked["closed"] == 401
    assert asked["models"] == "quickstart-pretrain"
    assert "must be <= 40" in asked["too_long"]
    assert not load_model(folder).chats  # a base model, although its tokenizer has a chat template
    assert model_name(folder / "model") == "quickstart-pretrain"
    (folder / "model/config.json").write_text((folder / "model/config.json").read_text() + " ")
    assert "config.json is not as it was written" in refusal(folder)


def test_listening_on_other_addresses_without_a_key_is_remarked_on(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "serve_app", lambda app, listener: None)
    monkeypatch.delenv("INGOT_API_KEY", raising=False)
    serve_folder(model_path, host="0.0.0.0", port=0, dir=str(tmp_path))
    assert "anyone who reaches 0.0.0.0 can use this server" in (tmp_path / "log.txt").read_text()


def test_a_taken_port_is_named_before_the_model_is_loaded(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with taken, pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*; choose another with"):
        serve_folder(copy, port=port, dir=str(tmp_path / "log"))


def test_a_missing_input_names_the_command_that_makes_it(tmp_path: Path) -> None:
    recipe = build_recipe(ServeRecipe, {"model": {"path": str(tmp_path / "runs/export")}})
    with pytest.raises(InputError, match=r"model\.path: .* does not exist; make it with: ingot export"):
        run(recipe)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"run": {"port": 70000}}, "run.port"),
        ({"run": {"max_active_requests": 0}}, "run.max_active_requests"),
        ({"model": {"path": "x", "dtype": "int8"}}, "model.dtype"),
        ({"run": {"hots": "x"}}, "run.hots: no such key; did you mean 'host'?"),
    ],
)
def test_a_wrong_key_is_named(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_recipe(ServeRecipe, {"model": {"path": "x"}, **tree})
    assert message in str(caught.value)


def test_the_quickstart_recipes_load() -> None:
    served = load_recipe(ServeRecipe, ROOT / "recipes/quickstart/serve.yaml")
    assert (served.run.host, served.model.path) == ("127.0.0.1", Path("runs/quickstart/export"))
    assert load_recipe(ChatRecipe, ROOT / "recipes/quickstart/chat.yaml").model.path == served.model.path


def test_what_cannot_be_loaded_is_told_in_one_line(copy: Path, tmp_path: Path) -> None:
    assert "no model here" in refusal(tmp_path)
    assert "run.max_total_tokens: 1000 is more than the model's context" in refusal(copy, max_total_tokens=1000)
    weights = load_file(copy / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layers.1.mlp" not in k}, copy / "model.safetensors", {"format": "pt"}
    )
    assert "model.layers.1.mlp.down_proj.weight, " in refusal(copy)
    broken = {k: torch.full_like(v, float("nan")) if k == "model.norm.weight" else v for k, v in weights.items()}
    save_file(broken, copy / "model.safetensors", {"format": "pt"})
    assert "model.norm.weight is not finite" in refusal(copy)
    (copy / "model.safetensors").write_bytes(b"not a weight file")
    assert f"{copy / 'model.safetensors'}: not a safetensors file" in refusal(copy)
    (copy / "tokenizer.json").write_text("{}")
    assert f"{copy / 'tokenizer.json'}: the tokenizer cannot be loaded" in refusal(copy)


def test_code_of_others_runs_only_when_trusted(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "ran"
    code = (copy / "configuration_ingot.py").read_text() + f"\nopen({str(marker)!r}, 'w').close()\n"
    (copy / "configuration_ingot.py").write_text(code.replace('model_type = "ingot"', 'model_type = "foreign"'))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "foreign"}))
    assert "--model.trust_remote_code=true" in refusal(copy)
    assert not marker.exists()
    assert load_model(copy, trust_remote_code=True).context_length == 96
    assert marker.exists()


def test_dtype(model_path: Path) -> None:
    assert load_model(model_path).model.dtype == torch.float32
    if not torch.cuda.is_available():
        assert "cannot be put on cuda (model.device)" in refusal(model_path, device="cuda")
    assert load_model(model_path, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
