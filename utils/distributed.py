"""The processes of one training, one per GPU: who they are, and what they exchange.

Every process draws the same order of scans and computes the loss of the same global batch, and
reads only its share of the batch's images. torchrun starts them, or srun with one task per GPU.
A process that trains alone gets back what it gives.
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

TIMEOUT = timedelta(hours=1)  # for a process that waits for another, which reads a large cohort
ERROR_REPORT_SECONDS = 5.0  # in which processes that end with an error agree on who prints it
SENT_ERRORS = (FileNotFoundError, FileExistsError, OSError, ValueError, RuntimeError)
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of a run.

    Attributes:
        rank: its number among all, from 0.
        size: how many there are on all machines; 1 where there is no process group.
        local_rank: its number among those of its machine, and the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def share(self, count: int) -> slice:
        """Which of `count` things are this process's: contiguous, sizes equal to within one."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks; anything that pickles."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def run_in_all(self, function: Callable[[], T]) -> T:
        """Runs `function` in every process; an error of one is raised in all of them."""
        if self.size == 1:
            return function()
        value = error = sent = None
        try:
            value = function()
        except Exception as failure:
            error = failure
            kind = next((kind for kind in SENT_ERRORS if isinstance(error, kind)), RuntimeError)
            sent = kind(str(error))  # other kinds may not pickle
        errors = [one for one in self.gather(sent) if one is not None]
        if errors:
            raise error or errors[0]
        return value

    def run_in_first(self, function: Callable[[], T]) -> T:
        """Runs `function` in process 0 alone; all return its value, or raise its error."""
        if self.size == 1:
            return function()
        value = self.run_in_all(function if self.rank == 0 else lambda: None)
        return self.gather(value)[0]

    def gather_shares(self, own: Tensor, total: int) -> Tensor:
        """The (total, ...) tensor of which every process holds its own rows `self.share(total)`.

        Gradients reach the own rows only. torch's all_gather would need shares of equal size.
        """
        if self.size == 1:
            return own
        whole = own.new_zeros((total, *own.shape[1:]))
        whole[self.share(total)] = own.detach()
        distributed.all_reduce(whole)  # the others have zeros in these rows
        whole[self.share(total)] = own
        return whole

    def average(self, tensor: Tensor) -> None:
        """Puts the mean over all processes into `tensor`, in each of them."""
        if self.size > 1:
            distributed.all_reduce(tensor)
            tensor /= self.size

    @contextmanager
    def own_randomness(self, step: int, device: torch.device) -> Iterator[None]:
        """Draws within are this process's own; afterwards the generators are as they were.

        All processes draw the same order and pairs, but shares differ in size, and so do the draws
        for their scans: these follow from the generator's seed of the epoch, the step and the rank.
        """
        if self.size == 1:
            yield
            return
        seed = (torch.initial_seed() * 1_000_003 + step) * self.size + self.rank
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed % 2**63)
            yield


SINGLE = World()


def read_launch(variables: Mapping[str, str]) -> tuple[World, str]:
    """Who this process is, from the environment variables of torchrun or of srun.

    SLURM_STEP_NUM_TASKS tells whether srun started several tasks; other variables of a job
    (SLURM_NTASKS, in a batch script even SLURM_PROCID) are set without that.

    Returns the process and the address at which all meet, "" for a single process; raises
    ValueError where variables are missing or not numbers.
    """
    by_torchrun = "RANK" in variables and "WORLD_SIZE" in variables
    if not by_torchrun and int(variables.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return SINGLE, ""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not by_torchrun:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    try:
        world = World(*(int(variables[name]) for name in names))
        if by_torchrun:
            return (world, "env://") if world.size > 1 else (SINGLE, "")
        nodes = variables.get("SLURM_STEP_NODELIST") or variables["SLURM_JOB_NODELIST"]
        port = variables.get("MASTER_PORT") or 20_000 + int(variables["SLURM_JOB_ID"]) % 10_000
    except KeyError as error:
        raise ValueError(
            f"{error.args[0]} is not set among the variables of a parallel launch: start with "
            "torchrun, or with srun and one task per GPU"
        ) from None
    # The first of the machines: gpu[07,09-12]-ib,other -> gpu07-ib
    name, number, suffix = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes).groups()
    host = variables.get("MASTER_ADDR") or f"{name}{number or ''}{suffix}"
    if "," not in variables.get("CUDA_VISIBLE_DEVICES", ","):
        world = replace(world, local_rank=0)  # --gpus-per-task: the task sees only its own GPU
    return world, f"tcp://{host}:{port}"


def own_device(device: str, local_rank: int) -> torch.device:
    """The CPU, or the GPU of this number; ValueError for other devices, or without that GPU."""
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
            f"{torch.cuda.device_count()}: start one process per GPU, or give --device cpu"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Joins the processes of a run, and leaves them at the end, after errors too.

    Within, only process 0 prints. An error that several processes raise is printed by one of them;
    the others raise SystemExit. `device` is auto, cuda or cpu, as for `own_device`.

    Raises:
        ValueError: as `read_launch` and `own_device`.
    """
    world, address = read_launch(os.environ)
    if world.size == 1:
        yield world
        return
    backend = "gloo"
    if (own := own_device(device, world.local_rank)).type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(own)
    members = {"rank": world.rank, "world_size": world.size, "timeout": TIMEOUT}
    store = next(iter(rendezvous(address, **members)))[0]
    distributed.init_process_group(backend, store=store, **members)
    errors = distributed.PrefixStore("errors", store)
    try:
        with Path(os.devnull).open("w") as nowhere:
            out, err = (nowhere, nowhere) if world.rank else (sys.stdout, sys.stderr)
            with redirect_stdout(out), redirect_stderr(err):
                yield world
    except (ValueError, OSError, RuntimeError) as error:
        if reports_error(error, world, errors):
            raise
        raise SystemExit(1) from error
    # After an error the group ends with the process: nccl would wait for the others' answer.
    distributed.destroy_process_group()


def reports_error(error: Exception, world: World, store: distributed.Store) -> bool:
    """Whether this process is to print `error`: the first that ends with this message.

    A RuntimeError is printed where no process has ended yet: otherwise it says that a collective
    broke off because another process ended, which printed why. The launcher ends all processes when
    one has ended, so those that print nothing wait until the others have printed.
    """
    broken = isinstance(error, RuntimeError)
    try:
        if broken:
            return store.add("ended", 0) == 0
        key = hashlib.sha256(str(error).encode(errors="backslashreplace")).hexdigest()
        first = store.add(key, 1) == 1
        ended, deadline = store.add("ended", 1), time.monotonic() + ERROR_REPORT_SECONDS
        # The store may live in process 0, which waits until the others have asked it.
        while world.rank == 0 and ended < world.size and time.monotonic() < deadline:
            time.sleep(0.05)
            ended = store.add("ended", 0)
    except RuntimeError:  # the store ended with its process; better two reports than none
        return not broken
    if not first:
        time.sleep(ERROR_REPORT_SECONDS / 2)
    return first
