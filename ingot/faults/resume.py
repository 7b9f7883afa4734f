"""Runs that continue: from every step, on another number of processes, when they are finished, with another recipe."""

import os
import shutil
from pathlib import Path

from ingot.faults.compare import (
    checkpoints,
    largest_difference,
    metrics,
    metrics_equal,
    newest_good,
    newest_step,
    rows_of_steps,
    step_of,
    tree_of,
    weights_hash,
)
from ingot.faults.workplace import Result, Subject, Workplace

TOLERANCE = 1e-5  # of losses summed in another order


def resume_every_step(work: Workplace) -> Result:
    """A run is continued from the checkpoint of each of its steps: which rows it reads, what it logs, how it ends."""
    steps = 50
    dropout = {f"model__{kind}_dropout": 0.1 for kind in ("attention", "residual", "embedding")}
    changes = {"training__save_steps": 1, "training__save_total_limit": None, "training__max_steps": steps}
    subject = work.pretrain("every_step", training__eval_steps=10, **changes, **dropout)
    whole, rows = work.folder / "every-step", work.folder / "every-step.jsonl"
    work.processes.warm(work.words(subject, whole), hooks={"rows": str(rows)}).wait()
    expected = rows_of_steps([rows])
    chosen = [1, 25, 49] if work.short else range(steps)
    counts, wrong = dict.fromkeys(("same_rows", "same_metrics", "same_weights"), 0), list[str]()
    for step in chosen:
        folder, rows = work.folder / f"from-{step}", work.folder / f"from-{step}.jsonl"
        copy_until(whole, folder, step)
        work.processes.warm(work.words(subject, folder), hooks={"rows": str(rows)}).wait()
        found = {
            "same_rows": rows_of_steps([rows]) == {s: r for s, r in expected.items() if s > step},
            "same_metrics": metrics_equal(folder, whole),
            "same_weights": weights_hash(folder) == weights_hash(whole),
        }
        wrong += [f"from step {step}: not the {name.replace('_', ' ')}" for name, same in found.items() if not same]
        counts = {name: count + found[name] for name, count in counts.items()}
        shutil.rmtree(folder)
    measured = {"resumed": len(chosen), **counts, "steps_with_rows": len(expected), "wrong": wrong[:5]}
    passed = set(counts.values()) == {len(chosen)} and len(expected) == steps
    asked = f"resumed at each of {len(chosen)} steps: identical rows, losses and weights"
    return {"name": "resume_every_step", "asked": asked, "measured": measured, "passed": passed}


def copy_until(whole: Path, folder: Path, step: int) -> None:
    """What a run of these steps had left: its own files, and the checkpoints up to that step."""
    folder.mkdir()
    for path in whole.iterdir():
        if path.is_file() and path.name != "manifest.json":
            shutil.copy2(path, folder)
    for path in checkpoints(whole):
        if step_of(path) <= step:
            shutil.copytree(path, folder / path.name, copy_function=os.link)


def elastic(work: Workplace) -> Result:
    """One process, then two, then one, with the same global batch; and a change of the batch is refused."""
    plain = work.pretrain("elastic", run__global_batch_size=8, training__max_steps=40)
    accumulate = {"training__per_device_train_batch_size": 2, "data__packing": "best_fit", "run__optimizer": None}
    subjects = [plain, plain.changed("elastic_adamw_best_fit", **accumulate)]
    wrong, differences, steps = list[str](), list[float](), 0
    for subject in subjects:
        equal, difference, problems = one_two_one(work, subject)
        steps, wrong = steps + equal, wrong + problems
        differences.append(difference)
    refused = refusal(work, plain)
    measured = {
        "steps_with_identical_rows": steps, "steps": 40 * len(subjects), "largest_difference": max(differences),
        "another_batch_refused": not refused, "wrong": [*wrong, *refused][:5],
    }  # fmt: skip
    passed = not wrong and not refused and steps == 40 * len(subjects) and max(differences) <= TOLERANCE
    asked = f"1 -> 2 -> 1 processes: identical rows, losses within {TOLERANCE}; another global batch is refused"
    return {"name": "elastic", "asked": asked, "measured": measured, "passed": passed}


