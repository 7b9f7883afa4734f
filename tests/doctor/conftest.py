"""An interrupted toy run, copied for every test that wants to break it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingot.faults.toys import make_corpus, pretrain_tree
from ingot.recipe import build_recipe

from ..training.conftest import same_environment  # noqa: F401 - fixture


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `tokenizer`, `shards` and the finished run `pretrain`."""
    from ingot.training import pretrain_loop
    from ingot.training.pretrain import PretrainRecipe, run

    folder = make_corpus(tmp_path_factory.mktemp("toy"))
    plot, pretrain_loop.plot_loss = pretrain_loop.plot_loss, lambda *args: None
    try:
        run(build_recipe(PretrainRecipe, pretrain_tree(folder, folder / "pretrain")))
    finally:
        pretrain_loop.plot_loss = plot
    return folder


@pytest.fixture
def complete(finished: Path) -> Iterator[Path]:
    """The finished run; what a test does to it is undone."""
    run, kept = finished / "pretrain", finished / "kept"
    shutil.copytree(run, kept)
    yield run
    shutil.rmtree(run)
    kept.rename(run)


@pytest.fixture
def interrupted(complete: Path) -> Path:
    """The run as a crash after step 10 would have left it: a checkpoint of step 8, and metrics beyond."""
    (complete / "manifest.json").unlink()
    shutil.rmtree(complete / "model")
    shutil.rmtree(complete / "checkpoint-12")
    lines = (complete / "metrics.jsonl").read_text().splitlines(keepends=True)
    (complete / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 10))
    return complete
