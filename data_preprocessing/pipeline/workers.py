"""Work that is shared among processes, any of which may be killed without loss.

Where memory runs out the system kills a process, and joblib's pool ends with it. The tasks that may
have been under way are then done alone, one process each, and the rest in a fresh pool.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from utils.machine import free_memory

Task = TypeVar("Task")
Result = TypeVar("Result")
WORKER_MEMORY = 2 << 30  # bytes; a worker of the builtin backend takes 1.4 GiB
KILLED = "its process was killed twice, for want of memory perhaps; run again, with fewer --jobs"
UNDER_WAY = 3  # tasks per process that may have been begun or fetched when the pool ends


def jobs_that_fit(asked: int, scans: int) -> int:
    """Processes at a time: as asked; where 0 is asked, one per core as far as memory allows."""
    return asked or max(1, min(joblib.cpu_count(), free_memory() // WORKER_MEMORY, scans))


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int
) -> Iterator[tuple[Task, Result | None]]:
    """Every task with its result, in any order; None where the task killed its process twice.

    With joblib's parallel_config(backend="dask") the tasks go to a Dask cluster.

    Args:
        work: may be called twice for a task; what it raises ends the iteration.
        tasks: each is pickled for its process.
        jobs: processes at a time; 1 is this process, and when that is killed all ends.
    """
    waiting = dict(enumerate(tasks))
    while waiting:
        pool = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        done = pool(joblib.delayed(_numbered)(work, *task) for task in list(waiting.items()))
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
    """The result from a process that does nothing else; None where it is killed twice."""
    for _ in range(2):  # the first time, another task may have ended the pool
        with suppress(TerminatedWorkerError):
            # 1 job would be this process.
            return joblib.Parallel(n_jobs=2)([joblib.delayed(work)(task)])[0]
    return None
