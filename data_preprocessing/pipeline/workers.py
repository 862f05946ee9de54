"""Work that is shared among processes, of which any may be killed without loss.

Where memory runs out the system kills a process, and the pool goes down with it. What was under way
is then done alone, and the rest in a fresh pool.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

WORKER_MEMORY = 2 << 30  # bytes; a worker of the builtin backend takes 1.4 GiB


Task = TypeVar("Task")
Result = TypeVar("Result")
KILLED = "its process was killed twice, for want of memory perhaps; run again, with fewer --jobs"
UNDER_WAY = 3  # tasks a process that may have been begun or fetched when the pool goes down


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int
) -> Iterator[tuple[Task, Result | None]]:
    """Every task with its result, in any order; None where the task killed its process twice.

    With joblib's parallel_config(backend="dask") the tasks go to a Dask cluster.

    Args:
        work: may be called twice for a task; what it raises ends the iteration.
        tasks: each is pickled for its process.
        jobs: processes at a time; 1 is this process, which nothing outlives.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    waiting = dict(enumerate(tasks))
    while waiting:
        pool = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        done = pool(delayed(_numbered)(work, *task) for task in list(waiting.items()))
        try:
            for number, result in done:
                yield waiting.pop(number), result
        except TerminatedWorkerError:
            for number in list(waiting)[: UNDER_WAY * jobs]:
                task = waiting.pop(number)
                yield task, _alone(work, task)


def _numbered(work: Callable[[Task], Result], number: int, task: Task) -> tuple[int, Result]:
    return number, work(task)


def _alone(work: Callable[[Task], Result], task: Task) -> Result | None:
    """The result from a process that does nothing else; None where it is killed, and again."""
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    for _ in range(2):  # another task may have brought the pool down
        with suppress(TerminatedWorkerError):
            return Parallel(n_jobs=2)([delayed(work)(task)])[0]  # 1 would be this process
    return None


def jobs_that_fit(asked: int, scans: int) -> int:
    """Processes at a time: as asked, or 0: one a core as far as free memory goes."""
    if asked:
        return asked
    import torch
    from joblib import cpu_count

    from utils.machine import free_memory

    return max(1, min(cpu_count(), free_memory(torch.device("cpu")) // WORKER_MEMORY, scans))
