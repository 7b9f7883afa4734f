"""Muon with AdamW: torch's own Muon and AdamW step for step, and the same under ZeRO's flat slices."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ingot.planning.optimizers import MUON_CHUNK
from ingot.training import optim
from ingot.training.optim import MuonFactory, MuonWithAdamW, orthogonalize, parameter_groups
from modeling import IngotConfig, IngotForCausalLM

OPTIONS: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "betas": (0.9, 0.95), "eps": 1e-8}


def tiny_model(**config: Any) -> IngotForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return IngotForCausalLM(IngotConfig(vocab_size=128, num_key_value_heads=1, **{**sizes, **config}))


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16), (3, 24, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape) * 1e-3
    result = orthogonalize(matrix, dtype=dtype)
    assert result.shape == matrix.shape and result.dtype == matrix.dtype
    found = torch.linalg.svdvals(result)
    assert found.min() > 0.3 and found.max() < 1.3 and 0.7 < found.mean() < 1.1
    assert found.max() / found.min() < torch.linalg.svdvals(matrix).max() / torch.linalg.svdvals(matrix).min()


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(12, 12))[0], torch.linalg.qr(torch.randn(12, 12))[0]
    matrix = u @ torch.diag(torch.linspace(0.5, 1.5, 12)) @ v.T
    turned = u.T @ orthogonalize(matrix, dtype=torch.float32) @ v  # diagonal when the vectors are kept
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-5
    assert turned.diagonal().min() > 0.6


@pytest.mark.parametrize("chunk", [1, 800])
def test_a_bounded_number_of_matrices_at_a_time_gives_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    twin = copy.deepcopy(model)
    for module, size in ((model, optim.CHUNK), (twin, chunk)):
        monkeypatch.setattr(optim, "CHUNK", size)
        give_gradients(module, 0)
        MuonFactory()(module, 0.1, dtype=torch.float32, **OPTIONS).step()
    expected = values(model)
    assert all((value - expected[name]).abs().max() < 1e-6 for name, value in values(twin).items())


def test_the_planner_knows_how_many_matrices_are_taken_at_a_time() -> None:
    assert optim.CHUNK == MUON_CHUNK


def test_a_gradient_of_zero_gives_no_update() -> None:
    assert not orthogonalize(torch.zeros(4, 6)).any()


# bfloat16 keeps three digits, and five iterations of Newton-Schulz lose one of them
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_three_steps_equal_torchs_muon_and_adamw(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == torch.float32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's Muon knows only bfloat16
    model = tiny_model()
    start, twin = values(model), copy.deepcopy(model)
    ours = MuonFactory()(model, 0.1, dtype=dtype, **OPTIONS)
    matrices = [p for n, p in twin.named_parameters() if ".layers." in n and p.dim() == 2]
    tables = [p for n, p in twin.named_parameters() if "layers" not in n and p.dim() == 2]
    vectors = [p for p in twin.parameters() if p.dim() == 1]
    muon = torch.optim.Muon(
        matrices, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    groups = [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95), eps=1e-8)
    for step in range(3):
        for module in (model, twin):
            give_gradients(module, step)
        ours.step()
        muon.step()
        adamw.step()
    expected = values(twin)
    for name, value in values(model).items():
        if ".layers." in name and value.dim() == 2:
            moved = (expected[name] - start[name]).norm()
            assert (value - expected[name]).norm() < tolerance * moved, name
        else:
            assert torch.equal(value, expected[name]), name


def test_the_iteration_can_run_in_float32() -> None:
    model = tiny_model()
    twin = copy.deepcopy(model)
    steps = {}
    for module, dtype in ((model, torch.float32), (twin, torch.bfloat16)):
        optimizer = MuonFactory()(module, 0.0, dtype=dtype, **OPTIONS)
        before = values(module)
        give_gradients(module, 0)
        optimizer.step()
        name = "model.layers.0.mlp.up_proj.weight"
        steps[dtype] = values(module)[name] - before[name]
    gradient = dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"].grad
    assert gradient is not None
    # after one step the Nesterov update points along the gradient; 24 x 16: the scale is 0.2 * sqrt(24)
    exact = orthogonalize(gradient, dtype=torch.float32) * -0.02 * 0.2 * 24**0.5
    assert (steps[torch.float32] - exact).abs().max() < 1e-6
    assert 1e-6 < (steps[torch.bfloat16] - exact).abs().max() < 1e-3


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
        {"attention_bias": True, "position_embedding_type": "learned", "max_position_embeddings": 32},
    ],
)
def test_every_parameter_is_in_one_group(config: dict[str, Any]) -> None:
    model = tiny_model(**config)
    groups = parameter_groups(model, 0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            table = "embed" in name or "lm_head" in name
            assert group["matrices"] == (parameter.dim() == 2 and not table), name
            assert group["weight_decay"] == (0.0 if parameter.dim() == 1 else 0.1), name


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert id(model.model.embed_tokens.weight) not in grouped
    assert len(grouped) == len(list(model.parameters())) - 1


def test_parameters_without_a_gradient_stay() -> None:
    model = tiny_model()
    optimizer = MuonFactory()(model, 0.1, **OPTIONS)
    give_gradients(model, 0)
    still = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
    named = dict(model.named_parameters())
    for name in still:
        named[name].grad = None
    before = values(model)
    optimizer.step()
    changed = {name for name, value in values(model).items() if not torch.equal(value, before[name])}
    assert changed == set(before) - set(still)


def test_a_closure_gives_the_loss() -> None:
    model = tiny_model()
    give_gradients(model, 0)
    assert MuonFactory()(model, 0.1, **OPTIONS).step(lambda: 1.5) == 1.5


def test_a_loaded_state_continues_the_same() -> None:
    model = tiny_model(tie_word_embeddings=True)
    optimizer = MuonFactory()(model, 0.1, **OPTIONS)
    for step in range(2):
        give_gradients(model, step)
        optimizer.step()
    twin = copy.deepcopy(model)
    other = MuonFactory()(twin, 0.1, **OPTIONS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, 4):
        for module, used in ((model, optimizer), (twin, other)):
            give_gradients(module, step)
            used.step()
    expected = values(model)
    assert all(torch.equal(value, expected[name]) for name, value in values(twin).items())
    forgetful = copy.deepcopy(model)
    fresh = MuonFactory()(forgetful, 0.1, **OPTIONS)
    for module, used in ((model, optimizer), (forgetful, fresh)):
        give_gradients(module, 4)
        used.step()
    assert not torch.equal(values(model)["model.norm.weight"], values(forgetful)["model.norm.weight"])


class Slices:
    """What ZeRO-1/2 does: every group becomes one flat slice per process, laid end to end and padded."""

    def __init__(self, model: nn.Module, processes: int) -> None:
        self.processes = processes
        self.optimizers = [MuonFactory()(model, 0.1, dtype=torch.float32, **OPTIONS) for _ in range(processes)]
        self.groups = [list(g["params"]) for g in self.optimizers[0].param_groups]
        for rank, optimizer in enumerate(self.optimizers):
            for group, params in zip(optimizer.param_groups, self.groups, strict=True):
                group["params"] = [nn.Parameter(self.slice_of(params, rank))]

    def slice_of(self, tensors: list[Any], rank: int) -> Tensor:
        flat = torch.cat([t.detach().flatten() for t in tensors])
        size = -(-flat.numel() // self.processes)
        part = flat[rank * size : (rank + 1) * size]
        return nn.functional.pad(part, (0, size - part.numel())).clone()

    def step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One step of every process, with gradients sliced in the same way."""
        for optimizer_rank, optimizer in enumerate(self.optimizers):
            for group, params in zip(optimizer.param_groups, self.groups, strict=True):
                group["params"][0].grad = self.slice_of([p.grad for p in params], optimizer_rank)
        # what the other processes send: their momentum updates, which do not depend on ours
        sent = [self._update(optimizer) for optimizer in self.optimizers]
        for rank, optimizer in enumerate(self.optimizers):

            def all_gather(outputs: list[Tensor], own: Tensor, rank: int = rank) -> None:
                assert torch.allclose(own, sent[rank])
                for output, update in zip(outputs, sent, strict=True):
                    output.copy_(update)

            monkeypatch.setattr(torch.distributed, "get_world_size", lambda: self.processes)
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
            optimizer.step()

    @staticmethod
    def _update(optimizer: MuonWithAdamW) -> Tensor:
        (group,) = (g for g in optimizer.param_groups if g["matrices"])
        (param,) = group["params"]
        buffer = optimizer.state[param].get("momentum_buffer", torch.zeros_like(param))
        return torch.lerp(param.grad, torch.lerp(buffer, param.grad, 0.1), 0.9)

    def whole(self, index: int) -> Tensor:
        """A group laid end to end, with the padding."""
        return torch.cat([o.param_groups[index]["params"][0].detach() for o in self.optimizers])


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_slices_of_zero_give_the_result_of_whole_matrices(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(hidden_size=10, intermediate_size=9, head_dim=5 * 2)
    sliced = Slices(copy.deepcopy(model), processes)
    whole = MuonFactory()(model, 0.1, dtype=torch.float32, **OPTIONS)
    for step in range(3):
        give_gradients(model, step)
        for params, group in zip(sliced.groups, whole.param_groups, strict=True):
            for parameter, twin in zip(params, group["params"], strict=True):
                parameter.grad = twin.grad
        whole.step()
        sliced.step(monkeypatch)
    for index, group in enumerate(whole.param_groups):
        expected = torch.cat([p.detach().flatten() for p in group["params"]])
        found = sliced.whole(index)
        assert (found[: len(expected)] - expected).abs().max() < 1e-6
        assert not found[len(expected) :].any()  # the padding stays zero


def test_the_shapes_survive_a_saved_state() -> None:
    model = tiny_model()
    optimizer = MuonFactory()(model, 0.1, **OPTIONS)
    shapes = [list(g["shapes"]) for g in optimizer.param_groups]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [list(g["shapes"]) for g in optimizer.param_groups] == shapes


@pytest.mark.gpu
def test_on_a_gpu_adamws_part_is_the_fused_one_and_continues_from_a_state_on_the_cpu() -> None:
    model = tiny_model().cuda()
    twin = copy.deepcopy(model)
    ours = MuonFactory()(model, 0.1, **OPTIONS)
    tables = [p for n, p in twin.named_parameters() if "layers" not in n and p.dim() == 2]
    adamw = torch.optim.AdamW(tables, lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    for step in range(3):
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)).cuda()
            other.grad = parameter.grad.clone()
        ours.step()
        adamw.step()
        saved = ours.state_dict()
        for state in saved["state"].values():
            state.update({key: value.cpu() for key, value in state.items()})
        ours.load_state_dict(saved)
    expected = values(twin)
    for name, value in values(model).items():
        if "layers" not in name and value.dim() == 2:
            assert torch.equal(value, expected[name]), name
