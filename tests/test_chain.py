"""`ingot run`: recipes planned together, run in order, skipped when complete, stopped when one fails."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot import chain
from ingot.chain import CHAIN, Link, Request, conclude, headline, parse, plan_chain, run_command, summary
from ingot.recipe import InputError, stage_inputs
from ingot.runs import describe_file, identity, read_json, write_json

from .data.helpers import make_rows, write_jsonl

QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart"
# what each stage's manifest reports, as far as the chain reads it
RESULTS: dict[str, dict[str, Any]] = {
    "train_tokenizer": {"vocab_size": 4096, "bytes_per_token": 3.91},
    "prepare_data": {"splits": {"train": {"tokens": 2_500_000, "documents": 233}}},
    "pretrain": {"parameters": 2_600_000, "heldout_loss": 3.3},
    "sft": {"loss_before": 3.2, "loss_after": 2.9, "validation_rows": 60},
    "dpo": {"margin_before": 0.01, "margin_after": 0.9, "validation_pairs": 70},
    "evaluate": {
        "base": {"bits_per_byte": 1.35, "tasks": {}}, "sft": {"bits_per_byte": 1.4}, "dpo": {"bits_per_byte": 1.5},
        "xz": {"bits_per_byte": 2.24}, "bz2": {"bits_per_byte": 1.97}, "report": "report.md",
    },
    "export": {"path": "X/export"},
}  # fmt: skip
Starts = list[tuple[str, list[str]]]


def finish(link: Link, results: dict[str, Any] | None = None) -> None:
    """Leaves the run folder of a finished stage."""
    link.dir.mkdir(parents=True, exist_ok=True)
    (link.dir / "out.txt").write_text(link.name)
    files = {"out.txt": describe_file(link.dir / "out.txt")}
    record = {"results": RESULTS[link.recipe.stage] if results is None else results, "seconds": 60.0, "files": files}
    write_json(link.dir / "manifest.json", identity(link.recipe) | record)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Stages finish at once; what was started is listed."""
    starts: Starts = []

    def start(link: Link, request: Request) -> int:
        starts.append((link.name, link.arguments))
        finish(link)
        return 0

    monkeypatch.setattr(chain, "start", start)
    return starts


