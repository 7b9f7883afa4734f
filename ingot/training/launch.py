"""How many processes run, on which device: set up before torch looks, and held against what the launcher was told."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.pickles import forbid_pickles
from ingot.recipe import InputError
from ingot.runs import LostProcess, get_logger, num_processes
from ingot.training.malloc import keep_freed_memory

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = get_logger(__name__)

# Seconds that a process waits for the others where training.ddp_timeout does not say. Long enough for the first one
# to hash and write a checkpoint of 100 GB alone; upstream's half hour is long to pay for machines that wait for a
# dead one.
TIMEOUT = 600
# what gloo says when another process is gone or silent
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


def prepare_launch(training: dict[str, Any]) -> dict[str, Any]:
    """Prepares this process for training and returns the training keys with the device added.

    On a machine without a GPU it sets `use_cpu` and DS_ACCELERATOR=cpu.
    Raises: InputError when the launcher was asked for more processes than it started, or they do not know of each
    other.
    """
    training, asked = dict(training), asked_processes()
    if asked is not None and asked != num_processes():
        raise InputError(
            f"{asked} processes were asked for and {num_processes()} started; on a CPU use "
            f"`accelerate launch --config_file accelerate_configs/cpu_ddp.yaml --num_processes {asked} ...` "
            f"(`--cpu` and MULTI_CPU start one)"
        )
    on_cpu = bool(training.get("use_cpu")) or not has_gpu()
    if on_cpu and uses_fsdp():
        raise InputError(
            "FSDP2 needs GPUs: on a CPU Accelerate would train as DDP without a word; launch with "
            "accelerate_configs/cpu_ddp.yaml, or with zero3.yaml, which splits weights on CPUs too"
        )
    if on_cpu:
        keep_freed_memory()
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["ACCELERATE_USE_CPU"] = str(not uses_deepspeed()).lower()
    if num_processes() > 1:
        _join_processes(on_cpu, timedelta(seconds=training.get("ddp_timeout") or TIMEOUT))
    elif backend := training.pop("ddp_backend", None):
        logger.info("training.ddp_backend: %s is for several processes, and this is one", backend)
    forbid_pickles(uses_deepspeed())
    if not on_cpu:
        return training
    # told to use the CPU, accelerate drops DeepSpeed without a word and trains as DDP
    if uses_deepspeed():
        return {"dataloader_pin_memory": False, **training, "use_cpu": False, "ddp_backend": "gloo"}
    return {**training, "use_cpu": True}


@contextmanager
def naming_lost_process() -> Iterator[None]:
    """Turns what a collective says when another process is gone into one line.

    Raises: LostProcess in place of torch's errors about connections and timeouts.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        lost = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
        if num_processes() == 1 or not (lost or any(sign in reason for sign in LOST)):
            raise
        raise LostProcess(
            f"process {os.environ.get('RANK')} of {num_processes()}: another process of this run ended or does not "
            f"answer ({reason[:160]}); its own output says why. Run the same command again on every machine: it "
            "continues from the newest checkpoint"
        ) from error


def copying(values: dict[str, Any]) -> dict[str, Any]:
    """Training keys with which batches reach a GPU while it works; what the recipe's `values` say of it stays.

    Upstream's default waits, at every copy, until the GPU has done all that was given to it before.
    """
    pinned = values.get("dataloader_pin_memory", not values.get("use_cpu", False))
    given = values.get("accelerator_config") or {}
    if not isinstance(given, dict):  # a file of its own
        return {"dataloader_pin_memory": pinned}
    return {"dataloader_pin_memory": pinned, "accelerator_config": {"non_blocking": pinned, **given}}


