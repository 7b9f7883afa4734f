"""Every script is a launch command, a load and a run; each answers --help quickly and without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from ingot.cli import STAGES

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def test_every_stage_has_its_script() -> None:
    assert {p.stem for p in SCRIPTS} == set(STAGES)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_is_short_and_shows_its_command(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.count("\n") <= 40 and f"scripts/{script.name} --config recipes/" in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_help_names_the_stage_and_loads_nothing_heavy(script: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(script)!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'trl', 'datatrove', 'gradio'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.stem} --config FILE") and "--run.dir" in done.stdout
