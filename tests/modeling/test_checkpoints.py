"""A saved folder is complete: it loads without Ingot, keeps its code when saved again, and its ties."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import modeling

Make = Callable[..., Any]
PROJECT = Path(modeling.__file__).parents[1]
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "learned": {"position_embedding_type": "learned"},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
LOAD = """
import sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
try:
    import modeling
    sys.exit("the project is importable: this proves nothing")
except ModuleNotFoundError:
    pass
before, after = map(Path, sys.argv[1:])
for folder in sorted(path for path in before.iterdir() if path.is_dir()):
    wanted = torch.load(before.parent / f"{folder.name}.pt")
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "ingot"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    assert torch.equal(model(wanted["ids"]).logits, wanted["logits"])
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tied is model.config.tie_word_embeddings
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(base(wanted["ids"]).last_hidden_state, wanted["hidden"])
    model.save_pretrained(after / folder.name)
    print("loaded", folder.name)
"""


def load_elsewhere(before: Path, after: Path) -> None:
    """Load the folders in `before` in a fresh interpreter that cannot see the project, and save them to `after`."""
    workdir = before.parent / "elsewhere"
    workdir.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(workdir), "OMP_NUM_THREADS": "1"}
    # an editable install would put the project back on the path: -S leaves .pth files unread
    packages = [path for path in sys.path if path != str(PROJECT) and Path(path, "transformers").is_dir()]
    packages += [path for path in sys.path if path.endswith("site-packages")]
    environment["PYTHONPATH"] = os.pathsep.join(packages)
    command = [sys.executable, "-S", "-c", LOAD, str(before), str(after)]
    run = subprocess.run(command, cwd=workdir, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    loaded = [line.split()[1] for line in run.stdout.splitlines() if line.startswith("loaded")]
    assert loaded == sorted(VARIANTS)


def test_loads_in_a_clean_process_also_after_saving_again(tiny: Make, tokens: Make, tmp_path: Path) -> None:
    ids = tokens(2, 9)
    for name, changes in VARIANTS.items():
        model = tiny(**changes)
        with torch.no_grad():
            wanted = {"ids": ids, "logits": model(ids).logits, "hidden": model.model(ids).last_hidden_state}
        torch.save(wanted, tmp_path / f"{name}.pt")
        model.save_pretrained(tmp_path / "first" / name)
    load_elsewhere(tmp_path / "first", tmp_path / "second")
    load_elsewhere(tmp_path / "second", tmp_path / "third")


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
def test_every_save_carries_the_code_and_the_map(tiny: Make, tmp_path: Path, auto: Any) -> None:
    tiny().save_pretrained(tmp_path / "first")
    auto.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    source = Path(modeling.__file__).parent
    for name in ("configuration_ingot.py", "modeling_ingot.py"):
        assert (tmp_path / "second" / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((tmp_path / "second/config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_ingot.IngotConfig",
        "AutoModel": "modeling_ingot.IngotModel",
        "AutoModelForCausalLM": "modeling_ingot.IngotForCausalLM",
    }


def test_in_this_process_no_trust_is_needed(tiny: Make, tokens: Make, kind: dict[str, Any], tmp_path: Path) -> None:
    model, ids = tiny(**kind), tokens(2, 9)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is modeling.IngotForCausalLM
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_modeling_imports_only_torch_and_transformers() -> None:
    import ast

    source = Path(modeling.__file__).parent
    allowed = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    for file in source.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 or str(node.module).split(".")[0] in allowed, file
    assert sorted(file.name for file in source.glob("*.py")) == [
        "__init__.py",
        "configuration_ingot.py",
        "modeling_ingot.py",
    ]
