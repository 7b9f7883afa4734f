"""Files of checkpoints, runs, exports and tokenizers are changed one at a time, and the folder is loaded for real.

What counts: `refused`: one line that names the file; `unchanged`: the folder loaded and gave, bit for bit, what the
whole one gives (weights, config, generation config, tokenizer, chat template; of a checkpoint: every file), so that
the change was in nothing that is read; `silent`: it loaded and gave something else; `unnamed`: an error that names no
file; `hung`: it took more than ten seconds.
"""

import contextlib
import hashlib
import json
import logging
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.faults import edits, toys
from ingot.faults.edits import Edit
from ingot.faults.workplace import Result, Workplace
from ingot.files import CHECKSUMS, describe_file, read_json, write_checksums, write_json
from ingot.integrity import NOT_RECORDED
from ingot.recipe import InputError, build_recipe
from ingot.runs import MANIFEST

ASKED = "{count} changed files: 0 silent loads, 0 errors that name no file, 0 loads over {seconds:.0f} s"
SECONDS = 10.0
JSON_NAMES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "trainer_state.json")


@dataclass(frozen=True)
class Subject:
    """A folder to damage: what lies in `folder`, of which `part` is changed, and what loading it gives."""

    name: str
    folder: Path
    part: str
    load: Callable[[Path], str]  # the hash of everything that was read; raises InputError


@dataclass(frozen=True)
class Case:
    """One change: of which file, how, and whether the record beside it was written anew, as a hand editor might."""

    subject: Subject
    file: str  # relative to the subject's folder
    how: str
    edit: Edit
    accepted: bool


