"""Checkpoints of every strategy become Hub folders of equal logits; damaged ones are refused in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from ingot.export import convert
from ingot.export.convert import checkpoint_to_hub, is_checkpoint
from ingot.export.export import ExportRecipe, run
from ingot.files import write_checksums
from ingot.loading import load_model, load_tokenizer
from ingot.recipe import InputError, build_recipe

from .conftest import make_model, save_hub

ROOT = Path(__file__).parent.parent.parent
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"

# Each of two processes holds half of a model, as in FSDP2, makes a step, and saves what Accelerate would, sharded and
# whole.
PROGRAM = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from ingot.training.callbacks import _is_sharded
from ingot.training.lion import Lion
from tests.export.conftest import make_model


def train(folder, tied):
    model, twin = make_model(tie_word_embeddings=tied), make_model(tie_word_embeddings=tied)
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh)
    assert _is_sharded(model) and not _is_sharded(twin)
    ids = torch.arange(24).reshape(2, 12)
    for one in (model, twin):
        optimizer = Lion(one.parameters(), lr=0.01, weight_decay=0.1)
        one(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    sharded = {"model": get_model_state_dict(model)}
    dcp.save(sharded, storage_writer=dcp.FileSystemWriter(folder / "pytorch_model_fsdp_0"))
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        torch.save(whole, folder / "pytorch_model_fsdp.bin")
        for name, tensor in twin.state_dict().items():
            # a gradient near zero may change its sign with the order of a sum
            assert (whole[name] - tensor).abs().gt(1e-6).float().mean() < 0.01, name


folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
for name in ("tied", "untied"):
    train(folder / name, name == "tied")
dist.destroy_process_group()
"""


class Sharded(NamedTuple):
    """What FSDP2 left, and the logits of the model."""

    folder: Path
    tied: bool
    logits: torch.Tensor


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of fixed tokens: (2, 12, V)."""
    return model(input_ids=torch.arange(24).reshape(2, 12)).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tied` and `untied`, two models that two processes trained in shards."""
    folder = tmp_path_factory.mktemp("fsdp")
    for name in ("tied", "untied"):
        (folder / name).mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), str(rank)], env=environment, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return folder


@pytest.fixture(params=["tied", "untied"])
def sharded(request: pytest.FixtureRequest, trained: Path) -> Sharded:
    """One of them."""
    folder, tied = trained / request.param, request.param == "tied"
    model = make_model(tie_word_embeddings=tied)
    model.load_state_dict(torch.load(folder / "pytorch_model_fsdp.bin", weights_only=True))
    return Sharded(folder, tied, logits(model))


def checkpoint_of(sharded: Sharded, kind: str, folder: Path) -> Path:
    """A checkpoint with one kind of weights, as Ingot leaves it."""
    checkpoint = save_hub(folder / "checkpoint-5", make_model(tie_word_embeddings=sharded.tied))
    (checkpoint / "model.safetensors").unlink()
    source = sharded.folder / kind
    if source.is_dir():
        shutil.copytree(source, checkpoint / kind)
    else:
        shutil.copyfile(source, checkpoint / kind)
    write_checksums(checkpoint)
    return checkpoint


def plain_checkpoint(folder: Path) -> Path:
    """A checkpoint as one process or DDP leaves it."""
    checkpoint = save_hub(folder / "run/checkpoint-12", make_model())
    (checkpoint / "optimizer.pt").write_bytes(b"large")
    write_checksums(checkpoint)
    return checkpoint


def export(source: Path, run_dir: Path) -> dict[str, Any]:
    """Runs the stage."""
    return run(build_recipe(ExportRecipe, {"run": {"from": str(source), "dir": str(run_dir)}, "card": {}}))


