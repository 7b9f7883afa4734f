"""Who may import whom, read from the source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {
    "alone", "changed_recipe", "failures", "files", "logs", "hashing", "records", "recipe", "recipe_yaml",
    "recipe_errors", "sections", "upstream", "runs", "plots", "loading", "vocabulary", "integrity", "weights",
    "pickles", "config_file", "tokenizer_files",
}  # fmt: skip
STAGES = {"planning", "tokenization", "data", "training", "evaluation", "export", "serving", "search"}
# stage -> the other stages that it may use
MAY_USE = {
    "training": {"data", "tokenization"},
    "search": {"training"},
    "data": {"tokenization"},
    "tokenization": {"data"},
}
# rooms that run whole stages: the chain, measurements, proofs, and the doctor, whose self-test makes a toy model
ABOVE_STAGES = ("chain", "benchmark", "faults", "doctor")
# third-party package -> the folders that own it
OWNERS = {
    "trl": {"training"}, "peft": {"training"}, "deepspeed": {"training", "export"}, "lm_eval": {"evaluation"},
    "gradio": {"serving"}, "fastapi": {"serving"}, "uvicorn": {"serving"}, "datatrove": {"data", "benchmark"},
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any level."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def sources(folder: str) -> list[Path]:
    """The Python files below a folder."""
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources("modeling"), ids=lambda p: p.name)
def test_modeling_is_flat_and_imports_torch_and_transformers_alone(path: Path) -> None:
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    assert path.parent == ROOT / "modeling"
    for name in imports(path):
        assert name.startswith(".") and not name.startswith("..") or name.split(".")[0] in allowed, name


@pytest.mark.parametrize("path", sources("ingot"), ids=lambda p: str(p.relative_to(ROOT)))
def test_stages_keep_to_themselves(path: Path) -> None:
    room = path.relative_to(ROOT / "ingot").parts[0].removesuffix(".py")
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in OWNERS:
            assert room in OWNERS[parts[0]], f"{room} imports {name}"
        if parts[0] == "scripts" or name.startswith("ingot.cli") and room not in ABOVE_STAGES:
            raise AssertionError(f"{room} imports {name}")
        if parts[0] != "ingot" or len(parts) < 2 or room not in STAGES:
            continue
        target = parts[1]
        assert target in SHARED | {room, "planning"} | MAY_USE.get(room, set()), f"{room} imports {name}"


@pytest.mark.parametrize("path", sources("ingot"), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno < 60, f"{node.name} is too long"


def test_the_shared_modules_import_no_stage() -> None:
    for name in SHARED:
        for imported in imports(ROOT / "ingot" / f"{name}.py"):
            assert imported.split(".")[:1] != ["ingot"] or imported.split(".")[1] in SHARED, f"{name}: {imported}"
