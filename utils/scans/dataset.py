"""The scans of a cohort as a network reads them: decoded, kept, and put into batches.

One batch is a dict: image (N, 1, D, H, W) z-scores as they are kept (cache.py), sex (N,)
int64 with -1 for unknown, age (N, 1) float32 years with NaN for unknown, index (N,) the place in
file order.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from tqdm import tqdm

from utils.cli import raise_all
from utils.distributed import SINGLE, World
from utils.machine import free_memory, require_memory
from utils.scans.cache import CPU, DTYPES, Cache, DiskCache, Encoded, read_encoded
from utils.scans.cohort import Scan
from utils.scans.volumes import InputRule

UNKNOWN_SEX = -1
NO_CACHE = Cache()
KEPT_FOR_ONE_READING = 2**30  # bytes
T = TypeVar("T")


def require_readable(scans: list[Scan], input_rule: InputRule, bits: int = 32) -> list[str]:
    """Decodes every scan once, so that a bad one stops the run at its start, not in its middle.

    Returns:
        What identifies each scan's image, see `content_hash`.

    Raises:
        ValueError: all scans that cannot be read, are not finite, hold no brain, or spread too far
            for that many bits a voxel.
    """

    def check(scan: Scan) -> str:
        return read_encoded(scan.path, input_rule, bits).content

    return _for_all(scans, check, title="checking")


def open_checked(
    scans: list[Scan], input_rule: InputRule, cache: Cache | None = None
) -> "ScanDataset":
    """The scans, all of them decoded once, whichever the cache, and so known to be readable.

    Raises:
        ValueError, OSError: as `ScanDataset`; all bad scans at once.
    """
    cache = cache or NO_CACHE
    dataset = ScanDataset(scans, input_rule, cache)
    if cache.kind == "none":  # what is kept is decoded at once
        dataset.content_hashes = require_readable(scans, input_rule, cache.bits)
    return dataset


def open_for_one_reading(scans: list[Scan], input_rule: InputRule) -> "ScanDataset":
    """The scans, exact and all checked; decoded once if they take up to KEPT_FOR_ONE_READING.

    More of them are not kept: they are decoded to be checked and again when they are read.

    Raises:
        ValueError: all bad scans at once.
    """
    needed = 4 * len(scans) * math.prod(input_rule.input_shape(scans[0].shape))
    fits = needed <= min(KEPT_FOR_ONE_READING, free_memory(CPU) // 2)
    return open_checked(scans, input_rule, Cache("device") if fits else NO_CACHE)


def _for_all(items: Sequence[T], decode: Callable[[T], str], *, title: str) -> list[str]:
    """`decode` of every scan, in threads, since gunzip and numpy release the interpreter lock.

    Returns:
        What `decode` returned, in the order of `items`.

    Raises:
        ValueError: what was wrong with each scan that could not be decoded, all at once.
    """

    def attempt(item: T) -> tuple[str, str]:
        try:
            return decode(item), ""
        except ValueError as error:
            return "", str(error)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = list(tqdm(pool.map(attempt, items), title, len(items), disable=None, leave=False))
    problems = [problem for _, problem in results if problem]
    raise_all(sorted(problems))  # by file, whatever the order they were tried in
    return [result for result, _ in results]


class ScanDataset(Dataset):
    """Scans as a network reads them, whole batches at a time.

    Making it decodes what `cache` keeps and does not hold yet; `none` keeps nothing.

    Args:
        scans: from `open_cohort`, all of one shape.
        input_rule: how they are prepared.
        cache: where decoded scans are kept and in how many bits.

    Raises:
        ValueError: all bad scans at once; or too little memory.
        OSError: the cache's folder cannot be written or is too full.
    """

    # What identifies each scan's image, see `content_hash`; empty where none has been decoded yet.
    contents: Sequence[str] = ()

    def __init__(self, scans: list[Scan], input_rule: InputRule, cache: Cache = NO_CACHE):
        self.scans, self.input_rule, self.cache = scans, input_rule, cache
        self.shape = input_rule.input_shape(scans[0].shape)
        self.sex = torch.tensor([UNKNOWN_SEX if s.sex is None else s.sex for s in scans])
        self.age = torch.tensor([[float("nan") if s.age is None else s.age] for s in scans])
        if cache.kind == "disk":
            self._open_disk()
        elif cache.kind == "device":
            self._fill_device()

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        """The batch of the scans at a list of places in file order, or the scan at one.

        Its images are as they are kept, with their levels (N, 3) where these are 8 bits;
        `Execution.images` decodes them. A single scan has no first axis.
        """
        if isinstance(index, int):
            return {name: values[0] for name, values in self[[index]].items()}
        places = torch.tensor(index)
        batch = {"sex": self.sex[places], "age": self.age[places], "index": places}
        batch["image"], levels = self._images(index)
        return batch | {"levels": levels} if self.cache.bits == 8 else batch

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """What torch's DataLoader asks for a batch."""
        return self[indices]

    def workers(self, num_workers: int) -> int:
        """How many of `num_workers` processes make reading faster.

        Copying kept scans takes a CPU less time than passing them between processes; beside a GPU
        it is worth doing while the GPU computes. What lies on the device goes through none.
        """
        beside_gpu = self.cache.kind == "disk" and self.cache.device.type == "cuda"
        return num_workers if self.cache.kind == "none" or beside_gpu else 0

    def _images(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(N, 1, D, H, W) as kept, and (N, 3) levels."""
        if self.cache.kind == "device":
            places = torch.tensor(indices).to(self.cache.device, non_blocking=True)
            return self._image.index_select(0, places), self._levels[indices]
        image = torch.empty((len(indices), 1, *self.shape), dtype=DTYPES[self.cache.bits])
        levels = torch.empty(len(indices), 3)
        for place, index in enumerate(indices):
            entry = self._read(index)
            np.copyto(image[place, 0].numpy(), entry.voxels)
            np.copyto(levels[place].numpy(), entry.levels)
        return image, levels

    def _read(self, index: int) -> Encoded:
        if self.cache.kind == "disk":
            return self._disk[index]
        return read_encoded(self.scans[index].path, self.input_rule, self.cache.bits)

    def _open_disk(self) -> None:
        self._disk = DiskCache(
            self.cache.folder,
            [scan.path for scan in self.scans],
            shape=self.shape,
            input_rule=self.input_rule,
            bits=self.cache.bits,
        )

        def decode(index: int) -> str:
            return self._disk.decode(index).content

        _for_all(self._disk.prepare(), decode, title="decoding scans")
        self.content_hashes = [self._disk[index].content for index in range(len(self))]

    def _fill_device(self) -> None:
        shape, device, bits = (len(self), 1, *self.shape), self.cache.device, self.cache.bits
        require_memory(math.prod(shape) * bits // 8, len(self), device)
        self._image = torch.empty(shape, dtype=DTYPES[bits], device=device)
        self._levels = torch.empty(len(self), 3)

        def decode(index: int) -> str:
            entry = self._read(index)
            self._image[index, 0] = torch.from_numpy(entry.voxels)
            self._levels[index] = torch.from_numpy(entry.levels)
            return entry.content

        self.content_hashes = _for_all(range(len(self)), decode, title="decoding scans")


def _as_read(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """In place of torch's collation: `ScanDataset` gives whole batches."""
    return batch


def _pinned(dataset: ScanDataset) -> bool:
    return dataset.cache.device.type == "cuda" and dataset.cache.kind != "device"


class StratifiedBatches:
    """Batches alike in age: every stratum of scans next to each other in age gives each one scan.

    Batch normalisation takes the batch's mean out of every feature, and in the last block, where a
    scan is one voxel or few, that is the mean age: with 16 scans drawn blindly of a cohort with an
    SD of 24 years it varies by 6, which a network cannot tell and pays for in squared error. Here
    it varies by a fraction of a year. Batches differ in size by at most one scan.

    Args:
        ages: (scans, 1) years.
        sizes: scans of each batch, falling by at most one; fewer in all than there are leave out
            others in each epoch.
    """

    def __init__(self, ages: Tensor, sizes: list[int]):
        self.ages, self.sizes = ages.flatten(), sizes

    def __iter__(self) -> Iterator[list[int]]:
        chosen = torch.randperm(len(self.ages))[: sum(self.sizes)]
        order = chosen[self.ages[chosen].argsort(stable=True)]  # scans of one age in random order
        # The incomplete stratum may be any, so that no age is always in the larger batches.
        count, left = len(self.sizes), sum(self.sizes) % len(self.sizes)
        start = count * int(torch.randint(self.sizes[-1] + 1, ()))
        strata = [*order[:start].split(count), order[start : start + left]]
        strata += order[start + left :].split(count)
        drawn = [stratum[torch.randperm(len(stratum))].tolist() for stratum in strata]
        batches = [
            [stratum[batch] for stratum in drawn if batch < len(stratum)] for batch in range(count)
        ]
        # All is drawn before the first batch is read: processes that read ahead would else take
        # these draws before those of the augmentation, and their number change the training.
        orders = [torch.randperm(len(batch)) for batch in batches]
        for batch, order in zip(batches, orders, strict=True):
            yield torch.tensor(batch)[order].tolist()


class RandomBatches:
    """Scans in random order, cut into batches of these sizes; what is over is left out."""

    def __init__(self, scans: int, sizes: list[int]):
        self.scans, self.sizes = scans, sizes

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.scans)[: sum(self.sizes)]
        yield from (batch.tolist() for batch in order.split(self.sizes))


