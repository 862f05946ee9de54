"""The scans of a cohort as a network reads them: decoded, kept, and put into batches.

One batch is a dict: image (N, 1, D, H, W) in float16 or float32, sex (N,) int64 with -1
for unknown, age (N, 1) float32 years with NaN for unknown, index (N,) the place in file order.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler
from tqdm import tqdm

from utils.cli import raise_all
from utils.distributed import SINGLE, World
from utils.machine import free_memory, require_memory
from utils.scans.cache import Cache, DiskCache
from utils.scans.cohort import Scan, group_by_site
from utils.scans.loader import ScanLoader
from utils.scans.volumes import InputRule, read_scan

UNKNOWN_SEX = -1
NO_CACHE = Cache(dtype="float32")
MEMORY_FOR_ONE_PASS = 2**30  # bytes


class ScanDataset(Dataset):
    """Scans as a network reads them, whole batches at a time.

    Making it decodes every scan that `cache` does not hold yet, so that a bad scan stops the run at
    its start, not in its middle.

    Args:
        scans: from `open_cohort`, all of one shape.
        input_rule: how they become inputs.
        cache: where decoded scans are kept, and in which type; by default nowhere, in float32.

    Attributes:
        content_hashes: what identifies each scan's image, see `content_hash`.

    Raises:
        ValueError: all bad scans at once; or too little memory.
        OSError: the cache's folder cannot be written or is too full.
    """

    def __init__(self, scans: list[Scan], input_rule: InputRule, cache: Cache = NO_CACHE):
        self.scans, self.input_rule, self.cache = scans, input_rule, cache
        self.shape = input_rule.input_shape(scans[0].shape)
        self.sex = torch.tensor([UNKNOWN_SEX if s.sex is None else s.sex for s in scans])
        self.age = torch.tensor([[float("nan") if s.age is None else s.age] for s in scans])
        self._read, self._images = self._decode, None
        if cache.kind == "disk":
            disk = DiskCache(cache, [scan.path for scan in scans], input_rule, self.shape)
            self._read = disk.read
            if missing := disk.prepare():
                in_threads(self._keep, missing, "decoding scans")
            self.content_hashes = [disk.read(index)[1] for index in range(len(scans))]
            return
        if cache.kind == "device":
            shape, dtype = (len(scans), 1, *self.shape), getattr(torch, cache.dtype)
            require_memory(math.prod(shape) * dtype.itemsize, len(scans), cache.device)
            self._images = torch.empty(shape, dtype=dtype, device=cache.device)
        title = "checking scans" if cache.kind == "none" else "decoding scans"
        self.content_hashes = in_threads(self._keep, range(len(scans)), title)

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of the scans at these places in file order, see the top of this module."""
        places = torch.tensor(indices)
        batch = {"sex": self.sex[places], "age": self.age[places], "index": places}
        if self._images is not None:
            chosen = places.to(self.cache.device, non_blocking=True)
            return batch | {"image": self._images.index_select(0, chosen)}
        images = np.empty((len(indices), 1, *self.shape), self.cache.dtype)
        for image, index in zip(images, indices, strict=True):
            image[0] = self._read(index)[0]
        return batch | {"image": torch.from_numpy(images)}

    def _decode(self, index: int) -> tuple[np.ndarray, str]:
        """The input (D, H, W) made of a scan, from its file, and its content hash."""
        return read_scan(self.scans[index].path, self.input_rule, self.cache.dtype)

    def _keep(self, index: int) -> str:
        """Reads a scan for the first time, keeps it where the cache does; its content hash."""
        image, content = self._read(index)
        if self._images is not None:
            self._images[index, 0] = torch.from_numpy(image)
        return content


