"""Batches that other processes read, and what happens when these processes get into trouble.

A reading process of torch passes its batches through shared memory (/dev/shm). Where that is full,
it prints a traceback, the batch never arrives, and training waits for ever. Here such a batch goes
through a pipe; an error of a scan arrives as it is; and whatever else ends a process ends the run.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from multiprocessing.queues import Queue

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

SHARED_MEMORY = "/dev/shm"
ADVICE = f"enlarge {SHARED_MEMORY} (docker run --shm-size=1g), or give --num_workers 0"


class ScanLoader(DataLoader):
    """Whole batches of a dataset, read by this process or by others.

    Args:
        dataset: `dataset[places]` is a batch, a dict of tensors.
        batches: the places of each batch.
        num_workers: reading processes; 0: this one reads.
        pin_memory: whether batches lie in memory that a GPU reads fast.

    Raises, while it is iterated:
        ValueError, OSError: as the dataset, whichever process reads.
        RuntimeError: a reading process was killed.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Sampler[list[int]],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        super().__init__(
            _Passing(dataset) if num_workers else dataset,
            batch_size=None,  # the dataset gives whole batches
            sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            worker_init_fn=_end_when_nothing_can_be_passed,
        )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches in the order of the sampler."""
        if not self.num_workers:
            yield from super().__iter__()
            return
        batches = self._started()
        try:
            for batch in batches:
                if isinstance(batch, dict):  # of this process after all
                    yield batch
                    continue
                values, problem = batch
                if values is None:
                    raise problem
                if problem:
                    reason = str(problem).rpartition(": ")[2]  # without the name of a file
                    say_once(f"batches go through pipes, which takes longer ({reason}); {ADVICE}")
                    values = {name: torch.from_numpy(value) for name, value in values.items()}
                yield values
        finally:
            # Not left to the garbage collector, where an error of it is a traceback.
            if self.num_workers:
                with suppress(RuntimeError):
                    batches._shutdown_workers()

    def _started(self) -> Iterator:
        """The batches of the reading processes or, where none can be started, of this one."""
        drawn = torch.get_rng_state()
        try:
            # What torch makes first; an error amid that would leave its object half made.
            multiprocessing.Queue(), multiprocessing.Queue(), multiprocessing.Event()
            return super().__iter__()
        except (OSError, ImportError) as error:  # no room for a semaphore, too many processes
            say_once(f"processes cannot be started ({error}): scans are read by this one; {ADVICE}")
        torch.set_rng_state(drawn)  # the same batches as with processes
        self.num_workers = 0
        return super().__iter__()


class _Passing(Dataset):
    """In a reading process, the batches of a dataset in a form that surely reaches the first one.

    They are tensors in shared memory with None; arrays, where that is full, with the reason; or
    None with the error of a scan, of which torch would make a text with a traceback in it.
    """

    def __init__(self, dataset: Dataset):
        self.dataset, self.scans = dataset, dataset.scans

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, places: list[int]) -> dict | tuple[dict | None, Exception | None]:
        if get_worker_info() is None:
            return self.dataset[places]
        try:
            batch = self.dataset[places]
        except (ValueError, OSError) as error:
            return None, error
        try:
            return {name: value.share_memory_() for name, value in batch.items()}, None
        except RuntimeError as error:
            return {name: value.numpy() for name, value in batch.items()}, error


def _as_it_is(batch):
    return batch


def _end_when_nothing_can_be_passed(_: int) -> None:
    """Ends a reading process whose batch is lost on the way, which the first one then notices.

    Too few file numbers (`ulimit -n`) are a reason. Python prints it and goes on otherwise.
    """

    def end(error: Exception, _: object) -> None:
        with suppress(OSError):
            os.write(2, f"error: a batch cannot be passed on: {error}\n".encode())
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)


@cache
def say_once(text: str) -> None:
    """Prints a note that would otherwise come with every batch."""
    print(f"note: {text}", flush=True)