def use_one_gpu(arguments: "TrainingArguments") -> None:
    """Keeps one process that sees several GPUs on the first; upstream would spread it by its slow DataParallel.

    CUDA_VISIBLE_DEVICES set here would be too late: packages that upstream imports have CUDA count the GPUs.
    """
    gpus = arguments.n_gpu
    if gpus > 1:
        arguments._n_gpu = 1
        logger.info(
            "one process on GPU 0 of %d; for all of them: accelerate launch --config_file "
            "accelerate_configs/ddp.yaml --num_processes %d scripts/STAGE.py --config RECIPE",
            gpus, gpus,
        )  # fmt: skip


def uses_deepspeed() -> bool:
    """Whether this process was launched with a DeepSpeed file of accelerate_configs/."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def uses_fsdp() -> bool:
    """Whether this process was launched with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def has_gpu() -> bool:
    """Whether torch can train on an accelerator here."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _join_processes(on_cpu: bool, timeout: timedelta) -> None:
    """Forms the process group and checks that it is as large as the launcher says."""
    from accelerate import PartialState

    _join_again("gloo" if on_cpu else "nccl", timeout)
    if uses_deepspeed():
        import deepspeed

        drop_dead_locks()
        backend = "gloo" if on_cpu else "nccl"
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout)
        state = PartialState(backend=backend)
    else:
        state = PartialState(cpu=on_cpu, timeout=timeout)
    found = int(state.num_processes)  # type: ignore[has-type]
    if found != num_processes():
        raise InputError(
            f"{num_processes()} processes were started but each trains alone ({found} in its group); "
            "launch with a file of accelerate_configs/ that fits this machine"
        )


def _join_again(backend: str, timeout: timedelta) -> None:
    """Forms the group under names of its own after a restart by the launcher; does nothing at the first start.

    The store of accelerate's launcher outlives the restart with the addresses of the processes that died, and one that
    reads such an address would wait for it until the timeout.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0:
        return
    from torch import distributed

    address, port, size = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), num_processes()
    own = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)  # the first process holds the store itself
    rank = int(os.environ["RANK"])
    store = distributed.TCPStore(address, port, size, is_master=own and rank == 0, timeout=timeout)
    names = distributed.PrefixStore(f"attempt_{attempt}", store)
    distributed.init_process_group(backend, store=names, rank=rank, world_size=size, timeout=timeout)


def drop_dead_locks() -> None:
    """Removes the locks of processes that died while torch built or loaded a part of DeepSpeed.

    torch would wait for such a lock for ever. Who holds one has its file open; the first process of a machine looks.
    """
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")
    locks = [path.resolve() for path in cache.glob("**/lock")]
    if not locks or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    import psutil

    held = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            held |= {Path(file.path) for file in process.open_files()}
    for path in set(locks) - held:
        logger.warning("%s: left by a process that is gone; removed", path)
        path.unlink(missing_ok=True)


def asked_processes() -> int | None:
    """The number of processes that the command line or config file of the `accelerate launch` above this one says."""
    words = next(_launch_commands(), None)
    if words is None:
        return None
    from accelerate.commands.launch import launch_command_parser

    arguments, _ = launch_command_parser().parse_known_args(words)
    if arguments.num_processes is not None:
        return int(arguments.num_processes)
    return _processes_of_config(arguments.config_file, arguments.cpu)


def _processes_of_config(config_file: str | None, on_cpu: bool) -> int | None:
    """As accelerate reads it: `--cpu` leaves the default file out, and -1 means that the file does not say."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if config_file is None and (on_cpu or not Path(default_config_file).is_file()):
        return None
    asked = int(load_config_from_file(config_file).num_processes)
    return asked if asked > 0 else None


def _launch_commands() -> Iterator[Sequence[str]]:
    """The words after `accelerate launch` of every process above this one that is such a command."""
    import psutil

    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            return
        for i, word in enumerate(words):
            named = word == "launch" and i > 0 and Path(words[i - 1]).name == "accelerate"
            module = word.replace("/", ".").removesuffix(".py").endswith("accelerate.commands.launch")
            if named or module or Path(word).name == "accelerate-launch":
                yield words[i + 1 :]
                break
