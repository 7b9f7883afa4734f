"""Where the cases work: a folder, the processes, a seed, the toys, and runs that nothing disturbed to compare with."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from ingot.faults import toys
from ingot.faults.inside import Hooks
from ingot.faults.processes import Processes, Run, launch
from ingot.recipe_yaml import dump_yaml
from ingot.runs import write_json, write_text
from ingot.training.checkpoint_folders import STAGING


class Result(TypedDict):
    """What a case found: `measured` is what can be put beside `asked`."""

    name: str
    asked: str
    measured: dict[str, Any]
    passed: bool


@dataclass(frozen=True)
class Subject:
    """A recipe that is run again and again, and on how many processes."""

    name: str
    stage: str
    tree: dict[str, Any]
    num_processes: int = 1
    strategy: str = ""  # a DeepSpeed file

    def changed(self, name: str, **changes: Any) -> "Subject":
        """Another name, and changed keys: `section__key=value`, None takes it out; `num_processes` as it is."""
        tree = {section: dict(keys) for section, keys in self.tree.items()}
        num, strategy = changes.pop("num_processes", self.num_processes), changes.pop("strategy", self.strategy)
        for path, value in changes.items():
            section, key = path.split("__")
            tree.setdefault(section, {})[key] = value
            if value is None:
                del tree[section][key]
        return Subject(name, self.stage, tree, num, strategy)

    @property
    def save_steps(self) -> int:
        """Steps between two checkpoints."""
        return int(self.tree["training"]["save_steps"])


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its folder, its wall seconds, how long a save takes, and how many there are."""

    folder: Path
    seconds: float
    save_seconds: float
    num_saves: int


@dataclass
class Workplace:
    """What every case is given."""

    folder: Path
    seed: int
    short: bool
    say: Callable[[str], None]
    references: dict[str, Reference] = field(default_factory=dict)

    @cached_property
    def processes(self) -> Processes:
        """What starts runs."""
        return Processes(self.folder)

    @cached_property
    def corpus(self) -> Path:
        """Token shards with their tokenizer."""
        return toys.make_corpus(self.folder / "corpus")

    @cached_property
    def start(self) -> Path:
        """A model for sft and dpo to start from."""
        path = self.folder / "start"
        self.processes.call(toys.make_start, path)
        return path

    @cached_property
    def rows(self) -> Path:
        """Rows for sft and dpo."""
        return toys.write_rows(self.folder / "rows.jsonl")

    @cached_property
    def zero2(self) -> str:
        """A DeepSpeed file for ZeRO-2."""
        auto = ("gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu",
                "train_batch_size")  # fmt: skip
        zero = {"stage": 2, "overlap_comm": True, "contiguous_gradients": True}
        values = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, **dict.fromkeys(auto, "auto")}
        write_json(self.folder / "zero2.json", values)
        return str(self.folder / "zero2.json")

    def random(self, name: str) -> random.Random:
        """Random numbers of a case's own, the same for the same seed."""
        return random.Random(f"{self.seed} {name}")

    def pretrain(self, name: str, **changes: Any) -> Subject:
        """A pretraining recipe with many saves."""
        saves = {"training__save_steps": 4, "training__max_steps": 24}
        return Subject("", "pretrain", toys.pretrain_tree(self.corpus, self.folder)).changed(name, **saves | changes)

    @property
    def usual(self) -> Subject:
        """The one that the short form uses throughout, so that one undisturbed run serves it."""
        dropout = {f"model__{kind}_dropout": 0.1 for kind in ("attention", "residual", "embedding")}
        return self.pretrain("muon_best_fit_dropout", data__packing="best_fit", **dropout)

    def sft(self, name: str, **changes: Any) -> Subject:
        """A recipe of sft with many saves."""
        return self._finetune(
            name, "sft", {**_SAVES, "learning_rate": 1e-2, "packing": True, "assistant_only_loss": True}, changes
        )

    def dpo(self, name: str, **changes: Any) -> Subject:
        """A recipe of dpo with many saves."""
        return self._finetune(
            name, "dpo", {**_SAVES, "learning_rate": 1e-3, "precompute_ref_log_probs": True}, changes
        )

    def _finetune(self, name: str, stage: str, training: dict[str, Any], changes: dict[str, Any]) -> Subject:
        tree = toys.finetune_tree(self.folder, self.start, self.rows, training)
        return Subject("", stage, tree).changed(name, **changes)

    def words(self, subject: Subject, run_dir: Path, *more: str) -> list[str]:
        """The words after `ingot` that run a subject in a folder."""
        recipe = self.folder / "recipes" / f"{subject.name}.yaml"
        recipe.parent.mkdir(exist_ok=True)
        write_text(recipe, dump_yaml(subject.tree))
        return [subject.stage, "--config", str(recipe), f"--run.dir={run_dir}", *more]

    def begin(
        self, subject: Subject, run_dir: Path, *more: str, cold: bool = False, hooks: Hooks | None = None
    ) -> Run:
        """Starts a subject in a folder; what is there already is continued."""
        words = self.words(subject, run_dir, *more)
        if not cold:
            return self.processes.warm(words, subject.num_processes, hooks, subject.strategy)
        assert hooks is None
        if subject.num_processes == 1:
            return self.processes.cold(["-m", "ingot.cli", *words])
        return self.processes.cold(launch(subject.num_processes, *words, strategy=subject.strategy))

    def reference(self, subject: Subject) -> Reference:
        """The undisturbed run of a subject; made once.

        Raises: RuntimeError when it fails, with what it said.
        """
        if subject.name not in self.references:
            self.references[subject.name] = self._undisturbed(subject)
        return self.references[subject.name]

    def _undisturbed(self, subject: Subject) -> Reference:
        folder = self.folder / "references" / subject.name
        folder.parent.mkdir(exist_ok=True)
        run = self.begin(subject, folder)
        spans = list(_save_spans(run, folder))
        if run.wait() != 0:
            raise RuntimeError(f"{subject.name}: the undisturbed run failed: {run.text[-2000:]}")
        return Reference(folder, time.monotonic() - run.began, median(spans) if spans else 0.05, len(spans))

    def finish(self, subject: Subject, run_dir: Path, **how: Any) -> Run:
        """Starts a subject and waits for its end.

        Raises: RuntimeError when it fails, with what it said.
        """
        run = self.begin(subject, run_dir, **how)
        if run.wait() != 0:
            raise RuntimeError(f"{subject.name}: {run_dir} failed: {run.text[-2000:]}")
        return run

    def close(self) -> None:
        """Leaves no process behind."""
        with contextlib.suppress(ProcessLookupError):
            self.processes.close()


_SAVES = {"max_steps": 24, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2, "logging_steps": 1}


def _save_spans(run: Run, folder: Path) -> Iterator[float]:
    """How long each save takes, as seen from outside."""
    staging = folder / STAGING
    while run.wait_until(staging.exists):
        began = time.monotonic()
        run.wait_until(lambda: not staging.exists())
        yield time.monotonic() - began