@pytest.mark.parametrize("kind", [convert.FSDP_SHARDED, convert.FSDP_WHOLE])
def test_fsdp2_checkpoints_become_equal_models(kind: str, sharded: Sharded, tmp_path: Path) -> None:
    hub = checkpoint_to_hub(checkpoint_of(sharded, kind, tmp_path), tmp_path / "hub")
    model = load_model(hub)
    assert torch.equal(logits(model), sharded.logits)
    assert model.config.tie_word_embeddings is sharded.tied and str(model.dtype) == "torch.float32"
    assert (HEAD in load_file(hub / "model.safetensors")) is not sharded.tied
    assert not list(hub.glob("*fsdp*")) and load_tokenizer(hub)("free")["input_ids"]


def test_a_lost_shard_is_named(sharded: Sharded, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(sharded, convert.FSDP_SHARDED, tmp_path)
    (checkpoint / convert.FSDP_SHARDED / "__1_0.distcp").unlink()
    with pytest.raises(InputError, match=r"run\.from: .*__1_0\.distcp is missing; name another checkpoint"):
        checkpoint_to_hub(checkpoint, tmp_path / "hub")
    write_checksums(checkpoint)  # as if it had never been there
    with pytest.raises(InputError, match="torch cannot put it together: ") as caught:
        checkpoint_to_hub(checkpoint, tmp_path / "hub")
    assert "\n" not in str(caught.value)


def test_an_export_of_a_plain_checkpoint_is_proved_equal(tmp_path: Path) -> None:
    checkpoint = plain_checkpoint(tmp_path)
    results = export(checkpoint, tmp_path / "export")
    assert results["max_logit_difference"] == 0.0
    assert torch.equal(logits(load_model(tmp_path / "export")), logits(make_model()))
    names = {p.name for p in (tmp_path / "export/model").iterdir()}
    assert "optimizer.pt" not in names and {"README.md", "checksums.json"} <= names
    assert not (tmp_path / "export/.checkpoint").exists()


def test_a_changed_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = plain_checkpoint(tmp_path)
    (checkpoint / "optimizer.pt").write_bytes(b"larger")
    with pytest.raises(InputError, match=r"run\.from: .*optimizer\.pt is not as it was written .*; name another"):
        export(checkpoint, tmp_path / "export")
    (checkpoint / "checksums.json").unlink()
    with pytest.raises(InputError, match=r"checksums\.json is missing"):
        export(checkpoint, tmp_path / "other")


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    checkpoint = plain_checkpoint(tmp_path)
    (checkpoint / "model.safetensors").unlink()
    write_checksums(checkpoint)
    with pytest.raises(InputError, match="no weights here"):
        checkpoint_to_hub(checkpoint, tmp_path / "hub")


def test_zero_that_lost_a_part_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    checkpoint = plain_checkpoint(tmp_path)
    (checkpoint / "latest").write_text("global_step12")
    write_checksums(checkpoint)
    with pytest.raises(InputError, match="DeepSpeed cannot put it together: Directory .*global_step12"):
        checkpoint_to_hub(checkpoint, tmp_path / "hub")


def test_a_tied_weight_that_is_no_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = plain_checkpoint(tmp_path)
    tensors = {name: t.clone() for name, t in make_model().state_dict().items()}
    monkeypatch.setattr(convert, "read_weights", lambda folder: tensors)
    assert torch.equal(logits(load_model(checkpoint_to_hub(checkpoint, tmp_path / "hub"))), logits(make_model()))
    tensors[HEAD] = tensors[HEAD] + 1
    with pytest.raises(InputError, match=f"{HEAD} is tied to {TABLE} but differs from it"):
        checkpoint_to_hub(checkpoint, tmp_path / "hub")
    del tensors[HEAD], tensors["model.norm.weight"]
    with pytest.raises(InputError, match=r"model\.norm\.weight is missing from the weights"):
        checkpoint_to_hub(checkpoint, tmp_path / "hub")


def test_checkpoints_are_known_by_their_name() -> None:
    assert is_checkpoint(Path("runs/x/checkpoint-12")) and not is_checkpoint(Path("runs/x/checkpoint-best"))