def write_recipes(folder: Path, **recipes: str) -> Path:
    """A folder of recipes whose text is given."""
    folder.mkdir()
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_the_command_line_is_taken_apart() -> None:
    words = "folder --run.dir X --stages pretrain,sft_lora --launch a.yaml --num_processes=2 --sft_lora.model.r=4"
    request = parse([*words.split(), "--pretrain.training.max_steps", "5"])
    assert (request.folder, request.run_dir, request.stages) == (Path("folder"), Path("X"), ("pretrain", "sft_lora"))
    assert (request.launch, request.num_processes) == ("a.yaml", 2)
    assert request.overrides == (("sft_lora", "--model.r=4"), ("pretrain", "--training.max_steps=5"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.dir", "X"], "name a folder of recipes first"),
        (["folder", "--num_processes=0"], "--num_processes: expected a whole number above 0, got '0'"),
        (["folder", "--num_processes=two"], "got 'two'"),
        (["folder", "other"], "other: not an option"),
        (["folder", "--run.dir"], "--run.dir: needs a value"),
        (["absent"], "absent: no such folder of recipes"),
        ([str(QUICKSTART), "--stages=pretrian"], "pretrian: no such stage; did you mean 'pretrain'?"),
        ([str(QUICKSTART), "--stages=dpo_lora"], "dpo_lora.yaml: no such file; --stages names recipes of the folder"),
        ([str(QUICKSTART), "--stages=chat"], "--stages: chat has no end; start it alone: ingot chat FOLDER"),
        ([str(QUICKSTART), "--pretrian.run.dir=x"], "--pretrian....: no such stage in"),
        ([str(QUICKSTART), "--stages=sft", "--pretrain.training.max_steps=5"], "overrides begin with one of sft"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, started: Starts) -> None:
    with pytest.raises(InputError) as caught:
        run_command(words)
    assert message in str(caught.value) and not started


def test_a_folder_without_recipes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").write_text("a: 1")
    with pytest.raises(InputError, match="holds no recipe of a stage; they are named train_tokenizer, prepare_data"):
        run_command([str(tmp_path)])


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["--help"])
    assert capsys.readouterr().out.startswith("usage: ingot run FOLDER")


def test_every_stage_moves_into_the_run_folder_and_finds_the_others_there(tmp_path: Path) -> None:
    links = plan_chain(Request(QUICKSTART, run_dir=tmp_path / "2024: mine"))
    assert [link.name for link in links] == list(CHAIN)
    root = tmp_path / "2024: mine"
    for link in links:
        assert link.dir == root / link.name
    found = {link.name: {key: path for key, path, _ in stage_inputs(link.recipe)} for link in links}
    assert found["prepare_data"] == {"data.tokenizer": root / "train_tokenizer"}
    assert found["pretrain"] == {"model.tokenizer": root / "train_tokenizer", "data.shards": root / "prepare_data"}
    assert found["dpo"] == {"data.heldout": root / "prepare_data", "run.from": root / "sft"}
    assert found["evaluate"] == {
        "model.candidates.base": root / "pretrain", "model.candidates.sft": root / "sft",
        "model.candidates.dpo": root / "dpo", "data.documents": root / "prepare_data",
    }  # fmt: skip
    assert found["export"] == {"card.evaluation": root / "evaluate", "run.from": root / "dpo"}


def test_without_a_run_folder_the_recipes_are_as_they_are() -> None:
    for link in plan_chain(Request(QUICKSTART)):
        assert link.dir == Path("runs/quickstart") / link.name


def test_the_arguments_make_the_same_recipe_again(tmp_path: Path) -> None:
    from ingot.cli import recipe_class
    from ingot.recipe import parse_command_line, to_tree

    overrides = (("pretrain", "--training.max_steps=5"), ("pretrain", "--run.sample_prompts=[a, b]"))
    links = plan_chain(Request(QUICKSTART, run_dir=tmp_path / "X", overrides=overrides))
    for link in links:
        assert to_tree(parse_command_line(recipe_class(link.recipe.stage), link.arguments)) == to_tree(link.recipe)
    pretrain: Any = links[2].recipe
    assert pretrain.training.upstream_values()["max_steps"] == 5 and pretrain.run.sample_prompts == ["a", "b"]


def test_what_becomes_of_a_changed_training_is_passed_on(tmp_path: Path) -> None:
    request = parse([str(QUICKSTART), "--resume", "--stages", "prepare_data,pretrain,sft"])
    data, pretrain, sft = plan_chain(request)
    assert data.recipe.run.on_change() == "restart"  # a stage without checkpoints
    assert pretrain.recipe.run.on_change() == sft.recipe.run.on_change() == "resume"
    assert plan_chain(parse([str(QUICKSTART), "--stages", "dpo"]))[0].recipe.run.on_change() == "refuse"


def test_a_variant_reads_the_stages_of_the_run_folder(tmp_path: Path) -> None:
    (link,) = plan_chain(Request(QUICKSTART, run_dir=tmp_path, stages=("sft_lora",)))
    inputs = {key: path for key, path, _ in stage_inputs(link.recipe)}
    assert link.dir == tmp_path / "sft_lora" and inputs["run.from"] == tmp_path / "pretrain"


def test_a_stage_that_is_sent_elsewhere_is_found_there(tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    overrides = (("pretrain", f"--run.dir={other}"),)
    links = {link.name: link for link in plan_chain(Request(QUICKSTART, run_dir=tmp_path / "X", overrides=overrides))}
    assert links["pretrain"].dir == Path(other)
    assert {key: path for key, path, _ in stage_inputs(links["sft"].recipe)}["run.from"] == Path(other)


def test_inputs_from_outside_and_parts_of_stages_and_dotted_names(tmp_path: Path) -> None:
    evaluate = (
        "model:\n  candidates:\n    v1.2: runs/a/pretrain\n    checkpoint: runs/a/pretrain/checkpoint-5\n"
        "    hub: elsewhere/qwen\ndata: {documents: runs/a/prepare_data}\nrun: {dir: runs/a/evaluate}\n"
    )
    pretrain = (QUICKSTART / "pretrain.yaml").read_text().replace("runs/quickstart", "runs/a")
    folder = write_recipes(tmp_path / "recipes", evaluate=evaluate, pretrain=pretrain)
    link = plan_chain(Request(folder, run_dir=tmp_path / "X"))[1]
    recipe: Any = link.recipe
    assert recipe.model.candidates == {
        "v1.2": tmp_path / "X/pretrain",
        "checkpoint": tmp_path / "X/pretrain/checkpoint-5",
        "hub": Path("elsewhere/qwen"),
    }
    assert recipe.data.documents == Path("runs/a/prepare_data")  # no recipe of the folder makes it


def test_the_sources_of_a_mixture_move_with_their_stages(tmp_path: Path) -> None:
    prepare = (QUICKSTART / "prepare_data.yaml").read_text()
    pretrain = (QUICKSTART / "pretrain.yaml").read_text()
    mixture = "mixture: [{shards: runs/a/books, weight: 0.7}, {shards: elsewhere/web, weight: 0.3}]"
    pretrain = pretrain.replace("shards: runs/quickstart/prepare_data", mixture)
    books = prepare.replace("dir: runs/quickstart/prepare_data", "dir: runs/a/books")
    folder = write_recipes(tmp_path / "recipes", pretrain=pretrain, prepare_data_books=books)
    names = ("prepare_data_books", "pretrain")
    link = plan_chain(Request(folder, run_dir=tmp_path / "X", stages=names))[1]
    recipe: Any = link.recipe
    assert [(s.shards, s.weight) for s in recipe.data.mixture] == [
        (tmp_path / "X/prepare_data_books", 0.7), (Path("elsewhere/web"), 0.3),
    ]  # fmt: skip
    assert '--data.mixture.1.shards="elsewhere/web"' not in link.arguments


def test_where_a_named_input_lies_is_no_part_of_the_identity(tmp_path: Path) -> None:
    evaluate = (
        "model:\n  candidates:\n    v1.2: {0}/pretrain\ndata: {{documents: {0}/data}}\nrun: {{dir: {0}/evaluate}}\n"
    )
    identities = []
    for name in ("a", "b"):
        for stage in ("pretrain", "data"):
            (tmp_path / name / stage).mkdir(parents=True)
            (tmp_path / name / stage / "config.json").write_text("{}")
        folder = write_recipes(tmp_path / f"recipes-{name}", evaluate=evaluate.format(tmp_path / name))
        identities.append(identity(plan_chain(Request(folder))[0].recipe))
    assert identities[0] == identities[1] and identities[0]["recipe"]["model"]["candidates"] == {}


def test_errors_of_all_recipes_come_together_before_anything_runs(tmp_path: Path, started: Starts) -> None:
    texts = {name: (QUICKSTART / f"{name}.yaml").read_text() for name in ("pretrain", "sft", "dpo", "train_tokenizer")}
    folder = write_recipes(
        tmp_path / "recipes",
        train_tokenizer=texts["train_tokenizer"],
        pretrain=texts["pretrain"].replace("  learning_rate:", "  learning_rte:"),
        sft=texts["sft"].replace("bf16: true", "bf16: no"),
        dpo="a: [1\n",
    )
    with pytest.raises(InputError) as caught:
        run_command([str(folder), "--run.dir", str(tmp_path / "X")])
    text = str(caught.value)
    assert "pretrain.yaml" in text and "training.learning_rte: no such key; did you mean 'learning_rate'?" in text
    assert (
        "sft.yaml: training.bf16: expected true/false or null, got 'no'" in text or "training.bf16: expected" in text
    )
    assert "dpo.yaml, line 2: not valid YAML" in text
    assert not started and not (tmp_path / "X").exists()


def test_a_broken_recipe_that_is_not_asked_for_does_no_harm(tmp_path: Path, started: Starts) -> None:
    texts = {name: (QUICKSTART / f"{name}.yaml").read_text() for name in ("train_tokenizer",)}
    folder = write_recipes(tmp_path / "recipes", **texts, sft="a: [1\n")
    run_command([str(folder), "--run.dir", str(tmp_path / "X"), "--stages=train_tokenizer"])
    assert [name for name, _ in started] == ["train_tokenizer"]


def test_what_is_complete_is_skipped_and_a_change_runs_it_and_what_follows(tmp_path: Path, started: Starts) -> None:
    words = [str(QUICKSTART), "--run.dir", str(tmp_path / "X")]
    run_command(words)
    assert [name for name, _ in started] == list(CHAIN)
    started.clear()
    run_command(words)
    assert not started
    run_command([*words, "--evaluate.perplexity.batch_size=4"])
    assert [name for name, _ in started] == ["evaluate"]
    started.clear()
    manifest = read_json(tmp_path / "X/sft/manifest.json")
    (tmp_path / "X/sft/out.txt").write_text("another")
    manifest["files"]["out.txt"] = describe_file(tmp_path / "X/sft/out.txt")
    write_json(tmp_path / "X/sft/manifest.json", manifest)
    run_command(words)
    assert [name for name, _ in started] == [
        "dpo",
        "evaluate",
    ]  # their files come out the same: export has nothing to do


def test_a_failing_stage_stops_the_chain_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def start(link: Link, request: Request) -> int:
        tried.append(link.name)
        if link.name == "pretrain":
            return 3
        finish(link)
        return 0

    monkeypatch.setattr(chain, "start", start)
    with pytest.raises(SystemExit) as caught:
        run_command([str(QUICKSTART), "--run.dir", str(tmp_path)])
    assert caught.value.code == 3 and tried == ["train_tokenizer", "prepare_data", "pretrain"]
    assert not (tmp_path / "summary.json").exists()


def test_the_summary_has_the_promised_keys(
    tmp_path: Path, started: Starts, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command([str(QUICKSTART), "--run.dir", str(tmp_path)])
    found = read_json(tmp_path / "summary.json")
    assert [stage["name"] for stage in found["stages"]] == list(CHAIN)
    assert all(stage.keys() == {"name", "seconds"} and stage["seconds"] >= 0 for stage in found["stages"])
    assert found["base"]["bits_per_byte"] == 1.35 and found["xz"]["bits_per_byte"] == 2.24
    assert (found["sft"]["loss_before"], found["sft"]["loss_after"]) == (3.2, 2.9)
    assert (found["dpo"]["margin_before"], found["dpo"]["margin_after"]) == (0.01, 0.9)
    assert found["export"]["path"] == "X/export"
    table = capsys.readouterr().out
    assert "2,600,000 parameters, held-out loss 3.300" in table and "base 1.350" in table and "xz 2.240" in table
    assert table.rstrip().endswith(f"ingot chat {tmp_path / 'export'} --run.web=true")


def test_seconds_are_those_of_the_stage_when_it_was_skipped(tmp_path: Path) -> None:
    links = plan_chain(Request(QUICKSTART, run_dir=tmp_path, stages=("train_tokenizer",)))
    finish(links[0])
    conclude(links)
    assert read_json(tmp_path / "summary.json") == {"stages": [{"name": "train_tokenizer", "seconds": 60.0}]}


def test_a_headline_needs_no_model_called_base() -> None:
    assert headline("evaluate", {"mine": {"bits_per_byte": 1.5}, "report": "r"}) == "bits per byte: mine 1.500"
    manifests = {"evaluate": {"stage": "evaluate", "seconds": 1.0, "results": {"mine": {"bits_per_byte": 1.5}}}}
    assert summary(manifests)["mine"] == {"bits_per_byte": 1.5}


@pytest.mark.parametrize(
    ("code", "interrupted", "expected"),
    [(0, False, 0), (2, False, 2), (3, False, 3), (130, False, 130), (1, False, 3), (-9, False, 137), (1, True, 130)]
    + [(-2, True, 130), (0, True, 130)],
)
def test_exit_codes_of_processes(code: int, interrupted: bool, expected: int) -> None:
    assert chain.exit_code(code, interrupted) == expected


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[str]]]:
    """Lets `start` run a line of Python instead of a stage; gives the command lines that it made."""
    lines: list[list[str]] = []
    popen = subprocess.Popen

    def use(code: str) -> list[list[str]]:
        def open_process(words: list[str], **options: Any) -> Any:
            lines.append(words)
            return popen([sys.executable, "-c", code], **options)

        monkeypatch.setattr(subprocess, "Popen", open_process)
        return lines

    return use


def test_a_stage_runs_in_a_process_of_its_own(tmp_path: Path, command: Callable[[str], list[list[str]]]) -> None:
    links = plan_chain(Request(QUICKSTART, run_dir=tmp_path, stages=("prepare_data", "pretrain")))
    lines = command("raise SystemExit(2)")
    request = Request(QUICKSTART, launch="accelerate_configs/cpu_ddp.yaml", num_processes=2)
    assert [chain.start(link, request) for link in links] == [2, 2]
    assert lines[0] == [sys.executable, "-m", "ingot.cli", "prepare_data", *links[0].arguments]
    launch = f"-m accelerate.commands.launch --config_file {request.launch} --num_processes 2 -m ingot.cli pretrain"
    assert lines[1] == [sys.executable, *launch.split(), *links[1].arguments]


def test_a_signal_is_passed_on_and_the_stage_may_finish(
    tmp_path: Path, command: Callable[[str], list[list[str]]], capfd: pytest.CaptureFixture[str]
) -> None:
    (link,) = plan_chain(Request(QUICKSTART, run_dir=tmp_path, stages=("prepare_data",)))
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    command(
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: (print('saved', flush=True), sys.exit(130)))\n"
        f"open({str(ready)!r}, 'w').close()\n"
        "signal.pause()\n"
    )

    def interrupt() -> None:
        ready.read_text()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    assert chain.start(link, Request(QUICKSTART)) == 130
    thread.join()
    assert capfd.readouterr().out == "saved\n" and signal.getsignal(signal.SIGINT) is before


