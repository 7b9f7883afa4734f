"""GPUs: what torch and the driver see, whether both go together, who else is on them, and how they fare."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ingot.doctor.findings import Finding, fail, gigabytes, ok, warn
from ingot.doctor.probing import ask
from ingot.planning.hardware import gpu_of_device

# nvidia-smi's field -> what is amiss when it says Active or a number above 0; older drivers call them otherwise
TROUBLES = {
    "clocks_event_reasons.hw_slowdown": "slowed down by its hardware (heat or power)",
    "clocks_event_reasons.hw_thermal_slowdown": "slowed down by heat",
    "clocks_event_reasons.sw_thermal_slowdown": "slowed down by heat",
    "ecc.errors.uncorrected.volatile.total": "memory errors that ECC could not correct",
}
FIELDS = ("index", "name", "temperature.gpu", "compute_mode", "mig.mode.current", *TROUBLES)
LITTLE_FREE = 0.5  # of the memory
SMI_SECONDS = 30


def probe() -> dict[str, Any]:
    """What torch sees; in a process of its own, for it takes memory of every GPU."""
    import torch

    found: dict[str, Any] = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
        "mps": torch.backends.mps.is_available(), "available": torch.cuda.is_available(), "problem": None, "gpus": [],
    }  # fmt: skip
    if torch.cuda.is_available():
        found["gpus"] = [_described(i) for i in range(torch.cuda.device_count())]
    elif torch.version.cuda or torch.version.hip:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            found["problem"] = str(error).strip().split("\n")[0]
    return found


def _described(index: int) -> dict[str, Any]:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    built_for = torch.cuda.get_arch_list()
    ours = max((int(a[3:].rstrip("af")) for a in built_for if a.startswith("sm_")), default=0)
    with torch.cuda.device(index):
        works = bool(torch.ones(8, device="cuda").sum().item() == 8) and torch.cuda.is_bf16_supported()
    return {
        "name": torch.cuda.get_device_name(index), "capability": f"{major}.{minor}", "free": free, "total": total,
        "bf16": works, "fp8": torch.version.hip is None and (major, minor) >= (8, 9), "newest_built_for": ours,
    }  # fmt: skip


def driver_cuda() -> str | None:
    """The newest CUDA that the driver can run, such as 12.8; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return (
        None
        if library.cuDriverGetVersion(ctypes.byref(version))
        else f"{version.value // 1000}.{version.value % 1000 // 10}"
    )


def gpu_findings(scratch: Path) -> Iterator[Finding]:
    """The torch build against the driver, every GPU, and who else is on it."""
    try:
        seen = ask("ingot.doctor.gpus:probe", scratch / "gpus.log", timeout=120)
    except (RuntimeError, TimeoutError) as error:
        way = "mend torch first (see imports), or free the GPU: `nvidia-smi` shows who holds it"
        yield fail("torch", f"cannot look for GPUs: {error}", way)
        return
    yield build_finding(seen, driver_cuda(), bool(list(Path("/dev").glob("nvidia[0-9]*"))))
    states = smi_states()
    for index, gpu in enumerate(seen["gpus"]):
        yield from device_findings(index, gpu, states.get(_physical(index), {}))
    if seen["gpus"]:
        yield from other_processes()


