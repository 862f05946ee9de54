"""A folder of scans with its labels, and the batches that a network reads.

One batch is a dict: image (N, 1, D, H, W) float32, sex (N,) int64 with -1 for unknown, age (N, 1)
float32 years with NaN for unknown, index (N,) the scan's place in file order.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler
from tqdm import tqdm

from utils.distributed import SINGLE, World
from utils.labels import Label, label_of, raise_all
from utils.volumes import (
    GRID_SHAPE,
    Preparation,
    find_scans,
    image_stem,
    normalise,
    read_header,
    read_volume,
)

UNKNOWN_SEX = -1
T = TypeVar("T")


@dataclass(frozen=True)
class Scan:
    """One scan of a cohort; age in years and sex (0 female, 1 male) are None where unknown."""

    subject_id: str
    path: Path
    age: float | None
    sex: int | None
    orientation: str


def open_cohort(
    folder: str | Path,
    labels: dict[str, Label] | None,
    preparation: Preparation,
    *,
    need_age: bool = False,
    need_sex: bool = False,
) -> list[Scan]:
    """Pairs every scan of `folder` with its label and checks all of them before any work.

    Rows of scans elsewhere are normal: one sheet serves all folders.

    Args:
        folder: .nii.gz and .nii files, read in the order of their names.
        labels: from `read_labels`; None where there is no sheet.
        preparation: decides whether other grids are let through.
        need_age: whether a scan without an age is a problem (training) or merely unknown.
        need_sex: the same for the sex.

    Raises:
        FileNotFoundError: no folder or no scan in it.
        ValueError: all problems of all scans at once.
    """
    scans: list[Scan] = []
    problems: list[str] = []
    for path in find_scans(folder):
        label = label_of(path, labels or {})
        age, sex = (label.age, label.sex) if label else (None, None)
        stem = image_stem(path.name)
        if label is None and (need_age or need_sex):
            problems.append(f"{path}: no row named {stem} in the label sheet")
        elif need_age and age is None:
            problems.append(f"{path}: row {label.row} gives no age, expected years")
        elif need_sex and sex is None:
            problems.append(
                f"{path}: row {label.row} gives no sex, expected 0 female or 1 male "
                "(or --use_sex false)"
            )
        try:
            orientation = read_header(path, any_grid=preparation.any_grid)
        except ValueError as error:
            problems.append(str(error))
        else:
            scans.append(Scan(stem, path, age, sex, orientation))
    raise_all(problems)
    return scans


def require_readable(scans: list[Scan], preparation: Preparation) -> None:
    """Decodes every scan once, so that a bad one stops the run at its start, not in its middle.

    Raises:
        ValueError: all scans that cannot be read, are not finite, or hold no brain.
    """
    _for_all(scans, lambda scan: read_volume(scan.path, preparation) is not None, title="checking")


def _for_all(scans: list[Scan], decode: Callable[[Scan], T], *, title: str) -> list[T]:
    """`decode` of every scan, in threads, since gunzip and numpy release the interpreter lock.

    Raises:
        ValueError: what was wrong with each scan that could not be decoded, all at once.
    """

    def attempt(scan: Scan) -> T | ValueError:
        try:
            return decode(scan)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = list(tqdm(pool.map(attempt, scans), title, len(scans), disable=None, leave=False))
    raise_all([str(result) for result in results if isinstance(result, ValueError)])
    return results


def describe(scans: list[Scan]) -> str:
    """One line: how many scans, which ages and sexes, what was reoriented."""
    ages = [scan.age for scan in scans if scan.age is not None]
    text = f"{len(scans)} scans"
    if ages:
        text += f", {len(ages)} with an age ({min(ages):g} to {max(ages):g} years)"
    females = sum(scan.sex == 0 for scan in scans)
    males = sum(scan.sex == 1 for scan in scans)
    text += f", {females} female, {males} male"
    turned = [scan.orientation for scan in scans if scan.orientation != "LAS"]
    if turned:
        text += f"; {len(turned)} stored {'/'.join(sorted(set(turned)))}, put into LAS order"
    return text


class ScanDataset(Dataset):
    """Decoded, normalised scans; `keep` holds each in memory once it has been decoded."""

    def __init__(self, scans: list[Scan], preparation: Preparation, *, keep: bool = False):
        self.scans, self.preparation = scans, preparation
        self.kept: list[Tensor] | None = None
        if keep:
            self._require_memory()
            self.kept = _for_all(scans, self._decode, title="reading scans")

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The scan at `index` in file order: image (1, D, H, W), sex (), age (1,), index ()."""
        scan = self.scans[index]
        return {
            "image": self._decode(scan) if self.kept is None else self.kept[index],
            "sex": torch.tensor(UNKNOWN_SEX if scan.sex is None else scan.sex),
            "age": torch.tensor([float("nan") if scan.age is None else scan.age]),
            "index": torch.tensor(index),
        }

    def _decode(self, scan: Scan) -> Tensor:
        volume = normalise(read_volume(scan.path, self.preparation), self.preparation.intensity)
        return torch.from_numpy(volume)[None]

    def _require_memory(self) -> None:
        """Raises ValueError now rather than running out of memory half way."""
        if self.preparation.any_grid:
            return
        voxels = GRID_SHAPE[0] * GRID_SHAPE[1] * GRID_SHAPE[2]
        if self.preparation.resolution == 4:
            voxels //= 8
        needed = 4 * voxels * len(self)
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > 0.7 * available:
            raise ValueError(
                f"{len(self)} scans need {needed / 2**30:.1f} GiB in memory, this machine has "
                f"{available / 2**30:.1f}: give --cache none"
            )


class BatchShares(Sampler[list[int]]):
    """This process's share of every global batch; the order is drawn alike in all processes."""

    def __init__(self, batches: BatchSampler, world: World):
        self.batches, self.world = batches, world

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.world.share(len(batch))]

    @property
    def global_sizes(self) -> list[int]:
        """Scans of each batch, in all processes together."""
        size, scans = self.batches.batch_size, len(self.batches.sampler)
        return [min(size, scans - size * step) for step in range(len(self))]


def training_loader(
    dataset: ScanDataset,
    *,
    batch_size: int,
    full_batches: bool,
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
        num_workers: of this process.
        world: the processes that share each batch.

    Raises:
        ValueError: fewer scans in a batch than processes, or too few scans for one batch.
    """
    require_shareable(batch_size, world)
    short = len(dataset) % batch_size
    alone = short < world.size or (short == 1 and len(dataset) > 1)
    drop_last = short != 0 and (full_batches or alone)
    if drop_last and len(dataset) < batch_size:
        raise ValueError(
            f"{len(dataset)} training scans do not fill one batch of {batch_size}: "
            "give a smaller --batch_size"
        )
    batches = BatchSampler(RandomSampler(dataset), batch_size, drop_last)
    return DataLoader(
        dataset,
        batch_sampler=BatchShares(batches, world),
        num_workers=0 if dataset.kept is not None else num_workers,
        pin_memory=torch.cuda.is_available(),
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
        num_workers=0 if dataset.kept is not None else num_workers,
        pin_memory=torch.cuda.is_available(),
    )
