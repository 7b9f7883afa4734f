"""Reads finished pretraining runs as the points that a scaling law is fitted to, if they can be compared at all."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.planning.law_fitting import Point
from ingot.recipe import InputError
from ingot.recipe_yaml import read_yaml
from ingot.runs import MANIFEST, STARTED, read_json, read_manifest

# learning rates that do not come down by the last step, so that the loss is not the one that this much text buys
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")
# what may differ from run to run: sizes, length, rate, and what changes no result
MAY_DIFFER = {
    "max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "save_strategy", "save_steps", "save_total_limit", "eval_strategy", "eval_steps",
    "logging_steps", "logging_strategy", "seed", "sample_prompts", "sample_tokens", "gradient_checkpointing",
}  # fmt: skip
FRESH_EPOCHS = 4  # passes over a text up to which a repeated token counts about as a new one (Muennighoff et al. 2023)


@dataclass(frozen=True)
class Runs:
    """The points of comparable runs, what was passed over and why, and what to be wary of."""

    points: tuple[Point, ...]
    unit: str = "nats per token"
    bits_per_byte: float | None = None  # of one nat per token, on these runs' held-out text
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    folders: tuple[Path, ...] = field(default=())


def read_runs(paths: Sequence[Path], like: Path | None = None) -> Runs:
    """The finished pretraining runs among `paths`; folders of other stages and other files are passed over.

    `like`: a run that these must be comparable with; default the first of them.
    Raises: InputError in one line that names the run which is unfinished, broken or not comparable, and why.
    """
    folders, left_out = [], []
    for path in {p.resolve(): p for p in paths}.values():  # a run that is named twice counts once
        reason = _reason_to_pass(path)
        if reason is None:
            folders.append(path)
        else:
            left_out.append(f"{path}: {reason}")
    if not folders:
        raise InputError(f"{', '.join(map(str, paths)) or 'no folder'}: no finished run of pretrain among these")
    manifests = {folder: read_manifest(folder) for folder in folders}
    points = tuple(_point(folder, manifest) for folder, manifest in manifests.items())
    first = like or folders[0]
    reference = read_manifest(first)
    for folder, manifest in manifests.items():
        _compare(folder, manifest, first, reference)
    factor = _bits_per_byte(reference["results"])
    unit = "nats per token of these runs' tokenizer and held-out text"
    return Runs(points, unit, factor, tuple(left_out), tuple(_warnings(manifests)), tuple(folders))


def _reason_to_pass(path: Path) -> str | None:
    """Why a path is no run to fit to, or None.

    Raises: InputError for a path that is not there and for a pretraining run that has not finished.
    """
    if not path.exists():
        raise InputError(f"{path}: no such run folder")
    if not path.is_dir() or not ((path / MANIFEST).is_file() or (path / STARTED).is_file()):
        return "not a run folder"
    if ".old-" in path.name:
        return "set aside by a later run"
    finished = (path / MANIFEST).is_file()
    stage = (read_manifest(path) if finished else read_json(path / STARTED)).get("stage")
    if stage != "pretrain":
        return f"a run of {stage}"
    if not finished:
        recipe = path / "recipe.yaml"
        raise InputError(f"{path}: not finished; continue it (ingot pretrain --config {recipe}) or leave it out")
    return None


def _point(folder: Path, manifest: Mapping[str, Any]) -> Point:
    """The run's numbers.

    Raises: InputError for a run whose loss does not belong to its size and tokens.
    """
    results, recipe = manifest.get("results") or {}, manifest["recipe"]
    training = recipe["training"]
    for key in ("parameters", "tokens", "heldout_loss"):
        value = results.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise InputError(f"{folder}: {key} is {value!r}; leave this run out, or run it again")
    schedule = training.get("lr_scheduler_type", "linear")
    if schedule in ENDLESS:
        raise InputError(f"{folder}: its learning rate ({schedule}) does not end with the run; use linear or cosine")
    steps, planned = results.get("steps"), training.get("max_steps") or 0
    if steps is not None and planned > steps:
        raise InputError(f"{folder}: stopped at step {steps} of {planned}, before its schedule ended")
    if recipe["model"].get("num_experts"):
        raise InputError(f"{folder}: a mixture of experts; a law of N and D is for dense models")
    return Point(str(folder), results["parameters"], results["tokens"], results["heldout_loss"])


def _compare(folder: Path, manifest: Mapping[str, Any], first: Path, reference: Mapping[str, Any]) -> None:
    """Raises: InputError when the losses of two runs mean different things."""
    for key in {**reference["inputs"], **manifest["inputs"]}:
        meaning = "tokenizer" if key == "model.tokenizer" else "training or held-out text"
        if manifest["inputs"].get(key) != reference["inputs"].get(key):
            raise InputError(f"{folder}: another {meaning} than {first}; losses of both cannot go into one law")
    mixture, other = (m["recipe"]["data"].get("mixture") or [] for m in (manifest, reference))
    if [source["weight"] for source in mixture] != [source["weight"] for source in other]:
        raise InputError(f"{folder}: mixed by other weights than {first}; losses of both cannot go into one law")
    length, wanted = (m["recipe"]["data"]["seq_length"] for m in (manifest, reference))
    if length != wanted:
        raise InputError(f"{folder}: measured on {length} tokens at a time and {first} on {wanted}; fit them apart")


def _bits_per_byte(results: Mapping[str, Any]) -> float | None:
    bits = results.get("heldout_bits_per_byte")
    return None if bits is None else bits / results["heldout_loss"]


def _warnings(manifests: Mapping[Path, Mapping[str, Any]]) -> Iterator[str]:
    """Settings that differ beside size and length, and text that was read too often."""
    values: dict[str, set[str]] = {}
    for manifest in manifests.values():
        recipe = manifest["recipe"]
        for section in ("training", "run"):
            for key, value in recipe[section].items():
                values.setdefault(f"{section}.{key}", set()).add(repr(value))
    mixed = [key for key, found in values.items() if len(found) > 1 and key.partition(".")[2] not in MAY_DIFFER]
    if mixed:
        yield f"the runs differ in {', '.join(sorted(mixed))}: the law takes what that does for an effect of size"
    for folder, manifest in manifests.items():
        epochs = _epochs(folder, manifest)
        if epochs is not None and epochs > FRESH_EPOCHS:
            yield f"{folder}: read its text {epochs:.1f} times; a token read again teaches less than a new one"


def _epochs(folder: Path, manifest: Mapping[str, Any]) -> float | None:
    """Passes over the training text; None for a mixture, or when the shards are no longer there."""
    if not (folder / "recipe.yaml").is_file():
        return None
    shards = read_yaml(folder / "recipe.yaml")["data"].get("shards")
    if shards is None or not (Path(shards) / MANIFEST).is_file():
        return None
    splits = read_manifest(Path(shards))["results"]["splits"]
    return float(manifest["results"]["tokens"] / splits["train"]["tokens"])