class BatchShares(Sampler[list[int]]):
    """This process's share of every global batch; the order is drawn alike in all processes.

    `global_sizes` are the scans of each batch, in all processes together.
    """

    def __init__(self, batches: StratifiedBatches | RandomBatches, world: World):
        self.batches, self.world, self.global_sizes = batches, world, batches.sizes

    def __len__(self) -> int:
        return len(self.global_sizes)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.world.share(len(batch))]


def batch_sizes(scans: int, largest: int, *, least: int, equal: bool, even: bool) -> list[int]:
    """The sizes of an epoch's batches.

    Args:
        scans: to be shared out.
        largest: scans of a batch.
        least: a batch of fewer is of no use, and its scans are left out.
        equal: whether all must have the largest size.
        even: whether a short last batch is avoided by making all a little smaller.
    """
    full, short = divmod(scans, largest)
    if short and not equal:
        if even and scans // (full + 1) >= least:
            smaller, larger = divmod(scans, full + 1)
            return [smaller + 1] * larger + [smaller] * (full + 1 - larger)
        if short >= least:
            return [largest] * full + [short]
    return [largest] * full


def training_loader(
    dataset: ScanDataset,
    *,
    batch_size: int,
    full_batches: bool,
    stratify: bool = False,
    num_workers: int = 0,
    world: World = SINGLE,
) -> DataLoader:
    """Shuffled batches; never padded with repeated scans.

    The order follows torch's global generator, which the trainer seeds anew each epoch. A short
    last batch is dropped where the loss needs `full_batches`, where it would hold one scan alone,
    of which neither a rank nor a batch statistic can be taken, or fewer scans than processes.

    Args:
        dataset: labelled scans.
        batch_size: scans of a global batch, of which each process reads its share.
        full_batches: whether a short last batch is of no use.
        stratify: whether batches are made alike in age and size, see `StratifiedBatches`.
        num_workers: of this process.
        world: the processes that share each batch.

    Raises:
        ValueError: fewer scans in a batch than processes, or too few scans for one batch.
    """
    require_shareable(batch_size, world)
    least = max(world.size, min(2, len(dataset)))
    sizes = batch_sizes(len(dataset), batch_size, least=least, equal=full_batches, even=stratify)
    if not sizes:
        raise ValueError(
            f"{len(dataset)} training scans do not fill one batch of {batch_size}: "
            "give a smaller --batch_size"
        )
    batches = (
        StratifiedBatches(dataset.age, sizes) if stratify else RandomBatches(len(dataset), sizes)
    )
    return DataLoader(
        dataset,
        batch_sampler=BatchShares(batches, world),
        num_workers=dataset.workers(num_workers),
        pin_memory=_pinned(dataset),
        collate_fn=_as_read,
    )


def require_shareable(batch_size: int, world: World) -> None:
    """Raises ValueError where a process would get no scan of a batch."""
    if batch_size < world.size:
        raise ValueError(
            f"--batch_size {batch_size}: shared by all {world.size} processes, at least "
            f"{world.size} expected"
        )


def evaluation_loader(
    dataset: ScanDataset, *, batch_size: int, num_workers: int = 0, world: World = SINGLE
) -> DataLoader:
    """Every scan once, in file order; of several processes each reads a contiguous share."""
    own = range(len(dataset))[world.share(len(dataset))]
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(own, -(-batch_size // world.size), drop_last=False),
        num_workers=dataset.workers(num_workers),
        pin_memory=_pinned(dataset),
        collate_fn=_as_read,
    )
