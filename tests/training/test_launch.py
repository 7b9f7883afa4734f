"""What the launcher was asked for is held against what it started; the device is set before torch looks."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import accelerate
import psutil
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config import config_args
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import TrainingArguments

from ingot.planning.recipe_setup import strategy_of
from ingot.recipe import InputError
from ingot.runs import exit_code_of
from ingot.training import finetune, launch, pretrain_loop
from ingot.training.launch import asked_processes, copying, prepare_launch

from .pretrain_toys import pretrain_recipe
from .test_optim import tiny_model

CONFIGS = Path(__file__).parent.parent.parent / "accelerate_configs"
Above = Callable[..., None]


@pytest.fixture(autouse=True)
def one_plain_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No launcher above, no GPU, no default configuration of accelerate."""
    accelerates = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP")
    for name in ("WORLD_SIZE", "RANK", *accelerates, "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "has_gpu", lambda: False)
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))


@pytest.fixture
def above(monkeypatch: pytest.MonkeyPatch) -> Above:
    """Puts processes with these command lines above this one, nearest first."""

    class Parent:
        def __init__(self, line: str | None) -> None:
            self.line = line

        def cmdline(self) -> list[str]:
            if self.line is None:
                raise psutil.AccessDenied(1)
            return self.line.split()

    class Process:
        lines: tuple[str | None, ...] = ()

        def parents(self) -> list[Parent]:
            return [Parent(line) for line in self.lines]

    def use(*lines: str | None) -> None:
        monkeypatch.setattr(Process, "lines", lines)

    monkeypatch.setattr(psutil, "Process", Process)
    return use


SCRIPT = "scripts/pretrain.py --config x.yaml --num_processes 99"


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        (f"/venv/bin/python /venv/bin/accelerate launch --cpu --num_processes 2 {SCRIPT}", 2),
        (f"/venv/bin/accelerate launch --num_processes=4 {SCRIPT}", 4),
        (f"python -m accelerate.commands.launch --multi_gpu --num_processes 3 {SCRIPT}", 3),
        (f"python /site-packages/accelerate/commands/launch.py --num_processes 3 {SCRIPT}", 3),
        (f"/venv/bin/python /venv/bin/accelerate-launch --num_processes 5 {SCRIPT}", 5),
        (f"/venv/bin/accelerate launch --config_file {CONFIGS}/cpu_ddp.yaml {SCRIPT}", 2),
        (f"/venv/bin/accelerate launch --config_file {CONFIGS}/zero2.yaml {SCRIPT}", 8),
        (f"/venv/bin/accelerate launch --config_file {CONFIGS}/zero2.yaml --num_processes 2 {SCRIPT}", 2),
        (f"/venv/bin/accelerate launch {SCRIPT}", None),
        (f"python {SCRIPT}", None),
        ("make launch", None),
    ],
)
def test_the_launchers_command_line_is_read(line: str, asked: int | None, above: Above) -> None:
    above("bash -c run", line, "/sbin/init")
    assert asked_processes() == asked


def test_processes_that_cannot_be_read_end_the_search(above: Above) -> None:
    above(None, "accelerate launch --num_processes 2 x.py")
    assert asked_processes() is None


def test_the_default_configuration_counts_unless_cpu_is_asked_for(above: Above, tmp_path: Path) -> None:
    text = (CONFIGS / "ddp.yaml").read_text()
    (tmp_path / "default_config.yaml").write_text(text)
    above(f"accelerate launch {SCRIPT}")
    assert asked_processes() == 8
    above(f"accelerate launch --cpu {SCRIPT}")
    assert asked_processes() is None
    (tmp_path / "default_config.yaml").write_text(text.replace("num_processes: 8\n", ""))
    above(f"accelerate launch {SCRIPT}")
    assert asked_processes() is None


@pytest.mark.parametrize(("asked", "started"), [(2, None), (4, "2"), (1, "2")])
def test_another_number_than_asked_for_is_refused(
    asked: int, started: str | None, above: Above, monkeypatch: pytest.MonkeyPatch
) -> None:
    above(f"accelerate launch --cpu --num_processes {asked} {SCRIPT}")
    if started:
        monkeypatch.setenv("WORLD_SIZE", started)
    with pytest.raises(InputError) as caught:
        prepare_launch({})
    assert f"{asked} processes were asked for and {started or 1} started" in str(caught.value)
    assert f"accelerate_configs/cpu_ddp.yaml --num_processes {asked}" in str(caught.value)


