"""One case of `ingot benchmark train_step` in a process of its own, or in each of several that a launcher started.

`python -m ingot.benchmark.train_step_child FOLDER` runs the case in FOLDER/case.json and writes FOLDER/row.json;
`--wait` imports what takes seconds and then reads the folder from its input; `--machine` describes the machine.
"""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast
from unittest import mock

import psutil

from ingot.benchmark.train_step_cases import BUILT_ON_CPU, Case, case_of
from ingot.files import read_json, write_json
from ingot.logs import is_main_process, num_processes

CASE, ROW, RECIPE, LOG, RUN = "case.json", "row.json", "pretrain.yaml", "log.txt", "run"
LAST_LINES = 15  # of a traceback or log, which a row keeps
GPU_READINGS = ("gpu_utilization", "gpu_temperature", "gpu_power")  # %, C, W: of the last steps


def main(words: Sequence[str]) -> None:
    """Does what the words say; the process ends without the clean-up in which groups of processes may hang."""
    if words[0] == "--machine":
        print(json.dumps(machine()))
        return
    began = time.monotonic()
    if words[0] == "--wait":
        import ingot.training.pretrain_loop  # noqa: F401 - the import is what takes seconds

        imported = time.monotonic()
        if not (words := [sys.stdin.readline().strip()])[0]:
            return
        began += time.monotonic() - imported
    folder = Path(words[0])
    case = case_of(read_json(folder / CASE))
    try:
        row = measure(case, folder, began)
    except BaseException as error:
        write_error(folder, error)
        end(1)
    if is_main_process():
        write_json(folder / ROW, row)
    end(0)


def end(code: int) -> None:
    """Ends the process here and now, after its loaders' and compilers' workers, which would keep the GPU's memory."""
    for worker in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            worker.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def write_error(folder: Path, error: BaseException) -> None:
    """The row of a case that failed; of several processes the first to fail writes it."""
    import traceback

    traceback.print_exception(error)
    text = " ".join(str(error).replace(f"{folder}/", "").split()) or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError":
        text = f"out of memory: {text.removeprefix('CUDA out of memory. ')}"
    lines = "".join(traceback.format_exception(error)).splitlines()
    if not (folder / ROW).exists():
        write_json(folder / ROW, {"error": text[:400], "traceback": last_lines(lines)})


def last_lines(lines: Sequence[str]) -> list[str]:
    """The last few that say something, none of them long."""
    return [line.rstrip()[:300] for line in lines if line.strip()][-LAST_LINES:]


def machine() -> dict[str, Any]:
    """Device, its memory in bytes, how many there are, and versions."""
    import torch

    from ingot.runs import versions

    found: dict[str, Any] = {"device": "CPU", "memory_bytes": None, "num_gpus": 0, "versions": versions()}
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "num_gpus": torch.cuda.device_count()}
        found["memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
    return found


class Trained(NamedTuple):
    """What a case leaves."""

    shape: Any  # IngotConfig
    seq_length: int
    tokens_per_step: int  # over all processes
    optimizer: str
    trainer: Any


def measure(case: Case, folder: Path, began: float) -> dict[str, Any]:
    """Runs a case. Returns its row, which the main process alone has whole."""
    if case.memory_limit is not None:
        limit_memory(case.memory_limit)
    if case.runner == "ingot":
        trained = run_ingot(case, folder)
    else:
        from ingot.benchmark.train_step_stock import run_stock

        trained = run_stock(case, folder)
    seconds, memory = time.monotonic() - began, peak_memory(trained.trainer)
    if not is_main_process():
        return {}
    return {**speed(case, folder / RUN, trained, seconds), **memory, **described(folder / RUN, trained.trainer)}


def limit_memory(limit: int) -> None:
    """Caps what torch may allocate; chunk sizes and estimates follow from it."""
    import torch

    if torch.cuda.is_available():
        device = int(os.environ.get("LOCAL_RANK", "0"))
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)


