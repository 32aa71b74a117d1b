"""NVIDIA's accelerators as their driver tells of them, by `nvidia-ml-py` (the extra `gpu`). Blocks, and may hang."""

import importlib
from dataclasses import dataclass
from typing import Any

from common.wire.deployment import AcceleratorReading

MIB = 1 << 20


class NoDriver(Exception):
    """No accelerators can be asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """One accelerator: its memory in MiB, and what it reads now."""

    memory_mb: int
    reading: AcceleratorReading


def look() -> list[Found]:
    """Every accelerator of the machine, by its number on the bus. One that does not tell has no readings.

    Raises:
        NoDriver: The library or the driver is absent, or answers with an error.
    """
    try:
        library: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise NoDriver("nvidia-ml-py is not installed (pip install 'inference-svc[gpu]')") from error
    try:
        library.nvmlInit()
        try:
            return [_one(library, index) for index in range(library.nvmlDeviceGetCount())]
        finally:
            library.nvmlShutdown()
    except library.NVMLError as error:
        raise NoDriver(f"NVML: {error}") from error


def _one(library: Any, index: int) -> Found:
    """Memory and utilisation; an accelerator that fell off the bus, or that tells neither, is there all the same."""
    memory_mb, reading = 0, AcceleratorReading(index=index)
    try:
        handle = library.nvmlDeviceGetHandleByIndex(index)
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        memory_mb = int(memory.total) // MIB
        reading = AcceleratorReading(index=index, used_mb=int(memory.used) // MIB)
        busy = int(library.nvmlDeviceGetUtilizationRates(handle).gpu)
        reading = AcceleratorReading(index=index, used_mb=int(memory.used) // MIB, busy_percent=busy)
    except library.NVMLError:
        return Found(memory_mb, reading)
    return Found(memory_mb, reading)
