"""What the machine does while it trains: peak memory, and the use, temperature and power of the GPU, through NVML."""

import resource
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from statistics import fmean

import torch

from ingot.runs import get_logger

logger = get_logger(__name__)

EVERY = 1.0  # seconds between two readings; NVML's own cover from a sixth of a second to a second
KEPT = 3600  # readings

Reading = Callable[[], float]


def peak_memory() -> dict[str, float]:
    """The most memory that this process had since it began, in GiB: allocated by torch on its GPU, or on the CPU."""
    if torch.cuda.is_initialized():
        return {"peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return {"peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)}


class GpuSampler:
    """Reads this process's GPU every second, on a thread that ends with the process or with the sampler.

    A GPU without NVML has no readings, and one line says why. Other processes' GPUs are not looked at.
    """

    def __init__(self, every: float = EVERY) -> None:
        self.every = every
        self._samples: deque[dict[str, float]] = deque(maxlen=KEPT)
        self._last: list[dict[str, float]] = []
        self._stop = threading.Event()

    def start(self) -> None:
        """Begins to take samples; nothing happens where torch uses no GPU."""
        self.stop()
        readings = nvml_readings() if torch.cuda.is_initialized() else {}
        if not readings:
            return
        self._samples, self._last, self._stop = deque(maxlen=KEPT), [], threading.Event()
        weakref.finalize(self, self._stop.set)
        work = (readings, self._samples, self._stop, self.every)
        threading.Thread(target=_sample, args=work, name="gpu-metrics", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread, at the latest when it wakes."""
        self._stop.set()

    def take(self) -> dict[str, float]:
        """`gpu_utilization` (%, mean), `gpu_temperature` (C, highest) and `gpu_power` (W, mean) since the last call.

        Where there was no reading since, the last one before; nothing once NVML has failed.
        """
        if self._stop.is_set():
            return {}
        new = [self._samples.popleft() for _ in range(len(self._samples))]
        self._last = new or self._last[-1:]
        return summary(self._last)


def summary(samples: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every reading, and the highest temperature."""
    names = samples[0] if samples else {}
    summed_up = {name: max if name == "gpu_temperature" else fmean for name in names}
    return {name: round(float(of([sample[name] for sample in samples])), 1) for name, of in summed_up.items()}


def _sample(
    readings: dict[str, Reading], samples: deque[dict[str, float]], stop: threading.Event, every: float
) -> None:
    """Reads now and then until it is stopped, or NVML fails."""
    import pynvml

    while not stop.is_set():
        try:
            samples.append({name: read() for name, read in readings.items()})
        except pynvml.NVMLError as error:
            logger.warning("GPU use, temperature and power are no longer recorded: NVML says %s", error)
            stop.set()
        stop.wait(every)


def nvml_readings() -> dict[str, Reading]:
    """The readings of this process's GPU by name; those that NVML refuses are left out, and one line says why."""
    try:
        import pynvml
    except ImportError:
        logger.info("GPU use, temperature and power are not recorded: pip install nvidia-ml-py")
        return {}
    try:
        pynvml.nvmlInit()
        # CUDA's numbers are not NVML's: CUDA_VISIBLE_DEVICES renumbers them
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
    except pynvml.NVMLError as error:
        logger.info("GPU use, temperature and power are not recorded: NVML says %s", error)
        return {}
    readings: dict[str, Reading] = {
        "gpu_utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "gpu_temperature": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "gpu_power": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # NVML's are milliwatts
    }
    refused = {name: reason for name, read in readings.items() if (reason := _refusal(read, pynvml.NVMLError))}
    if refused:
        logger.info("%s not recorded: NVML says %s", ", ".join(refused), next(iter(refused.values())))
    return {name: read for name, read in readings.items() if name not in refused}


def _refusal(read: Reading, error_class: type[Exception]) -> str | None:
    """Why it cannot be read."""
    try:
        read()
    except error_class as error:
        return str(error)
    return None
