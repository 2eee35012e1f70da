"""What a cell takes while it runs: wall time, device time, peak memory, and a GPU's energy where NVML tells it.

NVML is asked through pynvml (package nvidia-ml-py), where that is installed; nothing depends on it. A GPU's counter is
of the whole GPU, so energy is told only where no other process had a part in it, at the beginning and at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any


class Meter:
    """Measures this process from now on, as one of `ranks` that do the same on devices of their own."""

    def __init__(self, device: str, ranks: int = 1) -> None:
        self._cuda = device if device.startswith("cuda") else None
        self._ranks = ranks
        self._counter: _Counter | None = None
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(torch.device(self._cuda))
            first = torch.device(self._cuda).index or 0
            self._counter = _Counter([_uuid(index) for index in range(first, first + ranks)])
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present, proc(5)
        self._wall, self._cpu = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._wall

    @property
    def device_seconds(self) -> float:
        """Seconds the GPUs were held, or CPU seconds, of all ranks."""
        return self._ranks * (self.seconds if self._cuda else time.process_time() - self._cpu)

    @property
    def peak_memory(self) -> int:
        """Bytes: allocated on the GPU, or resident; of one rank."""
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated(torch.device(self._cuda)))
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def costs(self) -> dict[str, Any]:
        """`device_type`, `device_seconds` and `energy_joules` (None where it is not known) so far."""
        return {
            "device_type": "cuda" if self._cuda else "cpu",
            "device_seconds": self.device_seconds,
            "energy_joules": self._counter.joules() if self._counter else None,
        }


def _uuid(index: int) -> str:
    """What NVML calls a GPU that torch counts as `index`, whatever CUDA_VISIBLE_DEVICES says."""
    import torch

    return f"GPU-{getattr(torch.cuda.get_device_properties(index), 'uuid', '')}"


class _Counter:
    """The energy counters of some GPUs."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._uuids = uuids
        self._began = self._read()

    def joules(self) -> float | None:
        """Since the beginning; None where NVML does not tell, or another process uses one of the GPUs."""
        now = self._read()
        return None if now is None or self._began is None else now - self._began

    def _read(self) -> float | None:
        try:
            pynvml = import_module("pynvml")
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in self._uuids]
            if any(len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) > 1 for handle in handles):
                return None
            return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000
        except Exception:  # not installed, no driver, not permitted, a GPU without a counter: each has its own
            return None
