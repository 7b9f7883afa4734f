"""Runs lm-evaluation-harness tasks from local YAML files on a loaded model."""

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.recipe import InputError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HarnessOptions:
    """How lm-eval is asked; None leaves the choice to the task."""

    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    max_length: int | None = None
    apply_chat_template: bool = False


def task_files(paths: Sequence[Path]) -> list[Path]:
    """The task files that the paths name; of a folder, every .yaml file in it that does not start with `_`.

    Raises: InputError for a path that is not there and for a folder without a task.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"data.tasks: {path} does not exist")
        found = sorted(path.rglob("[!_]*.yaml")) if path.is_dir() else [path]
        if not found:
            raise InputError(f"data.tasks: {path} holds no .yaml file; name a folder with lm-eval tasks")
        files += found
    return files


def load_tasks(files: Sequence[Path]) -> tuple["TaskManager", list[str]]:
    """lm-eval's task manager for the files and the names of their tasks, each loaded once to see that it works.

    Raises: InputError that names the file that is not a task or whose data cannot be read.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folders = sorted({file.parent for file in files})
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    names = {e.yaml_path.resolve(): name for name, e in manager.task_index.items() if e.yaml_path is not None}
    for file in files:
        if file.resolve() not in names:
            raise InputError(
                f"{file}: not a task that lm-eval can read (wrong YAML, no `task:`, or a name that another file has)"
            )
        _try_task(manager, names[file.resolve()], file)
    return manager, [names[file.resolve()] for file in files]


def _try_task(manager: "TaskManager", name: str, file: Path) -> None:
    with quiet():
        try:
            manager.load([name])
        except Exception as error:  # a task runs any code of its author's
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(f"{file}: lm-eval cannot load this task: {reason}") from error


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: Any,
    manager: "TaskManager",
    names: Sequence[str],
    options: HarnessOptions,
    samples_file: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """For each task its metrics with standard errors, the number of rows, the chance level, shots and version."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with quiet():
        lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=options.batch_size,
            max_length=options.max_length,
        )
        try:
            found = simple_evaluate(
                model=lm,
                tasks=list(names),
                task_manager=manager,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                apply_chat_template=options.apply_chat_template,
                bootstrap_iters=100,
                log_samples=True,
            )
        except AssertionError as error:
            raise InputError(
                f"lm-eval stopped in {', '.join(names)} ({error!r}); most likely an answer is longer than the window "
                f"of {options.max_length} tokens: use a longer perplexity.seq_length"
            ) from error
    assert found is not None  # lm-eval answers None only on the other ranks of a distributed run
    if samples_file is not None:
        _write_samples(samples_file, found["samples"])
    return {name: _task_result(name, found, options) for name in found["samples"]}


def _task_result(name: str, found: dict[str, Any], options: HarnessOptions) -> dict[str, Any]:
    samples = found["samples"][name]
    result: dict[str, Any] = {
        key.removesuffix(",none"): float(value)
        for key, value in found["results"][name].items()
        if "," in key and not isinstance(value, str)
    }
    if found["configs"][name]["output_type"] == "multiple_choice":
        result["chance"] = sum(1 / len(sample["arguments"]) for sample in samples) / len(samples)
    return result | {
        "rows": len({sample["doc_id"] for sample in samples}),
        "num_fewshot": found["n-shot"][name],
        "version": str(found["versions"][name]),
        "chat_template": options.apply_chat_template,
    }


def _write_samples(file: Path, samples: dict[str, list[dict[str, Any]]]) -> None:
    """Every question with the model's answer, one line each."""
    keys = ("doc_id", "doc", "target", "filtered_resps")
    with open(file, "w", encoding="utf-8") as lines:
        for task, rows in samples.items():
            for row in rows:
                kept = {"task": task, **{key: row[key] for key in keys if key in row}}
                lines.write(json.dumps(kept, ensure_ascii=False, default=str) + "\n")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-eval's progress bars out of logs; on a terminal they stay."""
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        yield
