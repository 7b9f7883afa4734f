"""Files that users bring are changed one at a time and given to the real commands: data, tokenizers, configs, recipes.

What counts: `refused`: exit code 2 and no traceback; `accepted`: exit code 0, because what is left is still valid (a
changed letter in a document); `failed`: any other exit code, or a traceback; `hung`: more than ten seconds.
"""

import contextlib
import io
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.faults import edits, toys
from ingot.faults.edits import Edit
from ingot.faults.mutations import heard
from ingot.faults.workplace import Result, Workplace
from ingot.recipe_yaml import dump_yaml
from ingot.runs import exit_code_of

ASKED = "{count} changed inputs: 0 tracebacks, 0 commands over {seconds:.0f} s, exit code 2 where one is refused"
SECONDS = 10.0


@dataclass(frozen=True)
class Input:
    """A kind of input: the file that is changed, and the words after `ingot` that read it."""

    name: str
    file: str  # relative to the folder that is copied
    words: Callable[[Path], list[str]]
    edits: dict[str, Edit]


def _text_edit(change: Callable[[str, random.Random], str]) -> Edit:
    def edit(path: Path, rng: random.Random) -> None:
        path.write_text(change(path.read_text(encoding="utf-8"), rng), encoding="utf-8")

    return edit


def _line(text: str) -> Edit:
    """Puts a line into a file of lines."""

    def change(content: str, rng: random.Random) -> str:
        lines = content.splitlines()
        lines.insert(rng.randrange(len(lines) + 1), text)
        return "\n".join(lines) + "\n"

    return _text_edit(change)


def _whole(text: str) -> Edit:
    return _text_edit(lambda content, rng: text)


def _bytes(content: bytes) -> Edit:
    def edit(path: Path, rng: random.Random) -> None:
        path.write_bytes(content)

    return edit


