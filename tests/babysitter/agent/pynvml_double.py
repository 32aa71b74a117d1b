"""A double of the module `pynvml` of nvidia-ml-py, at its own boundary: the calls that we make, and its one exception."""

import time
from types import ModuleType, SimpleNamespace
from typing import Any


class DoubleError(Exception):
    """What the library raises."""


class PynvmlDouble(ModuleType):
    """Accelerators of so many MiB; a broken one raises, `hangs_s` is how long a call takes, `fault` fails every call."""

    NVMLError = DoubleError

    def __init__(self, *sizes: int, fault: str = "", broken: frozenset[int] = frozenset(), hangs_s: float = 0) -> None:
        super().__init__("pynvml")
        self.sizes, self.fault, self.broken, self.hangs_s = sizes, fault, broken, hangs_s
        self.calls = 0
        self.open = 0

    def nvmlInit(self) -> None:
        self.calls += 1
        time.sleep(self.hangs_s)
        if self.fault:
            raise DoubleError(self.fault)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.sizes)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.broken:
            raise DoubleError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=self.sizes[handle] << 20, used=(handle + 1) << 20)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=10 * handle)
