"""Lion: a step written by hand, its groups, and what flat slices and chunks must not change."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ingot.planning.architecture import architecture_of_config
from ingot.planning.optimizers import find_optimizer, state_bytes, step_bytes
from ingot.planning.recipe_setup import setup_of_recipe
from ingot.recipe import InputError
from ingot.training import lion
from ingot.training.lion import Lion
from ingot.training.pretrain_loop import optimizer_for

from .conftest import Pretrain
from .pretrain_toys import pretrain_recipe
from .test_optim import give_gradients, tiny_model, values


def test_two_steps_are_those_of_the_paper() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    weight.grad = torch.tensor([0.3, -0.2, 0.0])
    optimizer.step()
    # the mix is 0.1 g: its sign; then 1 - 0.1 * 0.5 of the weight is left
    assert weight.detach() == pytest.approx(torch.tensor([0.95 - 0.1, -1.9 + 0.1, 2.85]))
    assert optimizer.state[weight]["exp_avg"] == pytest.approx(torch.tensor([0.003, -0.002, 0.0]))
    weight.grad = torch.tensor([-0.01, 0.5, 1.0])
    optimizer.step()
    # 0.9 * 0.003 - 0.1 * 0.01 = 0.0017 > 0: the momentum wins over a small gradient
    moved = torch.tensor([0.95 * 0.85 - 0.1, 0.95 * -1.8 - 0.1, 0.95 * 2.85 - 0.1])
    assert weight.detach() == pytest.approx(moved)
    assert optimizer.state[weight]["exp_avg"] == pytest.approx(torch.tensor([0.00287, 0.00302, 0.01]))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_and_flat_slices_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = tiny_model(), tiny_model()
    whole = Lion(model.parameters(), lr=0.01, weight_decay=0.1)
    flat = [torch.nn.Parameter(p.detach().flatten().clone()) for p in twin.parameters()]
    sliced = Lion(flat, lr=0.01, weight_decay=0.1)
    for step in range(3):
        give_gradients(model, step)
        for parameter, piece in zip(model.parameters(), flat, strict=True):
            assert parameter.grad is not None
            piece.grad = parameter.grad.flatten()
        whole.step()
        monkeypatch.setattr(lion, "CHUNK", chunk)
        sliced.step()
        monkeypatch.undo()
    for parameter, piece in zip(model.parameters(), flat, strict=True):
        assert torch.equal(parameter.detach().flatten(), piece.detach())


def test_a_scalar_and_a_weight_without_gradient_are_no_trouble() -> None:
    scalar, idle = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.ones(2))
    scalar.grad = torch.tensor(2.0)
    optimizer = Lion([scalar, idle], lr=0.5)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert scalar.item() == 0.5 and idle.tolist() == [1.0, 1.0] and idle not in optimizer.state


def test_vectors_are_not_decayed(corpus: Path, tmp_path: Path) -> None:
    recipe = pretrain_recipe(corpus, tmp_path, run__optimizer="lion", training__adam_beta2=None)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, weight_decay=0.1, learning_rate=0.01)
    model = tiny_model(attention_bias=True, position_embedding_type="learned", max_position_embeddings=32)
    chosen = optimizer_for(recipe, arguments)
    assert chosen == (Lion, {"lr": 0.01, "betas": (0.9, 0.99)})  # the paper's, not AdamW's 0.999
    optimizer = Trainer(model=model, args=arguments, optimizer_cls_and_kwargs=chosen).create_optimizer()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.dim() == 1 else 0.1), name


def test_a_run_with_lion_learns_and_keeps_one_state(pretrain: Pretrain) -> None:
    options: dict[str, Any] = {"run__optimizer": "lion", "training__learning_rate": 3e-3}
    folder, results = pretrain("lion", **options)
    assert results["heldout_loss"] < 5.5  # from 5.95, that of guessing
    state = torch.load(folder / "checkpoint-12/optimizer.pt", weights_only=True)
    assert all(set(entry) == {"exp_avg"} for entry in state["state"].values())


def test_an_epsilon_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.adam_epsilon: leave it out; lion takes the sign"):
        pretrain_recipe(corpus, tmp_path, run__optimizer="lion", training__adam_epsilon=1e-6)
    with pytest.raises(InputError, match=r"run\.optimizer: also training\.optim is set"):
        pretrain_recipe(corpus, tmp_path, run__optimizer="lion", training__optim="lion_32bit")


def test_gradients_in_place_are_left_alone() -> None:
    model = tiny_model()
    give_gradients(model, 0)
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    start = values(model)
    Lion(model.parameters(), lr=0.01).step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, before[name]), name
        assert (parameter.detach() - start[name]).abs().max() == pytest.approx(0.01, rel=1e-3)


def test_the_planner_counts_one_state(corpus: Path, tmp_path: Path) -> None:
    recipe = pretrain_recipe(corpus, tmp_path, run__optimizer="lion", training__bf16=True)
    setup = setup_of_recipe(recipe)
    assert setup.optimizer == "lion"
    architecture = architecture_of_config(tiny_model().config)
    optimizer = find_optimizer(setup.optimizer)
    assert state_bytes(optimizer, architecture, architecture.total) == 4 * architecture.total
    assert step_bytes(optimizer, architecture, architecture.total, full=True) == 0  # chunks of 64 MB
