"""The contract between one_scan.py and the backends: what is asked for, and what is returned.

A backend (`builtin.py`, `fsl.py`, `resample.py`) is a module with

    check(recipe)                          raises ValueError / OSError where it cannot work here
    identity(recipe) -> Identity           what it works with, for the sidecar and for skipping
    map_scan(image, recipe, *, workspace) -> Mapped

It reads and writes nothing outside `workspace`, a temporary folder of this scan.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.packages import PREPROCESSING, install_command

BACKENDS = ("builtin", "fsl", "resample")
REGISTRATIONS = ("deformable", "affine")
MASKS = ("template", "subject")
CONTENTS = ("auto", "head", "brain")
INSTALL = install_command(PREPROCESSING)  # what installs a missing package


@dataclass(frozen=True)
class Recipe:
    """How scans are brought onto the grid; all scans of one training set must share it.

    Attributes:
        backend: `builtin` (pip packages), `fsl` (fsl_anat and applywarp), or `resample` (scans
            that are in MNI152 space already, on another grid).
        registration: `deformable` as published, or `affine` with 12 degrees of freedom as the
            released OASIS-1. With `resample`: how somebody registered the scans.
        mask: the part of the head that is kept: the `template`'s brain, as published, or the
            `subject`'s.
        contents: `head` with skull, `brain` extracted already, or `auto`: seen from the image.
    """

    backend: str = "builtin"
    registration: str = "deformable"
    mask: str = "template"
    contents: str = "auto"

    def __post_init__(self):
        known = {"backend": BACKENDS, "registration": REGISTRATIONS, "mask": MASKS}
        for name, words in (known | {"contents": CONTENTS}).items():
            if (word := getattr(self, name)) not in words:
                raise ValueError(f"{name}: one of {', '.join(words)} expected, got {word!r}")


@dataclass(frozen=True)
class Identity:
    """What a backend works with; a scan is done again when any of it has changed.

    Attributes:
        versions: of each engine, by name.
        template_sha256: of the template that scans are registered to; None where none is used.
        parameters: of each step, plain values.
    """

    versions: dict[str, str]
    template_sha256: str | None
    parameters: dict


@dataclass
class Mapped:
    """A scan on the MNI152 2 mm grid.

    Attributes:
        volume: (91, 109, 91) float32 in LAS order, 0 outside the brain.
        brain: (91, 109, 91) bool, the scan's own brain on the grid before the template's mask is
            applied; None where the backend does not know it.
        contents: `head` or `brain`, what the scan shows.
        transform: summary for the sidecar, plain values.
        notes: for people, one sentence each.
        kept: files of the transform in the workspace, by the suffix they get behind the scan's
            name, such as {"_affine.txt": path}.
        flat_end_mm2: of the scan's own brain before any registration, see `native.flat_end`; None
            where it is not known.
    """

    volume: np.ndarray
    brain: np.ndarray | None
    contents: str
    transform: dict
    notes: list[str] = field(default_factory=list)
    kept: dict[str, Path] = field(default_factory=dict)
    flat_end_mm2: float | None = None