def run_ingot(case: Case, folder: Path) -> Trained:
    """The pretrain stage up to its last step.

    Two things differ from `ingot pretrain`: weights are drawn on the GPU where they lie whole, and nothing is
    evaluated and saved at the end; each would take longer than the steps.
    """
    import ingot.training.pretrain_loop as stage
    from ingot.recipe import load_recipe
    from ingot.training.pretrain import PretrainRecipe, run

    kept: list[Any] = []

    def conclude(trainer: Any, *_: Any) -> dict[str, Any]:
        kept.append(trainer)
        return {}

    recipe = load_recipe(PretrainRecipe, folder / RECIPE)
    build = on_device(stage.build_model, case)
    with mock.patch.object(stage, "conclude", conclude), mock.patch.object(stage, "build_model", build):
        run(recipe)
    optimizer = recipe.run.optimizer or str(getattr(kept[0].args.optim, "value", kept[0].args.optim))
    length = recipe.data.seq_length
    tokens = cast(int, recipe.run.global_batch_size) * length
    return Trained(stage.model_config(recipe), length, tokens, optimizer, kept[0])


def on_device(build: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """`build`, whose tensors are made on the GPU."""
    import torch

    def built(*args: Any, **kwargs: Any) -> Any:
        with torch.device(device_of(case)):
            return build(*args, **kwargs)

    return built


def device_of(case: Case) -> str:
    """Where the weights of this process are drawn."""
    import torch

    if case.strategy in BUILT_ON_CPU or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def peak_memory(trainer: Any) -> dict[str, Any]:
    """Bytes that torch allocated and reserved at most, on the GPU where that was most; called in every process."""
    import torch

    if not torch.cuda.is_available():
        return {"peak_bytes": None, "reserved_bytes": None}
    own = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]
    found = trainer.accelerator.gather(torch.tensor([own], device=trainer.args.device)).amax(0).tolist()
    return {"peak_bytes": found[0], "reserved_bytes": found[1]}


def speed(case: Case, run_dir: Path, trained: Trained, seconds: float) -> dict[str, Any]:
    """Rates from the run's own metrics: the median of what was logged after the warm-up, and MFU on a known GPU.

    seconds: from the start of the case until the last step.
    """
    import torch

    from ingot.planning.architecture import architecture_of_config
    from ingot.planning.flops import training_flops_per_token
    from ingot.planning.hardware import mfu
    from ingot.training.callbacks import METRICS, read_metrics

    tokens = trained.tokens_per_step
    lines = [line for line in read_metrics(run_dir / METRICS) if "loss" in line]
    events = [(line["step"], line["tokens_per_second"]) for line in lines]
    assert [step for step, _ in events][-1:] == [case.warmup_steps + case.steps], events
    warm = [case.logging_steps * tokens / rate for step, rate in events if step <= case.warmup_steps]
    rates = [rate for step, rate in events if step > case.warmup_steps]
    rate = median(rates)
    architecture = architecture_of_config(trained.shape)
    flops = training_flops_per_token(architecture, trained.seq_length)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    per_gpu, step_seconds = rate / num_processes(), tokens / rate
    stepping = sum(warm) + sum(case.logging_steps * tokens / r for r in rates)
    return {
        "tokens_per_second_per_gpu": round(per_gpu, 1),
        "tokens_per_second": round(rate, 1),
        "slowest_and_fastest": [round(r / num_processes(), 1) for r in (min(rates), max(rates))],
        "mfu": mfu(per_gpu, flops, device),
        "step_seconds": step_seconds,
        "warmup_seconds": round(max(0.0, sum(warm) - case.warmup_steps * step_seconds), 2),
        "start_seconds": round(seconds - stepping, 2),
        "tokens_per_step": tokens,
        "parameters": architecture.total,
        "active_parameters": architecture.active,
        "flops_per_token": flops,
        "device": device,
        "optimizer": trained.optimizer,
        **{name: lines[-1][name] for name in GPU_READINGS if name in lines[-1]},
    }


def described(run_dir: Path, trainer: Any) -> dict[str, Any]:
    """What the run said of itself before its first step, and its last loss."""
    log = run_dir / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.split(" ", 3)[-1] for line in text.splitlines()]  # after date, time and module
    before = list(itertools.takewhile(lambda line: not line.startswith("step "), lines))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"last_loss": losses[-1], "said": before}


if __name__ == "__main__":
    main(sys.argv[1:])
