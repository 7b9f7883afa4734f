"""Peaks of GPUs by the names that torch gives them; none for a GPU that is not in the table."""

import pytest

from ingot.planning.flops import training_flops_per_token
from ingot.planning.hardware import mfu, peak_flops

from .test_flops import FLAGSHIP, num_parameters


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4070 Ti", 80),
        ("NVIDIA GeForce RTX 3060", 25.6),
        ("NVIDIA RTX A6000", 154.85),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_known_gpus(name: str, tflops: float) -> None:
    assert peak_flops(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H20", "NVIDIA L40", "NVIDIA GH200 480GB", "Tesla V100-SXM2-16GB", "Quadro RTX 4000", "Apple M3", ""]
    + ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3060 Ti"]
    + ["NVIDIA GeForce RTX 4070 Ti SUPER", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"],
)
def test_an_unknown_gpu_has_no_peak(name: str) -> None:
    assert peak_flops(name) is None and mfu(1e4, 1e10, name) is None


def test_mfu_of_the_flagship_on_an_h200() -> None:
    from modeling import IngotConfig

    config = IngotConfig(**FLAGSHIP | {"qk_norm": True})
    flops = training_flops_per_token(num_parameters(config), config, 2048)
    for tokens_per_second, used in ((51_580, 0.538), (30_451, 0.318), (55_299, 0.577)):
        assert mfu(tokens_per_second, flops, "NVIDIA H200") == pytest.approx(used, abs=0.0005)
