"""Describes any decoder-only model of transformers by building it on the meta device and reading its modules."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ingot.planning.architecture import Architecture, Layer, Matrix, Part
from ingot.recipe_yaml import InputError

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
# a projection to queries, keys or values, together or apart: q_proj, kv_a_proj_with_mqa, query_key_value, c_attn, Wqkv
QUERIES_OR_KEYS = re.compile(r"(^|[._])(q|k|v|kv|qkv|key|query|c_attn|wq|wk|wqkv)([._]|$)", re.IGNORECASE)
KEYS = re.compile(r"(^|[._])(k|key|wk)(_proj|_lin|_proj\.linear)?$", re.IGNORECASE)
FUSED = re.compile(r"(^|[._])(qkv|qkv_proj|query_key_value|c_attn|wqkv)$", re.IGNORECASE)
ONLY_QUERIES = re.compile(r"(^|[._])(q|query|wq)([._]|$)", re.IGNORECASE)
ADAPTER = re.compile(r"adapter_list\.(\d+)\.")
OUTPUT = re.compile(r"^(o|out|linear_out|o_proj|out_proj)$")
ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)(\.|$)")
SHARED = re.compile(r"shared_expert")
POSITIONS = re.compile(r"pos|wpe", re.IGNORECASE)
STATES = {"A_log", "dt_bias", "recurrent_param"}  # of a recurrence
RECURRENT = "the scan of recurrent layers is not counted: their FLOPs are low"
LATENT = "the key/value cache is that of transformers, which keeps keys and values unpacked and not their latent"
REPEATED = "blocks that several layers share are counted once in the parameters, and at every use in the FLOPs"
TOWERS = "a vision or audio tower is counted in the parameters and not in the FLOPs: a text token does not meet it"


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

    Raises: InputError when it is not a decoder-only language model, or is one that cannot be read.
    """
    model = _build(config)
    try:
        found = _count(model)
    except InputError:  # says what it is already
        raise
    except (AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{config.model_type}: the planner cannot read its layers: {_line(error)}") from error
    if found.total != model.num_parameters():
        counted = f"{found.total:,} parameters of {model.num_parameters():,}"
        raise InputError(f"{config.model_type}: the planner cannot read it: it counts {counted}")
    return found


def _count(model: Any) -> Architecture:
    text, decoder = model.config.get_text_config(), model.get_decoder()
    configs = getattr(text, "per_layer_config", None) or [text] * text.num_hidden_layers
    if not getattr(configs[0], "num_attention_heads", None):
        raise InputError(f"{text.model_type}: it has no attention heads; the planner knows attention models only")
    stack = _layer_list(decoder, text.num_hidden_layers)
    seen: set[int] = set()
    layers = tuple(_layer(module, configs[i], i, seen) for i, module in enumerate(stack))
    table, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    vocab_size, hidden_size = table.shape
    seen |= {id(table), id(output)}
    stored = set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    outside = _outside(model, decoder, seen)
    return Architecture(
        model_type=text.model_type,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        layers=layers,
        tied=output is table,
        position_parameters=outside["positions"],
        other_parameters=outside["vectors"],
        buffers=sum(model.state_dict()[name].numel() for name in stored),
        head_parameters=output.numel(),
        other_embeddings=outside["embeddings"],
        outside_projections=outside["projections"],
        towers=outside["towers"],
        notes=tuple(_notes(stack, layers, outside["towers"])),
    )


def _notes(stack: Any, layers: Sequence[Layer], towers: int) -> Iterator[str]:
    """What a reader of the numbers should know of this model."""
    states = any(name.rpartition(".")[2] in STATES for name, _ in stack.named_parameters())
    linear = any(m.recurrent for layer in layers if not layer.convolutions for m in layer.matrices)
    if states or linear:
        yield RECURRENT
    if any(layer.latent_values for layer in layers):
        yield LATENT
    if any(m.repeated for layer in layers for m in layer.matrices):
        yield REPEATED
    if towers:
        yield TOWERS


def _outside(model: Any, decoder: Any, seen: set[int]) -> Counter[str]:
    """Parameters that are in no layer, by kind; `seen` holds the identities of those that are counted already."""
    from torch.nn import Embedding

    counts: Counter[str] = Counter()
    inside = {id(p) for p in decoder.parameters()}
    has_towers = model.config.get_text_config() is not model.config
    for module_name, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            kind = "projections" if weight.dim() == 2 and "bias" not in name else "vectors"
            if isinstance(module, Embedding):
                kind = "positions" if POSITIONS.search(module_name) else "embeddings"
            if has_towers and id(weight) not in inside and not module_name.startswith("lm_head"):
                kind = "towers"
            counts[kind] += weight.numel()
    return counts


def _line(error: Exception) -> str:
    """An error in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _build(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if config.is_encoder_decoder:
        raise InputError(f"{config.model_type}: encoder and decoder; the planner knows decoder-only language models")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        if config.get_text_config() is not config:
            raise InputError(f"{config.model_type}: a multimodal model; name its text configuration")
        raise InputError(f"{config.model_type}: not a causal language model of transformers")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    except Exception as error:  # whatever the model's own code says of a configuration that it cannot be built of
        raise InputError(f"{config.model_type}: transformers cannot build this model: {_line(error)}") from error
    return model


def _layer_list(decoder: Any, num_layers: int) -> Any:
    """The list of blocks: the longest module list that has as many entries as the configuration says."""
    from torch.nn import Linear, Module, ModuleList

    if not isinstance(decoder, Module) or isinstance(decoder, Linear):
        raise InputError(f"{type(decoder).__name__}: no decoder of layers; the planner cannot read it")
    lists = [m for m in decoder.modules() if isinstance(m, ModuleList) and len(m) == num_layers]
    if not lists:
        raise InputError(f"{type(decoder).__name__}: no list of {num_layers} layers in it; the planner cannot read it")
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def _layer(module: Any, config: Any, index: int, seen: set[int]) -> Layer:
    """One block; adds the identities of its parameters to `seen`, and counts those that were there as repeated."""
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds else "sliding_attention" if getattr(config, "sliding_window", None) else ""
    before = set(seen)
    named = list(_matrices(module, config, _mixers(module, kind), _foreign_adapters(module, config, index), seen))
    matrices = [matrix for _, matrix in named]
    if not any(m.part in ("feed_forward", "experts") for m in matrices):
        matrices.append(Matrix("feed_forward", 0, 0))  # none: the estimates see one without width
    convolutions, every = _new_values(module, before, seen)
    into, out = _widths(matrices)
    qk_dim, v_dim = _head_dims(module, config)
    attends = any(m.part == "attention" and not m.recurrent and QUERIES_OR_KEYS.search(n) for n, m in named)
    latent = getattr(config, "kv_lora_rank", None) if any("kv_b_proj" in n for n, _ in named) else None
    return Layer(
        matrices=tuple(matrices),
        vector_parameters=every - convolutions - sum(m.parameters for m in matrices),
        num_heads=config.num_attention_heads if attends else 0,
        num_key_value_heads=_key_heads(named, config, qk_dim, v_dim) if attends else 0,
        qk_head_dim=qk_dim,
        v_head_dim=v_dim,
        ffn_width=out,
        gated=into == 2 * out,
        qk_norm=any(name.endswith(("q_norm.weight", "q_layernorm.weight")) for name, _ in module.named_parameters()),
        window=_window(config, kind),
        convolutions=convolutions,
        latent_values=latent + config.qk_rope_head_dim if latent else 0,
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


def _mixers(module: Any, kind: str) -> tuple[list[str], list[str]]:
    """Names of the layer's recurrent or convolutional mixers, and of its attention modules, by what they have."""
    recurrent = []
    for name, child in module.named_modules():
        children = [n for n, _ in child.named_children()]
        own = {n for n, _ in child.named_parameters(recurse=False)}
        along = own & STATES or any("conv" in n for n in children)
        if along and any(OUTPUT.match(n) for n in children):
            recurrent.append(f"{name}.")
    if kind == "linear_attention" and not recurrent:
        recurrent = [f"{n}." for n, _ in module.named_children() if ATTENTION.search(n) and "norm" not in n]
    attention = []
    for name, weight in module.named_parameters():
        found = QUERIES_OR_KEYS.search(name)
        if found and weight.dim() > 1 and not name.startswith(tuple(recurrent)):
            attention.append(name[: found.start() + 1])
    return recurrent, attention


def _foreign_adapters(module: Any, config: Any, index: int) -> set[int]:
    """Identities of the adapters that a shared block holds for its uses in other layers (Zamba2)."""
    users = getattr(config, "hybrid_layer_ids", None) or []
    own = str(users.index(index)) if index in users else ""
    found = [(ADAPTER.search(name), weight) for name, weight in module.named_parameters()]
    return {id(weight) for match, weight in found if match and match[1] != own}


def _matrices(
    module: Any, config: Any, mixers: tuple[list[str], list[str]], skipped: set[int], seen: set[int]
) -> Iterator[tuple[str, Matrix]]:
    """Every linear projection of a layer with its name, stacked experts included; adds what it meets to `seen`."""
    import torch

    recurrent, attention = mixers
    for name, child in module.named_modules():
        for key, weight in child.named_parameters(recurse=False):
            if id(weight) in skipped:
                continue
            repeated = id(weight) in seen
            seen.add(id(weight))
            if key.endswith("bias") or key == "A_log" or weight.dim() not in (2, 3):
                continue
            if isinstance(child, torch.nn.Conv1d | torch.nn.Embedding) or _is_convolution(name, weight):
                continue
            full = name if key == "weight" else f"{name}.{key}"
            found = _matrix(full, child, key, weight, config)
            if full.startswith(tuple(attention)) and found.part == "feed_forward":
                found = replace(found, part="attention")
            yield full, replace(found, repeated=repeated, recurrent=full.startswith(tuple(recurrent)))


def _matrix(full: str, child: Any, key: str, weight: Any, config: Any) -> Matrix:
    from transformers.pytorch_utils import Conv1D

    if weight.dim() == 3:
        return _stacked(full, weight, getattr(child, f"{key}_bias", None) is not None, config)
    bias = getattr(child, key.removesuffix("weight") + "bias", None) if key.endswith("weight") else None
    outputs, inputs = reversed(weight.shape) if isinstance(child, Conv1D) else weight.shape
    return Matrix(_part(full, outputs, config), inputs, outputs, bias is not None)


def _is_convolution(name: str, weight: Any) -> bool:
    return weight.dim() == 3 and "conv" in name.rpartition(".")[2]


def _new_values(module: Any, before: set[int], seen: set[int]) -> tuple[int, int]:
    """Weights of convolutions, and all values, of the parameters that this layer is the first to have."""
    new = {id(p): (n, p) for n, p in module.named_parameters() if id(p) in seen and id(p) not in before}
    convolutions = [p for n, p in new.values() if _is_convolution(n.rpartition(".")[0], p)]
    return sum(p.numel() for p in convolutions), sum(p.numel() for _, p in new.values())


def _head_dims(module: Any, config: Any) -> tuple[int, int]:
    """Width of a head's queries and keys, and of its values."""
    if getattr(config, "qk_nope_head_dim", None):  # multi-head latent attention
        return config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    widths = [getattr(m, "head_dim", None) for m in module.modules() if ATTENTION.search(type(m).__name__)]
    found = next((w for w in widths if isinstance(w, int)), None) or getattr(config, "head_dim", None)
    width = found or config.hidden_size // config.num_attention_heads
    return width, width


def _key_heads(named: Sequence[tuple[str, Matrix]], config: Any, qk_dim: int, v_dim: int) -> int:
    """Heads of keys that a layer computes: 0 where it uses those of an earlier one."""
    heads = int(config.num_attention_heads)
    stated = getattr(config, "num_key_value_heads", None) or heads
    attention = [(n, m) for n, m in named if m.part == "attention" and not m.recurrent]
    if any("kv_b_proj" in n for n, _ in attention):
        return int(stated)
    for name, matrix in attention:
        if KEYS.search(name) and matrix.outputs % qk_dim == 0:
            return matrix.outputs // qk_dim
        groups, rest = divmod(matrix.outputs - heads * qk_dim, qk_dim + v_dim)
        if FUSED.search(name) and groups > 0 and rest == 0:
            return groups
    only_queries = [n for n, _ in attention if QUERIES_OR_KEYS.search(n)]
    return 0 if all(ONLY_QUERIES.search(n) for n in only_queries) else int(stated)


def _stacked(name: str, weight: Any, bias: bool, config: Any) -> Matrix:
    """A stack of experts: (experts, outputs, inputs), or inputs before outputs as some models have it."""
    copies, rows, columns = weight.shape
    of_experts = _experts(config) == copies or "expert" in name
    if not of_experts or SHARED.search(name):  # every token meets all blocks
        return Matrix(_part(name, columns, config), rows, columns, bias, copies, copies)
    into_hidden = "down" in name
    hidden = config.hidden_size
    outputs, inputs = (rows, columns) if (rows == hidden) == into_hidden else (columns, rows)
    active = getattr(config, "num_experts_per_tok", None) or getattr(config, "num_experts_per_token", None)
    if active is None:
        raise InputError(f"{name}: {copies} experts, but the configuration does not say how many a token meets")
    part: Part = "attention" if ATTENTION.search(name) else "experts"
    return Matrix(part, inputs, outputs, bias, copies, min(active, copies))


def _experts(config: Any) -> int:
    names = ("num_local_experts", "n_routed_experts", "num_experts")
    return next((n for name in names if (n := getattr(config, name, None))), 0)


def _part(name: str, outputs: int, config: Any) -> Part:
    experts = _experts(config)
    if experts and ROUTER.search(name) and outputs in (experts, 1):
        return "router"
    if ATTENTION.search(name):
        return "attention"
    return "shared_experts" if SHARED.search(name) else "feed_forward"
