"""Two processes that talk to each other as DDP does: gloo on a CPU, NCCL on GPUs."""

import os
import socket
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from ingot.doctor.findings import Finding, fail, ok
from ingot.doctor.probing import ask

SECONDS = 60.0
WAYS = {
    "gloo": "GLOO_SOCKET_IFNAME=lo; check that the host's own name resolves (/etc/hosts) and no firewall is on lo",
    "nccl": "NCCL_DEBUG=INFO shows why; try NCCL_P2P_DISABLE=1, NCCL_SHM_DISABLE=1 or NCCL_SOCKET_IFNAME=lo",
}


def gloo() -> dict[str, Any]:
    """Two CPU processes add a number."""
    return _try("gloo", 2)


def nccl() -> dict[str, Any]:
    """Up to two GPUs add a number."""
    import torch

    return _try("nccl", min(2, torch.cuda.device_count()))  # the count does not take the GPUs


def _try(backend: str, processes: int) -> dict[str, Any]:
    import torch.distributed  # noqa: F401 - once, for all

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            _member(backend, rank, processes, port)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"{backend}: exit codes {codes}")
    return {"processes": processes}


def _member(backend: str, rank: int, processes: int, port: int) -> None:
    """One of them; ends the process with 0 when the sum is right."""
    code = 1
    try:
        import torch
        import torch.distributed as dist

        device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
        store = dist.TCPStore("127.0.0.1", port, processes, rank == 0, timeout=timedelta(seconds=SECONDS / 2))
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=processes, timeout=timedelta(seconds=SECONDS / 2)
        )
        number = torch.tensor([rank + 1.0], device=device)
        dist.all_reduce(number)
        code = 0 if number.item() == processes * (processes + 1) / 2 else 1
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        traceback.print_exc()
    os._exit(code)


def loopback_findings(scratch: Path, gpus: bool) -> Iterator[Finding]:
    """Whether several processes can train together here."""
    for backend in ("gloo", "nccl") if gpus else ("gloo",):
        log = scratch / f"{backend}.log"
        try:
            found = ask(f"ingot.doctor.loopback:{backend}", log, SECONDS)
            number = found["processes"]
            alone = "it starts; one GPU has nobody to talk to"
            yield ok(backend, f"{number} processes on this machine reach each other" if number > 1 else alone)
        except (RuntimeError, TimeoutError) as error:
            yield fail(backend, f"processes on this machine do not reach each other: {error}", WAYS[backend])
