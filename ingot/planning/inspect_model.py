"""Describes any decoder-only model of transformers by building it on the meta device and reading its modules."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ingot.planning.architecture import Architecture, Layer, Matrix, Part
from ingot.recipe_yaml import InputError

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)(\.|$)")
SHARED = re.compile(r"shared_expert")


def read_config(path: Path) -> Any:
    """The configuration in a config.json or in the folder that holds it; no code of the folder is run.

    Raises: InputError when the file is missing, broken, or of a model that transformers does not know.
    """
    from transformers import AutoConfig

    import modeling  # noqa: F401 - registers Ingot's classes

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"--hf: {file} does not exist; name a config.json, or a folder that holds one")
    try:
        return AutoConfig.from_pretrained(str(file), trust_remote_code=False)
    except Exception as error:
        raise InputError(f"--hf: {file}: {' '.join(str(error).split())[:300]}") from error


def count(config: Any) -> Architecture:
    """Builds the model without memory and counts it.

    Raises: InputError when it is not a decoder-only language model.
    """
    model = _build(config)
    text = model.config.get_text_config()
    decoder = model.get_decoder()
    if not getattr(text, "num_attention_heads", None):
        raise InputError(f"{text.model_type}: it has no attention heads; the planner knows attention models only")
    stack = _layer_list(decoder, text.num_hidden_layers)
    layers = [_layer(module, text, i) for i, module in enumerate(stack)]
    table, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    vocab_size, hidden_size = table.shape
    tied = output is table
    inside = sum(p.numel() for p in stack.parameters())
    positions = sum(m.weight.numel() for m in decoder.modules() if _is_positions(m, table))
    other = model.num_parameters() - inside - table.numel() * (1 if tied else 2) - positions
    stored = set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return Architecture(
        model_type=text.model_type,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        layers=tuple(layers),
        tied=tied,
        position_parameters=positions,
        other_parameters=other,
        buffers=sum(model.state_dict()[name].numel() for name in stored),
    )


def _build(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if config.is_encoder_decoder:
        raise InputError(f"{config.model_type}: encoder and decoder; the planner knows decoder-only language models")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{config.model_type}: not a causal language model of transformers: {reason}") from error
    model.tie_weights()
    return model


def _layer_list(decoder: Any, num_layers: int) -> Any:
    """The list of blocks: the longest module list that has as many entries as the configuration says."""
    from torch.nn import ModuleList

    lists = [m for m in decoder.modules() if isinstance(m, ModuleList) and len(m) == num_layers]
    if not lists:
        raise InputError(f"{type(decoder).__name__}: no list of {num_layers} layers in it; the planner cannot read it")
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def _is_positions(module: Any, table: Any) -> bool:
    """Whether an embedding is a table of positions: as wide as the token table, and not that."""
    from torch.nn import Embedding

    return isinstance(module, Embedding) and module.weight is not table and module.embedding_dim == table.shape[-1]


def _layer(module: Any, config: Any, index: int) -> Layer:
    matrices = list(_matrices(module, config))
    found = sum(m.parameters for m in matrices)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    qk_dim, v_dim = head_dim, head_dim
    if getattr(config, "qk_nope_head_dim", None):  # multi-head latent attention
        qk_dim, v_dim = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    into, out = _widths(matrices)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds else "sliding_attention" if getattr(config, "sliding_window", None) else ""
    return Layer(
        matrices=tuple(matrices),
        vector_parameters=sum(p.numel() for p in module.parameters()) - found,
        num_heads=0 if kind == "linear_attention" else heads,  # no scores
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        qk_head_dim=qk_dim,
        v_head_dim=v_dim,
        ffn_width=out,
        gated=into == 2 * out,
        qk_norm=any(name.endswith(("q_norm.weight", "q_layernorm.weight")) for name, _ in module.named_parameters()),
        window=_window(config, kind),
    )


def _widths(matrices: Sequence[Matrix]) -> tuple[int, int]:
    """Outputs of the projections into the feed-forward, and inputs of those out of it, that one token meets."""
    into = out = 0
    for part in ("feed_forward", "shared_experts", "experts"):
        found = [m for m in matrices if m.part == part]
        into += sum(m.active * m.outputs for m in found[:-1])
        out += sum(m.active * m.inputs for m in found[-1:])
    return into, out


def _window(config: Any, kind: str) -> int | None:
    if kind == "chunked_attention":
        return int(config.attention_chunk_size)
    return getattr(config, "sliding_window", None) if kind == "sliding_attention" else None


def _matrices(module: Any, config: Any) -> Iterator[Matrix]:
    """Every linear projection of a layer, stacked experts included."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for name, child in module.named_modules():
        for key, weight in child.named_parameters(recurse=False):
            if key.endswith("bias") or weight.dim() < 2 or isinstance(child, torch.nn.Conv1d | torch.nn.Embedding):
                continue
            full = f"{name}.{key}"
            bias = getattr(child, key.removesuffix("weight") + "bias", None) if key.endswith("weight") else None
            if weight.dim() == 3:
                yield _stacked(full, weight, getattr(child, f"{key}_bias", None) is not None, config)
                continue
            outputs, inputs = reversed(weight.shape) if isinstance(child, Conv1D) else weight.shape
            yield Matrix(_part(name, outputs, config), inputs, outputs, bias is not None)


def _stacked(name: str, weight: Any, bias: bool, config: Any) -> Matrix:
    """A stack of experts: (experts, outputs, inputs), or inputs before outputs as some models have it."""
    copies, rows, columns = weight.shape
    into_hidden = "down" in name
    hidden = config.hidden_size
    outputs, inputs = (rows, columns) if (rows == hidden) == into_hidden else (columns, rows)
    active = getattr(config, "num_experts_per_tok", None) or getattr(config, "num_experts_per_token", None)
    if active is None:
        raise InputError(f"{name}: {copies} experts, but the configuration does not say how many a token meets")
    return Matrix("experts", inputs, outputs, bias, copies, min(active, copies))


def _part(name: str, outputs: int, config: Any) -> Part:
    experts = getattr(config, "num_local_experts", None) or getattr(config, "n_routed_experts", None)
    experts = experts or getattr(config, "num_experts", None)
    if experts and ROUTER.search(name) and outputs in (experts, 1):
        return "router"
    if ATTENTION.search(name):
        return "attention"
    return "shared_experts" if SHARED.search(name) else "feed_forward"
