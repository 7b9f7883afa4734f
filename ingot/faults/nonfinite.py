"""Numbers that are none: put into the weights, the gradient or the loss of one step, or made by the recipe."""

from pathlib import Path
from typing import Any

from ingot.faults.compare import last_step, metrics, newest_good, non_finite, step_of, weights_hash
from ingot.faults.workplace import Result, Subject, Workplace


def nan(work: Workplace) -> Result:
    """Stops at the step, names step and batch, and no checkpoint holds such a number; or skips it when told to."""
    subjects = {"pretrain": work.pretrain("nan")}
    if not work.short:
        background = work.pretrain("nan_background", run__background_save=True, training__logging_steps=5)
        several = work.pretrain("nan_ddp", num_processes=2, run__global_batch_size=8)
        subjects |= {"background": background, "ddp": several, "sft": work.sft("nan_sft"), "dpo": work.dpo("nan_dpo")}
    drawn, wrong, stopped, tried = work.random("nan"), list[str](), 0, 0
    for name, subject in subjects.items():
        for what in ("weights",) if work.short else ("weights", "gradient", "loss"):
            for step in (8,) if work.short else (8, drawn.randrange(5, 23)):  # 8: a step that is saved
                problems = stops(work, subject, work.folder / f"nan-{tried}", what, step)
                wrong += [f"{name}, {what} at step {step}: {problem}" for problem in problems]
                tried, stopped = tried + 1, stopped + (not problems)
        work.say(f"nan: {stopped} of {tried} stopped as they should")
    others = {} if work.short else {**overflow(work), **skipped(work), **rewound(work)}
    wrong += [f"{key}: {value}" for key, value in others.items() if isinstance(value, str)]
    measured = {"injected": tried, "stopped_at_the_step_and_named_it": stopped, **others, "wrong": wrong[:5]}
    asked = "stops at the step with exit code 3, names step and batch, saves no such number; skips and rewinds if told"
    return {"name": "nan", "asked": asked, "measured": measured, "passed": not wrong}


def stops(work: Workplace, subject: Subject, folder: Path, what: str, step: int) -> list[str]:
    """What is wrong with how a run takes a NaN in one step."""
    hooks: Any = {"poison": {"step": step, "what": what}}
    run = work.processes.warm(work.words(subject, folder), subject.num_processes, hooks)
    code, text = run.wait(), run.text
    problems = [] if code == 3 else [f"exit code {code}"]
    if f"step {step}" not in text.split("error: ")[-1]:
        problems.append(f"the step is not named: {text[-300:]}")
    if not any(word in text.split("error: ")[-1] for word in ("rows: ", "blocks ", "batch")):
        problems.append(f"the batch is not named: {text[-300:]}")
    if "Traceback" in text:
        problems.append("a traceback")
    good = newest_good(folder)
    if good is not None and step_of(good) >= step:
        problems.append(f"{good.name} was saved")
    return problems + list(work.processes.call(non_finite, folder))


def overflow(work: Workplace) -> dict[str, Any]:
    """A learning rate that no model survives."""
    subject = work.pretrain("nan_rate", training__learning_rate=1e30, training__warmup_steps=0, run__optimizer=None)
    folder = work.folder / "nan-rate"
    run = work.begin(subject, folder)
    code, bad = run.wait(), work.processes.call(non_finite, folder)
    right = code == 3 and "\nerror: step " in run.text and not bad
    return {"absurd_learning_rate_stops": right or f"code {code}, {bad[:1]}: {run.text[-300:]}"}


def skipped(work: Workplace) -> dict[str, Any]:
    """Told to skip one such step: goes on and counts; a second one is too many."""
    subject = work.pretrain("nan_skip", run__skip_nonfinite=1)
    folder = work.folder / "nan-skip"
    run = work.processes.warm(work.words(subject, folder), hooks={"poison": {"step": 7, "what": "gradient"}})
    code = run.wait()
    lines = [line for line in run.text.splitlines() if "skip" in line]
    goes_on = code == 0 and last_step(folder) == 24 and weights_hash(folder) is not None
    bad = work.processes.call(non_finite, folder)
    right = goes_on and bool(lines) and not bad
    none = subject.changed("nan_skip_none", run__skip_nonfinite=1)
    poisoned = work.processes.warm(
        work.words(none, work.folder / "nan-skip-weights"), hooks={"poison": {"step": 7, "what": "weights"}}
    )
    budget = poisoned.wait() == 3 and "run.skip_nonfinite: 1 steps were skipped already" in poisoned.text
    return {
        "skips_within_the_budget": right or f"code {code}, step {last_step(folder)}, {bad[:1]}: {run.text[-300:]}",
        "stops_beyond_the_budget": budget or poisoned.text[-300:],
    }


def rewound(work: Workplace) -> dict[str, Any]:
    """A loss that jumps: back to the last good checkpoint, and on to the end."""
    subject = work.pretrain("spike", training__max_steps=40, run__loss_spike={"window": 8, "patience": 2})
    folder = work.folder / "spike"
    run = work.processes.warm(work.words(subject, folder), hooks={"poison": {"step": 30, "what": "spike"}})
    code = run.wait()
    lines = [line for line in run.text.splitlines() if "rewind" in line or "back to" in line]
    last = [line["loss"] for line in metrics(folder) if "loss" in line][-1:]
    right = code == 0 and bool(lines) and last_step(folder) == 40
    return {"a_spike_is_rewound": right or f"code {code}, loss {last}: {run.text[-400:]}"}
