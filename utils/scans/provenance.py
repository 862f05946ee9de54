"""How scans were made: the JSON sidecar beside a preprocessed scan, and those of a whole cohort.

data_preprocessing/preprocess.py writes `OUT/name.json` beside `OUT/name.nii.gz`. BIDS has .json
files beside scans too, and other programs write some that nobody can read: where one lacks our
format, nobody knows how its scan was made. A damaged one of ours is an error.
`utils.scans.volumes.InputRule` says how a network reads a scan.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path

from utils.cli import raise_all
from utils.files import image_stem, write_json

FORMAT = "tsan-preprocessing-1"
OURS = b'"format": "tsan'  # near the start of a sidecar of ours, of any version
SIBLINGS_READ = 20  # other sidecars of a folder that are looked at to know whose the folder is


@dataclass(frozen=True)
class Provenance:
    """How scans were brought onto the network's grid; None where unknown.

    A checkpoint stores it: a network expects scans that were made as its training scans were.

    Attributes:
        registration: `deformable` or `affine`.
        mask: which mask took the brain out of the head, the `template`'s or the `subject`'s.
        backend: `builtin`, `fsl` or `resample`; they differ in bias field, mask edge and warp.
    """

    registration: str | None = None
    mask: str | None = None
    backend: str | None = None

    @classmethod
    def from_sidecar(cls, sidecar: dict) -> "Provenance":
        """How the scan of a sidecar was made."""
        return cls(**{field.name: sidecar["recipe"][field.name] for field in fields(cls)})

    def __str__(self) -> str:
        return ", ".join(f"{name} {value or 'unknown'}" for name, value in asdict(self).items())

    def differences(self, other: "Provenance") -> list[str]:
        """What both know and differs, such as `registration affine, not deformable`."""
        theirs = asdict(other)
        return [
            f"{name} {value}, not {theirs[name]}"
            for name, value in asdict(self).items()
            if value and theirs[name] and value != theirs[name]
        ]

    def filled_from(self, other: "Provenance") -> "Provenance":
        """This provenance, with the values of `other` where it is unknown."""
        return replace(other, **{name: value for name, value in asdict(self).items() if value})


UNKNOWN = Provenance()


def sidecar_path(scan: Path) -> Path:
    """The sidecar of `scan`: beside it, .json instead of .nii.gz or .nii."""
    return scan.with_name(f"{image_stem(scan.name)}.json")


def read_sidecar(scan: Path) -> dict | None:
    """The sidecar of a scan; None where there is none, or one of another program in any state.

    The sidecar of a linked scan (as data_preprocessing/split_dataset.py makes them) may lie beside
    the link, or beside the file that the link points at.

    Raises:
        ValueError: a damaged file of ours, or one without a recipe.
    """
    for path in _find_sidecars(scan):
        content, problem = _load(path)
        if problem and _is_ours(path):
            raise ValueError(f"{path}: not readable as JSON ({problem}); preprocess its scan again")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            continue
        recipe, names = content.get("recipe"), asdict(UNKNOWN)
        if not isinstance(recipe, dict) or not all(isinstance(recipe.get(n), str) for n in names):
            raise ValueError(
                f"{path}: a recipe with {', '.join(names)} expected, found {recipe!r}; preprocess "
                "its scan again"
            )
        return content
    return None


def _find_sidecars(scan: Path) -> list[Path]:
    """The sidecars beside a scan, and beside the files that it is a link to."""
    places = [scan]
    while scan.exists() and places[-1].is_symlink():  # links that lead in a circle do not exist
        places.append(places[-1].parent / places[-1].readlink())
    return [path for path in map(sidecar_path, places) if path.is_file()]


def _load(path: Path) -> tuple[object, str]:
    """What a JSON file holds, UTF-8 with a byte order mark and UTF-16 included; or why not."""
    try:
        return json.loads(path.read_bytes()), ""
    except (ValueError, OSError, RecursionError) as error:  # other bytes and text are ValueErrors
        return None, str(error)


def _is_ours(path: Path) -> bool:
    """Whether a sidecar that cannot be read is ours, by its start or by the files around it."""
    if _has_our_format(path) or path.with_suffix(".png").is_file():  # a picture is of ours alone
        return True
    folder = path.parent
    if any(folder.glob("preprocessing*.html")):
        return True
    others = (other for other in folder.glob("*.json") if other != path)
    return any(map(_has_our_format, islice(others, SIBLINGS_READ)))


def _has_our_format(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return OURS in file.read(256).replace(b"\0", b"")  # UTF-16 too
    except OSError:
        return False


def note_unreadable(scans: Iterable[Path]) -> None:
    """Prints how many scans have a .json beside them that cannot be read, and the first of them."""
    found = [
        f"{path} ({problem})"
        for scan in scans
        for path in _find_sidecars(scan)
        if (problem := _load(path)[1])
    ]
    if found:
        print(
            f"note: {len(found)} .json files beside scans cannot be read and are not of this "
            "project, so how their scans were preprocessed is unknown; the first is "
            f"{found[0]}"
        )


def write_sidecar(scan: Path, content: dict, *, overwrite: bool = False) -> None:
    """Writes the sidecar of `scan`, with our format.

    Raises:
        FileExistsError: there is one and `overwrite` is false.
        ValueError: a number that is not finite, which JSON does not have: give None.
    """
    write_json(sidecar_path(scan), {"format": FORMAT} | content, overwrite=overwrite)


def read_provenance(scans: Sequence[Path]) -> list[Provenance | None]:
    """How each scan was made; None where it has no sidecar of ours.

    Sidecars of others that cannot be read are printed as a note.

    Raises:
        ValueError: all damaged sidecars of ours.
    """
    made, problems = [], []
    for scan in scans:
        try:
            sidecar = read_sidecar(scan)
        except ValueError as error:
            problems.append(str(error))
        else:
            made.append(Provenance.from_sidecar(sidecar) if sidecar else None)
    raise_all(problems)
    note_unreadable(scans)
    return made


def common_provenance(scans: Sequence[Path], stated: Provenance = UNKNOWN) -> Provenance:
    """How all scans of a training were made.

    Scans without a sidecar beside scans with one are refused too: a folder filled from two sources
    looks like this. Where registration and mask are stated, they count, and the backend is unknown.

    Args:
        scans: of training and validation.
        stated: what the flags say.

    Raises:
        ValueError: damaged sidecars, scans made in different ways, or in another way than stated.
    """
    firsts: dict[Provenance | None, Path] = {}
    for scan, made in zip(scans, read_provenance(scans), strict=True):
        firsts.setdefault(made, scan)
    known = [made for made in firsts if made]
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
    """Compares how scans to be predicted were made with how a checkpoint's training scans were.

    Returns:
        Plain values: the checkpoint's provenance, how many scans have no sidecar, how many differ,
        the first that differs, and the differences.

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
        "first_that_differs": next(map(str, differing), None),
        "differences": sorted(set().union(*differing.values())),
    }


def format_comparison(comparison: dict) -> str:
    """The result of `compare_provenance` as lines to print, with a warning where scans differ."""
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
