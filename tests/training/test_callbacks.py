"""What happens beside the steps: metrics, the progress line, stops, samples."""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from ingot.loading import load_tokenizer
from ingot.training import callbacks
from ingot.training.callbacks import (
    LookBeforeSaving,
    MetricsCallback,
    SamplesCallback,
    StopOnSignal,
    Throughput,
    metrics_first,
    read_metrics,
)
from modeling import IngotConfig, IngotForCausalLM

ARGS: Any = None  # these callbacks do not look at the arguments


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(callbacks.time, "monotonic", found)
    return found


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What was logged."""
    logging.getLogger("ingot").addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records]
    logging.getLogger("ingot").removeHandler(caplog.handler)


def state_at(step: int, max_steps: int = 100) -> TrainerState:
    state = TrainerState()
    state.global_step, state.max_steps = step, max_steps
    return state


def control() -> TrainerControl:
    return TrainerControl()


def metrics_callback(folder: Path, **options: Any) -> MetricsCallback:
    return MetricsCallback(folder, Throughput(1000, None), **options)


def test_throughput_is_tokens_over_seconds(clock: Clock) -> None:
    throughput = Throughput(1000, None)
    throughput.reset(10)
    clock.now += 4
    assert throughput.measure(14) == {"step_seconds": 1.0, "tokens_per_second": 1000.0}
    clock.now += 1
    assert throughput.measure(14) == {}  # no step
    clock.now += 2
    assert throughput.measure(15) == {"step_seconds": 2.0, "tokens_per_second": 500.0}


def test_mfu_is_that_of_one_gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    throughput = Throughput(8 * 51_580, 10.32e9)
    clock.now += 1
    rate = {"step_seconds": 1.0, "tokens_per_second": 8 * 51_580}
    assert throughput.measure(1) == rate | {"mfu": pytest.approx(0.538, abs=5e-4)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    clock.now += 1
    assert throughput.measure(2) == rate


def test_evaluating_and_saving_are_left_out_of_the_speed(clock: Clock, tmp_path: Path) -> None:
    callback = metrics_callback(tmp_path)
    callback.on_train_begin(ARGS, state_at(0), control())
    for step, pause in ((1, callback.on_evaluate), (2, callback.on_save), (3, None)):
        clock.now += 2
        callback.on_log(ARGS, state_at(step), control(), logs={"loss": 1.0})
        clock.now += 50
        if pause is not None:
            pause(ARGS, state_at(step), control())
    rates = [line["tokens_per_second"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == [500.0, 500.0, 500.0]


def test_every_event_is_a_line(tmp_path: Path) -> None:
    callback = metrics_callback(tmp_path, bits_per_nat_and_byte=0.5, epochs=3.0)
    callback.on_train_begin(ARGS, state_at(0), control())
    logs = {"loss": 2.0, "grad_norm": 1.0, "epoch": 0.25}
    callback.on_log(ARGS, state_at(5), control(), logs=logs)
    callback.on_log(ARGS, state_at(5), control(), logs={"eval_loss": 3.0})
    callback.on_log(ARGS, state_at(5), control(), logs={"train_runtime": 1.0, "train_loss": 9.0})  # of the last part
    callback.on_log(ARGS, state_at(6), control(), logs={"train_runtime": 1.0, "loss": 9.0})  # with the tokens seen
    first, second, third = read_metrics(tmp_path / "metrics.jsonl")
    assert (third["step"], third["loss"]) == (6, 9.0)
    for name in ("tokens_per_second", "step_seconds", "peak_rss_gib"):
        assert first.pop(name) == logs[name] > 0, name  # what comes after it is given them, too
    assert first == {"step": 5, "loss": 2.0, "grad_norm": 1.0, "epoch": 0.75}
    assert second == {"step": 5, "eval_loss": 3.0, "eval_bits_per_byte": 1.5}


def test_upstreams_reporters_come_after_the_metrics(tmp_path: Path) -> None:
    other, metrics = StopOnSignal(), metrics_callback(tmp_path)
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[other, metrics]))
    metrics_first(trainer)
    assert trainer.callback_handler.callbacks == [metrics, other]


def test_a_continued_run_has_neither_gaps_nor_doubles(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)] + [{"step": 4, "eval_loss": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 4]
    callback = metrics_callback(tmp_path)
    callback.on_train_begin(ARGS, state_at(3), control())
    callback.on_log(ARGS, state_at(4), control(), logs={"loss": 7.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 7.0)]


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    callback = metrics_callback(tmp_path)
    callback.on_train_begin(ARGS, state_at(0), control())
    callback.on_log(ARGS, state_at(1), control(), logs={"loss": 2.0})
    assert not list(tmp_path.iterdir())


def test_the_line_tells_when_it_ends_and_what_is_saved(
    clock: Clock, tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    for name in ("checkpoint-5", "checkpoint-20", "checkpoint-9.bad"):
        (tmp_path / name).mkdir()
    callback = metrics_callback(tmp_path)
    callback.on_train_begin(ARGS, state_at(20), control())
    clock.now += 100
    logs = {"loss": 2.34567, "grad_norm": 1.0, "learning_rate": 3e-4}
    callback.on_log(ARGS, state_at(30), control(), logs=logs)
    callback.on_log(ARGS, state_at(30), control(), logs={"eval_loss": 2.5})
    # ten steps in 100 s, seventy to go
    assert lines() == [
        "step 30/100  loss 2.3457  lr 3.00e-04  grad norm 1.00  100 tok/s  ETA 0:11:40  saved 20",
        "step 30/100  held-out loss 2.5000",
    ]


def test_on_a_terminal_the_line_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(callbacks.sys.stderr, "isatty", lambda: True)
    callback = metrics_callback(tmp_path)
    for step in (1, 2):
        callback.on_log(ARGS, state_at(step, 2), control(), logs={"loss": 2.0})
    shown = capsys.readouterr().err
    assert shown.count("\r\033[Kstep") == 2 and shown.endswith("\n") and shown.count("\n") == 1


def test_every_saved_step_is_looked_at() -> None:
    for save in (True, False):
        wanted = control()
        wanted.should_save = save
        LookBeforeSaving().on_step_end(ARGS, state_at(7), wanted)
        assert wanted.should_log is save


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    callback, wanted = StopOnSignal(), control()
    callback.on_train_begin(ARGS, state_at(0), wanted)
    callback.on_step_end(ARGS, state_at(1), wanted)
    callback.on_save(ARGS, state_at(1), wanted)
    assert not wanted.should_save
    os.kill(os.getpid(), number)
    callback.on_step_end(ARGS, state_at(2), wanted)
    assert wanted.should_save and wanted.should_log
    with pytest.raises(KeyboardInterrupt):
        callback.on_save(ARGS, state_at(2), wanted)
    assert signal.getsignal(number) is before


def test_a_second_signal_stops_at_once(clock: Clock) -> None:
    callback = StopOnSignal()
    callback.on_train_begin(ARGS, state_at(0), control())
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # the launcher passes the first on
    clock.now += 3
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    callback.on_train_end(ARGS, state_at(0), control())


def test_a_signal_in_the_last_step_lets_the_run_finish() -> None:
    before = signal.getsignal(signal.SIGINT)
    callback, wanted = StopOnSignal(), control()
    callback.on_train_begin(ARGS, state_at(0), wanted)
    os.kill(os.getpid(), signal.SIGINT)
    callback.on_step_end(ARGS, state_at(100), wanted)
    callback.on_save(ARGS, state_at(100), wanted)
    callback.on_train_end(ARGS, state_at(100), wanted)
    assert not wanted.should_save and signal.getsignal(signal.SIGINT) is before


def test_several_processes_agree_every_few_seconds(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    asked: list[tuple[int, list[int]]] = []
    told_to_stop_at = 17

    def all_reduce(tensor: torch.Tensor, operation: Any) -> None:
        asked.append((step, tensor.tolist()))
        tensor[0] = int(step >= told_to_stop_at)  # another process
        tensor[1] = max(int(tensor[1]), -8)  # which is slower

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    args: Any = SimpleNamespace(device=torch.device("cpu"))
    callback, wanted = StopOnSignal(), control()
    callback.on_train_begin(args, state_at(0), wanted)
    for step in range(1, 26):
        clock.now += 0.25
        callback.on_step_end(args, state_at(step), wanted)
        assert wanted.should_save is (step >= 17)
        if wanted.should_save:
            break
    # a step takes a quarter of a second, and four seconds are sixteen of them; the other process asks for eight
    assert asked == [(1, [0, -16]), (9, [0, -16]), (17, [0, -16])]
    callback.on_train_end(args, state_at(0), control())


@pytest.fixture
def model() -> IngotForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = IngotConfig(vocab_size=384, num_attention_heads=1, max_position_embeddings=24, pad_token_id=3, **sizes)
    config.use_cache = False
    return IngotForCausalLM(config).train()


def sample(model: Any, corpus: Path, folder: Path, step: int, prompts: list[str], seed: int = 1) -> str:
    callback = SamplesCallback(folder, load_tokenizer(corpus / "tokenizer"), prompts, 64)
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", seed=seed)
    callback.on_evaluate(args, state_at(step), control(), model=model)
    page = folder / f"samples/step-{step:06}.md"
    return page.read_text(encoding="utf-8") if page.is_file() else ""


def test_samples_are_written_and_leave_no_trace(model: IngotForCausalLM, corpus: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    page = sample(model, corpus, tmp_path, 30, ["red", "blue one"])
    assert page.startswith("**red**") and "\n\n**blue one**" in page and len(page) > 40
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.config.use_cache is False
    assert sample(model, corpus, tmp_path, 60, ["red", "blue one"]) == page  # the same seed
    assert sample(model, corpus, tmp_path, 90, ["red", "blue one"], seed=2) != page


def test_no_prompts_and_other_processes_write_no_samples(
    model: IngotForCausalLM, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample(model, corpus, tmp_path, 1, []) == ""
    monkeypatch.setenv("RANK", "1")
    assert sample(model, corpus, tmp_path, 2, ["red"]) == ""
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(callbacks, "is_deepspeed_zero3_enabled", lambda: True)  # which leaves small weights whole
    assert sample(model, corpus, tmp_path, 3, ["red"]) == ""
    assert not (tmp_path / "samples").exists()
