"""GPUs: peak rates, memory and bandwidth. Dense figures, float32 accumulation; none for an unknown GPU, no guess."""

import re
from dataclasses import dataclass

from ingot.recipe_errors import nearest
from ingot.recipe_yaml import InputError

# (name, dense bf16 TFLOP/s, dense fp8 TFLOP/s or None, memory in GB, bandwidth in GB/s), from the makers' data sheets.
# A data sheet's "GB" of memory is 2^30 bytes; see `memory_bytes`.
_TABLE: list[tuple[str, float, float | None, int, int]] = [
    ("GB300", 2500.0, 5000.0, 288, 8000), ("GB200", 2500.0, 5000.0, 186, 8000),
    ("B300", 2250.0, 4500.0, 288, 8000), ("B200", 2250.0, 4500.0, 180, 8000), ("B100", 1750.0, 3500.0, 192, 8000),
    ("H200", 989.0, 1979.0, 141, 4800), ("H200 NVL", 836.0, 1671.0, 141, 4800),
    ("H100", 989.0, 1979.0, 80, 3350), ("H100 NVL", 835.0, 1671.0, 94, 3938), ("H100 PCIe", 756.0, 1513.0, 80, 2039),
    ("A100 80GB", 312.0, None, 80, 2039), ("A100 40GB", 312.0, None, 40, 1555), ("A800", 312.0, None, 80, 2039),
    ("L40S", 362.0, 733.0, 48, 864), ("L4", 121.0, 242.0, 24, 300), ("A40", 149.7, None, 48, 696),
    ("A30", 165.0, None, 24, 933), ("A6000", 154.85, None, 48, 768),
    ("RTX 5090", 209.5, 419.0, 32, 1792), ("RTX 4090", 165.2, 330.0, 24, 1008), ("RTX 4070 Ti", 80.0, 160.0, 12, 504),
    ("RTX 3090", 71.0, None, 24, 936), ("RTX 3060", 25.6, None, 12, 360),
    ("RTX 4060", 30.2, 60.5, 8, 272),
    ("MI300X", 1307.0, 2615.0, 192, 5300), ("MI325X", 1307.0, 2615.0, 256, 6000),
    ("MI355X", 2500.0, 5000.0, 288, 8000),
]  # fmt: skip
# Words that make another chip, or a part of one, of a name in the table: "RTX 3060 Ti", "RTX 4090 Laptop GPU"
OTHER_CHIPS = {"Ti", "SUPER", "D", "Laptop", "Max", "MIG"}
# GPUs whose memory is protected by a part of itself: what torch sees, in units of 2^30 bytes
WITH_ECC = {"L4": 22.03, "L40S": 44.4, "A40": 44.4}
USABLE = 0.98  # of the memory on the data sheet; the driver and ECC keep the rest (H200: 139.8 of 141 GB)


@dataclass(frozen=True)
class Gpu:
    """A GPU: dense peaks in FLOP/s, memory in bytes, bandwidth in bytes/s; None where it is not known."""

    name: str
    bf16_flops: float | None
    fp8_flops: float | None
    memory_bytes: int | None
    bandwidth: float | None


GPUS = {
    name: Gpu(
        name,
        bf16 * 1e12,
        None if fp8 is None else fp8 * 1e12,
        int(WITH_ECC.get(name, USABLE * memory) * 2**30),
        bandwidth * 1e9,
    )
    for name, bf16, fp8, memory, bandwidth in _TABLE
}


def find_gpu(name: str) -> Gpu:
    """The GPU that a user names: `h200`, `RTX 4070 Ti`, `rtx4070ti`, `a100-80gb`.

    Raises: InputError with a suggestion when it is not in the table.
    """
    known = {_folded(key): gpu for key, gpu in GPUS.items()}
    wanted = _folded(name).removeprefix("nvidia").removeprefix("amd").removeprefix("geforce")
    if wanted in known:
        return known[wanted]
    starting = [key for key in GPUS if wanted and _folded(key).startswith(wanted)]
    near = nearest(wanted, set(known))
    hint = " or ".join(starting) or (known[near].name if near else "")
    raise InputError(
        f"--gpu: {name} is not in the table" + (f"; did you mean {hint}?" if hint else "")
        + f" There are {', '.join(GPUS)}. For another GPU give --peak-tflops (dense bf16) and --memory-gb instead"
    )  # fmt: skip


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def gpu_of_device(device_name: str) -> Gpu | None:
    """The GPU that torch calls so, or None when it is not in the table; the longest name that fits counts."""
    words = device_name.replace("-", " ").split()
    sizes = [word for word in words if re.fullmatch(r"\d+GB", word)]
    found = [name for name in GPUS if f" {_chip(name)} " in f" {' '.join(words)} "]
    if not found:
        return None
    name = max(found, key=lambda n: (len(_chip(n)), any(size in n for size in sizes)))
    return None if OTHER_CHIPS & (set(words) - set(name.split())) else GPUS[name]


def _chip(name: str) -> str:
    """The name without the memory size that tells two of the same chip apart."""
    return re.sub(r" \d+GB$", "", name)


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of the GPU with this name (as torch gives it), or None when it is not in the table."""
    gpu = gpu_of_device(device_name)
    return None if gpu is None else gpu.bf16_flops


def utilisation(tokens_per_second: float, flops_per_token: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation of one GPU, between 0 and 1, over its dense bf16 peak; None without a peak.

    The peak is bf16's for fp8 runs, too, so that both can be compared.
    """
    return None if peak is None else tokens_per_second * flops_per_token / peak


def mfu(tokens_per_second: float, flops_per_token: float, device_name: str) -> float | None:
    """Model FLOPs utilisation on the GPU that torch calls so; None for an unknown GPU."""
    return utilisation(tokens_per_second, flops_per_token, peak_flops(device_name))
