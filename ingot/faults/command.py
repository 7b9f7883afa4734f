"""`ingot faults`: breaks Ingot in every way that is promised to be survived, and counts."""

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot.failures import interruptible
from ingot.faults.suite import CASES, run_case, selected
from ingot.faults.workplace import Workplace
from ingot.planning.arguments import Parser
from ingot.recipe import InputError, nearest
from ingot.runs import versions, write_json


def faults_command(arguments: Sequence[str]) -> None:
    """`ingot faults [--short] [--json] [--only NAME] [--list] [--seed N] [--out DIR] [--keep]`.

    Exits with 3 when a case has not passed. Raises: InputError for a case that there is not.
    """
    words = _parser().parse_all(arguments)
    if words.list:
        print("\n".join(f"{name:<22} {meaning}" for name, (_, meaning, _) in CASES.items()))
        return
    for name in words.only:
        if name not in CASES:
            near = nearest(name, set(CASES))
            hint = f"; did you mean '{near}'?" if near else ""
            raise InputError(f"ingot faults: there is no case '{name}'{hint} (--list shows them)")
    report = run_suite(selected(words.only, words.short), words.short, words.seed, words.out, words.keep)
    print(json.dumps(report, indent=2) if words.json else table(report))
    if not report["passed"]:
        sys.exit(3)


def _parser() -> Parser:
    parser = Parser(prog="ingot faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the cases that fit into a minute, each with less")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this case; may be given again")
    parser.add_argument("--list", action="store_true", help="print the cases and what they do")
    parser.add_argument("--seed", type=int, default=0, help="of every random moment; default %(default)s")
    parser.add_argument("--out", type=Path, help="folder to work in, kept; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder and say where it is")
    return parser


def run_suite(names: Sequence[str], short: bool, seed: int, out: Path | None, keep: bool) -> dict[str, Any]:
    """Runs cases one after the other: {"passed", "seconds", "machine", "versions", "seed", "cases"}.

    In a folder that is kept the report is also faults.json, written anew after every case.
    """
    folder = _folder(out)
    work = Workplace(folder, seed, short, lambda line: print(line, file=sys.stderr, flush=True))
    work.processes.warm_up()
    report: dict[str, Any] = {"passed": False, "short": short, "seed": seed, "seconds": 0.0, "machine": _machine()}
    report |= {"versions": versions(), "cases": []}
    began = time.monotonic()
    try:
        with interruptible():
            for name in names:
                _add(report, run_case(name, work), work)
                report["seconds"] = round(time.monotonic() - began, 1)
                report["passed"] = len(report["cases"]) == len(names) and all(c["passed"] for c in report["cases"])
                write_json(folder / "faults.json", report)
    finally:
        work.close()
        if out is None and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            work.say(f"everything is in {folder}")
    return report


def _add(report: dict[str, Any], case: dict[str, Any], work: Workplace) -> None:
    report["cases"].append(case)
    work.say(f"{case['name']}: {verdict(case)} in {case['seconds']:.0f} s")
    for line in () if case["passed"] else [case["measured"].get("error", ""), *case["measured"].get("wrong", [])]:
        work.say(f"  {line}")


def _folder(out: Path | None) -> Path:
    if out is None:
        return Path(tempfile.mkdtemp(prefix="ingot-faults-"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} is not empty; choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    return out.resolve()


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def table(report: dict[str, Any]) -> str:
    """The report as a table of Markdown, with the command for each row."""
    lines = ["| case | asked | measured | passed | seconds | command |", "|---|---|---|---|---:|---|"]
    for case in report["cases"]:
        numbers = "; ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in case["measured"].items() if v != [])
        cells = [case["name"], case["asked"], numbers, verdict(case), f"{case['seconds']:.0f}"]
        command = f"`ingot faults {'--short ' if report['short'] else ''}--only {case['name']}`"
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "/") for cell in [*cells, command]) + " |")
    found = [verdict(case) for case in report["cases"]]
    skipped = f", {found.count('skipped')} skipped" if "skipped" in found else ""
    end = f"{found.count('passed')} of {len(found)} passed{skipped} in {report['seconds']:.0f} s"
    return "\n".join([*lines, "", end])


def verdict(case: dict[str, Any]) -> str:
    """In a word; what cannot run here has not shown anything, and does not fail the suite."""
    if not case["passed"]:
        return "NOT PASSED"
    return "skipped" if "skipped" in case["measured"] and isinstance(case["measured"]["skipped"], str) else "passed"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
