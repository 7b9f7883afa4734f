"""Memory of a training step: parts that are exact, how strategies share them, what grows and shrinks, what fits."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingot.benchmark.memory_cases import Case
from ingot.planning.architecture import Architecture, Sizes, architecture_of_config
from ingot.planning.memory import (
    MemoryEstimate,
    TrainingSetup,
    estimate_memory,
    inference_memory,
    setup_of_recipe,
    strategy_of,
)
from ingot.planning.optimizers import OPTIMIZERS
from ingot.recipe_yaml import InputError

GIB = 2**30
H200 = 150_110_000_000
FLAGSHIP = Sizes(
    vocab_size=151_936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=24, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128,
).architecture()  # fmt: skip
SMALL_CARD = Sizes(
    vocab_size=151_936, hidden_size=1536, intermediate_size=7680, num_hidden_layers=12, num_attention_heads=24,
    num_key_value_heads=6, head_dim=64, tie_word_embeddings=True,
).architecture()  # fmt: skip
MIXTURE = Sizes(
    vocab_size=32_768, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
    num_key_value_heads=4, head_dim=64, tie_word_embeddings=True, num_experts=16, num_experts_per_tok=4,
    moe_intermediate_size=512,
).architecture()  # fmt: skip
STEP = TrainingSetup(micro_batch=8, seq_length=2048)


def estimate(setup: TrainingSetup, architecture: Architecture = FLAGSHIP, memory: int = H200) -> MemoryEstimate:
    return estimate_memory(architecture, setup, memory)


def test_flagship_by_hand() -> None:
    # 24 layers, 16,384 tokens of 8 packed blocks, bf16 autocast over float32 weights, loss in chunks
    n, d, f, heads, groups, w, v = 16_384, 2048, 6144, 16, 8, 128, 151_936
    norms = 2 * (2 * n * d + 4 * n) + 2 * n * (heads + groups) * w + 4 * n * (heads + groups)
    attention = 2 * n * 2 * (heads + groups) * w + 4 * n * heads
    layer = norms + 2 * 2 * n * d + attention + 4 * 2 * n * f
    head = 2 * 8192 * v + 4 * v * d + 2 * v * d + 6 * n * d  # a chunk, gradient, copy; hidden states and gradient
    matrices = 24 * (2 * d * heads * w + 2 * d * groups * w + 3 * d * f)
    batch = 4 * 8 * n + 4 * n * w
    expected = 12 * FLAGSHIP.total + 24 * layer + (2 * n * d + 4 * n) + 2 * matrices + head + batch + 2 * 32 * 2**20
    found = estimate(STEP)
    assert found.moment == "loss"
    assert found.peak_bytes == expected
    # compiled layers make the activation again
    assert estimate(replace(STEP, compiled=True)).peak_bytes == expected - 24 * 2 * n * f


@pytest.mark.parametrize(
    ("micro_batch", "changes", "gib"),
    [
        (16, {}, 79.9), (24, {}, 106.4), (32, {}, 132.9), (16, {"compiled": False}, 88.9),
        (24, {"precision": "fp8"}, 84.0), (32, {"precision": "fp8"}, 103.0),
        (24, {"strategy": "zero1", "num_gpus": 8}, 89.1), (24, {"strategy": "fsdp2", "num_gpus": 8}, 86.9),
        (24, {"strategy": "zero1", "num_gpus": 8, "precision": "fp8"}, 69.5),
        (24, {"strategy": "fsdp2", "num_gpus": 8, "precision": "fp8"}, 67.3),
    ],
)  # fmt: skip
def test_what_was_measured_on_h200s(micro_batch: int, changes: dict[str, Any], gib: float) -> None:
    setup = replace(STEP, micro_batch=micro_batch, packed=False, compiled=True)
    assert estimate(replace(setup, **changes)).peak_bytes / GIB == pytest.approx(gib, rel=0.015)


CARD: dict[str, Any] = {"optimizer": "adamw_torch_8bit", "gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("case", "gib"),
    [
        (Case("500m-8gb", 2, 1024, gradient_accumulation_steps=128, **CARD), 5.359),
        (Case("730m-12gb", 8, 384, gradient_accumulation_steps=64, **CARD), 8.696),
        (Case("1b5-24gb", 4, 1024, gradient_accumulation_steps=64, **CARD), 16.726),
        (Case("moe-small", 32, 1024, packed=False), 19.58),
        (Case("moe-small", 64, 1024, packed=False), 33.37),
        (Case("1b8", 4, 8192, gradient_checkpointing=True), 28.82),
        (Case("1b8", 1, 32768, gradient_checkpointing=True), 28.82),
    ],
)
def test_what_recipes_took_on_an_h200(case: Case, gib: float) -> None:
    memory = {"500m-8gb": 7_500_000_000, "730m-12gb": 11_500_000_000, "1b5-24gb": 23_000_000_000}.get(case.model, H200)
    found = estimate_memory(architecture_of_config(case.config), case.setup, memory)
    assert found.peak_bytes / GIB == pytest.approx(gib, rel=0.02)


def test_parts_add_up_and_classic_ones_are_exact() -> None:
    found = estimate(STEP)
    assert found.peak_bytes == sum(found.by_part.values()) == found.moments[found.moment]
    parameters = 1_830_395_904
    assert found.totals["weights"] == found.totals["gradients"] == 4 * parameters
    assert found.totals["optimizer_states"] == 8 * parameters
    assert max(found.moments.values()) == found.peak_bytes


@pytest.mark.parametrize(
    ("name", "bytes_per_parameter"),
    [
        ("adamw_torch_fused", 8), ("adamw", 8), ("sgd", 0), ("lion_32bit", 4), ("adamw_torch_8bit", 2 + 8 / 256),
        ("adafactor", 0),
    ],
)  # fmt: skip
def test_optimizer_states(name: str, bytes_per_parameter: float) -> None:
    states = estimate(replace(STEP, optimizer=name)).totals["optimizer_states"]
    assert states == round(bytes_per_parameter * FLAGSHIP.total)


def test_bitsandbytes_keeps_the_token_table_in_float32() -> None:
    wide = estimate(replace(STEP, optimizer="adamw_8bit")).totals["optimizer_states"]
    narrow = estimate(replace(STEP, optimizer="adamw_torch_8bit")).totals["optimizer_states"]
    assert wide - narrow == pytest.approx((8 - 2 - 8 / 256) * 151_936 * 2048, abs=2)


def test_muon_keeps_one_moment_of_matrices_and_two_of_the_rest() -> None:
    tables = 2 * FLAGSHIP.input_embedding
    found = estimate(replace(STEP, optimizer="muon"))
    matrices = FLAGSHIP.total - tables - FLAGSHIP.parameters["norms"]
    assert found.totals["optimizer_states"] == 4 * matrices + 8 * (FLAGSHIP.total - matrices)
    held = 8 * FLAGSHIP.total + found.totals["optimizer_states"]
    assert held < found.moments["optimizer step"] < held + 1e9  # it takes a bounded number of matrices at a time


def test_paged_states_wait_in_the_cpu() -> None:
    found = estimate(replace(STEP, optimizer="paged_adamw_32bit"))
    assert found.totals["optimizer_states"] == 0
    assert found.offloaded_bytes == 8 * FLAGSHIP.total


@pytest.mark.parametrize(
    ("strategy", "shared"),
    [
        ("zero1", {"master_weights", "optimizer_states", "gradients"}),
        ("zero2", {"master_weights", "optimizer_states", "gradients"}),
        ("zero3", {"weights", "master_weights", "optimizer_states", "gradients"}),
        ("fsdp2", {"weights", "optimizer_states", "gradients"}),
        ("ddp", set()),
    ],
)
def test_strategies_share_their_parts(strategy: Any, shared: set[str]) -> None:
    one, eight = (estimate(replace(STEP, strategy=strategy, num_gpus=n)).totals for n in (1, 8))
    for part in ("weights", "master_weights", "gradients", "optimizer_states"):
        assert eight[part] == pytest.approx(one[part] / (8 if part in shared else 1), abs=1)


def test_deepspeed_keeps_two_bytes_and_float32_masters() -> None:
    totals = estimate(replace(STEP, strategy="zero1", num_gpus=8)).totals
    assert totals["weights"] == 2 * FLAGSHIP.total
    assert totals["master_weights"] == FLAGSHIP.total * 4 / 8
    assert totals["optimizer_states"] == FLAGSHIP.total * 8 / 8


def test_ddp_holds_every_gradient_twice() -> None:
    single, shared = estimate(STEP), estimate(replace(STEP, strategy="ddp", num_gpus=8))
    assert shared.peak_bytes - single.peak_bytes == 4 * FLAGSHIP.total


def test_offload_empties_the_gpu() -> None:
    plain, offloaded = (estimate(replace(STEP, strategy=s, num_gpus=8)) for s in ("zero3", "zero3_offload"))
    assert offloaded.totals["optimizer_states"] == offloaded.totals["master_weights"] == 0
    assert offloaded.offloaded_bytes >= (4 + 8) * FLAGSHIP.total // 8
    assert offloaded.peak_bytes < plain.peak_bytes


def test_checkpointing_keeps_one_row_per_layer_and_token() -> None:
    kept = estimate(replace(STEP, gradient_checkpointing=True)).totals["activations"]
    tokens = 8 * 2048
    inputs = 2 * tokens * 2048 * 25  # of 24 layers and the last norm
    batch = 8 * 4 * tokens + 2 * 2 * tokens * 128
    assert kept == inputs + batch + 4 * tokens
    assert estimate(STEP).totals["activations"] > 8 * kept


@pytest.mark.parametrize("architecture", [FLAGSHIP, SMALL_CARD, MIXTURE])
@pytest.mark.parametrize(
    "changes", [{}, {"gradient_checkpointing": True}, {"precision": "fp32"}, {"strategy": "fsdp2"}]
)
def test_grows_with_the_micro_batch_and_the_length(architecture: Architecture, changes: dict[str, Any]) -> None:
    for name, sizes in (("micro_batch", (1, 2, 4, 8)), ("seq_length", (256, 512, 1024))):
        peaks = [estimate(replace(STEP, **changes, **{name: size}), architecture).peak_bytes for size in sizes]
        assert peaks == sorted(peaks)


def test_packed_blocks_take_a_mask_in_float32_alone() -> None:
    length = 2048
    for precision, mask in (("bf16", 0), ("fp32", 24 * 4 * 8 * length**2 + 8 * length**2)):
        setups = [replace(STEP, packed=p, precision=precision) for p in (True, False)]  # type: ignore[arg-type]
        packed, whole = (estimate(setup).totals["activations"] for setup in setups)
        assert packed - whole == mask


def test_a_chunk_of_logits_is_cut_by_the_memory() -> None:
    small, large = (estimate(replace(STEP, micro_batch=m), memory=80 * GIB).totals["logits"] for m in (1, 8))
    assert small == 2 * 2048 * 151_936
    assert large == 2 * 4096 * 151_936  # the power of two below 80 GiB / 48 / (2 * 151,936)
    assert estimate(replace(STEP, loss_implementation="plain")).totals["logits"] == 12 * 8 * 2048 * 151_936


def test_precisions() -> None:
    fp32, bf16, fp8 = (estimate(replace(STEP, precision=p, compiled=True)) for p in ("fp32", "bf16", "fp8"))
    assert fp32.peak_bytes > bf16.peak_bytes > fp8.peak_bytes
    matrices = sum(m.parameters for layer in FLAGSHIP.layers for m in layer.matrices)
    made_again = 24 * 2 * 8 * 2048 * (2 * 2048 + 6144)  # normed states, product of gate and activation
    assert bf16.peak_bytes - fp8.peak_bytes == 2 * matrices + made_again - 2 * 8192 * 151_936


def test_adapters_train_little() -> None:
    full = replace(STEP, stage="sft", gradient_checkpointing=True)
    lora, qlora = (estimate(replace(full, adapter=a)) for a in ("lora", "qlora"))
    rank, d, kv, f = 16, 2048, 1024, 6144
    values = 24 * rank * ((d + d) * 2 + (d + kv) * 2 + (d + f) * 3)
    assert lora.totals["gradients"] == 4 * values
    assert lora.totals["weights"] == 4 * FLAGSHIP.total + 4 * values
    packed = sum(m.parameters for layer in FLAGSHIP.layers for m in layer.matrices)
    four_bit = 0.5 + 1 / 64 + 4 / (64 * 256)
    assert qlora.totals["weights"] == pytest.approx(lora.totals["weights"] - (4 - four_bit) * packed, abs=1)
    assert qlora.peak_bytes < lora.peak_bytes < estimate(full).peak_bytes


def test_reference_model_of_dpo_and_its_two_halves() -> None:
    dpo = TrainingSetup(4, 512, stage="dpo")
    assert dpo.tokens == 2 * 4 * 512
    assert estimate(replace(dpo, reference_model=True)).peak_bytes == estimate(dpo).peak_bytes + 4 * FLAGSHIP.total


def test_a_large_evaluation_can_be_the_peak() -> None:
    setup = replace(STEP, micro_batch=1, gradient_checkpointing=True)
    assert estimate(replace(setup, eval_micro_batch=1)).peak_bytes == estimate(setup).peak_bytes
    assert estimate(replace(setup, eval_micro_batch=512)).moment == "evaluation"


def test_kv_cache() -> None:
    found = inference_memory(FLAGSHIP, batch=4, length=1000)
    assert found["weights"] == 2 * FLAGSHIP.total
    assert found["kv_cache"] == 4 * 1000 * 24 * 2 * 8 * 128 * 2
    window = Sizes(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16, windows=[None, 10],
    ).architecture()  # fmt: skip
    assert inference_memory(window, 1, 1000)["kv_cache"] == (1000 + 10) * 4 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"micro_batch": 0}, "micro_batch: 0"),
        ({"optimizer": "adamw_8bti"}, "did you mean 'adamw_8bit'"),
        ({"strategy": "zero9"}, "strategy: 'zero9' is not one of single, ddp"),
        ({"num_gpus": 8}, "'single' is one GPU, not 8"),
        ({"micro_batch": 10**18}, "micro_batch: 1000000000000000000; it must be at most 1000000"),
        ({"gradient_accumulation_steps": 10**9}, "gradient_accumulation_steps: 1000000000; it must be at most"),
        ({"optimizer": "muon", "adapter": "lora", "stage": "sft"}, "'muon' is for pretraining all weights"),
        ({"optimizer": "muon", "stage": "dpo"}, "'muon' is for pretraining all weights"),
        ({"optimizer": "muon", "strategy": "fsdp2"}, "'muon' needs whole matrices and the strategy 'fsdp2' splits"),
        ({"precision": "fp8", "strategy": "zero3"}, "'fp8' does not go with the strategy 'zero3'; choose fsdp2"),
        ({"optimizer": "muon", "strategy": "zero3_offload"}, "the strategy 'zero3_offload' splits them"),
        ({"stage": "sft", "strategy": "zero3"}, "'zero3' splits the weights, which sft does not support"),
        ({"stage": "dpo", "adapter": "qlora", "strategy": "fsdp2"}, "'fsdp2' splits the weights, which dpo does not"),
    ],
)
def test_impossible_setups_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(STEP, **values)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_has_an_estimate(name: str) -> None:
    found = estimate(replace(STEP, optimizer=name), MIXTURE)
    assert found.peak_bytes > 8 * MIXTURE.total


def recipe(stage: str, training: dict[str, Any], run: dict[str, Any] | None = None, **model: Any) -> Any:
    values = {"upstream_values": lambda: model} if stage == "pretrain" else {"adapter": "none", "r": 16, **model}
    return SimpleNamespace(
        stage=stage, model=SimpleNamespace(**values), data=SimpleNamespace(seq_length=1024),
        training=SimpleNamespace(upstream_values=lambda: training),
        run=FakeRun({"optimizer": None, "global_batch_size": None, **(run or {})}),
    )  # fmt: skip


class FakeRun(dict[str, Any]):
    __getattr__ = dict.__getitem__


def test_setup_of_a_pretraining_recipe() -> None:
    one = recipe("pretrain", {"bf16": True, "per_device_train_batch_size": 16}, {"global_batch_size": 64})
    setup = setup_of_recipe(one, "zero1", 8)
    assert (setup.micro_batch, setup.accumulation) == (8, 1)  # eight blocks are each GPU's share
    assert (setup.seq_length, setup.precision, setup.optimizer) == (1024, "bf16", "adamw_torch_fused")
    muon = recipe("pretrain", {"activation_checkpointing": True}, {"optimizer": "muon"}, loss_implementation="chunked")
    setup = setup_of_recipe(muon)
    assert (setup.optimizer, setup.precision, setup.micro_batch) == ("muon", "fp32", 8)
    assert setup.gradient_checkpointing
    assert setup.loss_implementation == "chunked"
    assert setup_of_recipe(recipe("pretrain", {"bf16": True}, {"fp8": "tensorwise"})).precision == "fp8"


def test_setup_of_fine_tuning_takes_trls_defaults() -> None:
    setup = setup_of_recipe(recipe("sft", {}, dtype="float32"))
    assert (setup.seq_length, setup.precision, setup.gradient_checkpointing) == (1024, "bf16", True)
    dpo = setup_of_recipe(recipe("dpo", {"bf16": False, "gradient_checkpointing": False}, dtype="bfloat16"))
    assert (dpo.precision, dpo.gradient_checkpointing, dpo.reference_model) == ("fp32", False, True)
    assert dpo.weights_in_bf16
    assert not setup_of_recipe(recipe("dpo", {"precompute_ref_log_probs": True}, dtype="float32")).reference_model
    lora = setup_of_recipe(recipe("dpo", {}, dtype="float32", adapter="lora", r=8))
    assert (lora.adapter, lora.rank, lora.reference_model) == ("lora", 8, False)
    with pytest.raises(InputError, match="training.max_length: null"):
        setup_of_recipe(recipe("sft", {"max_length": None}, dtype="float32"))
    with pytest.raises(InputError, match="a recipe of export trains nothing"):
        setup_of_recipe(recipe("export", {}))


def test_strategies_of_the_config_files() -> None:
    folder = Path(__file__).parents[2] / "accelerate_configs"
    expected = {"single_gpu": "single", "ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3"}
    assert {name: strategy_of(folder / f"{name}.yaml") for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n", "fsdp2"),
        ("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 1\n", "fsdp_version is not 2"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 3\n", "zero3"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: none.json\n", "no such file"),
        ("distributed_type: MEGATRON_LM\n", "its memory is not known"),
    ],
)
def test_other_config_files(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "accelerate_configs" / "one.yaml"
    file.parent.mkdir()
    file.write_text(text, encoding="utf-8")
    if " " not in expected:
        assert strategy_of(file) == expected
        return
    with pytest.raises(InputError, match=expected):
        strategy_of(file)


def test_offload_is_read_from_the_deepspeed_file(tmp_path: Path) -> None:
    (tmp_path / "accelerate_configs").mkdir()
    (tmp_path / "ds.json").write_text(
        '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}', encoding="utf-8"
    )
    file = tmp_path / "accelerate_configs" / "one.yaml"
    file.write_text("distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: ds.json\n", "utf-8")
    assert strategy_of(file) == "zero3_offload"


def test_estimating_needs_no_torch() -> None:
    import subprocess

    code = "import sys, ingot.planning.memory; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
