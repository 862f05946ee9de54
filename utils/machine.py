"""What a process asks of the machine it runs on, so that torch is not slower than it could be.

Measured in docs/PERFORMANCE.md.
"""

import ctypes

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
