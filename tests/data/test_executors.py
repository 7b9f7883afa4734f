"""Local processes, Slurm and Ray: the same shards, one line for every failure, and no process that hangs."""

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datatrove.pipeline.base import PipelineStep

from ingot.data import executors, slurm
from ingot.data.execution import DataRun, Slurm
from ingot.data.executors import LocalExecutor, run_tasks
from ingot.data.prepare_data import DataRecipe, run
from ingot.data.sources import Source, Unit
from ingot.data.tasks import Task
from ingot.recipe import InputError, build_recipe
from ingot.runs import identity

from .helpers import make_rows, write_jsonl

Start = Callable[..., tuple[Path, dict[str, Any]]]
TASKS = [Task((Unit(Source(path="x"), f"/corpus/{i}.jsonl", f"0/{i}.jsonl"),)) for i in range(4)]


class Note(PipelineStep):
    """Leaves a file for every task that came to its end; `bad` is the rank that fails, `how` the way."""

    name, type = "note", "WRITER"

    def __init__(self, folder: Path, bad: int | None = None, how: str = "") -> None:
        super().__init__()
        self.folder, self.bad, self.how = folder, bad, how

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if rank == self.bad:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise InputError("a.jsonl:3: wrong") if self.how == "input" else KeyError("our fault")
        (self.folder / f"{rank}-{os.getpid()}").touch()
        yield from ()


def done(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in folder.glob("[0-9]-*"))


def local(folder: Path, step: Note, missing: tuple[int, ...] = (0, 1, 2, 3), workers: int = 2) -> None:
    run_tasks([step], TASKS, missing, folder / "logs", DataRun(dir=folder, workers=workers), "reading")


@pytest.mark.parametrize("workers", [1, 2])
def test_only_missing_tasks_run(tmp_path: Path, workers: int) -> None:
    local(tmp_path, Note(tmp_path), (1, 3), workers)
    assert done(tmp_path) == [1, 3]
    local(tmp_path, Note(tmp_path), (), workers)
    assert done(tmp_path) == [1, 3]
    processes = {path.name.split("-")[1] for path in tmp_path.glob("[0-9]-*")}
    assert (str(os.getpid()) in processes) == (workers == 1)


def test_a_process_that_is_killed_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        local(tmp_path, Note(tmp_path, 2, "killed"))
    assert str(caught.value) == (
        "reading: a process was killed by signal 9 (SIGKILL) while it worked on /corpus/2.jsonl; the machine may be "
        "out of memory: run the same command again with run.workers below 2, finished tasks are kept"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_fails_says_why(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match=r"^a\.jsonl:3: wrong$"):
        local(tmp_path, Note(tmp_path, 1, "input"), workers=workers)
    with pytest.raises((RuntimeError, KeyError), match="our fault"):
        local(tmp_path, Note(tmp_path, 1, "fault"), workers=workers)
    local(tmp_path, Note(tmp_path), workers=workers)
    assert set(done(tmp_path)) == {0, 1, 2, 3}


def test_no_process_outlives_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    original = executors._Worker.__init__

    def init(self: Any, executor: LocalExecutor) -> None:
        original(self, executor)
        pids.append(self.process.pid)

    monkeypatch.setattr(executors._Worker, "__init__", init)
    with pytest.raises(InputError):
        local(tmp_path, Note(tmp_path, 0, "input"))
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"executor": "slurm"}, "run.slurm: missing; executor: slurm needs at least partition and time"),
        ({"slurm": {"partition": "p", "time": "1:00"}}, "run.slurm: has no effect with executor: local"),
        ({"workers": 0}, "run.workers"),
        ({"executor": "sparc"}, "run.executor"),
    ],
)
def test_contradictory_keys_are_named(tmp_path: Path, tokenizer_folder: Path, keys: Any, message: str) -> None:
    tree = {"data": {"sources": [{"path": "x"}], "tokenizer": str(tokenizer_folder)}}
    with pytest.raises(InputError, match=message):
        build_recipe(DataRecipe, {**tree, "run": {"dir": str(tmp_path), **keys}})


def test_where_it_runs_is_no_part_of_its_identity(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(3))
    tree = {"data": {"sources": [{"path": str(path)}], "tokenizer": str(tokenizer_folder)}}
    ways: list[dict[str, Any]] = [
        {}, {"executor": "ray"}, {"executor": "slurm", "workers": 9, "slurm": {"partition": "p", "time": "1:00"}}
    ]  # fmt: skip
    found = [
        identity(build_recipe(DataRecipe, {**tree, "run": {"dir": str(tmp_path / "run"), **way}})) for way in ways
    ]
    assert found[0] == found[1] == found[2]


@pytest.fixture
def start(tmp_path: Path, tokenizer_folder: Path) -> Start:
    """Prepares three files in one pass: (name of the run, keys of `run`) -> (folder, results)."""
    for i in range(3):
        write_jsonl(tmp_path / f"part-{i}.jsonl", [{**row, "id": f"{i}-{row['id']}"} for row in make_rows(9 + i)])

    def start(name: str, **keys: Any) -> tuple[Path, dict[str, Any]]:
        data = {"sources": [{"path": str(tmp_path / "part-*.jsonl")}], "split": {"test": 0.3}, "dedup": "off"}
        tree = {"data": {**data, "tokenizer": str(tokenizer_folder)}, "run": {"dir": str(tmp_path / name), **keys}}
        return tmp_path / name, run(build_recipe(DataRecipe, tree))

    return start


def shard_hashes(folder: Path) -> dict[str, str]:
    from ingot.runs import read_manifest

    return {name: file["sha256"] for name, file in read_manifest(folder)["files"].items() if "tokens/" in name}


