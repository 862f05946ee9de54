"""The JSON record beside a preprocessed scan, and what the records of a cohort say together.

`OUT/name.nii.gz` has `OUT/name.json` beside it, written by data_preprocessing/preprocess.py. BIDS
has .json files beside scans too: one without our format is not ours, and what it is beside was made
in an unknown way. How a file is read is another matter, see `utils.scans.volumes.InputRule`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils.cli import raise_all
from utils.files import replacing
from utils.scans.volumes import image_stem

FORMAT = "tsan-preprocessing-1"


@dataclass(frozen=True)
class Provenance:
    """How scans were brought onto the network's grid; None where unknown.

    A checkpoint stores it: a network expects scans that were made as its training scans were.

    Attributes:
        registration: `deformable` or `affine`.
        mask: whose brain was left of the head, the `template`'s or the `subject`'s.
        backend: `builtin`, `fsl` or `resample`; they differ in bias field, mask edge and warp.
    """

    registration: str | None = None
    mask: str | None = None
    backend: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value or 'unknown'}" for name, value in asdict(self).items())

    def differences(self, other: "Provenance") -> list[str]:
        """What is known of both and differs, such as `registration affine, not deformable`."""
        return [
            f"{name} {mine}, not {theirs}"
            for (name, mine), theirs in zip(
                asdict(self).items(), asdict(other).values(), strict=True
            )
            if mine and theirs and mine != theirs
        ]

    def filled_from(self, other: "Provenance") -> "Provenance":
        """What is unknown here is taken from `other`."""
        return replace(other, **{name: value for name, value in asdict(self).items() if value})


UNKNOWN = Provenance()


def sidecar_path(scan: Path) -> Path:
    """Where the record of `scan` stands: beside it, .json instead of .nii.gz or .nii."""
    return scan.with_name(f"{image_stem(scan.name)}.json")


def read_sidecar(scan: Path) -> dict | None:
    """The record of a scan; None where there is none of ours.

    A linked scan (as data_preprocessing/split_dataset.py makes them) has it beside the link, or
    beside what the link points at.

    Raises:
        ValueError: a damaged file.
    """
    for place in _linked(scan):
        path = sidecar_path(place)
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:  # not UTF-8 and not JSON are ValueErrors
            raise ValueError(
                f"{path}: not readable as JSON ({error}); preprocess its scan again"
            ) from error
        if isinstance(content, dict) and content.get("format") == FORMAT:
            _require_recipe(path, content)
            return content
    return None


def _linked(scan: Path) -> Iterator[Path]:
    """The scan, and each file that it is a link to, up to the real one."""
    yield scan
    if scan.exists():  # links that lead in a circle do not
        while scan.is_symlink():
            scan = scan.parent / scan.readlink()
            yield scan


def _require_recipe(path: Path, content: dict) -> None:
    recipe = content.get("recipe")
    names = asdict(UNKNOWN)
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(name), str) for name in names):
        raise ValueError(
            f"{path}: a recipe with {', '.join(names)} expected, found {recipe!r}; preprocess its "
            "scan again"
        )


def write_sidecar(scan: Path, content: dict, *, overwrite: bool = False) -> None:
    """Writes the record of `scan`; our format is added.

    Raises:
        FileExistsError: there is one and `overwrite` is false.
        ValueError: a number that is not finite, which JSON does not have: give None.
    """
    text = json.dumps({"format": FORMAT} | content, indent=2, allow_nan=False)
    with replacing(sidecar_path(scan), overwrite=overwrite) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def recorded(sidecar: dict) -> Provenance:
    """How a scan was made, from its record."""
    return Provenance(**{name: sidecar["recipe"][name] for name in asdict(UNKNOWN)})


def read_provenance(scans: Sequence[Path]) -> list[Provenance | None]:
    """How each scan was made; None where it has no sidecar.

    Raises:
        ValueError: all damaged sidecars.
    """
    made, problems = [], []
    for scan in scans:
        try:
            sidecar = read_sidecar(scan)
        except ValueError as error:
            problems.append(str(error))
        else:
            made.append(recorded(sidecar) if sidecar else None)
    raise_all(problems)
    return made


def common_provenance(scans: Sequence[Path], stated: Provenance = UNKNOWN) -> Provenance:
    """How all scans of a training were made.

    Scans without a sidecar beside scans with one are refused too: a folder filled from two sources
    looks like this. Whoever knows better states registration and mask; the backend of all is then
    unknown.

    Args:
        scans: of training and validation.
        stated: what the flags say.

    Raises:
        ValueError: damaged sidecars, scans made in different ways, or in another way than stated.
    """
    firsts: dict[Provenance | None, Path] = {}
    for scan, made in zip(scans, read_provenance(scans), strict=True):
        firsts.setdefault(made, scan)
    known = [made for made in firsts if made is not None]
    if not known:
        return stated
    if len(known) > 1:
        raise ValueError(
            " and ".join(f"{firsts[made]} ({made})" for made in known[:2])
            + ": made in different ways, which must not be mixed: the network would learn to tell "
            "the ways apart, and take them for age; preprocess all scans alike"
        )
    differences = stated.differences(known[0])
    if differences:
        raise ValueError(
            f"--{', --'.join(differences)} as the sidecar of {firsts[known[0]]} says: leave the "
            "flag out, or preprocess the scans as it says"
        )
    if None not in firsts:
        return known[0]
    if stated.registration and stated.mask:
        return stated
    raise ValueError(
        f"{firsts[None]} has no sidecar, {firsts[known[0]]} has one ({known[0]}): scans made in "
        "different ways must not be mixed; put the sidecars beside their scans, preprocess all "
        "alike, or, where you know that they are alike, give --registration and --mask"
    )


def compare_provenance(scans: Sequence[Path], trained: Provenance) -> dict:
    """How scans to be predicted were made, against a checkpoint's training scans.

    Returns:
        Plain values: what the checkpoint says, how many scans have no sidecar, how many differ,
        the first that does, and in what they differ.

    Raises:
        ValueError: all damaged sidecars.
    """
    ways = read_provenance(scans)
    differing = {
        scan: made.differences(trained)
        for scan, made in zip(scans, ways, strict=True)
        if made and made.differences(trained)
    }
    return {
        "checkpoint": asdict(trained),
        "scans_without_sidecar": ways.count(None),
        "scans_that_differ": len(differing),
        "first_that_differs": next((str(scan) for scan in differing), None),
        "differences": sorted(set().union(*differing.values())),
    }


def format_comparison(comparison: dict) -> str:
    """What test.py prints of it: how the training scans were made, and what to know of these."""
    trained = Provenance(**comparison["checkpoint"])
    if trained == UNKNOWN:
        return "training scans: the checkpoint does not say how they were preprocessed"
    lines = [f"training scans: {trained}"]
    if comparison["scans_without_sidecar"]:
        lines.append(
            f"note: {comparison['scans_without_sidecar']} scans have no sidecar that says how they "
            "were preprocessed"
        )
    if comparison["scans_that_differ"]:
        lines.append(
            f"warning: {comparison['scans_that_differ']} scans, the first "
            f"{comparison['first_that_differs']}, were preprocessed in another way than the "
            f"training scans ({'; '.join(comparison['differences'])}): do not trust their ages; "
            "preprocess them as the training scans were"
        )
    return "\n".join(lines)
