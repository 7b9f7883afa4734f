"""A tiny corpus for every test, one that trains on it, and an environment that is left as it was."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from .pretrain_toys import make_corpus, pretrain_recipe

Pretrain = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Training sets environment variables and takes signals; what follows should not see it."""
    variables = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    os.environ.clear()
    os.environ.update(variables)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards and their tokenizer."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def pretrain(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretrain]:
    """Pretrains without a plot: (name of the run, `section__key=value` changes) -> (run folder, results)."""
    from ingot.training import pretrain_loop
    from ingot.training.pretrain import run

    monkeypatch.setattr(pretrain_loop, "plot_loss", lambda *args: None)
    gc.freeze()  # the trainer collects garbage after every run, and what is imported is much to look through

    def pretrain(name: str = "pretrain", **changes: Any) -> tuple[Path, dict[str, Any]]:
        return tmp_path / name, run(pretrain_recipe(corpus, tmp_path / name, **changes))

    yield pretrain
    gc.unfreeze()


@pytest.fixture
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """The tensors of a finished run's model."""
    from safetensors.torch import load_file

    return lambda folder: load_file(folder / "model/model.safetensors")