SBATCH = """#!/bin/bash
# Runs the tasks of the array one after another, in the background, as Slurm would on one node.
cd "{home}"
for word in "$@"; do case "$word" in --export=ALL,*) export "${{word#--export=ALL,}}";; esac; script="$word"; done
number=$(ls -d job-* 2>/dev/null | wc -l); job=$((100 + number)); mkdir "job-$job"
cp "$script" "job-$job/script"; touch "job-$job/running"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
folder=$(sed -n 's/^#SBATCH --chdir=//p' "$script")
( cd "$folder"
  for i in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=localhost SLURM_JOB_ID=$job bash "{home}/job-$job/script"
  done >"{home}/job-$job/output" 2>&1
  rm "{home}/job-$job/running" ) >/dev/null 2>&1 &
echo "Submitted batch job $job"
"""
SRUN = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n'
SQUEUE = """#!/bin/bash
jobs=""; while [ $# -gt 0 ]; do [ "$1" == --jobs ] && jobs="$2"; shift; done
for job in ${{jobs//,/ }}; do
  [ -d "{home}/job-$job" ] || {{ echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }}
  [ -e "{home}/job-$job/running" ] && echo RUNNING
done; exit 0
"""
SCONTROL = "#!/bin/bash\necho localhost\n"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that stand in for Slurm's and really run the generated script."""
    home = tmp_path / "cluster"
    home.mkdir()
    texts = {"sbatch": SBATCH.format(home=home), "squeue": SQUEUE.format(home=home), "srun": SRUN}
    for name, text in {**texts, "scontrol": SCONTROL}.items():
        (home / name).write_text(text)
        (home / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL", 0.1)
    monkeypatch.setattr(slurm, "GRACE", 0.0)
    return home


SLURM: dict[str, Any] = {
    "partition": "cpu",
    "time": "00:30:00",
    "cpus_per_task": 2,
    "tasks_per_job": 2,
    "sbatch": {"account": "me"},
}


def test_slurm_makes_the_shards_that_local_processes_make(start: Start, cluster: Path) -> None:
    here, results = start("here")
    there, again = start("there", executor="slurm", workers=7, slurm=SLURM)
    assert again == results
    assert shard_hashes(there) == shard_hashes(here)
    (job,) = cluster.glob("job-*")
    directives = {line for line in (job / "script").read_text().splitlines() if line.startswith("#SBATCH")}
    assert directives >= {
        "#SBATCH --partition=cpu", "#SBATCH --time=00:30:00", "#SBATCH --cpus-per-task=2", "#SBATCH --mem-per-cpu=2G",
        "#SBATCH --array=0-1%7", "#SBATCH --account=me", f"#SBATCH --chdir={os.getcwd()}", "#SBATCH --nodes=1",
    }  # fmt: skip
    assert not [line for line in directives if "qos" in line]


def test_a_slurm_job_that_fails_says_why_and_is_taken_up_again(start: Start, cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "part-1.jsonl").write_text("{broken\n")
    keys = {"executor": "slurm", "slurm": {**SLURM, "tasks_per_job": 3}}
    with pytest.raises(InputError, match=r"^.*part-1\.jsonl:1: not valid JSON[^\n]*$"):
        start("run", **keys)
    assert len(list((tmp_path / "run/.parts").glob("shards-*.json"))) == 1  # the tasks after it did not run


def test_a_driver_that_comes_back_waits_for_the_job_that_runs(cluster: Path, tmp_path: Path) -> None:
    logs, way = tmp_path / "logs", DataRun(dir=tmp_path, executor="slurm", slurm=Slurm(**SLURM))
    job = cluster / "job-100"
    job.mkdir()
    (job / "running").touch()
    (logs / "completions").mkdir(parents=True)
    (logs / "job.json").write_text('{"jobs": ["100"]}')
    asked: list[int] = []

    def finish(seconds: float) -> None:
        asked.append(1)
        for rank in range(4):
            (logs / f"completions/{rank:05d}").touch()
        (job / "running").unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", finish)
        run_tasks([Note(tmp_path)], TASKS, (0, 1, 2, 3), logs, way, "reading")
    assert asked == [1]
    assert not list(cluster.glob("job-101"))
    assert not (logs / "job.json").exists()


def test_a_job_that_ends_early_names_its_logs(cluster: Path, tmp_path: Path) -> None:
    (cluster / "srun").write_text("#!/bin/bash\nexit 1\n")
    way = DataRun(dir=tmp_path, executor="slurm", slurm=Slurm(**SLURM))
    expected = (
        r"4 of 4 tasks did not finish \(the first reads /corpus/0.jsonl\), see .*slurm_logs; they may need more run"
    )
    with pytest.raises(InputError, match=expected):
        run_tasks([Note(tmp_path)], TASKS, (0, 1, 2, 3), tmp_path / "logs", way, "reading")


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    way = DataRun(dir=tmp_path, executor="slurm", slurm=Slurm(**SLURM))
    with pytest.raises(InputError, match="no sbatch here; start this where Slurm jobs are submitted"):
        run_tasks([Note(tmp_path)], TASKS, (0, 1, 2, 3), tmp_path / "logs", way, "reading")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A real Ray on this machine."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_ray_makes_the_shards_that_local_processes_make(start: Start, ray_cluster: None) -> None:
    here, results = start("here")
    there, again = start("there", executor="ray", workers=2)
    assert again == results
    assert shard_hashes(there) == shard_hashes(here)


@pytest.mark.slow
def test_errors_on_ray_arrive_as_one_line(start: Start, ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "part-1.jsonl").write_text("{broken\n")
    with pytest.raises(InputError, match=r"^.*part-1\.jsonl:1: not valid JSON[^\n]*$"):
        start("run", executor="ray", workers=2)
