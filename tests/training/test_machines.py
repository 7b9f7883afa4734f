"""Two machines: two network namespaces with addresses of their own, joined by a cable that can be pulled."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ingot.runs import read_json

from .conftest import Pretrain
from .test_processes import Start, Started, assert_close, numbers, recipe_file, start  # noqa: F401 - fixtures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TIMEOUT = 20  # seconds that a process waits for the other machine


def ip(*words: str) -> None:
    """Runs `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Machine(NamedTuple):
    """A network namespace."""

    name: str
    card: str
    address: str


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines that see each other and nothing else; gone after the test."""
    tag = f"{os.getpid() % 100_000}"
    pair = tuple(Machine(f"ingot{tag}-{i}", f"in{tag}x{i}", f"10.77.0.{i + 1}") for i in range(2))
    try:
        for machine in pair:
            ip("netns", "add", machine.name)
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(pair)
        pytest.skip(f"network namespaces need root and iproute2: {error}")
    try:
        first, second = pair
        ip("link", "add", first.card, "netns", first.name, "type", "veth", "peer", second.card, "netns", second.name)
        for machine in pair:
            ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", machine.card)
            for device in ("lo", machine.card):
                ip("-n", machine.name, "link", "set", device, "up")
        yield first, second
    finally:
        _remove(pair)


def _remove(pair: tuple[Machine, ...]) -> None:
    for machine in pair:
        subprocess.run(["ip", "netns", "delete", machine.name], check=False, capture_output=True)


def launch_on(start: Start, machine: Machine, rank: int, *words: str) -> Started:  # noqa: F811
    """The command of docs/multi_node.md, on one of the machines."""
    command = (
        "accelerate launch --config_file accelerate_configs/multi_node.yaml --num_machines 2 --num_processes 2 "
        f"--machine_rank {rank} --main_process_ip 10.77.0.1 --main_process_port 29500 scripts/pretrain.py"
    )
    inside = ["ip", "netns", "exec", machine.name, "env", f"GLOO_SOCKET_IFNAME={machine.card}"]
    return start(*inside, *command.split(), *words)


def test_two_machines_train_what_one_trains(
    machines: tuple[Machine, Machine],
    start: Start,  # noqa: F811
    recipe_file: Path,  # noqa: F811
    tmp_path: Path,
    pretrain: Pretrain,
) -> None:
    two = tmp_path / "two"
    words = ["--config", str(recipe_file), f"--run.dir={two}"]
    first, second = (launch_on(start, machine, rank, *words) for rank, machine in enumerate(machines))
    one, expected = pretrain("one", run__global_batch_size=8)
    (code, text), (other_code, other_text) = first.finish(), second.finish()
    assert (code, other_code) == (0, 0), text + other_text
    assert "2 processes on CPU" in text and text.count("step 12/12  loss") == 1
    assert "step" not in other_text  # the main process of machine 0 speaks and writes
    assert_close(numbers(two), numbers(one))
    found = read_json(two / "manifest.json")["results"]["heldout_loss"]
    assert found == pytest.approx(expected["heldout_loss"], abs=1e-5)


# What Slurm does with a script's `srun`: the command once on every machine.
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
pids=()
{lines}
for pid in "${{pids[@]}}"; do wait "$pid" || exit 1; done
"""
SRUN_LINE = 'SLURM_NODEID={rank} GLOO_SOCKET_IFNAME={machine.card} ip netns exec {machine.name} "$@" & pids+=($!)'


def test_the_slurm_script_trains_on_both_with_zero2(
    machines: tuple[Machine, Machine],
    start: Start,  # noqa: F811
    recipe_file: Path,  # noqa: F811
    tmp_path: Path,
    pretrain: Pretrain,
) -> None:
    pytest.importorskip("deepspeed")
    tools = tmp_path / "bin"
    tools.mkdir()
    lines = "\n".join(SRUN_LINE.format(rank=rank, machine=machine) for rank, machine in enumerate(machines))
    addresses = " ".join(machine.address for machine in machines)
    programs = {"srun": SRUN.format(lines=lines), "scontrol": f'#!/bin/bash\nprintf "%s\\n" {addresses}\n'}
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    slurm = {"SLURM_NNODES": 2, "SLURM_GPUS_ON_NODE": 1, "SLURM_JOB_ID": 1234, "SLURM_JOB_NODELIST": "both"}
    here = {
        "CONFIG": "accelerate_configs/zero2.yaml",
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    words = [f"{key}={value}" for key, value in {**slurm, **here}.items()]
    two = tmp_path / "two"
    script = ["bash", "scripts/slurm/pretrain.sbatch", "--config", str(recipe_file), f"--run.dir={two}"]
    process = start("env", *words, *script)
    one, _ = pretrain("one", run__global_batch_size=8)
    code, text = process.finish()
    assert code == 0, text
    assert "2 processes on CPU" in text
    assert_close(numbers(two), numbers(one))


def long_run(recipe: Path, run_dir: Path) -> list[str]:
    """Arguments of a run that does not end by itself."""
    keys: dict[str, Any] = {"max_steps": 100_000, "eval_steps": 50_000, "save_steps": 10, "ddp_timeout": TIMEOUT}
    return ["--config", str(recipe), f"--run.dir={run_dir}", *(f"--training.{k}={v}" for k, v in keys.items())]


@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_when_a_machine_is_lost_the_other_ends_with_one_line(
    how: str,
    machines: tuple[Machine, Machine],
    start: Start,  # noqa: F811
    recipe_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    import psutil

    words = long_run(recipe_file, tmp_path / "two")
    first, second = (launch_on(start, machine, rank, *words) for rank, machine in enumerate(machines))
    first.read_until("step 20/")
    if how == "killed":
        for process in psutil.Process(second.process.pid).children(recursive=True):
            process.kill()
        second.process.kill()
    else:
        ip("-n", machines[1].name, "link", "set", machines[1].card, "down")
    text, _ = first.process.communicate(timeout=TIMEOUT + 60)  # a busy machine needs its time to end
    assert first.process.returncode == 1, text  # accelerate's
    assert "error: process 0 of 2: another process of this run ended or does not answer (" in text
    assert "continues from the newest checkpoint" in text and list((tmp_path / "two").glob("checkpoint-*"))


def test_a_folder_that_the_machines_do_not_share_is_refused_by_both(
    machines: tuple[Machine, Machine],
    start: Start,  # noqa: F811
    recipe_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    processes = [
        launch_on(start, machine, rank, "--config", str(recipe_file), f"--run.dir={tmp_path / machine.name}")
        for rank, machine in enumerate(machines)
    ]
    for process in processes:
        code, text = process.finish()
        assert code == 1 and "error: run.dir: process 1 does not see" in text, text
        assert "put it on a file system that all machines share" in text