def test_without_a_gpu_everything_runs_on_the_cpu(above: Above) -> None:
    above()
    assert prepare_launch({"learning_rate": 1.0}) == {"learning_rate": 1.0, "use_cpu": True}
    assert os.environ["DS_ACCELERATOR"] == "cpu" and os.environ["ACCELERATE_USE_CPU"] == "true"


def test_with_a_gpu_nothing_is_changed_unless_the_cpu_is_asked_for(
    above: Above, monkeypatch: pytest.MonkeyPatch
) -> None:
    above()
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(launch, "has_gpu", lambda: True)
    assert prepare_launch({"bf16": True}) == {"bf16": True}
    assert not {"DS_ACCELERATOR", "ACCELERATE_USE_CPU"} & set(os.environ)
    assert prepare_launch({"use_cpu": True}) == {"use_cpu": True}
    assert os.environ["ACCELERATE_USE_CPU"] == "true"


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_one_process_stays_on_one_gpu_of_several(
    gpus: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def setup(arguments: Any) -> torch.device:  # as CUDA counts them, whatever CUDA_VISIBLE_DEVICES became since
        arguments._n_gpu = gpus
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(setup))
    caplog.set_level("INFO")
    own, _ = pretrain_loop.training_arguments(pretrain_recipe(corpus, tmp_path), tmp_path, {"max_steps": 1})
    start = SimpleNamespace(config=None)
    tuned = finetune.training_arguments(TrainingArguments, {}, tmp_path, cast(finetune.Start, start))
    assert {own.n_gpu, tuned.n_gpu} == {min(gpus, 1)} and own.train_batch_size == own.per_device_train_batch_size
    assert caplog.text.count("one process on GPU 0 of 4; for all of them: accelerate launch") == 2 * (gpus == 4)


class State:
    """A PartialState whose group has `size` processes."""

    size = 2
    made: list[dict[str, Any]] = []

    def __init__(self, **options: Any) -> None:
        self.made.append(options)
        self.num_processes = self.size


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> type[State]:
    monkeypatch.setattr(State, "made", [])
    monkeypatch.setattr(accelerate, "PartialState", State)
    monkeypatch.setenv("WORLD_SIZE", "2")
    return State


def test_several_processes_on_the_cpu_join_and_keep_every_gpu_visible(
    state: type[State], above: Above, monkeypatch: pytest.MonkeyPatch
) -> None:
    above(f"accelerate launch --config_file {CONFIGS}/cpu_ddp.yaml {SCRIPT}")
    assert prepare_launch({})["use_cpu"] is True
    assert state.made == [{"cpu": True, "timeout": timedelta(seconds=600)}]


def test_fsdp_on_a_cpu_is_refused_because_it_would_be_ddp(above: Above, monkeypatch: pytest.MonkeyPatch) -> None:
    above()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="FSDP2 needs GPUs.*accelerate_configs/cpu_ddp.yaml"):
        prepare_launch({})
    monkeypatch.setattr(launch, "has_gpu", lambda: True)
    assert prepare_launch({}) == {}


def test_processes_that_do_not_know_of_each_other_are_refused(
    state: type[State], above: Above, monkeypatch: pytest.MonkeyPatch
) -> None:
    above()
    monkeypatch.setattr(state, "size", 1)
    with pytest.raises(InputError, match="2 processes were started but each trains alone"):
        prepare_launch({})


@pytest.mark.parametrize("gpu", [False, True])
def test_deepspeed_gets_its_backend_and_is_not_told_of_the_cpu(
    gpu: bool, state: type[State], above: Above, monkeypatch: pytest.MonkeyPatch
) -> None:
    above()
    calls: list[dict[str, Any]] = []
    deepspeed = SimpleNamespace(init_distributed=lambda **options: calls.append(options))
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(launch, "has_gpu", lambda: gpu)
    forbidden: list[bool] = []
    monkeypatch.setattr(launch, "forbid_pickles", forbidden.append)
    values = prepare_launch({"ddp_timeout": 30})
    assert forbidden == [True]
    assert calls == [{"dist_backend": "nccl" if gpu else "gloo", "timeout": timedelta(seconds=30)}]
    del values["ddp_timeout"]
    assert values == ({} if gpu else {"dataloader_pin_memory": False, "use_cpu": False, "ddp_backend": "gloo"})
    assert os.environ.get("ACCELERATE_USE_CPU", "false") == "false"