def mutate_checkpoints(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Makes `count` changes to the files of four toy folders and loads each. Returns the counts and what went wrong.

    folder: empty, to work in. The same seed makes the same changes.
    """
    subjects = make_subjects(folder / "whole")
    whole = {subject.name: subject.load(subject.folder) for subject in subjects}
    rng = random.Random(f"{seed} mutations")
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    for number, case in enumerate(_cases(subjects, count, rng)):
        outcome, said = _try(case, folder / "changed", whole[case.subject.name], random.Random(f"{seed} {number}"))
        outcomes[outcome] += 1
        kinds[case.how] += 1
        if outcome in ("silent", "unnamed", "hung"):
            sums = ", record written anew" if case.accepted else ""
            wrong.append(f"{outcome}: {case.subject.name}: {case.file}: {case.how}{sums}: {said}")
    shutil.rmtree(folder / "changed", ignore_errors=True)
    names = ("refused", "unchanged", "silent", "unnamed", "hung")
    found = {name: outcomes[name] for name in names}
    return {"changes": count, **found, "kinds": dict(sorted(kinds.items())), "wrong": wrong}


def _cases(subjects: list[Subject], count: int, rng: random.Random) -> Iterator[Case]:
    """Every kind of change to every file in a random order, again and again with other random numbers."""
    possible = [case for subject in subjects for case in _cases_of(subject)]
    order: list[Case] = []
    for _ in range(count):
        order = order or rng.sample(possible, len(possible))
        yield order.pop()


def _cases_of(subject: Subject) -> Iterator[Case]:
    root = subject.folder / subject.part
    files = sorted(p for p in root.rglob("*") if p.is_file())
    if subject.part != "." and (subject.folder / MANIFEST).is_file():
        files.append(subject.folder / MANIFEST)
    for path in files:
        name = str(path.relative_to(subject.folder))
        yield from (Case(subject, name, how, edit, False) for how, edit in edits.BYTES.items())
        if path.suffix == ".json":
            yield Case(subject, name, "edit_json", edits.edit_json, False)
        if path.name == "model.safetensors":
            yield from _both(subject, name, edits.TENSORS)
        if path.name == "config.json":
            yield from _both(subject, name, edits.CONFIG)
        if path.name in JSON_NAMES or path.name == "model.safetensors":
            cut = {how: edits.BYTES[how] for how in ("truncate", "empty")}
            yield from (Case(subject, name, how, edit, True) for how, edit in cut.items())
    for how, edit in edits.EXTRA.items():
        yield Case(subject, str(Path(subject.part) / "config.json"), how, edit, False)


def _both(subject: Subject, name: str, changes: dict[str, Edit]) -> Iterator[Case]:
    """Each change with the old record and with a new one."""
    for how, edit in changes.items():
        yield from (Case(subject, name, how, edit, accepted) for accepted in (False, True))


def _try(case: Case, place: Path, whole: str, rng: random.Random) -> tuple[str, str]:
    """Damages a copy and loads it: the outcome, and what was said."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(case.subject.folder, place)
    case.edit(place / case.file, rng)
    if case.accepted:
        _write_record_anew(place, place / case.subject.part)
    began = time.monotonic()
    try:
        loaded = case.subject.load(place)
        outcome, said = ("unchanged" if loaded == whole else "silent"), "loaded"
    except InputError as error:
        said = str(error)
        outcome = "refused" if "\n" not in said and _names_a_file(said, place) else "unnamed"
    except BaseException as error:  # whatever else comes out is a finding
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, said = "unnamed", f"{type(error).__name__}: {error}"[:300]
    return ("hung", said) if time.monotonic() - began > SECONDS else (outcome, said)


def _names_a_file(said: str, place: Path) -> bool:
    """Whether a message holds the path of a file, there or missing, below the folder."""
    words = (word.rstrip(":,;") for word in said.split())
    return any(word.startswith(f"{place}/") and not Path(word).is_dir() for word in words)


def _write_record_anew(folder: Path, part: Path) -> None:
    """Makes the records agree with the files as they are."""
    if (part / CHECKSUMS).is_file():
        write_checksums(part, NOT_RECORDED if part.name != "checkpoint-4" else ())
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        files = {name: describe_file(folder / name) for name in manifest["files"] if (folder / name).is_file()}
        write_json(folder / MANIFEST, {**manifest, "files": files})


def make_subjects(folder: Path) -> list[Subject]:
    """A run with two checkpoints, its model, its export copied elsewhere, and a tokenizer; all with their records."""
    from ingot.export.hub import save_hub_folder
    from ingot.loading import load_model, load_tokenizer
    from ingot.training import pretrain

    corpus, run = toys.make_corpus(folder / "corpus"), folder / "run"
    tree = toys.pretrain_tree(corpus, run)
    tree["training"] |= {"max_steps": 4, "save_steps": 2, "eval_strategy": "no", "warmup_steps": 1}
    del tree["training"]["eval_steps"]
    with heard():
        pretrain.run(build_recipe(pretrain.PretrainRecipe, tree))
    save_hub_folder(load_model(run), load_tokenizer(run), folder / "hub")
    (folder / "hub/README.md").write_text("# A model card, which people edit\n")
    write_checksums(folder / "hub", NOT_RECORDED)  # as export does
    for part in ("checkpoints", "model"):
        (folder / part).mkdir()
    for checkpoint in run.glob("checkpoint-*"):
        shutil.move(checkpoint, folder / "checkpoints" / checkpoint.name)
    shutil.copytree(run / "model", folder / "model/model")
    manifest = read_json(run / MANIFEST)
    files = {name: entry for name, entry in manifest["files"].items() if name.startswith("model/")}
    write_json(folder / "model" / MANIFEST, {**manifest, "files": files})
    return [
        Subject("checkpoint", folder / "checkpoints", "checkpoint-4", load_checkpoint),
        Subject("model of a run", folder / "model", "model", load_folder),
        Subject("exported model, copied", folder / "hub", ".", load_folder),
        Subject("tokenizer", corpus / "tokenizer", ".", load_tokenizer_alone),
    ]


def load_folder(path: Path) -> str:
    """The hash of a model and its tokenizer as serve, chat, evaluate, export, sft and dpo load them."""
    from ingot.loading import load_model, load_tokenizer

    tokenizer, model = load_tokenizer(path), load_model(path)
    digest = hashlib.sha256(_tokenizer_text(tokenizer).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    for config in (model.config, model.generation_config):
        shown = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}
        digest.update(json.dumps(shown, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def load_tokenizer_alone(path: Path) -> str:
    """The hash of a tokenizer as every stage loads it."""
    from ingot.loading import load_tokenizer

    return hashlib.sha256(_tokenizer_text(load_tokenizer(path)).encode()).hexdigest()


def _tokenizer_text(tokenizer: Any) -> str:
    kept = {k: str(v) for k, v in tokenizer.init_kwargs.items() if k not in ("name_or_path", "tokenizer_file")}
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    template = str(tokenizer.chat_template)
    return json.dumps([tokenizer.backend_tokenizer.to_str(), template, kept, special], sort_keys=True)


def load_checkpoint(run_dir: Path) -> str:
    """The hash of all files of the checkpoint that a run would continue from; one that is passed over is an error.

    Raises: InputError with the line that says why the newest one is not used.
    """
    from ingot.training.checkpoint_folders import checkpoints_of, newest_checkpoint

    with heard() as lines:
        found = newest_checkpoint(run_dir)
    if found is None or found != checkpoints_of(run_dir)[-1]:
        raise InputError(lines[0] if lines else "the newest checkpoint was passed over without a word")
    files = sorted(p for p in found.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    described = [[str(p.relative_to(found)), describe_file(p)["sha256"]] for p in files]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The lines that Ingot logs meanwhile, kept from the terminal."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger("ingot")
    shown, root.handlers = root.handlers, [handler]
    try:
        yield lines
    finally:
        root.handlers = shown


def checkpoint_mutations(work: Workplace) -> Result:
    """500 changed files, or 60 in the short form."""
    count = 60 if work.short else 500
    measured = work.processes.call(mutate_checkpoints, work.folder / "mutations", count, work.seed)
    passed = not (measured["silent"] or measured["unnamed"] or measured["hung"])
    asked = ASKED.format(count=count, seconds=SECONDS)
    return {"name": "checkpoint_mutations", "asked": asked, "measured": measured, "passed": passed}
