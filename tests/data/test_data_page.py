"""Every recipe, command and table of docs/data.md is what the code does."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ingot import chain
from ingot.cli import STAGES, command, load_stage
from ingot.data.cleaning import section
from ingot.data.cleaning.cleaner import UNSURE
from ingot.data.cleaning.rules import C4_LINES, SIMPLE, rule_reasons
from ingot.data.decisions import DUPLICATE, NEAR
from ingot.data.execution import Slurm
from ingot.data.inspect_data import parse
from ingot.data.prepare_data import DataSection
from ingot.data.sources import Corpus, Source, Unit
from ingot.data.tasks import Task, judged_key, shards_key, text_key
from ingot.recipe_yaml import parse_yaml
from ingot.runs import check_inputs, read_json

from .helpers import sentence
from .test_executors import cluster  # noqa: F401 - a fixture: programs that stand in for Slurm's

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FRAGMENTS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
RECIPES = {m[1]: text for text in FRAGMENTS if (m := re.match(r"# (recipes/\S+)\n", text))}
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the page's recipes, and the project's beside them."""
    for name, text in RECIPES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "recipes/1b36").symlink_to(ROOT / "recipes/1b36")
    for name in ("accelerate_configs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_papers(size: int) -> None:
    folder = Path("data/papers")
    folder.mkdir(parents=True)
    for i in range(size):
        (folder / f"{i}.txt").write_text("\f".join(sentence(100 * i + j, 60) for j in range(3)))
    (folder / "scan.txt").write_text("\f\f")
    (folder / "nothing.txt").write_text("")
    (folder / "index.txt").write_text("\n".join(f"{i} ..... {i * 7}" for i in range(100)))
    (folder / "second-version.txt").write_text((folder / "3.txt").read_text() + " Revised.")


def write_slimpajama() -> None:
    folder = Path("data/SlimPajama-627B/train/chunk1")
    folder.mkdir(parents=True)
    for number in (0, 1, 101):
        rows = [{"text": sentence(1000 * number + i, 60), "meta": {"redpajama_set_name": "C4"}} for i in range(20)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"example_train_{number}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))


def of(*words: str) -> Iterator[list[str]]:
    """The page's commands that begin so, without the `ingot`."""
    yield from (found[1:] for found in COMMANDS if found[: len(words)] == list(words))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_load(place: Path, name: str) -> None:
    assert load_stage(Path(name)).run.dir == Path("runs") / Path(name).relative_to("recipes").with_suffix("")


def test_the_other_fragment_is_one_too() -> None:
    (text,) = [text for text in FRAGMENTS if not text.startswith("# recipes/")]
    data = DataSection.model_validate(parse_yaml(text, "page")["data"])
    assert list(data.problems()) == [] and data.filters.gopher_quality and data.decontaminate


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_accepted(place: Path, words: list[str]) -> None:
    if words[0] == "hf":
        assert words[1:3] == ["download", "cerebras/SlimPajama-627B"]
    elif words[0] == "accelerate":
        script = words.index("scripts/pretrain.py")
        assert Path(words[words.index("--config_file") + 1]).is_file() and Path(words[script]).is_file()
        recipe = load_stage(Path(words[script + 2]), words[script + 3 :])
        assert str(recipe.data.shards) == "runs/slimpajama/prepare_data"  # type: ignore[attr-defined]
    elif words[1] == "inspect":
        assert words[2] == "data" and parse(words[3:]).folder.parts[0] == "runs"
    elif words[1] == "run":
        request = chain.parse(words[2:])
        links = chain.plan_chain(request)
        assert tuple(link.name for link in links) == request.stages
    else:
        assert words[0] == "ingot" and words[1] in STAGES and words[2] == "--config"
        load_stage(Path(words[3]), words[4:])


def test_papers_from_files_to_a_model_that_can_be_trained(
    place: Path, one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_papers(30)
    command(["train_tokenizer", "--config", "recipes/papers/train_tokenizer.yaml", "--tokenizer.vocab_size=300"])
    command(["prepare_data", "--config", "recipes/papers/prepare_data.yaml"])
    results = read_json(Path("runs/papers/prepare_data/manifest.json"))["results"]
    assert results["dropped"] == {"empty": 1, "empty_file": 1, "few_letters": 1, "near_duplicate": 1}
    assert [results["splits"][s]["documents"] for s in ("train", "validation", "test")] == [20, 5, 5]
    for words in of("ingot", "inspect", "data", "runs/papers/prepare_data"):
        command(words)
    assert "near_duplicate" in capsys.readouterr().out and Path("papers.html").is_file()
    recipe = load_stage(Path("recipes/papers/pretrain.yaml"))
    check_inputs(recipe)


@pytest.mark.slow
def test_papers_are_trained_on(place: Path) -> None:
    write_papers(60)
    small = ["--train_tokenizer.tokenizer.vocab_size=300", "--pretrain.training.max_steps=2"]
    command([*[*of("ingot", "run")][-1], *small, "--pretrain.training.bf16=false"])
    assert read_json(Path("runs/papers/pretrain/manifest.json"))["results"]


@pytest.mark.usefixtures("cluster")
def test_slimpajama_one_file_here_then_all_on_slurm(place: Path, one_process: None) -> None:
    write_slimpajama()
    here = [words for words in of("ingot") if any("slimpajama" in word for word in words)]
    assert [words[0] for words in here] == ["train_tokenizer", "prepare_data", "inspect", "prepare_data", "inspect"]
    for words in here:
        command([*words, *(["--tokenizer.vocab_size=300"] if words[0] == "train_tokenizer" else [])])
    tried, whole = (
        read_json(Path(f"runs/slimpajama/{name}/manifest.json"))["results"] for name in ("try", "prepare_data")
    )
    assert (tried["documents_read"], whole["documents_read"]) == (20, 60)
    script = next(Path("runs/slimpajama/prepare_data/.parts").rglob("*.slurm")).read_text()
    assert "#SBATCH --account=my-project" in script and "#SBATCH --array=0-2%256" in script


def rows(cls: Any, prefix: str = "") -> Iterator[str]:
    """The lines of the page's table for a section of the recipe."""
    for name, field in cls.model_fields.items():
        if field.default_factory is not None:
            continue
        switch = any(meta is section.Switch for meta in field.metadata)
        unset = "off" if switch else "unset"
        default = "required" if field.is_required() else unset if field.default is None else json.dumps(field.default)
        yield f"| {prefix}{name} | {default} | {field.description} |"


@pytest.mark.parametrize(
    ("cls", "prefix"),
    [
        (section.Cleaning, ""), (section.Filters, ""), (section.GopherQuality, "gopher_quality."),
        (section.GopherRepetition, "gopher_repetition."), (section.C4, "c4."), (section.FineWeb, "fineweb."),
        (section.Minhash, "minhash."), (section.Decontaminate, "decontaminate."),
        (section.Benchmark, "decontaminate.benchmarks.N."), (section.Pii, "pii."),
        (section.KeepDropped, "keep_dropped."), (Slurm, ""),
    ],
)  # fmt: skip
def test_every_key_is_described_as_it_is(cls: Any, prefix: str) -> None:
    assert [row for row in rows(cls, prefix) if row not in PAGE.splitlines()] == []


def test_every_reason_is_named() -> None:
    rules = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
    every = section.Filters.model_validate(dict.fromkeys(rules, True))
    table = dict(re.findall(r"^\| (\w+) \| `\w+:` (.*) \|$", PAGE, re.MULTILINE))
    for reason in rule_reasons(every):
        rule, _, text = reason.partition(": ")
        if text:
            assert re.sub(r"\d+", "N", text) in table[rule].split(", "), reason
    for reason in (*SIMPLE, UNSURE, DUPLICATE, NEAR, *C4_LINES.values()):
        assert f"`{reason}`" in PAGE, reason


def keys(tokenizer: str = "t", content: str = "c", **data: Any) -> tuple[str, str]:
    """The keys of a task's first pass and of its shards, with the same decisions."""
    source = Source(path="a.jsonl")
    corpus = Corpus.model_validate({"sources": [source], **data})
    text = text_key(Task((Unit(source, "a.jsonl", "a"),)), {"a.jsonl": content}, corpus, [])
    return judged_key(text, corpus), shards_key(text, "decisions", [tokenizer], corpus)


@pytest.mark.parametrize(
    ("row", "changes", "read", "tokenized"),
    [
        ("the tokenizer, `end_of_document`", {"tokenizer": "u"}, False, True),
        ("one file; a file that is added or removed", {"content": "d"}, True, True),
        ("`split.validation`, `split.test`", {"split": {"test": 9, "validation": 2}}, False, False),
        ("`split.group`, `split.stratify`, `split.seed`", {"split": {"seed": 9}}, True, False),
        ("`split.group`, `split.stratify`, `split.seed`", {"split": {"group": ["x"]}}, True, False),
        ("`filters`, `pii`, `decontaminate` or a benchmark's content", {"pii": True}, True, True),
        ("`filters`, `pii`, `decontaminate` or a benchmark's content", {"filters": {"c4": True}}, True, True),
        ("`dedup`, `minhash`", {"dedup": "off"}, True, False),
        ("`dedup`, `minhash`", {"minhash": True}, True, False),
        ("`keep_dropped`", {"keep_dropped": True}, False, True),
    ],
)
def test_what_invalidates_what(row: str, changes: dict[str, Any], read: bool, tokenized: bool) -> None:
    before, after = keys(), keys(**changes)
    assert (before[0] != after[0], before[1] != after[1]) == (read, tokenized)
    (cells,) = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith(f"| {row} |")]
    assert (cells[1].strip() != "nothing") == read
    assert (cells[2].split()[0] in ("everything", "its")) == tokenized  # else only tasks whose decisions change
