"""Peak rates of GPUs: dense bf16 with float32 accumulation, in TFLOP/s. An unknown GPU has none, never a guess."""

# Data sheets of the makers, dense figures. The longest name that fits counts: "H200 NVL" is not "H200".
DENSE_BF16_TFLOPS = {
    "GB200": 2500.0, "B200": 2250.0, "H200 NVL": 836.0, "H100 NVL": 835.0, "H100 PCIe": 756.0, "H200": 989.0,
    "H100": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L4": 121.0, "A40": 149.7, "A30": 165.0,
    "A6000": 154.85, "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 4070 Ti": 80.0, "RTX 3090": 71.0, "RTX 3060": 25.6,
    "MI300X": 1307.0,
}  # fmt: skip
# Words that make another chip, or a part of one, of a name in the table: "RTX 3060 Ti", "RTX 4090 Laptop GPU"
OTHER_CHIPS = {"Ti", "SUPER", "D", "Laptop", "Max", "MIG"}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of the GPU with this name (as torch gives it), or None when it is not in the table."""
    words = device_name.replace("-", " ").split()
    found = [name for name in DENSE_BF16_TFLOPS if f" {name} " in f" {' '.join(words)} "]
    if not found:
        return None
    name = max(found, key=len)
    return None if OTHER_CHIPS & (set(words) - set(name.split())) else DENSE_BF16_TFLOPS[name] * 1e12


def mfu(tokens_per_second: float, flops_per_token: float, device_name: str) -> float | None:
    """Model FLOPs utilisation of one GPU, between 0 and 1; None for an unknown GPU."""
    peak = peak_flops(device_name)
    return None if peak is None else tokens_per_second * flops_per_token / peak
