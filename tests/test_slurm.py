"""The Slurm script, run with stand-ins for Slurm's own programs."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)

SRUN = """#!/bin/bash
echo $$ > "$WORK/task"
trap 'echo ended >> "$WORK/said"; exit 1' TERM
echo "started $*" | tr '\\n' ' ' >> "$WORK/said"; echo >> "$WORK/said"
mkfifo "$WORK/started" 2>/dev/null; echo > "$WORK/started"
[ -n "$SRUN_CODE" ] && exit "$SRUN_CODE"
while :; do read -r -t 1 < "$WORK/never"; done
"""
SCONTROL = '#!/bin/bash\n[ "$1" = requeue ] && echo "requeued $2" >> "$WORK/said"; echo first\n'
SCANCEL = '#!/bin/bash\necho "$*" >> "$WORK/said"; kill -TERM "$(cat "$WORK/task")"\n'


def start(root: Path, tmp_path: Path, code: str = "") -> subprocess.Popen[str]:
    """The script as Slurm would start it."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name in ("started", "never"):
        os.mkfifo(tmp_path / name)
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "both"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "WORK": str(tmp_path)}
    return subprocess.Popen(
        ["bash", str(root / "scripts/slurm/pretrain.sbatch"), "--config", "recipe.yaml"], text=True,
        env={**environment, "SRUN_CODE": code}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_warned_job_saves_and_is_queued_again(root: Path, tmp_path: Path) -> None:
    job = start(root, tmp_path)
    (tmp_path / "started").read_text()  # waits for the task
    job.send_signal(signal.SIGUSR1)
    text, _ = job.communicate()
    assert job.returncode == 1, text
    started, *rest = (tmp_path / "said").read_text().splitlines()
    assert started.startswith("started --kill-on-bad-exit=1 bash -c") and "pretrain --config recipe.yaml" in started
    assert rest == ["--signal=TERM 77", "ended", "requeued 77"]


@pytest.mark.parametrize("code", ["0", "3"])
def test_a_job_that_ends_by_itself_is_not_queued_again(code: str, root: Path, tmp_path: Path) -> None:
    job = start(root, tmp_path, code)
    (tmp_path / "started").read_text()
    job.communicate()
    assert job.returncode == int(code)
    assert "requeued" not in (tmp_path / "said").read_text()
