"""GPUs by the names that torch and users give them; none for a GPU that is not in the table."""

import pytest

from ingot.planning.architecture import architecture_of_config
from ingot.planning.flops import training_flops_per_token
from ingot.planning.hardware import GPUS, find_gpu, gpu_of_device, mfu, peak_flops
from ingot.recipe import InputError

from .test_architecture import FLAGSHIP


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
        ("NVIDIA GeForce RTX 4060", 30.2),
        ("NVIDIA RTX A6000", 154.85),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_known_gpus(name: str, tflops: float) -> None:
    assert peak_flops(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H20", "NVIDIA L40", "NVIDIA GH200 480GB", "Tesla V100-SXM2-16GB", "Quadro RTX 4000", "Apple M3", ""]
    + [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3060 Ti",
        "NVIDIA GeForce RTX 4060 Ti",
    ]
    + ["NVIDIA GeForce RTX 4070 Ti SUPER", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"],
)
def test_an_unknown_gpu_has_no_peak(name: str) -> None:
    assert peak_flops(name) is None and mfu(1e4, 1e10, name) is None


def test_two_sizes_of_one_chip_are_told_apart() -> None:
    forty, eighty = gpu_of_device("NVIDIA A100-SXM4-40GB"), gpu_of_device("NVIDIA A100-SXM4-80GB")
    assert forty is not None and forty.memory_bytes is not None and 38 < forty.memory_bytes / 2**30 < 40
    assert eighty is not None and eighty.memory_bytes is not None and 77 < eighty.memory_bytes / 2**30 < 80


def test_mfu_of_the_flagship_on_an_h200() -> None:
    from modeling import IngotConfig

    flops = training_flops_per_token(architecture_of_config(IngotConfig(**FLAGSHIP | {"qk_norm": True})), 2048)
    for tokens_per_second, used in ((51_580, 0.538), (30_451, 0.318), (55_299, 0.577)):
        assert mfu(tokens_per_second, flops, "NVIDIA H200") == pytest.approx(used, abs=0.0005)


@pytest.mark.parametrize("name", ["h200", "H200", "nvidia-h200", "NVIDIA H200"])
def test_a_user_may_write_a_name_as_he_likes(name: str) -> None:
    assert find_gpu(name).name == "H200"


def test_every_gpu_is_found_by_its_own_name_and_has_a_dense_peak() -> None:
    for name, gpu in GPUS.items():
        assert find_gpu(name) is gpu and find_gpu(name.lower().replace(" ", "")) is gpu
        assert gpu.bf16_flops is not None and gpu.bf16_flops <= 2.5e15  # sparse figures are twice that
        assert gpu.fp8_flops is None or gpu.fp8_flops == pytest.approx(2 * gpu.bf16_flops, rel=0.03)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("a100", "A100 80GB or A100 40GB"), ("h2000", "H200"), ("rtx4070", "RTX 4070 Ti"), ("tpu", "A100")],
)
def test_an_unknown_name_is_refused_with_the_way_out(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        find_gpu(name)
