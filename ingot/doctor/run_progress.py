"""How far a run is: its checkpoints, where a rerun begins, how long it takes, what it needs, and its last numbers."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingot.doctor.findings import Finding, fail, gigabytes, ok, warn
from ingot.doctor.run_facts import METRICS, Facts, best_step, non_finite_steps, seconds_left, training_of
from ingot.files import read_json
from ingot.recipe import InputError
from ingot.training.checkpoint_folders import newest_checkpoint
from ingot.training.continuing import rewinds_of

SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second")


def progress_findings(facts: Facts, blocked: bool = False) -> Iterator[Finding]:
    """Checkpoints, where a rerun begins, how long it takes and whether the disk holds it."""
    for checkpoint in facts.checkpoints:
        what = f"checkpoint {checkpoint.step}"
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(checkpoint.time))}, {gigabytes(checkpoint.bytes)}"
        if checkpoint.problem is None:
            yield ok(what, f"{text}, whole{_launched(checkpoint.launch)}")
        else:
            yield warn(what, f"{text}, damaged: {checkpoint.problem}", "it is passed over; an older one is used")
    yield from _best(facts)
    if facts.metrics or facts.checkpoints or training_of(facts.record):
        yield continuation_finding(facts, blocked)
        yield from disk_findings(facts)
    else:
        again = (
            "repeats no part that is finished" if facts.stage == "prepare_data" else "does the stage from its start"
        )
        yield ok("a rerun", again)


def _launched(launch: Any) -> str:
    number = launch.get("num_processes")
    if number is None:
        return ""
    how, rows = launch.get("strategy"), launch.get("rows_per_step")
    return f", {number} process{'es' * (number > 1)} ({how}), {rows} rows a step"


def _best(facts: Facts) -> Iterator[Finding]:
    best = best_step(facts)
    if best is None:
        return
    step, loss = best
    kept = any(c.step == step and c.problem is None for c in facts.checkpoints)
    where = f"checkpoint-{step} is kept" if kept else "no checkpoint of that step is kept"
    yield ok("best", f"held-out loss {loss:.4f} at step {step}; {where}")


def continuation_finding(facts: Facts, blocked: bool = False) -> Finding:
    """From where a rerun goes on, what it repeats and how long it takes.

    blocked: it does not until what was found before is mended.
    """
    usable, total = facts.usable, facts.max_steps
    begin = 0 if usable is None else usable.step
    repeated = max(0, facts.reached - begin)
    left = (
        f"{total - begin} of {total} steps are left" if total else "the number of steps is not known before it starts"
    )
    if repeated:
        left += f", {repeated} of them a second time"
    seconds = seconds_left(facts, total - begin) if total else None
    if seconds is not None:
        left += f": about {duration(seconds)} of training at the speed of before"
    if usable is not None:
        try:
            newest_checkpoint(facts.folder)
        except InputError as error:  # whole, and still not to be used
            return fail("a rerun", f"is refused: {error}", f"move {usable.path} away: an older one is used then")
        when = "once the above is mended, " if blocked else ""
        return ok("a rerun", f"{when}continues from {usable.path}: {left}")
    if facts.checkpoints:
        way = "look for a copy of one; the disk that lost bytes of all of them is not to be trusted"
        return fail("a rerun", f"begins from step 0, for every checkpoint is damaged: {left}", way)
    return ok("a rerun", f"begins from step 0, for nothing was saved: {left}")


def disk_findings(facts: Facts) -> Iterator[Finding]:
    """Whether the next checkpoints have room."""
    usable, free = facts.usable, shutil.disk_usage(facts.folder).free
    if usable is None:
        yield ok("disk", f"{gigabytes(free)} free; the start says what checkpoints will need")
        return
    number = more_checkpoints(facts, usable.step)
    needed = usable.bytes * number
    text = (
        f"{number} more checkpoint{'s' * (number > 1)} of {gigabytes(usable.bytes)}: {gigabytes(needed)} needed, "
        f"{gigabytes(free)} free"
    )
    if needed > free:
        way = "free some space, lower training.save_total_limit, or copy the run to a larger disk and add --run.dir"
        yield fail("disk", text, way)
    else:
        yield ok("disk", text)


def more_checkpoints(facts: Facts, begin: int) -> int:
    """How many checkpoints there will be beside those that are there, as the start of a run counts them.

    The limit counts neither the best one nor the next one, which is written before the oldest goes.
    """
    training, total = training_of(facts.record), facts.max_steps
    every = training.get("save_steps") or 500
    every = max(1, round(every * (total or 1)) if every < 1 else int(every))
    saves = -(-((total or begin + every) - begin) // every)
    limit = training.get("save_total_limit")
    if not limit:
        return max(1, saves)
    return max(1, min(saves, int(limit) + 2 - len(facts.checkpoints)))


def metrics_findings(facts: Facts) -> Iterator[Finding]:
    """The last numbers of the log, and whether one of all is none."""
    last = next((m for m in reversed(facts.metrics) if "loss" in m), None)
    if last is not None:
        numbers = [f"{key} {last[key]:.4g}" for key in SHOWN if isinstance(last.get(key), int | float)]
        yield ok("metrics", f"step {last.get('step')}: {', '.join(numbers)}")
    yield from trouble_findings(facts)


def trouble_findings(facts: Facts) -> Iterator[Finding]:
    """Numbers that were not finite, and spikes from which the run went back."""
    broken = non_finite_steps(facts)
    records = [_named(path) for path in sorted(facts.folder.glob("nonfinite-step-*.json"))]
    if broken or records:
        steps = "; ".join([*records, *(f"step {step} in {METRICS}" for step in broken[:5])])
        way = "lower training.learning_rate, raise training.warmup_steps, or see NaN in docs/troubleshooting.md"
        yield warn("not finite", steps, way)
    for entry in rewinds_of(facts.folder):
        yield ok(
            "went back", "from step {to_step} to {from_step}: loss {loss:.4f}, usual {usual_loss:.4f}".format(**entry)
        )


def _named(path: Path) -> str:
    record = read_json(path)
    return f"step {record['step']} {record['what']} (loss {record['loss']}, grad norm {record['grad_norm']}): {path}"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"
