"""No task is lost with the process that does it."""

import os
import signal

import pytest

from data_preprocessing.pipeline.workers import in_processes


def work_in(folder):
    """Work that is killed once for tasks 2, 5 and 9, as from outside, and always for 7."""

    def work(task):
        begun = folder / str(task)
        if task == 7 or (task in (2, 5, 9) and not begun.exists()):
            begun.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task * 10

    return work


@pytest.mark.slow
def test_processes_killed_one_by_one_cost_only_the_task_that_kills_its_own_twice(tmp_path):
    done = list(in_processes(work_in(tmp_path), range(12), jobs=2))
    assert sorted(task for task, _ in done) == list(range(12))
    assert dict(done) == {task: None if task == 7 else task * 10 for task in range(12)}
    assert {path.name for path in tmp_path.iterdir()} == {"2", "5", "7", "9"}


def test_what_work_raises_is_not_swallowed():
    def work(task):
        raise ValueError(f"task {task}")

    with pytest.raises(ValueError, match="task 0"):
        list(in_processes(work, [0], jobs=1))