def open_for_one_pass(scans: list[Scan], input_rule: InputRule) -> ScanDataset:
    """The scans, in float32 and all checked; decoded once if they fit MEMORY_FOR_ONE_PASS.

    Larger cohorts are not kept: their scans are decoded to be checked, and again to be read.

    Raises:
        ValueError: all bad scans at once.
    """
    needed = 4 * len(scans) * math.prod(input_rule.input_shape(scans[0].shape))
    fits = needed <= min(MEMORY_FOR_ONE_PASS, free_memory() // 2)
    cache = Cache("device", dtype="float32") if fits else NO_CACHE
    return ScanDataset(scans, input_rule, cache)


def in_threads(work: Callable[[int], str], items: Sequence[int], title: str) -> list[str]:
    """Calls `work` for every item, in threads: gunzip and numpy release the interpreter lock.

    Returns:
        What `work` returned, in the order of `items`.

    Raises:
        ValueError: the messages of all items whose `work` raised one, sorted.
    """

    def attempt(item: int) -> tuple[str, str]:
        try:
            return work(item), ""
        except ValueError as error:
            return "", str(error)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = list(tqdm(pool.map(attempt, items), title, len(items), disable=None, leave=False))
    raise_all(sorted(problem for _, problem in results if problem))
    return [result for result, _ in results]


def draw_stratified(ages: Tensor, sizes: list[int]) -> list[list[int]]:
    """Batches alike in age: scans next to each other in age go into different batches.

    The scans are sorted by age and cut into strata, and each batch gets one scan of every stratum.
    Batch normalisation subtracts the batch's mean from every feature, and in the last block, where
    a scan has one voxel or few, that is the mean age: with 16 scans drawn at random from a cohort
    with an SD of 24 years it varies by 6 years, which a network cannot know and which costs squared
    error. Here it varies by a fraction of a year.

    Args:
        ages: (scans,) years.
        sizes: scans of each batch, falling by at most one; where they sum to fewer scans than there
            are, each epoch leaves out others.

    Returns:
        The scans' places in file order, batch by batch, in random order.
    """
    chosen = torch.randperm(len(ages))[: sum(sizes)]
    order = chosen[ages[chosen].argsort(stable=True)]  # scans of one age in random order
    # Any stratum may be the incomplete one, so that no age is always in the larger batches.
    count, left = len(sizes), sum(sizes) % len(sizes)
    start = count * int(torch.randint(sizes[-1] + 1, ()))
    strata = [*order[:start].split(count), order[start : start + left]]
    strata += order[start + left :].split(count)
    drawn = [stratum[torch.randperm(len(stratum))].tolist() for stratum in strata]
    batches = [[stratum[i] for stratum in drawn if i < len(stratum)] for i in range(count)]
    return [torch.tensor(batch)[torch.randperm(len(batch))].tolist() for batch in batches]


def draw_over_sites(ages: Tensor, sites: Tensor, sizes: list[int]) -> list[list[int]]:
    """Batches alike in the sites of their scans, and in age within each site and over all.

    Of a site with n scans every batch gets n / batches, rounded down or up. Each site is cut into
    parts alike in age, see `draw_stratified`; then old parts of one site go into batches that are
    young so far.

    Args:
        ages: (scans,) years.
        sites: (scans,) a whole number for each site.
        sizes: as for `draw_stratified`.

    Returns:
        As `draw_stratified`.
    """
    chosen = torch.randperm(len(ages))[: sum(sizes)]
    deviations = ages - ages[chosen].mean()
    batches: list[list[int]] = [[] for _ in sizes]
    older = torch.zeros(len(sizes))  # years of each batch, in sum, above as many scans of mean age
    known = sites[chosen].unique()
    start = 0  # of the batches that get one scan more of the next site; the larger come first
    for site in known[torch.randperm(len(known))]:
        inside = chosen[sites[chosen] == site]
        each, more = divmod(len(inside), len(sizes))
        turn = (torch.arange(len(sizes)) + start) % len(sizes)
        parts = draw_stratified(ages[inside], [each + 1] * more + [each] * (len(sizes) - more))
        for same_size in (slice(None, more), slice(more, None)):
            mine = [inside[torch.tensor(part, dtype=torch.long)] for part in parts[same_size]]
            old = torch.tensor([float(deviations[part].sum()) for part in mine])
            young_first = turn[same_size][older[turn[same_size]].argsort(stable=True)]
            for batch, place in zip(young_first, old.argsort(descending=True), strict=True):
                batches[batch] += mine[place].tolist()
                older[batch] += old[place]
        start = (start + more) % len(sizes)
    return [torch.tensor(batch)[torch.randperm(len(batch))].tolist() for batch in batches]


class TrainingBatches(Sampler[list[int]]):
    """This process's share of every global batch; all processes draw the same batches.

    Args:
        ages: (scans,) years, for batches alike in age; None for batches drawn at random.
        scans: how many there are.
        global_sizes: scans of each batch, in all processes together.
        world: the processes that share each batch.
        sites: (scans,) whole numbers, for batches alike in sites too; None where one is known.
    """

    def __init__(
        self,
        ages: Tensor | None,
        scans: int,
        global_sizes: list[int],
        world: World,
        sites: Tensor | None = None,
    ):
        self.ages, self.scans, self.global_sizes, self.world = ages, scans, global_sizes, world
        self.sites = sites

    def __len__(self) -> int:
        return len(self.global_sizes)

    def __iter__(self) -> Iterator[list[int]]:
        # Everything is drawn before the first batch is read: where processes read ahead, their
        # number would otherwise change the order of these draws and those of the augmentation.
        if self.ages is not None and self.sites is not None:
            batches = draw_over_sites(self.ages, self.sites, self.global_sizes)
        elif self.ages is not None:
            batches = draw_stratified(self.ages, self.global_sizes)
        else:
            order = torch.randperm(self.scans)[: sum(self.global_sizes)]
            batches = [batch.tolist() for batch in order.split(self.global_sizes)]
        for batch in batches:
            yield batch[self.world.share(len(batch))]


def batch_sizes(scans: int, largest: int, *, least: int, equal: bool, even: bool) -> list[int]:
    """The sizes of an epoch's batches.

    Args:
        scans: of the training set.
        largest: scans of a batch.
        least: scans that a batch needs; the scans of a smaller last batch are left out.
        equal: whether all batches must have the largest size.
        even: whether to make all batches a little smaller where that avoids a short last one.
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
) -> ScanLoader:
    """Shuffled batches; never padded with repeated scans.

    The order follows torch's global generator, which the trainer seeds anew each epoch. A short
    last batch is dropped where the loss needs `full_batches`, where it would hold a single scan,
    which has no rank and no batch statistics, or fewer scans than processes.

    Args:
        dataset: labelled scans.
        batch_size: scans of a global batch, of which each process reads its share.
        full_batches: whether the loss needs batches of exactly this size.
        stratify: whether batches are made alike in age and size, see `draw_stratified`, and in
            sites where several are known, see `draw_over_sites`.
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
    ages = dataset.age.flatten() if stratify else None
    batches = TrainingBatches(ages, len(dataset), sizes, world, _number_sites(dataset.scans))
    return _loader(dataset, batches, num_workers)


def _number_sites(scans: Sequence[Scan]) -> Tensor | None:
    """(scans,) a whole number for the site of each scan; None where there are not several."""
    groups = group_by_site(scans)
    sites = torch.zeros(len(scans), dtype=torch.long)
    for number, places in enumerate(groups.values()):
        sites[places] = number
    return sites if len(groups) > 1 else None


def require_shareable(batch_size: int, world: World) -> None:
    """Raises ValueError where a process would get no scan of a batch."""
    if batch_size < world.size:
        raise ValueError(
            f"--batch_size {batch_size}: shared by all {world.size} processes, at least "
            f"{world.size} expected"
        )


def evaluation_loader(
    dataset: ScanDataset, *, batch_size: int, num_workers: int = 0, world: World = SINGLE
) -> ScanLoader:
    """Every scan once, in file order; of several processes each reads a contiguous share."""
    own = range(len(dataset))[world.share(len(dataset))]
    batches = BatchSampler(own, -(-batch_size // world.size), drop_last=False)
    return _loader(dataset, batches, num_workers)


def _loader(dataset: ScanDataset, batches: Sampler[list[int]], num_workers: int) -> ScanLoader:
    """Loads whole batches, with reading processes only where they make it faster.

    Copying kept scans takes a CPU less time than passing them between processes; beside a GPU it is
    worth doing while the GPU computes. Scans that lie on the device go through no process.
    """
    kind, on_gpu = dataset.cache.kind, dataset.cache.device.type == "cuda"
    workers = num_workers if kind == "none" or (kind == "disk" and on_gpu) else 0
    return ScanLoader(dataset, batches, num_workers=workers, pin_memory=on_gpu and kind != "device")
