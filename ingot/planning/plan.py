"""The forward plan: what a recipe, or a model of transformers, costs: parameters, FLOPs, memory, time, money."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingot.planning.architecture import Architecture, architecture_of_config
from ingot.planning.figures import doubts, losses, run_figures
from ingot.planning.flops import CONVENTIONS, Convention, forward_flops_by_part, training_flops_per_token
from ingot.planning.machine import Machine
from ingot.planning.memory import TrainingSetup, estimate_memory, settings_that_fit, setup_of_recipe
from ingot.recipe_yaml import InputError


@dataclass(frozen=True)
class Subject:
    """What is planned: a model, how it is trained, and on how many tokens (None: not known)."""

    name: str
    architecture: Architecture
    setup: TrainingSetup
    tokens: float | None = None
    length_shares: tuple[tuple[int, float], ...] = ()  # of a schedule of sequence lengths
    mfu: float | None = None  # that the recipe expects

    def lengths(self, setup: TrainingSetup) -> Sequence[tuple[int, float]]:
        """(sequence length, share of the tokens)."""
        return self.length_shares or [(setup.seq_length, 1.0)]


def subject_of_recipe(
    path: Path, overrides: Sequence[str], words: Any, load: Callable[..., Any], machine: Machine
) -> Subject:
    """The model and training of a recipe of pretrain, sft or dpo; options win over the recipe.

    Raises: InputError when the recipe is wrong, names a model that is not there yet, or cannot be shared by the GPUs.
    """
    stage = load(path, overrides).stage
    recipe = load(path, [*overrides, *_as_overrides(stage, words)])
    if recipe.stage not in ("pretrain", "sft", "dpo"):
        raise InputError(f"{path}: a recipe of {recipe.stage}; a plan needs one of pretrain, sft or dpo")
    architecture = architecture_of_config(config_of_recipe(recipe))
    _check_shares(recipe, machine.num_gpus)
    setup = changed(setup_of_recipe(recipe, strategy=machine.strategy, num_gpus=machine.num_gpus), words)
    tokens = words.tokens or tokens_of_recipe(recipe, machine.num_gpus)
    if recipe.stage != "pretrain":
        return Subject(f"{path}", architecture, setup, tokens)
    expected = recipe.plan.mfu if "mfu" in recipe.plan.model_fields_set else None
    return Subject(f"{path}", architecture, setup, tokens, tuple(recipe.data.length_shares()), expected)


def _as_overrides(stage: str, words: Any) -> list[str]:
    """Options that are keys of the recipe, as overrides, so that everything that follows from them follows."""
    length = "data.seq_length" if stage == "pretrain" else "training.max_length"
    keys = {length: words.seq_length, "training.per_device_train_batch_size": words.micro_batch}
    return [f"--{key}={value}" for key, value in keys.items() if value is not None]


def _check_shares(recipe: Any, num_gpus: int) -> None:
    """Raises: InputError when training would refuse to share the batch among so many GPUs."""
    wanted = recipe.run.global_batch_size if recipe.stage == "pretrain" else None
    micro = recipe.training.upstream_values().get("per_device_train_batch_size", 8)
    if wanted is not None and wanted % num_gpus:
        raise InputError(f"--gpus: run.global_batch_size {wanted} cannot be shared by {num_gpus} GPUs")
    if wanted is not None and (wanted // num_gpus) % min(micro, wanted // num_gpus):
        raise InputError(
            f"training.per_device_train_batch_size: {micro} does not divide the {wanted // num_gpus} blocks of each "
            f"GPU (run.global_batch_size {wanted} / {num_gpus})"
        )


def config_of_recipe(recipe: Any) -> Any:
    """The model configuration that a training recipe will use."""
    if recipe.stage == "pretrain":
        from modeling import IngotConfig

        return IngotConfig(**{"max_position_embeddings": recipe.data.seq_length, **recipe.model.upstream_values()})
    from ingot.planning.inspect_model import read_config
    from ingot.runs import model_folder

    if recipe.run.from_.suffix != ".json" and not recipe.run.from_.exists():
        raise InputError(
            f"run.from: {recipe.run.from_} is not there yet; to plan before it is, name another model of its size: "
            "--run.from=FOLDER (a config.json in it is enough)"
        )
    return read_config(model_folder(recipe.run.from_))


def tokens_of_recipe(recipe: Any, num_processes: int) -> float | None:
    """Tokens that a pretraining recipe reads; None where the data decide."""
    if recipe.stage != "pretrain":
        return None
    training = recipe.training.upstream_values()
    steps = training.get("max_steps") or 0
    if steps <= 0:
        return _tokens_of_epochs(recipe, float(training["num_train_epochs"]))
    micro = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    return float(steps * (recipe.run.global_batch_size or micro * num_processes) * recipe.data.seq_length)


def _tokens_of_epochs(recipe: Any, epochs: float) -> float | None:
    """Tokens of so many passes over the prepared data; None while they are not prepared."""
    from ingot.runs import MANIFEST, read_manifest

    if not (recipe.data.shards / MANIFEST).is_file():
        return None
    return epochs * float(read_manifest(recipe.data.shards)["results"]["splits"]["train"]["tokens"])


def subject_of_hf(path: Path, words: Any) -> Subject:
    """A model of transformers, trained as the options say."""
    from ingot.planning.inspect_model import read_config

    config = read_config(path)
    architecture = architecture_of_config(config)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or 2048
    setup = TrainingSetup(micro_batch=words.micro_batch or 8, seq_length=words.seq_length or min(2048, longest))
    return Subject(str(path), architecture, changed(setup, words), words.tokens)


def changed(setup: TrainingSetup, words: Any) -> TrainingSetup:
    """The setup with what the options say instead."""
    names = ("precision", "optimizer", "gradient_checkpointing")
    return replace(setup, **{n: v for n in names if (v := getattr(words, n, None)) is not None})


def plan_model(
    subject: Subject,
    machine: Machine,
    convention: Convention = "mfu",
    mfu: float | None = None,
    tokens_per_second_per_gpu: float | None = None,
    laws: Sequence[str] = ("besiroglu",),
) -> dict[str, Any]:
    """Everything that can be said of a run before it starts, as nested plain values; None where it is not known."""
    architecture, setup = (
        subject.architecture,
        replace(subject.setup, strategy=machine.strategy, num_gpus=machine.num_gpus),
    )
    plan = {
        "model": _model(subject.name, architecture),
        "parameters": {
            "total": architecture.total, "active": architecture.active, "buffers": architecture.buffers,
            "by_component": architecture.parameters,
        },
        "flops_per_token": _flops(architecture, setup.seq_length, convention),
        "memory": _memory(architecture, setup, machine),
    }  # fmt: skip
    flops = sum(share * training_flops_per_token(architecture, length) for length, share in subject.lengths(setup))
    plan["run"] = run_figures(architecture, flops, machine, subject.tokens, mfu, tokens_per_second_per_gpu)
    plan["loss"] = losses(architecture, subject.tokens, laws)
    plan["doubts"] = doubts(architecture, plan["run"]["flops"], plan["loss"], laws)
    return plan


def _model(name: str, architecture: Architecture) -> dict[str, Any]:
    first = next((layer for layer in architecture.layers if layer.num_heads), architecture.layers[0])
    return {
        "name": name, "type": architecture.model_type, "layers": architecture.num_layers,
        "hidden_size": architecture.hidden_size, "heads": first.num_heads, "kv_heads": first.num_key_value_heads,
        "head_dim": first.qk_head_dim, "vocab_size": architecture.vocab_size, "tied": architecture.tied,
        "experts": max(layer.num_experts for layer in architecture.layers), "notes": list(architecture.notes),
    }  # fmt: skip


def _flops(architecture: Architecture, seq_length: int, convention: Convention) -> dict[str, Any]:
    by_convention = {name: training_flops_per_token(architecture, seq_length, name) for name in CONVENTIONS}
    return {
        "convention": convention,
        "seq_length": seq_length,
        "forward": by_convention[convention] / 3,
        "training": by_convention[convention],
        "training_by_convention": by_convention,
        "forward_by_part_causal": forward_flops_by_part(architecture, seq_length, causal=True),
        "forward_by_part_non_causal": forward_flops_by_part(architecture, seq_length, causal=False),
    }


def _memory(architecture: Architecture, setup: TrainingSetup, machine: Machine) -> dict[str, Any]:
    known = machine.gpu.memory_bytes if machine.gpu else None
    estimate = estimate_memory(architecture, setup, total_memory=known)
    memory: dict[str, Any] = {
        "strategy": setup.strategy, "num_gpus": setup.num_gpus, "micro_batch": setup.micro_batch,
        "precision": setup.precision, "optimizer": setup.optimizer,
        "gradient_checkpointing": setup.gradient_checkpointing,
        "peak_bytes": estimate.peak_bytes, "by_part": dict(estimate.by_part),
        "gpu_bytes": known, "usable_bytes": machine.memory,
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(architecture),
    }  # fmt: skip
    if machine.memory is not None:
        memory["fits"] = estimate.fits(machine.memory)
        memory["settings_that_fit"] = [] if memory["fits"] else [
            {"change": change, "peak_bytes": found.peak_bytes}
            for _, found, change in settings_that_fit(architecture, setup, machine.memory, known)
        ]  # fmt: skip
    return memory


def kv_cache_bytes_per_token(architecture: Architecture, bytes_per_value: int = 2, latent: bool = False) -> int:
    """Bytes of keys and values that one token adds to the cache while generating, in bf16.

    `latent`: with the compressed values of multi-head latent attention kept instead, which transformers does not do.
    """
    values = 0
    for layer, times in architecture.kinds:
        unpacked = (layer.qk_head_dim + layer.v_head_dim) * layer.num_key_value_heads
        values += times * (layer.latent_values if latent and layer.latent_values else unpacked)
    return bytes_per_value * values
