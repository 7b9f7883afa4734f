"""The table of pretraining speed: its cases, its corpora, its rows and what it says of them."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ingot.benchmark import train_step, train_step_child, train_step_processes, train_step_stock
from ingot.benchmark.train_step import RATE, planned, run_all, train_step_command
from ingot.benchmark.train_step_cases import ROOT, Case, Ladder, case_of, check_overrides, recipe_tree
from ingot.benchmark.train_step_corpus import write_corpus
from ingot.benchmark.train_step_defaults import standard_recipe
from ingot.benchmark.train_step_processes import Workshop, launch
from ingot.benchmark.train_step_report import best_rows, plot, table
from ingot.data.packing import TokenBlocks
from ingot.planning.architecture import architecture_of_config
from ingot.recipe import InputError, build_recipe
from ingot.recipe_yaml import dump_yaml, read_yaml
from ingot.runs import read_json, write_json, write_text
from ingot.training.pretrain import PretrainRecipe
from ingot.training.pretrain_loop import model_config

SHAPE = (
    "--model.num_hidden_layers=1", "--model.hidden_size=64", "--model.intermediate_size=64", "--model.vocab_size=512",
    "--run.optimizer=null",
)  # fmt: skip
TINY = Case(
    str(ROOT / "recipes/quickstart/pretrain.yaml"), "ingot", 2, seq_length=64, steps=4, warmup_steps=2, overrides=SHAPE
)
STOCK = replace(TINY, runner="stock", variant="plain")
MOE = Case(str(ROOT / "recipes/moe-small/pretrain.yaml"), "ingot", 4)
CPU = {"device": "CPU", "memory_bytes": None, "num_gpus": 0, "versions": {"torch": "2", "transformers": "5"}}
H200 = {**CPU, "device": "NVIDIA H200", "memory_bytes": 150_000_000_000, "num_gpus": 1}


def ladders(words: str, machine: dict[str, Any]) -> list[Ladder]:
    """What a command line makes of a machine."""
    return list(planned(train_step._parser().parse_all(words.split()), machine))


def recipe_of(case: Case) -> Any:
    """The checked recipe that a case runs."""
    return build_recipe(PretrainRecipe, recipe_tree(case, Path("corpus"), Path("run")))


def climb(ladder_list: list[Ladder], rates: dict[int, float], deadline: float | None = None) -> list[dict[str, Any]]:
    """Rows of cases whose rate is that of their micro-batch; 0 means that it fails."""
    rows: list[dict[str, Any]] = []

    def run(case: Case) -> dict[str, Any]:
        rate = rates[case.micro_batch]
        return {RATE: rate} if rate else {"error": "out of memory"}

    run_all(ladder_list, run, rows.append, deadline)
    return rows


def measured(case: Case, rate: float, **values: Any) -> dict[str, Any]:
    """A row as a case leaves it."""
    found = {
        RATE: rate, "mfu": None, "step_seconds": 0.5, "peak_bytes": 2 * 10**9, "warmup_seconds": 3.0,
        "flops_per_token": 1e9, "active_parameters": 7, "logging_steps": case.logging_steps,
    }  # fmt: skip
    return {**case.settings(), **found, **values}


def test_a_case_survives_json_and_measures_whole_spans() -> None:
    assert case_of(json.loads(json.dumps(TINY.settings()))) == TINY
    for steps, warm in ((15, 5), (10, 6), (4, 2), (7, 3)):
        case = replace(TINY, steps=steps, warmup_steps=warm)
        assert warm % case.logging_steps == 0 and steps % case.logging_steps == 0


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/pretrain.yaml")), ids=lambda p: p.parent.name)
def test_every_recipe_becomes_one_without_accumulation_saving_or_evaluation(path: Path) -> None:
    recipe = recipe_of(Case(str(path), "ingot", 6, num_processes=4, strategy="zero1", seq_length=4096))
    training = recipe.training.upstream_values()
    assert recipe.run.global_batch_size == 24 and training["per_device_train_batch_size"] == 6
    assert training["save_strategy"] == training["eval_strategy"] == "no" and training["max_steps"] == 20
    assert training["lr_scheduler_type"] == "constant" and not recipe.run.sample_prompts
    assert recipe.data.seq_length == recipe.model.upstream_values()["max_position_embeddings"] == 4096


def test_gradients_are_held_between_micro_batches() -> None:
    case = Case(str(ROOT / "recipes/730m-12gb/pretrain.yaml"), "ingot", 2, num_processes=2, strategy="ddp")
    own = int(read_yaml(Path(case.recipe))["run"]["global_batch_size"])
    assert recipe_of(case).run.global_batch_size == 4 < own
    assert recipe_of(replace(case, accumulation=3)).run.global_batch_size == 12
    assert recipe_of(replace(case, accumulation="recipe")).run.global_batch_size == own
    assert "accumulation 3" in replace(case, accumulation=3).how
    with pytest.raises(InputError, match=f"14 sequences at a time do not make the {own} of a step"):
        recipe_of(replace(case, accumulation="recipe", micro_batch=7))
    (ladder, *_) = ladders("--recipe recipes/730m-12gb/pretrain.yaml --accumulation recipe --no-stock", H200)
    assert ladder.case.accumulation == "recipe" and all(own % size == 0 for size in ladder.micro_batches)


def test_the_precision_is_the_case_s_and_layers_alone_stay_so(tmp_path: Path) -> None:
    tree = read_yaml(Path(TINY.recipe))
    tree["run"]["fp8"] = "layers"
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    case = replace(TINY, recipe=str(tmp_path / "recipe.yaml"))
    assert [recipe_of(replace(case, precision=p)).run.fp8 for p in ("bf16", "fp8", "fp32")] == [False, "layers", False]
    assert recipe_of(replace(TINY, precision="fp8")).run.fp8 is True


def test_the_dense_twin_has_as_many_active_parameters() -> None:
    sparse, dense = (architecture_of_config(model_config(recipe_of(replace(MOE, twin=t)))) for t in (False, True))
    assert dense.active == dense.total < sparse.total
    router = 12 * 768 * 16
    assert sparse.active - dense.active == router


@pytest.mark.parametrize(
    ("word", "message"),
    [("training.max_steps=3", "use --steps"), ("run.dir=x", "the benchmark sets it"), ("model.x", "needs a value")],
)
def test_keys_of_the_benchmark_are_not_set_by_hand(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_overrides([word])


def test_a_ladder_stops_where_a_larger_micro_batch_is_slower_or_fails() -> None:
    ladder = Ladder(TINY, (16, 2, 4, 8))
    assert ["skipped" in row for row in climb([ladder], {2: 10, 4: 20, 8: 15, 16: 30})] == [False, False, False, True]
    rows = climb([ladder], {2: 10, 4: 0, 8: 15, 16: 30})
    assert [row.get("skipped") for row in rows] == [None, None, "4 failed", "4 failed"]
    assert best_rows(rows)[0]["micro_batch"] == 2


def test_documents_are_tried_at_the_best_micro_batch_and_then_at_smaller_ones() -> None:
    first = Ladder(TINY, (2, 4, 8))
    second = Ladder(replace(TINY, corpus="documents"), (2, 4, 8), first)
    tried: list[tuple[str, int]] = []

    def run(case: Case) -> dict[str, Any]:
        tried.append((case.corpus, case.micro_batch))
        fits = case.micro_batch <= (4 if case.corpus == "unpacked" else 2)
        return {RATE: 10.0 * case.micro_batch} if fits else {"error": "out of memory"}

    run_all([first, second], run, lambda row: None, None)
    assert tried == [("unpacked", 2), ("unpacked", 4), ("unpacked", 8), ("documents", 4), ("documents", 2)]
    assert [row["micro_batch"] for row in climb([first, second], {2: 10, 4: 20, 8: 0})] == [2, 4, 8, 4]


def test_nothing_is_started_after_the_time_limit() -> None:
    rows = climb([Ladder(TINY, (2, 4)), Ladder(STOCK, (2,))], {2: 10, 4: 20}, deadline=time.monotonic() - 1)
    assert [row["skipped"] for row in rows] == ["the time limit was reached"] * 3


def test_the_default_is_what_the_machine_holds() -> None:
    assert "recipes/1b8/" in standard_recipe(150_000_000_000) and "recipes/quickstart/" in standard_recipe(None)
    assert "recipes/730m-12gb/" in standard_recipe(12_000_000_000)
    here = ladders("", CPU)
    assert [(rung.case.runner, rung.case.corpus) for rung in here[:2]] == [
        ("ingot", "unpacked"),
        ("ingot", "documents"),
    ]
    there = ladders("--micro-batches 8,16 --stock-variants liger", H200)
    assert [rung.case.how for rung in there] == [
        "1b8, Ingot, bf16", "1b8, Ingot, fp8", "1b8, Ingot, bf16, documents", "1b8, Ingot, fp8, documents",
        "1b8, Trainer, liger, bf16",
    ]  # fmt: skip
    assert there[2].start_at == there[0] and there[3].start_at == there[1]
    assert max(there[4].micro_batches) == 32


def test_words_become_cases() -> None:
    words = (
        "--recipe recipes/moe-small/pretrain.yaml --no-stock --precision bf16 --corpus unpacked --micro-batches 1,2"
    )
    found = ladders(
        f"{words} --seq-length 8192,32768 --gradient-checkpointing --set training.torch_compile=true", H200
    )
    assert [(rung.case.twin, rung.case.seq_length) for rung in found] == [
        (False, 8192), (True, 8192), (False, 32768), (True, 32768),
    ]  # fmt: skip
    training = recipe_of(found[3].rungs()[1]).training.upstream_values()
    assert training["gradient_checkpointing"] and training["torch_compile"]
    assert len(ladders(f"{words} --no-dense-twin", H200)) == 1
    assert {rung.case.runner for rung in ladders("--no-ingot", H200)} == {"stock"}
    several = ladders(f"{words} --strategy zero1,fsdp2", {**H200, "num_gpus": 8})
    assert {(rung.case.strategy, rung.case.num_processes) for rung in several} == {("zero1", 8), ("fsdp2", 8)}
    assert "fsdp2.yaml" in " ".join(launch(several[-1].rungs()[0], Path("x")))
    assert {rung.case.strategy for rung in ladders(f"{words} --strategy fsdp2,single_gpu", H200)} == {
        "fsdp2",
        "single",
    }
    (capped, *_) = ladders(f"{words} --memory-limit-gb 11.5", H200)
    assert capped.case.memory_limit == 11_500_000_000 and "in 11.5 GB" in capped.case.how


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--strategy zero9", "'zero9' is not known; there are single, cpu, "),
        ("--num-processes 2", "this machine has 1 GPUs"),
        ("--accumulation some", "'some' is not a number"),
        ("--micro-batches 8,x", "'x' is not a number"),
        ("--seq-length 1", "a sequence has at least 2 tokens"),
        ("--precision int4", "there are bf16, fp8, fp32"),
        ("--plot /proc/nope/x.png", "'/proc/nope' cannot be written to"),
        ("--no-ingot --no-stock", "nothing to measure"),
        ("--set training.learning_rte=3", "learning_rate"),
        (f"--recipe {ROOT / 'recipes/quickstart/sft.yaml'}", "sft.yaml"),
        ("--recipe nowhere.yaml", "nowhere.yaml: no such file"),
        ("--step 3", "did you mean --step"),
    ],
)
def test_a_wrong_word_is_named(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ladders(words, H200)


def test_a_cpu_has_no_memory_to_limit_and_no_strategy_for_one_process() -> None:
    with pytest.raises(InputError, match="no GPU whose memory"):
        ladders("--memory-limit-gb 8", CPU)
    with pytest.raises(InputError, match="zero1 with one process on a CPU"):
        ladders("--strategy zero1", CPU)
    with pytest.raises(InputError, match="single with 2 processes"):
        ladders("--strategy single --num-processes 2", CPU)


def test_a_strategy_is_launched_in_one_process_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(train_step_processes, "Started", lambda words, *rest: started.append(words))
    Workshop(tmp_path, ahead=False)._start(replace(TINY, strategy="zero2"), tmp_path)
    (words,) = started
    assert words[words.index("--num_processes") + 1] == "1" and any("zero2.yaml" in word for word in words)


def test_corpora_need_masks_or_need_none(tmp_path: Path) -> None:
    blocks = {
        kind: TokenBlocks(write_corpus(tmp_path, kind, 70_000, 128, 1 << 16) / "shards", "train", 128, seed=1)
        for kind in ("unpacked", "documents")
    }
    restarts = {
        kind: sum(int((found[i]["position_ids"][1:] == 0).sum()) for i in range(100)) for kind, found in blocks.items()
    }
    assert restarts["unpacked"] == 0 and restarts["documents"] > 10
    mean = blocks["documents"].shards.num_tokens / blocks["documents"].shards.num_documents
    assert 250 < mean < 600
    ids = np.concatenate([blocks["documents"][i]["input_ids"] for i in range(100)])
    assert 1 << 16 < ids.max() < 70_000


RUN = (TINY, replace(TINY, corpus="documents", accumulation=2), replace(STOCK, accumulation=2))


@pytest.fixture(params=RUN, ids=lambda case: case.how)
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, Path]:
    """A case with the folder that its process would be given."""
    case, folder = request.param, tmp_path / "case"
    folder.mkdir()
    corpus = write_corpus(tmp_path, case.corpus, 512, 64, 1 << 14)
    write_text(folder / train_step_child.RECIPE, dump_yaml(recipe_tree(case, corpus, folder / "run")))
    write_json(folder / train_step_child.CASE, case.settings())
    return case, folder


def test_a_case_is_measured(prepared: tuple[Case, Path]) -> None:
    case, folder = prepared
    row = train_step_child.measure(case, folder, time.monotonic())
    slowest, fastest = row["slowest_and_fastest"]
    tokens = 128 * case.accumulation
    assert 0 < slowest <= row[RATE] <= fastest and row["tokens_per_step"] == tokens
    assert row["step_seconds"] == pytest.approx(tokens / row["tokens_per_second"], rel=1e-3)
    assert row["mfu"] is None and row["peak_bytes"] is None and row["device"] == "CPU"
    assert row["last_loss"] == pytest.approx(np.log(512), abs=0.5)
    assert row["parameters"] == row["active_parameters"] > 512 * 64
    assert not (folder / "run/model").exists()
    assert any("attention" in line for line in row["said"]) == (case.runner == "ingot")


@pytest.mark.parametrize("case", [TINY, MOE], ids=["dense", "experts"])
def test_the_stock_model_has_the_recipe_s_shape(case: Case) -> None:
    shape = model_config(recipe_of(case))
    config = train_step_stock.stock_config(shape)
    ours = architecture_of_config(shape)
    theirs = architecture_of_config(config)
    assert (theirs.total, theirs.active) == (ours.total, ours.active)


def test_a_shape_that_upstream_has_not_is_named() -> None:
    shape = model_config(recipe_of(replace(TINY, overrides=(*SHAPE, "--model.norm_type=layer_norm"))))
    with pytest.raises(InputError, match="no model of this shape"):
        train_step_stock.stock_config(shape)


def test_the_table_shows_the_best_and_why_others_are_missing() -> None:
    rows = [
        measured(TINY, 100.0, mfu=0.5), measured(replace(TINY, micro_batch=4), 300.0, mfu=0.6),
        measured(STOCK, 150.0, mfu=0.3),
        {**replace(TINY, precision="fp8").settings(), "error": "run.fp8: no such key"},
        {**replace(STOCK, micro_batch=8).settings(), "skipped": "4 was slower"},
    ]  # fmt: skip
    text = table({"machine": H200, "seconds": 9.0, "rows": rows})
    assert "| quickstart, Ingot, bf16, 64 tokens | 4 | 300 | 60.0% | 2.00 | 500 | 2.0 | 1.9 | 3.0 |" in text
    assert "| 100 |" not in text and "micro-batch 2: run.fp8: no such key" in text
    assert "micro-batch 8: not tried: 4 was slower" in text and "No MFU" not in text


def test_no_mfu_is_printed_for_an_unknown_gpu() -> None:
    text = table({"machine": {**H200, "device": "ACME 1"}, "seconds": 9.0, "rows": [measured(TINY, 100.0)]})
    assert "| 100 | n/a |" in text and "No MFU: ACME 1 is none of the GPUs" in text


def test_experts_are_held_against_their_dense_twin() -> None:
    rows = [measured(MOE, 60.0), measured(replace(MOE, twin=True), 100.0)]
    assert "60.0% of the MFU of its dense twin" in table({"machine": CPU, "seconds": 9.0, "rows": rows})


def test_documents_are_held_against_blocks_of_one() -> None:
    rows = [measured(TINY, 100.0), measured(replace(TINY, corpus="documents"), 97.0)]
    assert "documents, 64 tokens: 97.0% of the tokens/s" in table({"machine": CPU, "seconds": 9.0, "rows": rows})


def test_a_limit_is_a_share_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *words: given.append(words))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100))
    train_step_child.limit_memory(25)
    monkeypatch.setenv("LOCAL_RANK", "3")
    train_step_child.limit_memory(200)
    assert given == [(0.25, 0), (1.0, 3)]
    assert torch.cuda.get_device_properties(0).total_memory == 100  # who asks for the share would else cap it twice


def test_a_row_keeps_the_end_of_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError(f"no kernel\nin {tmp_path}/run")
    train_step_child.write_error(tmp_path, caught.value)
    row = read_json(tmp_path / "row.json")
    assert row["error"] == "no kernel in run"
    assert row["traceback"][-2:] == ["RuntimeError: no kernel", f"in {tmp_path}/run"]
    assert any("raise RuntimeError" in line for line in row["traceback"])
    train_step_child.write_error(tmp_path, ValueError("of another process, later"))
    assert read_json(tmp_path / "row.json") == row
    text = table({"machine": H200, "seconds": 9.0, "rows": [{**TINY.settings(), **row}]})
    assert "no kernel in run" in text and "raise" not in text
    assert train_step_child.last_lines([*map(str, range(40)), " ", "x" * 999]) == [*map(str, range(26, 40)), "x" * 300]


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    plot({"machine": H200, "seconds": 9.0, "rows": [measured(TINY, 100.0, mfu=0.5)]}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


class FakeWorkshop(Workshop):
    """Measures nothing."""

    def run(self, case: Case, timeout: float) -> dict[str, Any]:
        return measured(case, 100.0, wall_seconds=1.0)


def test_the_command_writes_every_row_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[int] = []

    def write(path: Path, results: dict[str, Any]) -> None:
        written.append(len(results["rows"]))
        write_json(path, results)

    monkeypatch.setattr(train_step, "ask_machine", lambda folder: CPU)
    monkeypatch.setattr(train_step, "Workshop", FakeWorkshop)
    monkeypatch.setattr(train_step, "write_json", write)
    out = tmp_path / "train_step.json"
    train_step_command(["--json", "--out", str(out), "--plot", str(tmp_path / "p.png")])
    assert written == [1, 2, 3, 4, 5] and (tmp_path / "p.png").is_file()
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text()) and printed["command"][-1].endswith("p.png")


@pytest.mark.slow
def test_cases_run_in_processes_of_their_own(tmp_path: Path) -> None:
    with Workshop(tmp_path, ahead=True) as workshop:
        rows = [workshop.run(case, 120) for case in (TINY, replace(TINY, precision="fp8", overrides=("--a.b=1",)))]
        late = workshop.run(STOCK, 0.01)
        pair = workshop.run(replace(STOCK, strategy="cpu_ddp", num_processes=2), 120)
    assert rows[0][RATE] > 0 and rows[0]["start_seconds"] > 0
    assert "a: no such section" in rows[1]["error"] or "no such key" in rows[1]["error"]
    assert "not done within 0 s" in late["error"]
    assert pair[RATE] > 0 and pair["tokens_per_step"] == 256
