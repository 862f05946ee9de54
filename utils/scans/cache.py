"""Decoded scans, kept in 8, 16 or 32 bits a voxel so that none is decoded twice.

On disk each scan is a file of its own, named by what it was made from, which is why a changed scan
or another input_rule never meets an old file. A file appears whole or not at all: it is written
under a temporary name, flushed and renamed, so that processes that start at once, or are killed
half way, leave good files and at most a temporary one, which nothing reads.
"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.files import replacing
from utils.scans.leakage import content_hash
from utils.scans.volumes import InputRule, normalise, read_stored, reduce_volume

KINDS = ("none", "disk", "device")
DTYPES = {8: torch.uint8, 16: torch.float16, 32: torch.float32}
NUMPY_DTYPES = {8: np.uint8, 16: np.float16, 32: np.float32}
FORMAT = (
    1  # to be raised when utils/scans/volumes.py or `encode` makes other voxels of the same file
)
MAGIC = b"TSAN scan"
HEADER_BYTES = 128
CPU = torch.device("cpu")
WORST_ERROR = 0.1  # SD of brain intensities; more than 8 bits may lose of a voxel
README = """Decoded scans of TSAN (--cache disk), made from the files that were trained on.
This folder may be deleted at any time: what is missing is made again. Files named .part-* are left
by interrupted runs and of no use.
"""


@dataclass(frozen=True)
class Cache:
    """Where decoded scans are kept, and how exactly.

    Attributes:
        kind: `none`: nowhere, each scan is decoded whenever it is read; `disk`: in memory-mapped
            files in `folder`; `device`: all in the memory of `device`.
        bits: a voxel, whatever the kind, so that the kind never changes what a network reads: 32
            exact, 16 half precision, 8 evenly spaced levels.
        folder: for `disk`; made when missing.
        device: for `device`.
    """

    kind: str = "none"
    bits: int = 32
    folder: Path | None = None
    device: torch.device = CPU

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"cache: {', '.join(KINDS)} expected, got {self.kind!r}")
        if self.bits not in DTYPES:
            raise ValueError(f"cache bits: 8, 16 or 32 expected, got {self.bits!r}")
        if self.kind == "disk" and self.folder is None:
            raise ValueError("cache disk: a folder expected, got none")


class Encoded(NamedTuple):
    """A z-scored volume as it is kept: voxels (D, H, W); levels (3,), see `encode`.

    `content` identifies the scan that it was made from, see `content_hash`.
    """

    voxels: np.ndarray
    levels: np.ndarray
    content: str = ""


def encode(image: np.ndarray, background: float, bits: int) -> Encoded:
    """Makes a z-scored volume smaller.

    In 8 bits a voxel is `background + step * (code - zero)`: the background, most of a volume,
    decodes exactly, any other voxel to within half a step, (largest - smallest value) / 508, about
    0.02 SD for brains of -4 to 6 SD. In 16 bits the error is at most 2**-11 of the value, in 32
    there is none.

    Args:
        image: (D, H, W) float32.
        background: the value of a voxel of 0 in the scan.
        bits: 8, 16 or 32.

    Returns:
        The voxels in that many bits; levels = (background, zero, step), all 0 but for 8 bits.

    Raises:
        ValueError: the values spread too far for `bits`: half a step above WORST_ERROR in 8 bits,
            beyond the largest number in 16.
    """
    if bits != 8:
        with np.errstate(over="ignore"):
            voxels = image.astype(NUMPY_DTYPES[bits])
        if not np.isfinite(voxels).all():
            raise ValueError("z-scores beyond 65504 do not fit 16 bits: give --cache_bits 32")
        return Encoded(voxels, np.zeros(3, np.float32))
    lowest, highest = min(image.min(), background), max(image.max(), background)
    step = (float(highest) - float(lowest)) / 254  # one code to spare, for rounding `zero` up
    if step / 2 > WORST_ERROR:
        raise ValueError(
            f"z-scores from {lowest:.4g} to {highest:.4g} would lose up to {step / 2:.2g} SD in 8 "
            f"bits, at most {WORST_ERROR} expected: remove its outliers or give --cache_bits 16"
        )
    zero = np.ceil((background - float(lowest)) / step)
    codes = np.rint((image - np.float32(background)) / np.float32(step)) + np.float32(zero)
    voxels = np.clip(codes, 0, 255).astype(np.uint8)
    return Encoded(voxels, np.array([background, zero, step], np.float32))


def decode(image: Tensor, levels: Tensor | None = None) -> Tensor:
    """The z-scores of a batch, where it lies: (N, 1, D, H, W) of any kept type to float32.

    Args:
        image: as kept; other types are returned as they are.
        levels: (N, 3) from `encode`, in main memory; needed for 8 bits.
    """
    if image.dtype != torch.uint8:
        return image.float() if image.dtype == torch.float16 else image
    decoded = torch.empty(image.shape, device=image.device)
    # Scan by scan, so that on a CPU the four passes stay in its cache: 2 to 3 times faster.
    for codes, (background, zero, step), out in zip(image, levels.tolist(), decoded, strict=True):
        out.copy_(codes).sub_(zero).mul_(step).add_(background)
    return decoded


def read_encoded(path: Path, input_rule: InputRule, bits: int) -> Encoded:
    """Decodes a scan's file, z-scores and encodes it.

    Raises:
        ValueError: as `read_stored`, `reduce_volume` and `encode`, naming the file.
    """
    stored = read_stored(path, any_grid=input_rule.any_grid)
    try:
        return prepare(stored, input_rule, bits)._replace(content=content_hash(stored))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def prepare(stored: np.ndarray, input_rule: InputRule, bits: int) -> Encoded:
    """Reduces, z-scores and encodes a volume from `read_stored`.

    Raises:
        ValueError: as `reduce_volume` and `encode`.
    """
    volume = reduce_volume(stored, input_rule)
    image = normalise(volume, input_rule.intensity)
    outside = image[volume <= 0]
    # The authors' rule lowers what lies below 0; a voxel of 0 is the highest of the outside.
    background = float(outside.max()) if outside.size else 0.0
    return encode(image, background, bits)


def entry_name(path: Path, input_rule: InputRule, bits: int) -> str:
    """The file name that stands for a scan as it is now, prepared and encoded in one way."""
    path = path.resolve()
    status = path.stat()
    made_from = [str(path), status.st_size, status.st_mtime_ns, asdict(input_rule), bits, FORMAT]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest() + ".scan"


class DiskCache:
    """The files of a cohort's decoded scans in one folder.

    Args:
        folder: shared by any number of runs.
        paths: the scans' files.
        shape: (D, H, W) of every input made from them.
        input_rule: how they are prepared.
        bits: 8, 16 or 32 a voxel.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[Path],
        *,
        shape: tuple[int, ...],
        input_rule: InputRule,
        bits: int,
    ):
        self.folder, self.paths, self.shape = Path(folder), list(paths), tuple(shape)
        self.input_rule, self.bits = input_rule, bits
        self.names = [entry_name(path, input_rule, bits) for path in self.paths]

    def __getitem__(self, index: int) -> Encoded:
        """The scan at `index`, memory-mapped; decoded where no good file is found."""
        return self._open(index) or self.decode(index)

    def decode(self, index: int) -> Encoded:
        """Decodes the scan at `index` and keeps it.

        Raises:
            ValueError: the scan is bad.
            OSError: the folder cannot be written.
        """
        entry = self._open(index)  # another process may have been quicker
        if entry is not None:
            return entry
        entry = read_encoded(self.paths[index], self.input_rule, self.bits)
        try:
            with replacing(self.folder / self.names[index], overwrite=True) as temporary:
                temporary.write_bytes(
                    (self._identity(index) + entry.content.encode()).ljust(HEADER_BYTES)
                    + entry.levels.tobytes()
                    + entry.voxels.tobytes()
                )
        except OSError as error:
            raise self._unwritable(error) from error
        return entry

    def prepare(self) -> list[int]:
        """Makes the folder ready; returns the scans to `decode`, each once, in random order.

        Processes that start at once share the work, as each takes another order.

        Raises:
            OSError: something is missing and the folder cannot be written, or is too full.
        """
        missing = {name: i for i, name in enumerate(self.names) if self._open(i) is None}
        if missing:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if not os.access(self.folder, os.W_OK):
                    raise PermissionError("no permission to write")
                if not (self.folder / "README.txt").exists():
                    with replacing(self.folder / "README.txt", overwrite=True) as temporary:
                        temporary.write_text(README)
            except OSError as error:
                raise self._unwritable(error) from error
            self._require_room(len(missing))
        # Not torch's generator, from which the run draws.
        return random.Random(os.getpid()).sample(sorted(missing.values()), len(missing))

    def _open(self, index: int) -> Encoded | None:
        """The kept scan at `index`, or None if there is none, or none that is whole and ours."""
        path = self.folder / self.names[index]
        try:
            with path.open("rb") as file:
                header = file.read(HEADER_BYTES)
                content = header.removeprefix(self._identity(index)).decode("ascii", "replace")
                # Files of before the guards against leakage have no content: they are made anew.
                whole = re.fullmatch(r"[0-9a-f]{16} *", content)
                if not whole or os.fstat(file.fileno()).st_size != self._size:
                    return None
                levels = np.frombuffer(file.read(12), np.float32)
                dtype = NUMPY_DTYPES[self.bits]
                voxels = np.memmap(file, dtype, "r", HEADER_BYTES + 12, self.shape)
                return Encoded(voxels, levels, content.strip())
        except OSError:  # not there, or not to be read: `decode` makes it or says why it cannot
            return None

    def _identity(self, index: int) -> bytes:
        """What the header of a file says before the scan's content."""
        return b"%s %s %s " % (
            MAGIC,
            self.names[index].encode(),
            "x".join(map(str, self.shape)).encode(),
        )

    @property
    def _size(self) -> int:
        return HEADER_BYTES + 12 + int(np.prod(self.shape)) * self.bits // 8

    def _require_room(self, scans: int) -> None:
        needed, free = scans * self._size, shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"{self.folder}: {scans} decoded scans need {needed / 2**30:.1f} GiB, "
                f"{free / 2**30:.1f} are free: give another --cache_dir, a smaller --cache_bits, "
                "--cache device or --cache none"
            )

    def _unwritable(self, error: OSError) -> OSError:
        return OSError(
            f"{self.folder}: decoded scans cannot be written there ({error}): give another "
            "--cache_dir, --cache device or --cache none"
        )
