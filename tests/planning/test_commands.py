"""`ingot plan` from the command line: pages, JSON, and what is said of wrong words."""

import json
from pathlib import Path
from typing import Any

import pytest

from ingot.cli import command, load_stage
from ingot.planning.commands import plan_command
from ingot.recipe import InputError

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "recipes/quickstart/pretrain.yaml")
FLAGSHIP = str(ROOT / "recipes/1b8/pretrain.yaml")


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON of a command; nothing else may stand on stdout."""
    command(["plan", *words, "--json"])
    return dict(json.loads(capsys.readouterr().out))


def page(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    command(["plan", *words])
    return capsys.readouterr().out


def test_the_plan_of_a_recipe_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "model", "--config", QUICKSTART, "--gpu", "h200", "--usd-per-gpu-hour", "3")
    assert plan["parameters"]["total"] == plan["parameters"]["active"] == 2_558_144
    flops = plan["flops_per_token"]
    assert flops["convention"] == "mfu" and flops["training"] == 3 * flops["forward"]
    assert sum(plan["memory"]["by_part"].values()) == plan["memory"]["peak_bytes"] > 4 * 4 * 2_558_144
    assert plan["memory"]["fits"] and plan["memory"]["settings_that_fit"] == []
    run = plan["run"]
    assert run["tokens"] == 800 * 16 * 256
    assert run["tokens_per_second"] == pytest.approx(0.4 * 989e12 / flops["training_by_convention"]["mfu"])
    assert run["usd"] == pytest.approx(3 * run["hours"])
    assert set(plan["loss"]) == {"besiroglu"}


def test_overrides_and_options_change_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    base = planned(capsys, "model", "--config", QUICKSTART)
    deep = planned(capsys, "model", "--config", QUICKSTART, "--model.num_hidden_layers=8")
    layers = base["parameters"]["by_component"]["attention"]
    assert deep["parameters"]["by_component"]["attention"] == 2 * layers
    large = planned(capsys, "model", "--config", QUICKSTART, "--micro-batch", "64", "--run.global_batch_size=64")
    assert large["memory"]["peak_bytes"] > 2 * base["memory"]["peak_bytes"]
    long = planned(capsys, "model", "--config", QUICKSTART, "--seq-length", "512", "--convention", "non_causal")
    assert long["flops_per_token"]["seq_length"] == 512 and long["flops_per_token"]["convention"] == "non_causal"


def test_without_a_gpu_time_and_money_are_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "model", "--config", QUICKSTART, "--usd-per-gpu-hour", "3")
    assert plan["run"]["hours"] is None and plan["run"]["usd"] is None and "fits" not in plan["memory"]
    plan = planned(capsys, "model", "--config", QUICKSTART, "--tokens-per-second-per-gpu", "17400")
    assert plan["run"]["hours"] == pytest.approx(3_276_800 / 17_400 / 3600) and plan["run"]["mfu"] is None


def test_a_model_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    plan = planned(capsys, "model", "--hf", str(tmp_path), "--tokens", "2.5e9", "--gpu", "a100-80gb")
    assert plan["parameters"]["total"] == 124_439_808
    assert plan["flops_per_token"]["seq_length"] == 1024 and plan["run"]["tokens"] == 2.5e9


def test_what_does_not_fit_says_so_with_what_does(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model", "--config", FLAGSHIP, "--gpu", "rtx4090"]
    plan = planned(capsys, *words)
    assert not plan["memory"]["fits"]
    assert "DOES NOT FIT" in page(capsys, *words)


def test_what_a_recipe_expects_is_planned_with(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model", "--config", FLAGSHIP, "--gpu", "h200", "--gpus", "8", "--strategy", "zero1"]
    run = planned(capsys, *words)["run"]
    assert run["mfu"] == pytest.approx(0.55) and run["mfu_source"] == "given"  # in its plan section
    assert planned(capsys, *words, "--mfu", "0.3")["run"]["mfu"] == pytest.approx(0.3)


def test_the_published_mfu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mfu", "--config", FLAGSHIP, "--tokens-per-second-per-gpu", "51580", "--gpu", "h200"]
    assert planned(capsys, *words)["mfu"] == pytest.approx(0.538, abs=0.0005)
    assert page(capsys, *words).startswith("53.8% MFU")


def test_options_change_everything_that_follows_from_them(capsys: pytest.CaptureFixture[str]) -> None:
    by_option = planned(capsys, "model", "--config", FLAGSHIP, "--gpu", "h200", "--seq-length", "4096")
    by_key = planned(capsys, "model", "--config", FLAGSHIP, "--gpu", "h200", "--data.seq_length=4096")
    assert by_option["run"] == by_key["run"] and by_key["run"]["tokens"] == 95_400 * 512 * 4096
    many = planned(capsys, "model", "--config", FLAGSHIP, "--gpu", "h200", "--gpus", "256", "--strategy", "zero1")
    assert many["memory"]["micro_batch"] == 2  # 512 blocks on 256 GPUs


def test_shorter_sequences_first_cost_less(capsys: pytest.CaptureFixture[str]) -> None:
    whole = planned(capsys, "model", "--config", FLAGSHIP)["run"]["flops"]
    schedule = "--data.seq_length_schedule=[{seq_length: 512, share: 0.9}]"
    assert planned(capsys, "model", "--config", FLAGSHIP, schedule)["run"]["flops"] == pytest.approx(
        0.921 * whole, rel=1e-3
    )


def test_law_files_of_one_name_stay_apart_and_can_be_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for floor in (1.5, 2.5):
        (tmp_path / str(floor)).mkdir()
        law = {"name": "own", "E": floor, "A": 300, "alpha": 0.34, "B": 400, "beta": 0.36}
        paths.append(str(tmp_path / str(floor) / "law.json"))
        Path(paths[-1]).write_text(json.dumps({**law, "fitted_flops": [1e12, 1e13]}), encoding="utf-8")
    words = ["budget", "--flops", "1e21", "--law", paths[0], "--law", paths[1]]
    found = planned(capsys, *words)["optimal"]
    assert set(found) == set(paths) and found[paths[1]]["loss"] == pytest.approx(found[paths[0]]["loss"] + 1)
    page(capsys, *words, "--plot", str(tmp_path / "laws.png"))
    assert (tmp_path / "laws.png").stat().st_size > 10_000
    doubted = planned(capsys, "model", "--config", FLAGSHIP, "--law", paths[0])["doubts"]
    assert "tenfold outside" in doubted["own"]


def test_text_that_is_read_many_times_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["budget", "--flops", "1e21", "--dataset-tokens", "1e9", "--max-epochs", "100"]
    assert planned(capsys, *words)["passes"] > 50
    assert "these losses are too good" in page(capsys, *words)


def test_a_budget_has_the_promised_keys_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["budget", "--gpus", "8", "--gpu", "h100", "--hours", "720", "--mfu", "0.45"]
    plan = planned(capsys, *words)
    assert plan["budget"]["flops"] == pytest.approx(9.2286e21, rel=1e-5)
    assert all(set(found) >= {"parameters", "tokens", "loss"} for found in plan["optimal"].values())
    text = page(capsys, *words, "--plot", str(tmp_path / "budget.png"))
    assert "besiroglu" in text and "20.4" in text and "o" in text.split("Loss by besiroglu")[1]
    assert (tmp_path / "budget.png").stat().st_size > 10_000


def test_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["grid", "--flops", "1.36e21", "--law", "besiroglu", "--gpu", "h200", "--gpus", "8", "--strategy", "zero1"]
    found = planned(capsys, *words, "--top", "5")["candidates"]
    assert len(found) == 5 and all(c["memory_bytes"] > 0 and c["fits"] is not None for c in found)
    assert "width x depth" in page(capsys, *words) and "extrapolated" not in page(capsys, *words)
    assert "extrapolated: the law was fitted" in page(capsys, "grid", "--flops", "1e26", "--top", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budgt"], "there is no 'budgt'; did you mean 'budget'"),
        (["budget", "--gpu", "h100", "--hours", "-3"], "--hours: -3 must be above 0"),
        (["budget", "--gpu", "h100", "--hours", "3", "--mfu", "1.2"], "--mfu: 1.2 must be at most 1"),
        (["budget", "--gpu", "h100", "--hours", "many"], "--hours: 'many' is not a number"),
        (["budget", "--gpu", "h100", "--hours", "nan"], "--hours: nan is not a finite number"),
        (["budget", "--gpu", "h10", "--hours", "3"], "did you mean H100"),
        (["budget", "--gpu", "h100", "--hour", "3"], "--hour: no such option; did you mean --hours?"),
        (["budget", "--flops", "1e21", "--law", "besirogl"], "did you mean 'besiroglu'"),
        (["model", "--config", QUICKSTART, "--gpus", "8", "--strategy", "single"], "--strategy: single is for one"),
        (["model", "--config", QUICKSTART, "--strategy", "zero9"], "--strategy: 'zero9' is not known"),
        (["model", "--config", QUICKSTART, "--model.num_attention_heads=5", "--model.num_key_value_heads=2"], "5"),
        (["model", "--config", QUICKSTART, "--model.hiden_size=5"], "did you mean 'hidden_size'"),
        (["model"], "--config --hf is required"),
        (["model", "--hf", "nowhere"], "nowhere"),
        (["model", "--config", str(ROOT / "recipes/quickstart/export.yaml")], "a recipe of export"),
        (["mfu", "--config", QUICKSTART, "--tokens-per-second-per-gpu", "9"], "--gpu: missing"),
        (["grid", "--flops", "0"], "--flops: 0 must be above 0"),
        (["budget", "--flops", "1e21", "--max-epochs", "4"], "--max-epochs: of which text?"),
        (["model", "--config", FLAGSHIP, "--gpu", "h200", "--gpus", "3"], "512 cannot be shared by 3 GPUs"),
        (["model", "--config", FLAGSHIP, "--gpu", "h200", "--memory-gb", "12"], "--gpu: also"),
        (["model", "--config", FLAGSHIP, "--gpu", "a100-80gb", "--precision", "fp8"], "has no fp8"),
        (["mfu", "--config", FLAGSHIP, "--gpu", "h200", "--tokens-per-second-per-gpu", "515800"], "538%"),
        (["model", "--config", str(ROOT / "recipes/1b8/sft.yaml")], "--run.from=FOLDER"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        plan_command(words, load_stage)
    assert message in str(refused.value)
