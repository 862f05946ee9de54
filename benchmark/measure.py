"""Time and memory of what runs in this process."""

import gc
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark.compare import Figures
from utils.scans.volumes import GRID_SHAPE

MIB = 2**20
MOST_RUNS = 50  # timed in one process
PLAIN = "plain"  # the form that stands for the authors' approach


@dataclass(frozen=True)
class Settings:
    """What a measurement needs to know, as plain values.

    Attributes:
        device: cpu or cuda.
        width: of the network.
        batch: scans per batch.
        shape: voxels of an image.
        steps: batches between two looks at the clock.
        least_seconds: how long a run is repeated at least.
        least_runs: how often at least.
        num_workers: processes of a loader.
        cohort: folder of `write_cohort`; empty where no files are read.
        scratch: an empty folder for this measurement alone.
        matrix: side of the matrices whose product is the ceiling.
    """

    device: str = "cpu"
    width: str = "compact"
    batch: int = 1
    shape: tuple[int, int, int] = GRID_SHAPE
    steps: int = 1
    least_seconds: float = 3.0
    least_runs: int = 3
    num_workers: int = 2
    cohort: str = ""
    scratch: str = ""
    matrix: int = 2048


class Meter:
    """Seconds and peak memory of what runs in this process.

    Args:
        device: where the work is done; on a GPU, the GPU's memory is measured.
        least_seconds: how long a run is repeated at least.
        least_runs: how often at least.
    """

    def __init__(self, device: torch.device, *, least_seconds: float, least_runs: int):
        self.device, self.least_seconds, self.least_runs = device, least_seconds, least_runs
        self.before = 0.0

    def start(self) -> None:
        """Starts counting memory; called once the inputs are made."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            # Forgets the peak of the imports. Where the system forbids it, that peak stays counted.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        self.before = self._memory(peak=False)

    def seconds(self, run: Callable[[], object], *, warm_up: int = 1) -> float:
        """The median seconds of `run` after `warm_up` runs that are not counted."""
        for _ in range(warm_up):
            run()
        seconds: list[float] = []
        while len(seconds) < self.least_runs or (
            sum(seconds) < self.least_seconds and len(seconds) < MOST_RUNS
        ):
            self._wait()
            started = time.perf_counter()
            run()
            self._wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def memory(self) -> Figures:
        """MiB at the highest since `start`: in all, and beyond what there was at `start`."""
        peak = self._memory(peak=True)
        return {"peak memory MiB": peak, "peak above start MiB": peak - self.before}

    def _wait(self) -> None:
        if self.device.type == "cuda":  # a GPU works on after the call has returned
            torch.cuda.synchronize(self.device)

    def _memory(self, *, peak: bool) -> float:
        if self.device.type == "cuda":
            used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return used(self.device) / MIB
        return resident_memory(peak=peak)


def resident_memory(*, peak: bool) -> float:
    """MiB of this process now, or at its highest.

    getrusage is used only where there is no /proc: on Linux a process inherits its parent's peak.
    """
    with suppress(FileNotFoundError):
        return _kib("/proc/self/status", "VmHWM" if peak else "VmRSS") / 1024
    # Elsewhere only the peak is known, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def private_memory() -> float:
    """MiB that this process and its workers hold now, shared pages counted once.

    Pages of files, such as a memory map of a cache, are not counted: the system takes them back
    when it needs memory.
    """
    try:
        return _tree_kib(os.getpid()) / 1024
    except FileNotFoundError:  # no /proc
        return resident_memory(peak=False)


def _tree_kib(process: int) -> float:
    total = _kib(f"/proc/{process}/smaps_rollup", "Pss_Anon", "Pss_Shmem")
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            total += _tree_kib(int(child))
    return total


def _kib(file: str, *names: str) -> float:
    """The sum of these `Name: 12 kB` lines."""
    lines = Path(file).read_text().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.split(":")[0] in names)