def test_has_gpu_asks_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert launch.has_gpu() == (torch.cuda.is_available() or torch.backends.mps.is_available())


STRATEGIES = {
    "cpu": "single", "single_gpu": "single", "cpu_ddp": "ddp", "ddp": "ddp", "multi_node": "ddp", "zero1": "zero1",
    "zero2": "zero2", "zero3": "zero3", "zero3_offload": "zero3_offload", "fsdp2": "fsdp2",
}  # fmt: skip


def test_the_planner_knows_the_strategy_of_every_config() -> None:
    found = {path.stem: strategy_of(path) for path in CONFIGS.glob("*.yaml")}
    assert found == STRATEGIES


@pytest.mark.parametrize("config", [name for name in STRATEGIES if name.startswith("zero")])
def test_deepspeed_starts_on_several_machines_without_ssh(config: str) -> None:
    words = ["--config_file", f"{CONFIGS}/{config}.yaml", "--num_machines", "2", "--machine_rank", "1", "x.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (arguments.deepspeed_multinode_launcher, arguments.machine_rank) == ("standard", 1)


@pytest.mark.parametrize("whole", [False, True])
def test_fsdp2_shards_every_layer(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--fsdp_state_dict_type", "FULL_STATE_DICT"] if whole else []
    words = ["--config_file", f"{CONFIGS}/fsdp2.yaml", "--num_processes", "2", *flags, "x.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    for key, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy" and not plugin.activation_checkpointing  # stays
    assert plugin.state_dict_type.name == ("FULL_STATE_DICT" if whole else "SHARDED_STATE_DICT")
    model = tiny_model()
    chosen = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert chosen is not None
    assert [m for m in model.modules() if chosen(m)] == list(model.model.layers)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:29903: Connection reset by peer.\nGLHF!"),
        RuntimeError("[gloo/unbound_buffer.cc:78] Timed out waiting 15000ms for recv operation to complete"),
        torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
    ],
)
def test_a_lost_process_is_named_in_one_line(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train() -> None:
        with launch.naming_lost_process():
            raise error

    with pytest.raises(type(error)) as alone:  # of one process it cannot be said
        train()
    assert alone.value is error
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("RANK", "3")
    assert exit_code_of(train) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: process 3 of 16: another process of this run ended or does not answer (")
    assert said.count("\n") == 1


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    with pytest.raises(RuntimeError, match="CUDA out of memory"), launch.naming_lost_process():
        raise RuntimeError("CUDA out of memory")


def test_the_commands_of_the_page_on_several_machines_are_right() -> None:
    root = CONFIGS.parent
    text = (root / "docs/multi_node.md").read_text().replace("\\\n", " ")
    commands = [line.split() for line in text.splitlines() if line.startswith("accelerate launch ")]
    assert len(commands) == 3
    ranks = []
    for words in commands:
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words[2:]))
        ranks.append((arguments.num_machines, arguments.machine_rank))
        script, _, recipe = words[words.index("scripts/pretrain.py") :]
        assert (root / arguments.config_file).is_file() and (root / script).is_file() and (root / recipe).is_file()
    assert ranks == [(1, 0), (2, 0), (2, 1)]
    for name in ("pretrain.sbatch", *(path.name for path in CONFIGS.glob("*zero*.yaml"))):
        assert name in text


def test_locks_of_dead_processes_are_removed_and_those_of_the_living_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    dead, alive = (tmp_path / name / "lock" for name in ("dead", "alive"))
    for path in (dead, alive):
        path.parent.mkdir()
        path.touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    launch.drop_dead_locks()
    assert dead.exists()
    monkeypatch.setenv("LOCAL_RANK", "0")
    with open(alive):
        launch.drop_dead_locks()
    assert not dead.exists() and alive.exists()


def test_a_recipe_s_accelerator_config_keeps_the_copies_that_do_not_wait() -> None:
    assert copying({"accelerator_config": {"split_batches": True}}) == {
        "dataloader_pin_memory": True,
        "accelerator_config": {"non_blocking": True, "split_batches": True},
    }
    assert copying({"use_cpu": True})["accelerator_config"] == {"non_blocking": False}
    assert "accelerator_config" not in copying({"accelerator_config": "own.json"})