def one_two_one(work: Workplace, subject: Subject) -> tuple[int, float, list[str]]:
    """Steps with the rows of the undisturbed run, the largest difference of losses, and what is wrong."""
    whole, folder = work.folder / f"{subject.name}-whole", work.folder / f"{subject.name}-121"
    rows = [work.folder / f"{subject.name}-rows-{i}.jsonl" for i in range(4)]
    work.processes.warm(work.words(subject, whole), hooks={"rows": str(rows[3])}).wait()
    found: dict[int, list[str]] = {}
    begun = [0]
    for part, num in enumerate((1, 2, 1)):
        run = work.processes.warm(work.words(subject, folder), num, {"rows": str(rows[part])})
        until = (13, 27, 10**9)[part]
        if run.wait_until(lambda until=until: newest_step(folder) >= until):  # type: ignore[misc]
            run.kill()
        begun.append(_newest(folder))
        new = rows_of_steps([rows[part]])
        found |= {step: hashes for step, hashes in new.items() if begun[part] < step <= begun[part + 1]}
    expected = rows_of_steps([rows[3]])
    problems = [] if begun[1] < begun[2] < begun[3] else [f"{subject.name}: stopped at steps {begun[1:]}"]
    difference = largest_difference(metrics(folder), metrics(whole))
    return sum(found.get(step) == hashes for step, hashes in expected.items()), difference, problems


def _newest(folder: Path) -> int:
    good = newest_good(folder)
    return step_of(good) if good else 0


def refusal(work: Workplace, subject: Subject) -> list[str]:
    """Twice the processes with twice the batch: refused, with the way out, and nothing is touched."""
    one = subject.changed("elastic_refused", run__global_batch_size=None, training__gradient_accumulation_steps=2)
    folder = work.folder / "elastic-refused"
    stop_at(work, one, folder, 8)
    before = tree_of(folder)
    run = work.begin(one.changed("elastic_refused", num_processes=2), folder)
    code = run.wait()
    if (
        code == 2
        and "error: " in run.text
        and {k: v for k, v in tree_of(folder).items() if "checkpoint-" in k}
        == {k: v for k, v in before.items() if "checkpoint-" in k}
    ):
        return []
    return [f"another batch: code {code}: {run.text[-400:]}"]


def stop_at(work: Workplace, subject: Subject, folder: Path, step: int) -> None:
    """Kills a run when it has a checkpoint of this step or a later one."""
    run = work.begin(subject, folder)
    run.wait_until(lambda: newest_step(folder) >= step)
    run.kill()


def finished_run(work: Workplace) -> Result:
    """A finished run is started three times more: no step, no file changed."""
    subjects = [work.usual] if work.short else [work.usual, work.sft("finished_sft"), work.dpo("finished_dpo")]
    starts, steps, changed, codes = 0, 0, 0, list[int]()
    for subject in subjects:
        folder = work.reference(subject).folder
        before = tree_of(folder)
        for _ in range(3):
            run = work.begin(subject, folder)
            codes.append(run.wait())
            starts, steps = starts + 1, steps + ("step " in run.text)
            changed += tree_of(folder) != before
    measured = {"starts": starts, "that_made_steps": steps, "that_changed_files": changed}
    passed = not steps and not changed and set(codes) == {0}
    asked = f"{starts} further starts: 0 steps, 0 files changed"
    return {"name": "finished_run", "asked": asked, "measured": measured, "passed": passed}


def changed_recipe(work: Workplace) -> Result:
    """An unfinished run whose recipe changed: refused with the difference; --resume and --restart do as they say."""
    subject = work.pretrain("changed")
    change = "--training.learning_rate=0.02"
    folder = work.folder / "changed-run"
    stop_at(work, subject, folder, 8)
    before = tree_of(folder)
    refused = work.begin(subject, folder, change)
    code, text = refused.wait(), refused.text
    found = {
        "refused": code == 2 and "training.learning_rate: 0.01 -> 0.02" in text,
        "unchanged_by_refusal": tree_of(folder) == before,
        "names_the_ways_out": "--resume" in text and "--restart" in text,
        **_ways_out(work, subject, folder, change),
    }
    measured = {**found, "wrong": [] if all(found.values()) else [text[-400:]]}
    asked = "refused with `key: old -> new`; --resume goes on, --restart begins anew and keeps the old run"
    return {"name": "changed_recipe", "asked": asked, "measured": measured, "passed": all(found.values())}


def _ways_out(work: Workplace, subject: Subject, folder: Path, change: str) -> dict[str, bool]:
    """What --restart (in a copy) and --resume do."""
    copy = work.folder / "changed-again"
    shutil.copytree(folder, copy)
    newest = newest_good(folder)
    restarted = work.begin(subject, copy, change, "--restart")
    fresh = restarted.wait() == 0 and "continuing from" not in restarted.text and "step 1/" in restarted.text
    resumed = work.begin(subject, folder, change, "--resume")
    goes_on = resumed.wait() == 0 and f"continuing from {newest}" in resumed.text
    return {
        "resume_goes_on": goes_on and "step 1/" not in resumed.text,
        "restart_begins_anew": fresh,
        "restart_keeps_the_old_run": any(checkpoints(p) for p in work.folder.glob("changed-again.*")),
    }