def build_finding(seen: Mapping[str, Any], driver: str | None, devices: bool) -> Finding:
    """Whether torch's build and the driver go together; `devices`: whether there are GPUs at all."""
    build = f"CUDA {seen['cuda']}" if seen["cuda"] else f"ROCm {seen['hip']}" if seen["hip"] else "CPU alone"
    text = f"{seen['torch']}, built for {build}" + (f"; the driver runs CUDA up to {driver}" if driver else "")
    if seen["available"]:
        return ok("torch", f"{text}; {len(seen['gpus'])} GPU{'s' * (len(seen['gpus']) > 1)}")
    if not devices:
        return ok(
            "torch", f"{text}; " + ("Apple's GPU (MPS)" if seen["mps"] else "no GPU here, training uses the CPU")
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return fail("torch", f"{text}; CUDA_VISIBLE_DEVICES hides the GPUs", "unset CUDA_VISIBLE_DEVICES")
    if not seen["cuda"]:
        way = "pip install --force-reinstall --no-deps a torch for your CUDA: https://pytorch.org/get-started/locally"
        return fail("torch", f"{text}: the GPUs of this machine are not used", way)
    if driver is None:
        way = "install NVIDIA's driver; in a container: docker run --gpus all ... (nvidia-container-toolkit)"
        return fail("torch", f"{text}: there is no driver (libcuda.so.1)", way)
    if int(driver.split(".")[0]) < int(seen["cuda"].split(".")[0]):
        way = f"update the driver to one for CUDA {seen['cuda']}, or install a torch built for CUDA {driver} or older"
        return fail("torch", f"{text}: the driver is too old for this torch", way)
    return fail("torch", f"{text}: {seen['problem']}", "look at `nvidia-smi` and `dmesg | grep -i nvrm`")


def device_findings(index: int, gpu: Mapping[str, Any], state: Mapping[str, str]) -> Iterator[Finding]:
    """One GPU: memory, what it can do, and its health."""
    name, known = f"GPU {index}", gpu_of_device(gpu["name"])
    able = [kind for kind in ("bf16", "fp8") if gpu[kind]]
    table = "MFU is known" if known else "not in the planner's table: MFU is n/a"
    text = (
        f"{gpu['name']}, {gigabytes(gpu['free'])} of {gigabytes(gpu['total'])} free, compute capability "
        f"{gpu['capability']}, {' and '.join(able) or 'neither bf16 nor fp8'}, {table}"
    )
    if "temperature.gpu" in state:
        text += f", {state['temperature.gpu']} C"
    capability = int(gpu["capability"].replace(".", ""))
    if gpu["newest_built_for"] and capability > gpu["newest_built_for"] + 9:
        yield warn(name, f"{text}; torch was built for older ones", "install a newer torch, within the bounds above")
    elif gpu["free"] < LITTLE_FREE * gpu["total"]:
        yield warn(name, f"{text}: someone else uses its memory", "see the processes below, or CUDA_VISIBLE_DEVICES=N")
    elif not gpu["bf16"]:
        yield warn(name, text, "give --training.bf16=false (fp16 or float32)")
    else:
        yield ok(name, text)
    yield from health_findings(name, state)


def health_findings(name: str, state: Mapping[str, str]) -> Iterator[Finding]:
    """Heat, memory errors and modes that keep a run from the GPU."""
    for field, meaning in TROUBLES.items():
        said = state.get(field, "")
        if said == "Active" or said.isdigit() and int(said) > 0:
            ecc = field.startswith("ecc")
            way = "reset or replace the GPU; results cannot be trusted" if ecc else "look at cooling and power limits"
            yield (fail if ecc else warn)(name, f"{meaning} ({field}: {said})", way)
    if state.get("compute_mode") == "Prohibited":
        yield fail(name, "compute mode Prohibited: no process may use it", f"sudo nvidia-smi -i {name[4:]} -c DEFAULT")
    if state.get("mig.mode.current") == "Enabled":
        yield warn(name, "MIG is on: torch sees a part of the GPU", "the planner counts whole ones; give --memory-gb")


def smi_states() -> dict[str, dict[str, str]]:
    """nvidia-smi's fields of every GPU, by index; empty where there is no nvidia-smi."""
    for fields in (FIELDS, [f.replace("clocks_event_reasons", "clocks_throttle_reasons") for f in FIELDS]):
        rows = _smi("gpu", ",".join(fields))
        if rows is not None:
            return {row[0]: dict(zip(FIELDS, row, strict=False)) for row in rows}
    return {}


def other_processes() -> Iterator[Finding]:
    """Who holds memory of the GPUs."""
    for row in _smi("compute-apps", "pid,process_name,used_memory") or []:
        text = f"process {row[0]} ({Path(row[1]).name}) uses {row[2]} MiB"
        yield warn(
            "GPU processes", text, f"ps -p {row[0]} -o user,etime,args; a run of yours that hangs: kill {row[0]}"
        )


def _physical(index: int) -> str:
    """nvidia-smi's index of the GPU that torch numbers so."""
    visible = [v.strip() for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]
    return visible[index] if index < len(visible) else str(index)


def _smi(query: str, fields: str) -> list[list[str]] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    words = ["nvidia-smi", f"--query-{query}={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SMI_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    return [[value.strip() for value in line.split(",")] for line in done.stdout.strip().split("\n") if line.strip()]
