"""What a process asks of the machine it runs on, so that torch is not slower than it could be.

Measured in docs/PERFORMANCE.md.
"""

import ctypes
import os
import warnings
from contextlib import suppress
from pathlib import Path

import joblib
import torch

# Parameters of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def use_machine_well(threads: int = 0) -> None:
    """Sets torch's threads and keeps the memory that it gives back, for its next tensors.

    Args:
        threads: 0: as many as torch chose, but no more than the cores that this process may use,
            which on a cluster or in a container are fewer than the machine has.
    """
    torch.set_num_threads(threads or min(torch.get_num_threads(), joblib.cpu_count()))
    keep_freed_memory()


def be_deterministic() -> None:
    """Has torch use kernels that give the same result each time, wherever it has them.

    Where it has none it warns. Of max-pooling's backward pass it would do so without need: its sums
    depend on their order only where windows overlap, and those of the networks here do not.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    warnings.filterwarnings("ignore", message="max_pool3d_with_indices_backward_cuda")


def keep_freed_memory() -> bool:
    """Makes the allocator reuse large freed blocks instead of handing them back to the system.

    By default every tensor of more than some MiB is mapped anew and its pages are filled with zeros
    as they are touched, which took a third to a half of a training step on a CPU. Peak memory grows
    somewhat.

    Returns:
        Whether the C library took the settings: glibc (Linux) does, others are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))  # -1: never trim


def require_memory(needed: int, scans: int, device: torch.device) -> None:
    """Raises ValueError now rather than running out of memory half way.

    Args:
        needed: bytes; a third of what is free is left to the network.
        scans: how many take them.
        device: a GPU, or the CPU for main memory.
    """
    free = free_memory(device)
    if needed > 2 / 3 * free:
        raise ValueError(
            f"{scans} scans need {needed / 2**30:.1f} GiB of memory on {device}, of which "
            f"{free / 2**30:.1f} are free: give --cache disk"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU, or main memory, has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")  # Linux; counts what the file cache would give back as well
    if not table.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":") for line in table.read_text().splitlines())
    return min([int(lines["MemAvailable"].split()[0]) * 1024, *_job_limits()])


def _job_limits(
    table: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Bytes that the limits of a cluster's job or a container leave (Linux control groups, v2)."""
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
                # What was read from files lately counts as used, and is given back on demand.
                limits.append(int(limit) - used + int(fields["inactive_file"]))
    return limits
