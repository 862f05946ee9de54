"""Several processes, one a GPU, that train as one: who they are and what they tell each other.

Every process draws the same order of scans and computes the loss of the same global batch; it holds
a share of the batch's images. Started by torchrun, or by srun with one task a GPU. With a single
process, everything here hands back what it is given.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

# How long a process waits for the others: one of them may be reading a large cohort.
PATIENCE = timedelta(hours=1)
LAST_WORDS = 5.0  # seconds in which processes that end with an error agree on who tells it
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of a run.

    Attributes:
        rank: its number among all, from 0.
        size: how many there are on all machines; 1 where there is no process group.
        local_rank: its number among those of its machine, and that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def share(self, count: int, rank: int | None = None) -> slice:
        """Which of `count` things are this process's, or those of `rank`: contiguous, within 1."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def first(self, function: Callable[[], T]) -> T:
        """Runs `function` in process 0 alone; all get its value, or raise its error."""
        if self.size == 1:
            return function()
        outcome = _outcome(function) if self.rank == 0 else (None, None)
        shared = [(outcome[0], _portable(outcome[1]))]
        distributed.broadcast_object_list(shared, src=0)
        value, error = shared[0]
        if error is not None:
            raise outcome[1] or error
        return value

    def everyone(self, function: Callable[[], T]) -> T:
        """Runs `function` in every process; where it fails in one of them, all raise.

        Raises:
            Exception: this process's own error, or else that of the first process that has one.
        """
        if self.size == 1:
            return function()
        value, error = _outcome(function)
        errors = [other for other in self.gather(_portable(error)) if other is not None]
        if errors:
            raise error or errors[0]
        return value

    def gather(self, value: T) -> list[T]:
        """What every process holds, in the order of their ranks; anything that can be pickled."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            distributed.all_gather_object(values, value)
        return values

    def gather_shares(self, own: Tensor, total: int) -> Tensor:
        """The whole of which every process holds its `share`; gradients reach the own part only.

        Args:
            own: (n, ...), rows `self.share(total)` of the whole.
            total: rows of the whole, known to all.

        Returns:
            (total, ...), alike in all processes.
        """
        if self.size == 1:
            return own
        counts = [part.stop - part.start for part in (self.share(total, r) for r in self.ranks)]
        # Collectives need equal shapes, shares may differ by one row.
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: len(own)] = own.detach()
        received = [torch.empty_like(padded) for _ in self.ranks]
        distributed.all_gather(received, padded)
        parts = [part[:count] for part, count in zip(received, counts, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    @property
    def ranks(self) -> range:
        """The numbers of all processes."""
        return range(self.size)

    def average(self, tensor: Tensor) -> None:
        """Puts the mean over all processes into `tensor`, in each of them."""
        if self.size > 1:
            distributed.all_reduce(tensor)
            tensor /= self.size

    @contextmanager
    def own_randomness(self, step: int, device: torch.device) -> Iterator[None]:
        """What is drawn inside is this process's own; afterwards the generators are as before.

        Shares differ in size, so draws for their scans would part the generators from which all
        processes must draw the same order and pairs. Own draws follow from the generator's seed
        (the trainer sets it each epoch), the step and the rank. A single process draws as ever.
        """
        if self.size == 1:
            yield
            return
        seed = (torch.initial_seed() * 1_000_003 + step) * self.size + self.rank
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed % 2**63)
            yield


SINGLE = World()


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """The error as it can be sent to other processes: its nearest plain kind and its words."""
    if error is None:
        return None
    plain = (FileNotFoundError, FileExistsError, OSError, ValueError, RuntimeError)
    kind = next((kind for kind in plain if isinstance(error, kind)), RuntimeError)
    return kind(str(error))


def read_launch(variables: Mapping[str, str]) -> tuple[World, str]:
    """Who this process is, from the environment variables of torchrun or of srun.

    A job's own variables (SLURM_NTASKS, and in its batch script even SLURM_PROCID) are set where
    nothing has been started in parallel; those of a step with several tasks are not.

    Returns:
        The process and the address at which all meet; an empty one for a single process.

    Raises:
        ValueError: variables that are missing or are no numbers.
    """
    try:
        if "RANK" in variables and "WORLD_SIZE" in variables:
            names, address = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "env://"
        elif "SLURM_PROCID" in variables and int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
            address = _slurm_address(variables)
        else:
            return SINGLE, ""
        rank, size, local_rank = (int(variables[name]) for name in names)
    except KeyError as error:
        raise ValueError(
            f"{error.args[0]} is not set among the variables of a parallel launch: start with "
            "torchrun, or with srun and one task a GPU"
        ) from None
    if size == 1:
        return SINGLE, ""
    if names[2] == "SLURM_LOCALID" and "," not in variables.get("CUDA_VISIBLE_DEVICES", ","):
        local_rank = 0  # --gpus-per-task: the task sees its own GPU alone
    return World(rank, size, local_rank), address


def _slurm_address(variables: Mapping[str, str]) -> str:
    """Where process 0 listens: on the step's first machine, at a port from the job's number."""
    nodes = variables.get("SLURM_STEP_NODELIST") or variables["SLURM_JOB_NODELIST"]
    # gpu[07,09-12]-ib,other -> gpu07-ib
    name, number, suffix = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes).groups()
    host = variables.get("MASTER_ADDR") or f"{name}{number or ''}{suffix}"
    port = variables.get("MASTER_PORT") or 20_000 + int(variables["SLURM_JOB_ID"]) % 10_000
    return f"tcp://{host}:{port}"


def own_device(device: str, local_rank: int) -> torch.device:
    """The GPU of a process among several, or the CPU.

    Args:
        device: auto, cuda or cpu, as --device has it.
        local_rank: the process's number on its machine.

    Raises:
        ValueError: another device, or no GPU of that number.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if device != "cuda":
        raise ValueError(
            f"--device {device}: auto, cpu or cuda expected; of several processes each takes the "
            "GPU of its own number"
        )
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU, torch sees "
            f"{torch.cuda.device_count()}: start one process a GPU, or give --device cpu"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Joins the processes of a run, and leaves them at the end, after errors too.

    Within, process 0 alone prints. Of an error that all raise, one process tells.

    Args:
        device: as --device has it; decides between nccl (GPU) and gloo (CPU).

    Raises:
        ValueError: a launch or a device that cannot be.
        SystemExit: in place of an error that another process tells.
    """
    world, address = read_launch(os.environ)
    if world.size == 1:
        yield world
        return
    own = own_device(device, world.local_rank)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    store = next(iter(rendezvous(address, world.rank, world.size, timeout=PATIENCE)))[0]
    distributed.init_process_group(
        "nccl" if own.type == "cuda" else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=PATIENCE,
    )
    errors = distributed.PrefixStore("errors", store)
    try:
        with _quiet(world):
            yield world
    except (ValueError, OSError) as error:
        if not _tells(error, world, errors):
            # When one has ended the launcher ends all: not before the other has said its words.
            time.sleep(LAST_WORDS / 2)
            raise SystemExit(1) from error
        raise
    except RuntimeError as error:
        if _others_ended(errors):  # a collective broke off because another process has told why
            raise SystemExit(1) from error
        raise
    # After an error the group is left to the process's end: nccl would wait for the others' answer.
    distributed.destroy_process_group()


@contextmanager
def _quiet(world: World) -> Iterator[None]:
    """Silences what every process but the first prints: lines, warnings, progress bars."""
    with ExitStack() as stack:
        if world.rank > 0:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def _others_ended(store: distributed.Store) -> bool:
    """Whether another process has ended with an error, or the store went with it."""
    try:
        return store.add("ended", 0) > 0
    except RuntimeError:
        return True


def _tells(error: Exception, world: World, store: distributed.Store) -> bool:
    """Whether this process is the first to end with these words; waits for no one for long."""
    try:
        first = store.add(hashlib.sha256(str(error).encode()).hexdigest(), 1) == 1
        ended, deadline = store.add("ended", 1), time.monotonic() + LAST_WORDS
        # The store may live in process 0: it stays until the others have asked.
        while world.rank == 0 and ended < world.size and time.monotonic() < deadline:
            time.sleep(0.05)
            ended = store.add("ended", 0)
    except RuntimeError:  # the store is gone: rather twice than never
        return True
    return first