ROWS: dict[str, Edit] = {
    "no_column": _line('{"other": "text"}'), "number": _line('{"text": 1}'), "null": _line('{"text": null}'),
    "list_row": _line('["text"]'), "not_json": _line('{"text": "a"'), "nan": _line('{"text": NaN}'),
    "deep": _line('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"), "surrogate": _line('{"text": "\\ud800"}'),
    "long_number": _line('{"text": "a", "n": 1' + "0" * 10_000 + "}"), "no_utf8": _bytes(b'{"text": "\xff\xfe"}\n'),
    "twice": _line('{"text": "a", "text": "b"}'), "nul": _line('{"text": "\\u0000"}'), "blank": _whole("\n\n\n"),
}  # fmt: skip
TEMPLATES: dict[str, Edit] = {
    "unclosed": _whole("{% for m in messages %}{{ m.content }}"), "unknown_tag": _whole("{% nothing %}"),
    "long_range": _whole("{% for i in range(10 ** 9) %}a{% endfor %}"), "class": _whole("{{ ''.__class__.__mro__ }}"),
    "endless": _whole("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
    "recursion": _whole("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "zero": _whole("{{ 1 // 0 }}"),
    "refuses": _whole("{{ raise_exception('only poems') }}"), "call": _whole("{{ messages() }}"),
    "import": _whole("{% import 'os' as os %}{{ os.system('true') }}"), "no_text": _bytes(b"\xff\xfe\x00"),
}  # fmt: skip
CONFIGS: dict[str, Edit] = {
    **edits.CONFIG, "edit_json": edits.edit_json, "list": _whole("[]"), "text": _whole('"ingot"'),
    "nan": _whole("NaN"), "deep": _whole("[" * 100_000), "no_type": _whole("{}"),
    "layers": _whole('{"model_type": "ingot", "num_hidden_layers": 1000000000}'),
    "rows": _whole('{"model_type": "gpt2", "vocab_size": 1000000000000}'),
    "code": _whole('{"model_type": "new", "auto_map": {"AutoConfig": "new.New"}}'),
}  # fmt: skip
TOKENIZERS: dict[str, Edit] = {
    "edit_json": edits.edit_json, "list": _whole("[]"), "mapping": _whole("{}"), "null": _whole("null"),
    "deep": _whole('{"model":' * 50_000), "no_vocabulary": _whole('{"model": {"type": "BPE"}, "added_tokens": []}'),
}  # fmt: skip
RECIPES: dict[str, Edit] = {
    "tab": _line("\tkey: 1"), "object": _line("x: !!python/object/apply:os.system ['true']"), "list": _whole("- 1\n"),
    "bomb": _whole("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"), "twice": _line("run: {}"),
    "empty_key": _line(": 1"), "deep": _whole("a: " + "[" * 10_000), "text": _whole("pretrain"),
    "no_utf8": _bytes(b"run: \xff\n"), "unknown": _line("trainig: {}"),
    "two": _line("--- \nrun: {}"), "wrong_type": _line("model: 3"),
}  # fmt: skip
ALONE = {name: edit for name, edit in edits.BYTES.items() if name != "swap"}


def make_inputs(folder: Path) -> list[Input]:
    """Writes whole inputs of every kind into a folder and says which command reads each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    toys.make_start(folder / "model")
    texts = [f"{colour} {number}" for number in range(20) for colour in toys.COLOURS]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "text.txt").write_text("\n\n".join(texts))
    pq.write_table(pa.table({"text": texts}), folder / "rows.parquet")
    tree = toys.pretrain_tree(folder / "corpus", folder / "pretrain")
    (folder / "pretrain.yaml").write_text(dump_yaml(tree))
    for name in ("rows.jsonl", "rows.parquet", "text.txt"):
        _write_data_recipe(folder, name)

    def prepare(name: str) -> Callable[[Path], list[str]]:
        return lambda place: ["prepare_data", "--config", str(_write_data_recipe(place, name))]

    def talk(place: Path) -> list[str]:
        return ["chat", str(place / "model"), f"--run.dir={place / 'chat'}", "--model.device=cpu"]

    return [
        Input("jsonl", "rows.jsonl", prepare("rows.jsonl"), {**ALONE, **ROWS}),
        Input("parquet", "rows.parquet", prepare("rows.parquet"), ALONE),
        Input("text", "text.txt", prepare("text.txt"), {**ALONE, "no_utf8": _bytes(b"\xff\xfe\x00a")}),
        Input("tokenizer.json", "model/tokenizer.json", talk, {**ALONE, **TOKENIZERS}),
        Input("config.json", "model/config.json", talk, {**ALONE, **CONFIGS}),
        Input("chat template", "model/chat_template.jinja", _talk_with_one_template(talk), {**ALONE, **TEMPLATES}),
        Input("recipe", "pretrain.yaml", lambda place: _print("pretrain", place), {**ALONE, **RECIPES}),
    ]


def _write_data_recipe(folder: Path, name: str) -> Path:
    """A recipe of prepare_data that reads one file."""
    names = {"rows.jsonl", name} if name == "text.txt" else {name}  # a text file is one document
    tree = {
        "data": {
            "tokenizer": str(folder / "model"), "sources": [{"path": str(folder / n)} for n in sorted(names)],
            "split": {"validation": 2, "test": 2},
        },
        "run": {"dir": str(folder / f"data_of_{name}")},
    }  # fmt: skip
    path = folder / f"prepare_data_{Path(name).suffix[1:]}.yaml"
    path.write_text(dump_yaml(tree))
    return path


def _print(stage: str, place: Path) -> list[str]:
    return [stage, "--config", str(place / f"{stage}.yaml"), "--print-config"]


def _talk_with_one_template(talk: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    """Takes the second copy of the template out, so that it is not the difference that is found."""

    def words(place: Path) -> list[str]:
        file = place / "model/tokenizer_config.json"
        tree = json.loads(file.read_text())
        tree.pop("chat_template", None)
        file.write_text(json.dumps(tree))
        return talk(place)

    return words


def mutate_inputs(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Makes `count` changes to inputs and runs the command that reads each. Returns the counts and what went wrong.

    folder: empty, to work in. The same seed makes the same changes.
    """
    whole = folder / "whole"
    whole.mkdir(parents=True)
    inputs = make_inputs(whole)
    for given in inputs:
        _run_unchanged(given, whole, folder / "unchanged")
    rng = random.Random(f"{seed} inputs")
    outcomes: Counter[str] = Counter()
    wrong, slowest = [], 0.0
    for number, (given, how) in enumerate(_cases(inputs, count, rng)):
        place = folder / f"changed-{number}"  # a path of its own: nothing that was cached is taken for it
        shutil.copytree(whole, place)
        given.edits[how](place / given.file, random.Random(f"{seed} {number}"))
        outcome, said, seconds = run_command(given.words(place))
        slowest = max(slowest, seconds)
        outcomes[outcome] += 1
        if outcome in ("failed", "hung"):
            wrong.append(f"{outcome}: {given.name}: {how}: {said[-400:]}")
        shutil.rmtree(place)
    found = {name: outcomes[name] for name in ("refused", "accepted", "failed", "hung")}
    return {"changes": count, **found, "slowest_seconds": round(slowest, 1), "wrong": wrong}


def _run_unchanged(given: Input, whole: Path, place: Path) -> None:
    """Raises: RuntimeError when a command refuses an input that nothing was done to."""
    shutil.copytree(whole, place)
    outcome, said, _ = run_command(given.words(place))
    shutil.rmtree(place)
    if outcome != "accepted":
        raise RuntimeError(f"{given.name}: {outcome} although nothing was changed: {said[-400:]}")


def _cases(inputs: list[Input], count: int, rng: random.Random) -> Iterator[tuple[Input, str]]:
    possible = [(given, how) for given in inputs for how in given.edits]
    order: list[tuple[Input, str]] = []
    for _ in range(count):
        order = order or rng.sample(possible, len(possible))
        yield order.pop()


def run_command(words: list[str]) -> tuple[str, str, float]:
    """Runs `ingot WORDS` in this process with no input: the outcome, what it said on stderr, and its seconds."""
    from ingot.cli import command

    began, said = time.monotonic(), io.StringIO()
    before, sys.stdin = sys.stdin, io.StringIO("")
    try:
        with (
            heard(),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
            _limited(3 * SECONDS),
        ):
            code: Any = exit_code_of(lambda: command(words))
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdin = before
    seconds, text = time.monotonic() - began, said.getvalue()
    if seconds > SECONDS:
        return "hung", text, seconds
    if "Traceback" in text or code not in (0, None, 2):
        return "failed", text or f"exit code {code}", seconds
    return "refused" if code == 2 else "accepted", text, seconds


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Ends a command that would not end by itself."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def input_mutations(work: Workplace) -> Result:
    """200 changed inputs, or 30 in the short form."""
    count = 30 if work.short else 200
    measured = work.processes.call(mutate_inputs, work.folder / "inputs", count, work.seed)
    passed = not (measured["failed"] or measured["hung"])
    asked = ASKED.format(count=count, seconds=SECONDS)
    return {"name": "input_mutations", "asked": asked, "measured": measured, "passed": passed}
