"""prepare_data killed at random moments and started again: the bytes of a run that nothing disturbed."""

import json
import random
from pathlib import Path

from ingot.faults.toys import WORDS
from ingot.faults.workplace import Result, Subject, Workplace

RECORDS = ("manifest.json", "started.json", "sources.json", "log.txt", "recipe.yaml")  # hold times and folders


def interrupted_data(work: Workplace) -> Result:
    """kill -9 of prepare_data, several times in every run."""
    subject, drawn = data_subject(work), work.random("interrupted_data")
    reference = work.reference(subject)
    expected = result_bytes(reference.folder)
    kills, runs, equal, wanted = 0, 0, 0, 2 if work.short else 10
    while kills < wanted and runs < 3 * wanted:
        folder = work.folder / f"data-{runs}"
        for _ in range(3):
            run = work.begin(subject, folder)
            killed = run.goes_on_for(drawn.uniform(0, 0.9 * reference.seconds))
            run.kill()
            kills += killed
            if not killed:
                break
        work.finish(subject, folder)
        runs, equal = runs + 1, equal + (result_bytes(folder) == expected)
    measured = {"kills": kills, "runs": runs, "byte_identical": equal, "files": len(expected)}
    asked = f"{wanted} kills: byte-identical results"
    return {
        "name": "interrupted_data",
        "asked": asked,
        "measured": measured,
        "passed": equal == runs and kills >= wanted,
    }


def data_subject(work: Workplace) -> Subject:
    """A recipe of prepare_data over files with duplicates."""
    folder, generator = work.folder / "sources", random.Random(0)
    if not folder.exists():
        folder.mkdir()
        for i in range(8):
            texts = [" ".join(generator.choices(WORDS, k=40)) for _ in range(700)]
            rows = [json.dumps({"text": text, "year": k % 50}) for k, text in enumerate(texts + texts[:50])]
            (folder / f"part-{i}.jsonl").write_text("\n".join(rows) + "\n")
    data = {"sources": [{"path": str(folder / "part-*.jsonl")}], "split": {"test": 4, "group": ["year"]}}
    tree = {"data": {**data, "tokenizer": str(work.corpus / "tokenizer")}, "run": {"dir": "", "workers": 1}}
    return Subject("data", "prepare_data", tree)


def result_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of the result."""
    files = [
        p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in (*RECORDS, ".parts")
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
