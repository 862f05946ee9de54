"""Decoded scans, kept so that none is decoded twice.

On disk each scan is one .npy file. Its name is a hash of what it was made from, so a changed scan
or another input rule never meets an old file. A file appears whole or not at all: `replacing`
writes it under a temporary name and renames it. Processes that start at once, or are killed half
way, leave good files and at most a temporary one, which nothing reads.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from utils.files import replacing
from utils.scans.volumes import InputRule, read_scan

KINDS = ("none", "disk", "device")
FORMAT = 2  # raise it when utils/scans/volumes.py makes other voxels of the same file
HEADER_BYTES = 256  # of a .npy file, at most
CPU = torch.device("cpu")
README = """Decoded scans of TSAN (--cache disk), made from the files that were trained on.
Each is a NumPy record: numpy.load(FILE)["image"] has the voxels.
This folder may be deleted at any time: what is missing is made again. Files named .part-* are left
by interrupted runs and of no use.
"""


@dataclass(frozen=True)
class Cache:
    """Where decoded scans are kept.

    Attributes:
        kind: `none`: nowhere, each scan is decoded whenever it is read; `disk`: in memory-mapped
            files in `folder`; `device`: all in the memory of `device`.
        folder: for `disk`; made when missing.
        device: for `device`.
        dtype: of the voxels that a network is given, whatever the kind: "float16", with an error
            of at most 2**-11 of a value, or "float32".
    """

    kind: str = "none"
    folder: Path | None = None
    device: torch.device = CPU
    dtype: str = "float16"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"cache: {', '.join(KINDS)} expected, got {self.kind!r}")
        if self.kind == "disk" and self.folder is None:
            raise ValueError("cache disk: a folder expected, got none")


class DiskCache:
    """The files of a cohort's decoded scans in one folder, which any number of runs may share.

    Each file is one NumPy record: key (its name), content_hash, image (D, H, W).

    Args:
        cache: of kind `disk`.
        paths: the scans' files.
        input_rule: how they become inputs.
        shape: (D, H, W) of every input.
    """

    def __init__(
        self, cache: Cache, paths: Sequence[Path], input_rule: InputRule, shape: tuple[int, ...]
    ):
        self.cache, self.folder = cache, Path(cache.folder)
        self.paths, self.input_rule = list(paths), input_rule
        self.record = np.dtype(
            [("key", "S64"), ("content_hash", "S16"), ("image", cache.dtype, tuple(shape))]
        )
        self.files = []
        for path in (path.resolve() for path in self.paths):
            status = path.stat()
            made_from = [str(path), status.st_size, status.st_mtime_ns, asdict(input_rule)]
            text = json.dumps([*made_from, cache.dtype, FORMAT])
            key = hashlib.sha256(text.encode()).hexdigest()
            self.files.append(self.folder / f"{key}.npy")

    def read(self, index: int) -> tuple[np.ndarray, str]:
        """The input made of the scan at `index`, memory-mapped, and its content hash.

        Where there is no good file, the scan is decoded and kept.

        Raises:
            ValueError: the scan is bad.
            OSError: the folder cannot be written.
        """
        kept = self._open(self.files[index])
        if kept is not None:
            return kept["image"], kept["content_hash"].item().decode()
        image, content = read_scan(self.paths[index], self.input_rule, self.cache.dtype)
        record = np.array((self.files[index].stem, content, image), self.record)
        try:
            with replacing(self.files[index], overwrite=True) as temporary:
                np.save(temporary, record)
        except OSError as error:
            raise self._unwritable(error) from error
        return record["image"], content

    def prepare(self) -> list[int]:
        """Makes the folder ready; returns the scans to be read first, each once, in random order.

        Processes that start at once share the work, as each takes another order.

        Raises:
            OSError: something is missing and the folder cannot be written, or is too full.
        """
        missing = {file: i for i, file in enumerate(self.files) if self._open(file) is None}
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
            needed = len(missing) * (HEADER_BYTES + self.record.itemsize)
            free = shutil.disk_usage(self.folder).free
            if needed > free:
                raise OSError(
                    f"{self.folder}: {len(missing)} decoded scans need {needed / 2**30:.1f} GiB, "
                    f"{free / 2**30:.1f} are free: give another --cache_dir, --cache device or "
                    "--cache none"
                )
        # Not torch's generator, from which the run draws.
        return random.Random(os.getpid()).sample(sorted(missing.values()), len(missing))

    def _open(self, file: Path) -> np.ndarray | None:
        """The record in `file`; None where there is no file, or a damaged or misplaced one."""
        try:
            kept = np.lib.format.open_memmap(file, mode="r")
        except (OSError, ValueError):
            return None
        good = kept.dtype == self.record and kept["key"].item() == file.stem.encode()
        return kept if good else None

    def _unwritable(self, error: OSError) -> OSError:
        return OSError(
            f"{self.folder}: decoded scans cannot be written there ({error}): give another "
            "--cache_dir, --cache device or --cache none"
        )