def test_a_real_chain_of_two_stages(root: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(60))
    data = f"  sources: [{{path: {json.dumps(str(rows))}}}]\n"
    folder = write_recipes(
        tmp_path / "recipes",
        train_tokenizer=f"tokenizer: {{vocab_size: 320}}\ndata:\n{data}run: {{dir: runs/a/train_tokenizer}}\n",
        prepare_data=f"data:\n  tokenizer: runs/a/train_tokenizer\n{data}  split: {{validation: 5}}\n"
        "run: {dir: runs/a/prepare_data}\n",
    )
    words = [sys.executable, "-m", "ingot.cli", "run", str(folder), "--run.dir", str(tmp_path / "X")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert [s["name"] for s in read_json(tmp_path / "X/summary.json")["stages"]] == ["train_tokenizer", "prepare_data"]
    assert "320 entries" in done.stdout and "55 documents" in done.stdout
    assert read_json(tmp_path / "X/prepare_data/data.json")["vocab_size"] == 320
    again = subprocess.run(words, capture_output=True, text=True, cwd=root)
    assert again.returncode == 0 and again.stderr.count("complete and unchanged, skipped") == 2
    failed = subprocess.run(
        [*words, "--prepare_data.data.split.validation=70"], capture_output=True, text=True, cwd=root
    )
    assert failed.returncode == 2, failed.stderr
    assert "train_tokenizer: complete and unchanged, skipped" in failed.stderr
    assert "prepare_data was refused; mend the input and run the same command again" in failed.stderr
