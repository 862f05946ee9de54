"""Threads, memory and determinism of a process; docs/PERFORMANCE.md has the measurements.

torch is imported where it is used: preprocessing asks for the free memory without it.
"""

import ctypes
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import joblib

if TYPE_CHECKING:
    import torch

# Parameters of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def use_machine_well(threads: int = 0) -> None:
    """Sets torch's threads, and keeps freed memory for its next tensors.

    By default the C library maps every tensor of more than some MiB anew and fills its pages with
    zeros when they are touched, which took a third to a half of a training step on a CPU. Here it
    reuses large freed blocks; peak memory grows somewhat. Other libraries than glibc (Linux) are
    left alone.

    Args:
        threads: 0: as many as torch chose, but no more than the cores that this process may use,
            which on a cluster or in a container are fewer than the machine has.
    """
    import torch

    torch.set_num_threads(threads or min(torch.get_num_threads(), joblib.cpu_count()))
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)  # never


def be_deterministic() -> None:
    """Makes torch use kernels that give the same result each time, and warn where it has none.

    Its warning about the backward pass of max-pooling is silenced: sums there depend on their order
    only where windows overlap, and those of our networks do not.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    warnings.filterwarnings("ignore", message="max_pool3d_with_indices_backward_cuda")


def require_memory(needed: int, scans: int, device: "torch.device") -> None:
    """Raises ValueError where scans would fill the memory that the network needs.

    Args:
        needed: bytes; a third of the free memory is left to the network.
        scans: how many scans need them.
        device: a GPU, or the CPU for main memory.
    """
    free = free_memory(device)
    if needed > 2 / 3 * free:
        raise ValueError(
            f"{scans} scans need {needed / 2**30:.1f} GiB of memory on {device}, of which "
            f"{free / 2**30:.1f} are free: give --cache disk"
        )


def free_memory(device: "torch.device | None" = None) -> int:
    """Free bytes of a GPU, or of main memory."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")  # Linux; MemAvailable includes the file cache
    if not table.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":") for line in table.read_text().splitlines())
    return min([int(lines["MemAvailable"].split()[0]) * 1024, *_job_limits()])


def _job_limits(
    table: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Free bytes by the limits of a cluster's job or a container (Linux control groups, v2)."""
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        lines = table.read_text().splitlines()
        own = root / next(line[3:] for line in lines if line.startswith("0::")).lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(root) or not (group / "memory.max").is_file():
                continue
            limit = (group / "memory.max").read_text().strip()
            if limit != "max":
                used = int((group / "memory.current").read_text())
                fields = dict(line.split() for line in (group / "memory.stat").open())
                # The file cache counts as used, but the system frees it on demand.
                limits.append(int(limit) - used + int(fields["inactive_file"]))
    return limits
