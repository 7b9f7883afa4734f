"""Python code that comes with a folder never runs unless the user says so, whichever command opens the folder."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot.cli import command
from ingot.faults.toys import finetune_tree, make_start, write_rows
from ingot.recipe import InputError
from ingot.recipe_yaml import dump_yaml

TRAINING = {"use_cpu": True, "max_steps": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub folder of a random model."""
    return make_start(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that foreign code would write; code that is copied to transformers' cache stays below the test."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))  # the answer that transformers' prompt waits for
    return tmp_path / "ran"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def canary(folder: Path, marker: Path, name: str) -> None:
    """Puts a Python file into the folder that shows when it was run."""
    (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Any: pass\n")


def foreign_model(folder: Path, marker: Path) -> None:
    canary(folder, marker, "evil")
    names = {"AutoConfig": "evil.Any", "AutoModel": "evil.Any", "AutoModelForCausalLM": "evil.Any"}
    edit_json(folder / "config.json", model_type="evil", auto_map=names)


def foreign_tokenizer(folder: Path, marker: Path) -> None:
    canary(folder, marker, "evil")
    names = {"AutoTokenizer": ["evil.Any", "evil.Any"]}
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map=names)


def code_elsewhere(folder: Path, marker: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    canary(elsewhere, marker, "evil")
    edit_json(folder / "config.json", auto_map={"AutoConfig": f"{elsewhere}--evil.Any"})


def kernel(folder: Path, marker: Path) -> None:
    edit_json(folder / "config.json", _attn_implementation="someone/attention")


def own_code_changed(folder: Path, marker: Path) -> None:
    for name in ("configuration_ingot.py", "modeling_ingot.py"):
        text = (folder / name).read_text()
        (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\n{text}")


def commands(folder: Path, top: Path) -> dict[str, list[str]]:
    """For every stage that opens a model, the words that open this one."""
    training = TRAINING | {"assistant_only_loss": True}
    trees: dict[str, Any] = {
        "sft": finetune_tree(top / "sft", folder, write_rows(top / "rows.jsonl"), training),
        "dpo": finetune_tree(top / "dpo", folder, top / "rows.jsonl", TRAINING),
        "export": {"run": {"from": str(folder), "dir": str(top / "export")}},
    }
    words = {"chat": ["chat", str(folder), f"--run.dir={top / 'chat'}", "--model.device=cpu"]}
    words["inspect"] = ["inspect", "tokenizer", str(folder)]
    words["serve"] = ["serve", str(folder), f"--run.dir={top / 'serve'}", "--run.port=0"]
    for stage, tree in trees.items():
        (top / f"{stage}.yaml").write_text(dump_yaml(tree))
        words[stage] = [stage, "--config", str(top / f"{stage}.yaml")]
    return words


STAGES = ("chat", "serve", "export", "sft", "dpo")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("plant", [foreign_model, foreign_tokenizer, code_elsewhere, kernel])
def test_foreign_code_is_refused_by_name(
    plant: Callable[[Path, Path], None], stage: str, start: Path, marker: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(start, tmp_path / "model"))
    plant(folder, marker)
    with pytest.raises(InputError, match=r"\.json: .*trust_remote_code=true") as caught:
        command(commands(folder, tmp_path)[stage])
    assert "\n" not in str(caught.value) and not marker.exists()


def test_evaluation_and_inspection_run_none_either(start: Path, marker: Path, tmp_path: Path) -> None:
    from ingot.evaluation.evaluate import load_model, load_tokenizer

    folder = Path(shutil.copytree(start, tmp_path / "model"))
    foreign_model(folder, marker)
    for load in (load_model, load_tokenizer):
        with pytest.raises(InputError, match="trust_remote_code"):
            load(folder)
    foreign_tokenizer(folder, marker)
    with pytest.raises(InputError, match="trust_remote_code"):
        command(commands(folder, tmp_path)["inspect"])
    assert not marker.exists()


def test_the_code_beside_an_ingot_model_is_not_what_runs(start: Path, marker: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(start, tmp_path / "model"))
    own_code_changed(folder, marker)
    for words in ("--model.trust_remote_code=false", "--model.trust_remote_code=true"):
        command([*commands(folder, tmp_path)["chat"], words])
    assert not marker.exists()


def test_an_export_does_not_send_readers_to_foreign_code(start: Path, marker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=0, pad_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)
    canary(folder, marker, "evil")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.Any", "AutoModelForCausalLM": "evil.Any"})
    command(commands(folder, tmp_path)["export"])
    assert "auto_map" not in json.loads((tmp_path / "export/model/config.json").read_text())
    assert not (tmp_path / "export/model/evil.py").exists() and not marker.exists()
