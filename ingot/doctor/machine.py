"""The machine around the GPUs: cores, memory, limits of containers and shells, compilers, the clock."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import ingot
from ingot.doctor.findings import Finding, fail, gigabytes, ok, warn

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
OPEN_FILES = 4096
SHARED_MEMORY = 512 << 20  # bytes; DataLoader workers and NCCL pass tensors through it
LEAST_MEMORY = 2 << 30  # bytes, free; less does not hold torch and a toy model in two processes


def machine_findings() -> Iterator[Finding]:
    """Cores, memory, limits, compilers and clock."""
    yield _cores()
    yield _memory()
    yield from _container_memory()
    yield from _shared_memory()
    yield from _limits()
    yield _clock()
    yield from compiler_findings()


def _cores() -> Finding:
    usable, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    quota = _cpu_quota()
    text = f"{usable} of {os.cpu_count()} usable, load {load:.1f}"
    if quota is not None and quota < usable:
        way = "threads beyond the quota slow each other; set OMP_NUM_THREADS, or start the container with more --cpus"
        return warn("CPU cores", f"{text}; the container may use {quota:g} of them", way)
    if load > usable:
        return warn("CPU cores", f"{text}: others use this machine, too", "times measured now are too long; see `top`")
    return ok("CPU cores", text)


def _cpu_quota() -> float | None:
    """Cores that the container may use."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.is_file():
        return None
    quota, period = path.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _memory() -> Finding:
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    text = f"{gigabytes(memory.total)}, {gigabytes(memory.available)} free, swap {gigabytes(swap.total)}"
    if memory.available < LEAST_MEMORY:
        return fail("memory", text, f"free at least {gigabytes(LEAST_MEMORY)}; `ps aux --sort=-rss | head` shows who")
    return ok("memory", text)


def _container_memory() -> Iterator[Finding]:
    import psutil

    for limit_file, used_file in CGROUPS:
        if not Path(limit_file).is_file():
            continue
        text = Path(limit_file).read_text().strip()
        if text == "max" or int(text) >= psutil.virtual_memory().total:
            return
        limit, used = int(text), int(Path(used_file).read_text())
        said = f"the container may use {gigabytes(limit)}, {gigabytes(used)} are used; beyond it processes are killed"
        if limit - used < LEAST_MEMORY:
            yield warn("container memory", said, "start the container with more: docker run --memory=16g ...")
        else:
            yield ok("container memory", said)
        return


def _shared_memory(path: Path = Path("/dev/shm"), least: int = SHARED_MEMORY) -> Iterator[Finding]:
    if not path.is_dir():
        yield warn("/dev/shm", "there is none", "set training.dataloader_num_workers: 0; several processes need it")
        return
    usage = shutil.disk_usage(path)
    text = f"{gigabytes(usage.total)}, {gigabytes(usage.free)} free"
    if usage.free < least:
        way = "docker run --shm-size=8g ...; or training.dataloader_num_workers: 0 and NCCL_SHM_DISABLE=1"
        yield warn("/dev/shm", f"{text}: DataLoader workers and NCCL need more", way)
    else:
        yield ok("/dev/shm", text)


def _limits() -> Iterator[Finding]:
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{_limit(files)} (hard limit {_limit(hard)})"
    if 0 <= files < OPEN_FILES:
        yield warn("open files", f"{text}: many shards or clients need more", f"ulimit -n {min(65536, hard)}")
    else:
        yield ok("open files", text)
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        yield warn("file size", f"files end at {gigabytes(size)}; a checkpoint may need more", "ulimit -f unlimited")
    else:
        yield ok("file size", "unlimited")
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        yield warn("address space", f"limited to {gigabytes(space)}; CUDA asks for far more", "ulimit -v unlimited")


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else f"{number:,}"


def _clock() -> Finding:
    """A clock that is behind the files of the installation makes new results look older than what they came from."""
    now, newest = time.time(), _installed()
    text = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if now < newest:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(newest))
        return fail("clock", f"{text} is before Ingot was installed ({when})", "set it: sudo timedatectl set-ntp true")
    return ok("clock", text)


def _installed() -> float:
    """When Ingot's files were written, in seconds since 1970."""
    return Path(ingot.__file__).stat().st_mtime


def compiler_findings() -> Iterator[Finding]:
    """g++ and ninja: DeepSpeed builds a part of itself on a CPU, and torch.compile writes C++ there."""
    problem = _compiles()
    if problem is not None:
        text = f"{problem}; DeepSpeed (ZeRO) on a CPU and torch.compile need it"
        yield warn("g++", text, "apt-get install g++; DDP works without: accelerate_configs/cpu_ddp.yaml")
    else:
        yield ok("g++", "compiles")
    if shutil.which("ninja") is None:
        way = "activate the environment (source .venv/bin/activate), or: pip install ninja"
        yield warn("ninja", "not on PATH; DeepSpeed (ZeRO) on a CPU needs it", way)
    else:
        yield ok("ninja", str(shutil.which("ninja")))


def _compiles() -> str | None:
    """What is wrong with the compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"{compiler} is not there"
    source = "#include <vector>\nint main() { return static_cast<int>(std::vector<int>().size()); }\n"
    words = [compiler, "-x", "c++", "-fsyntax-only", "-"]
    done = subprocess.run(words, input=source, capture_output=True, text=True, timeout=60)
    return None if done.returncode == 0 else f"{compiler} does not compile: {done.stderr.strip()[:120]}"
