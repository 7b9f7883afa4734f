"""Ways in which files are damaged: by disks, by cut copies, and by hands. Each takes a path and random numbers."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Edit = Callable[[Path, random.Random], None]


def flip_bit(path: Path, rng: random.Random) -> None:
    """Turns one bit round."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    """Cuts the end off."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content))])


def delete(path: Path, rng: random.Random) -> None:
    """Takes it away."""
    path.unlink()


def empty(path: Path, rng: random.Random) -> None:
    """Leaves nothing in it."""
    path.write_bytes(b"")


def zero_fill(path: Path, rng: random.Random) -> None:
    """Writes zeros over a part that held something, as a file system does that lost a block."""
    content = bytearray(path.read_bytes())
    begin = next(i for i in range(rng.randrange(len(content)), -1, -1) if content[i])
    end = min(len(content), begin + rng.randrange(1, 4096))
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def append(path: Path, rng: random.Random) -> None:
    """Adds bytes at the end."""
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 64)))


def swap(path: Path, rng: random.Random) -> None:
    """Exchanges it with a file beside or below it that holds something else."""
    content = path.read_bytes()
    others = [p for p in sorted(path.parent.rglob("*")) if p.is_file() and p.read_bytes() != content]
    other = rng.choice(others)
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def rename(path: Path, rng: random.Random) -> None:
    """Gives it another name."""
    path.rename(path.with_name(f"{path.name}.bak"))


BYTES: dict[str, Edit] = {e.__name__: e for e in (flip_bit, truncate, delete, empty, zero_fill, append, swap, rename)}


def _extra(name: str, content: bytes) -> Edit:
    def add(path: Path, rng: random.Random) -> None:
        (path.parent / name).write_bytes(content)

    return add


# files that a loader would open, put beside those that belong there
EXTRA: dict[str, Edit] = {
    "added_shard": _extra("model-00002-of-00002.safetensors", b"\2\0\0\0\0\0\0\0{}"),
    "added_pickle": _extra("pytorch_model.bin", b"\x80\x02}q\x00."),
    "added_code": _extra("modeling_other.py", b"raise SystemExit('foreign code ran')\n"),
    "added_adapter": _extra("adapter_config.json", b'{"peft_type": "LORA", "base_model_name_or_path": "other"}'),
    "added_token": _extra("added_tokens.json", b'{"<|new|>": 5}'),
}


def edit_json(path: Path, rng: random.Random) -> None:
    """Changes one value, as in an editor."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    key = rng.choice(sorted(tree))
    tree[key] = _other(tree[key], rng)
    path.write_text(json.dumps(tree, indent=2), encoding="utf-8")


def _other(value: Any, rng: random.Random) -> Any:
    """A value of the same type that is another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + rng.choice([1, 2, 7])
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list) and value:
        return value[:-1]
    if isinstance(value, dict) and value:
        return {k: v for k, v in value.items() if k != min(value)}
    return 1 if value is None else None


def _json_edit(change: Callable[[dict[str, Any], random.Random], None]) -> Edit:
    def edit(path: Path, rng: random.Random) -> None:
        tree = json.loads(path.read_text(encoding="utf-8"))
        change(tree, rng)
        path.write_text(json.dumps(tree, indent=2), encoding="utf-8")

    return edit


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")


def _other_size(tree: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice([name for name in SIZES if name in tree])
    tree[key] = rng.choice([tree[key] * 2, tree[key] + 2, 10**9])


def _misspelt(tree: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice([name for name in SIZES if name in tree])
    place = rng.randrange(1, len(key) - 1)
    tree[key[:place] + key[place + 1 :]] = tree.pop(key)


def _other_type(tree: dict[str, Any], rng: random.Random) -> None:
    tree[rng.choice([name for name in SIZES if name in tree])] = rng.choice(["many", [1], {"a": 1}, -1, 2.5])


# edits of config.json that contradict the weights or the architecture, so that they show without any record
CONFIG: dict[str, Edit] = {
    "config_size": _json_edit(_other_size),
    "config_misspelt": _json_edit(_misspelt),
    "config_type": _json_edit(_other_type),
    "config_other_model": _json_edit(lambda tree, rng: tree.update(model_type=rng.choice(["llama", "gpt2", "none"]))),
}


def _tensor_edit(change: Callable[[dict[str, Any], str, random.Random], None]) -> Edit:
    def edit(path: Path, rng: random.Random) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(path)
        change(tensors, rng.choice(sorted(tensors)), rng)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})

    return edit


def _not_finite(tensors: dict[str, Any], name: str, rng: random.Random) -> None:
    tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = rng.choice([float("nan"), float("inf")])


def _dropped(tensors: dict[str, Any], name: str, rng: random.Random) -> None:
    del tensors[name]


def _other_shape(tensors: dict[str, Any], name: str, rng: random.Random) -> None:
    tensor = tensors[name]
    tensors[name] = tensor[:-1] if rng.random() < 0.5 else tensor.reshape(1, *tensor.shape)


def _other_dtype(tensors: dict[str, Any], name: str, rng: random.Random) -> None:
    import torch

    tensors[name] = tensors[name].to(rng.choice([torch.float16, torch.bfloat16, torch.int8]))


# edits of the weights that leave a valid file
TENSORS: dict[str, Edit] = {
    "tensor_not_finite": _tensor_edit(_not_finite),
    "tensor_dropped": _tensor_edit(_dropped),
    "tensor_added": _tensor_edit(lambda tensors, name, rng: tensors.update(other=tensors[name].clone())),
    "tensor_renamed": _tensor_edit(lambda tensors, name, rng: tensors.update({f"{name}s": tensors.pop(name)})),
    "tensor_shape": _tensor_edit(_other_shape),
    "tensor_dtype": _tensor_edit(_other_dtype),
}
