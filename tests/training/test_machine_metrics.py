"""Memory, and the GPU's readings, from a stand-in for NVML."""

import gc
import logging
import sys
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ingot.training.machine_metrics import GpuSampler, nvml_readings, peak_memory, summary

UUID = "5a3c0f6e-0000-1111-2222-333344445555"


class Nvml(ModuleType):
    """NVML with one GPU, whose readings are set by hand."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """What every call may raise."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.power, self.temperature, self.no_driver, self.no_power = 650_000, 71, False, False

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        if self.no_driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != f"GPU-{UUID}":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return self.temperature

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        if self.no_power:
            raise self.NVMLError("Not Supported")
        return self.power


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    stand_in = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid=UUID))
    return stand_in


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Filled with what is logged."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    found: list[str] = []
    logging.getLogger("ingot").addHandler(handler := Kept())
    yield found
    logging.getLogger("ingot").removeHandler(handler)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gpu-metrics"]


def wait_for_samples(sampler: GpuSampler, number: int) -> None:
    for _ in range(10_000):
        if len(sampler._samples) >= number or not threads():
            return
        threading.Event().wait(0.001)


def wait_for_the_end() -> None:
    for thread in threads():
        thread.join(10)
    assert not threads()


def test_mean_and_highest_since_the_last_call(nvml: Nvml) -> None:
    samples = [
        {"gpu_utilization": u, "gpu_temperature": t, "gpu_power": p} for u, t, p in ((90, 70, 600), (97, 64, 651))
    ]
    assert summary(samples) == {"gpu_utilization": 93.5, "gpu_temperature": 70.0, "gpu_power": 625.5}
    sampler = GpuSampler(every=0.001)
    assert sampler.take() == {}  # not begun
    sampler.start()
    wait_for_samples(sampler, 3)
    assert sampler.take() == {"gpu_utilization": 97.0, "gpu_temperature": 71.0, "gpu_power": 650.0}
    sampler.stop()
    wait_for_the_end()


def test_without_a_new_reading_the_last_one_counts(nvml: Nvml) -> None:
    sampler = GpuSampler(every=3600)
    sampler.start()
    wait_for_samples(sampler, 1)
    assert sampler.take() == sampler.take() != {}
    sampler.stop()
    wait_for_the_end()


def test_the_thread_ends_with_the_sampler(nvml: Nvml) -> None:
    sampler = GpuSampler(every=3600)
    sampler.start()
    sampler.start()  # a run that goes back begins anew
    assert all(thread.daemon for thread in threads()) and not sampler._stop.is_set()
    del sampler
    gc.collect()
    wait_for_the_end()


def test_a_failing_nvml_ends_the_readings_and_not_the_run(nvml: Nvml, lines: list[str]) -> None:
    sampler = GpuSampler(every=0.001)
    sampler.start()
    wait_for_samples(sampler, 1)
    nvml.no_power = True
    wait_for_the_end()
    assert sampler.take() == {}
    assert lines == ["GPU use, temperature and power are no longer recorded: NVML says Not Supported"]


def test_a_reading_that_the_gpu_refuses_is_left_out(nvml: Nvml, lines: list[str]) -> None:
    nvml.no_power = True
    assert sorted(nvml_readings()) == ["gpu_temperature", "gpu_utilization"]
    assert lines == ["gpu_power not recorded: NVML says Not Supported"]


@pytest.mark.parametrize("case", ["no package", "no driver", "other uuid"])
def test_no_nvml_is_told_in_one_line(case: str, nvml: Nvml, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.no_driver = case == "no driver"
    if case == "no package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif case == "other uuid":  # a part of a GPU (MIG) is not found under a whole GPU's name
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="mig"))
    sampler = GpuSampler()
    sampler.start()
    assert sampler.take() == {} and not threads()
    reason = {
        "no package": "pip install nvidia-ml-py", "no driver": "NVML says Driver Not Loaded",
        "other uuid": "NVML says Not Found",
    }[case]  # fmt: skip
    assert lines == [f"GPU use, temperature and power are not recorded: {reason}"]


def test_peak_memory_is_the_gpus_or_the_processs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.01 < peak_memory()["peak_rss_gib"] < 1000
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**29)
    assert peak_memory() == {"peak_memory_gib": 1.5}
