"""The keys of upstream's configuration classes, read from their source text.

Importing `transformers.TrainingArguments` takes four seconds, and a misspelt key should be refused in one. So field
names and types are read with `ast`; `tests/test_upstream.py` holds the result equal to what an import gives.
"""

import ast
import importlib.util
import typing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

# class -> the source files and classes that declare its fields, base first
SOURCES: dict[str, list[tuple[str, str]]] = {
    "transformers.TrainingArguments": [("transformers/training_args.py", "TrainingArguments")],
    "trl.SFTConfig": [
        ("transformers/training_args.py", "TrainingArguments"),
        ("trl/trainer/base_config.py", "_BaseConfig"),
        ("trl/trainer/sft_config.py", "SFTConfig"),
    ],
    "trl.DPOConfig": [
        ("transformers/training_args.py", "TrainingArguments"),
        ("trl/trainer/base_config.py", "_BaseConfig"),
        ("trl/trainer/dpo_config.py", "DPOConfig"),
    ],
    "modeling.IngotConfig": [("modeling/configuration_ingot.py", "IngotConfig")],
}
ENUM_SOURCES = ("transformers/trainer_utils.py", "transformers/training_args.py", "transformers/debug_utils.py")

# keys that Ingot sets itself, each with the place where the user says it
ELSEWHERE = {
    "output_dir": "the run folder is `run.dir`",
    "resume_from_checkpoint": "a run continues from its newest checkpoint by itself",
    "local_rank": "the launcher sets it",
    "deepspeed": "choose a file of accelerate_configs/ with `accelerate launch --config_file`",
    "fsdp": "choose a file of accelerate_configs/ with `accelerate launch --config_file`",
    "fsdp_config": "choose a file of accelerate_configs/ with `accelerate launch --config_file`",
    "parallelism_config": "choose a file of accelerate_configs/ with `accelerate launch --config_file`",
    "model_init_kwargs": "the model's options are keys of the `model` section",
    "remove_unused_columns": "the stage knows which columns its collator reads",
    "disable_tqdm": "Ingot shows a progress line of its own",
    "save_only_model": "no run continues from a checkpoint without the optimizer's states",
    "ignore_data_skip": "a continued run reads the rows that an unbroken one would",
    "logging_nan_inf_filter": "a loss that is not a number stops the run",
}

# bounds that upstream does not check: (keys, constraint)
_POSITIVE = (
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_train_epochs "
    "learning_rate max_length"
)
_NOT_NEGATIVE = (
    "weight_decay warmup_steps max_grad_norm adam_epsilon save_steps eval_steps logging_steps seed "
    "dataloader_num_workers"
)
_BELOW_ONE = "adam_beta1 adam_beta2 label_smoothing_factor"
BOUNDS: dict[str, Any] = (
    dict.fromkeys(_POSITIVE.split(), Field(gt=0))
    | dict.fromkeys(_NOT_NEGATIVE.split(), Field(ge=0))
    | dict.fromkeys(_BELOW_ONE.split(), Field(ge=0, lt=1))
)


class _Names(dict[str, Any]):
    """Names that may stand in an annotation; an unknown one means any value."""

    def __missing__(self, name: str) -> Any:
        return Any


def _source(file: str) -> ast.Module:
    package = file.split("/")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)
    path = Path(next(iter(spec.submodule_search_locations))).parent / file
    return ast.parse(path.read_text(encoding="utf-8"))


def _class(module: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name)


@cache
def _enums() -> dict[str, Any]:
    """Upstream's string enums as Literal types, which YAML text can satisfy."""
    found: dict[str, Any] = {}
    for file in ENUM_SOURCES:
        for node in _source(file).body:
            if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
                values = [ast.literal_eval(n.value) for n in node.body if isinstance(n, ast.Assign)]
                found[node.name] = Literal[tuple(values)]
    return found


def _is_class_variable(node: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(node.annotation)


def _without_text_beside_enum(annotation: str) -> str:
    """`SchedulerType | str` lets any text through; keep the enum, whose values are the ones upstream accepts."""
    tree = ast.parse(annotation, mode="eval")
    words = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    enum = next((word.id for word in words if word.id in _enums()), None)
    for word in words:
        word.id = enum if enum and word.id == "str" else word.id
    return ast.unparse(tree)


def _names() -> _Names:
    builtins = {t.__name__: t for t in (bool, int, float, str, list, dict, tuple)}
    generics = {"Optional": typing.Optional, "Union": typing.Union, "Any": Any, "Literal": Literal}
    modern = {
        "List": list,
        "Dict": dict,
        "typing": typing,
        "Filled": typing.Optional,
    }  # Filled: IngotConfig fills None in
    return _Names({**builtins, **generics, **modern, **_enums()})


@cache
def fields_of(upstream: str) -> dict[str, Any]:
    """Field name -> type of an upstream configuration class, with the bounds that upstream leaves unchecked.

    Raises: ModuleNotFoundError when the package is not installed.
    """
    names, fields = _names(), {}
    for file, class_name in SOURCES[upstream]:
        for node in _class(_source(file), class_name).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _is_class_variable(node):
                annotation = _without_text_beside_enum(ast.unparse(node.annotation))
                fields[node.target.id] = eval(annotation, {"__builtins__": {}}, names)  # noqa: S307 - upstream's own source
    return {name: Annotated[t, BOUNDS[name]] if name in BOUNDS else t for name, t in fields.items()}
