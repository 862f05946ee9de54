r"""Measures what the flags of quality catch, and how often good scans are flagged.

    python -m tests.audit.quality --data "$TSAN_DATA" --output_dir flags --heads HEAD...

Takes 0.2 s per volume on one core: a few minutes for 400 scans. Every scan of the folders is
measured as it is. A flag there is a false alarm, or a scan that should not be there; its picture
tells which. Some scans are then spoilt on the grid, as failed or missing preprocessing spoils them.
A case is caught where any flag is raised. Heads, which need the packages of
requirements-preprocessing.txt, are registered by their brain and keep their skull.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data_preprocessing.pipeline.builtin import map_scan, resample
from data_preprocessing.pipeline.mosaic import draw_mosaic
from data_preprocessing.pipeline.native import read_native
from data_preprocessing.pipeline.quality import RULES, Measures, Quality, inspect
from data_preprocessing.pipeline.recipe import REGISTRATIONS, Recipe
from tests.audit.transforms import load_transform
from utils.cli import Switch, new_parser, number, run_entry
from utils.files import image_stem, replacing, require_absent, write_tsv
from utils.scans.template import load_template
from utils.scans.volumes import decode, find_scans

FOLDERS = ("train", "val", "test", "retest", "dementia")
AXES = dict(zip("xyz", range(3), strict=True))  # right-left, back-front, bottom-top
NOISY, CLIPPED = (0.05, 0.1, 0.2), (99, 95, 90)
DEGREES, MILLIMETRES, CUT = (5, 10, 20), (5, 10, 20), (10, 20, 30)

Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def moved(volume: np.ndarray, _, *, degrees=(0, 0, 0), mm=(0, 0, 0)) -> np.ndarray:
    """Turned about the middle of the template's brain, then shifted; along the axes of the grid."""
    middle = np.argwhere(load_template().mask).mean(axis=0)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().T
    offset = middle - turn @ (middle + np.array(mm) / 2)
    return ndimage.affine_transform(volume, turn, offset, order=1)


def flipped(volume: np.ndarray, _, *, axes: tuple[int, ...]) -> np.ndarray:
    """The voxels of axes in the opposite order."""
    return np.flip(volume, axes)


def exchanged(volume: np.ndarray, _, *, order: tuple[int, ...]) -> np.ndarray:
    """Axes in another order, cut and padded to the grid."""
    middle = volume[:, 9:100]  # 91 cubed
    return np.pad(middle.transpose(order), ((0, 0), (9, 9), (0, 0)))


def without(volume: np.ndarray, _, *, axis: int, low: float = 0.0, high: float = 0.0) -> np.ndarray:
    """Nothing in a share `low` of the brain's extent along an axis, and `high` at its other end."""
    planes = np.nonzero((volume > 0).any(axis=tuple({0, 1, 2} - {axis})))[0]
    first, last = planes.min(), planes.max() + 1
    kept = np.zeros(volume.shape[axis], bool)
    kept[first + round(low * (last - first)) : last - round(high * (last - first))] = True
    return volume * np.expand_dims(kept, tuple({0, 1, 2} - {axis}))


def topless(volume: np.ndarray, _, *, mm: float) -> np.ndarray:
    """The uppermost planes of the brain gone, as by a field of view that was too low."""
    top = np.nonzero((volume > 0).any(axis=(0, 1)))[0].max() + 1
    spoilt = volume.copy()
    spoilt[:, :, top - round(mm / 2) :] = 0
    return spoilt


def noisy(volume: np.ndarray, generator: np.random.Generator, *, share: float) -> np.ndarray:
    """Rician noise in the brain, its SD in shares of the brain's median."""
    deviation = share * np.median(volume[volume > 0])
    real, imaginary = generator.normal(0, deviation, (2, *volume.shape))
    return np.where(volume > 0, np.hypot(volume + real, imaginary), 0)


def clipped(volume: np.ndarray, _, *, percentile: float) -> np.ndarray:
    """No value above a percentile of the brain."""
    return np.minimum(volume, np.percentile(volume[volume > 0], percentile))


def in_a_skull(volume: np.ndarray, _) -> np.ndarray:
    """A dark skull from 3 mm and a bright scalp from 8 to 16 mm around the brain."""
    distance = 2 * ndimage.distance_transform_edt(volume <= 0)
    median = np.median(volume[volume > 0])
    shells = np.select([distance < 3, distance < 8, distance < 16], [0.4, 0.12, 1.5], 0.0)
    return np.where(volume > 0, volume, median * shells)


CASES: dict[str, Spoil] = {
    **{
        f"turned by {angle} degrees about {axis}": partial(
            moved, degrees=tuple(angle * (place == at) for place in range(3))
        )
        for angle in DEGREES
        for axis, at in AXES.items()
    },
    **{
        f"shifted by {mm} mm along {axis}": partial(
            moved, mm=tuple(mm * (place == at) for place in range(3))
        )
        for mm in MILLIMETRES
        for axis, at in AXES.items()
    },
    "upside down": partial(flipped, axes=(2,)),
    "back to front": partial(flipped, axes=(1,)),
    "both": partial(flipped, axes=(1, 2)),
    "left to right (cannot be seen)": partial(flipped, axes=(0,)),
    "axes x and y exchanged": partial(exchanged, order=(1, 0, 2)),
    "axes y and z exchanged": partial(exchanged, order=(0, 2, 1)),
    "axes x and z exchanged": partial(exchanged, order=(2, 1, 0)),
    "axes in a circle": partial(exchanged, order=(1, 2, 0)),
    "generated skull and scalp": in_a_skull,
    "right half missing": partial(without, axis=0, low=0.5),
    "left half missing": partial(without, axis=0, high=0.5),
    "front half missing": partial(without, axis=1, high=0.5),
    "front third missing": partial(without, axis=1, high=1 / 3),
    "upper half missing": partial(without, axis=2, high=0.5),
    **{f"uppermost {mm} mm missing": partial(topless, mm=mm) for mm in CUT},
    **{f"noise of {share:.0%}": partial(noisy, share=share) for share in NOISY},
    **{f"clipped at {at} %": partial(clipped, percentile=at) for at in CLIPPED},
    "empty": lambda volume, _: np.zeros_like(volume),
    "constant": lambda volume, _: np.ones_like(volume),
}
HEADS = "heads with their skulls"


@dataclass(frozen=True)
class Row:
    """One volume and what was found."""

    case: str
    scan: str
    seconds: float
    quality: Quality


def measure(case: str, scan: str, volume: np.ndarray, registration: str) -> Row:
    """Inspects one volume."""
    start = time.process_time()
    quality = inspect(volume.astype(np.float32), registration=registration)
    return Row(case, scan, time.process_time() - start, quality)


def measure_cohort(args: argparse.Namespace) -> Iterator[tuple[Row, np.ndarray]]:
    """Every scan as it is, folder by folder, and one of `--every` in every case; with its voxels.

    Within a folder the spoilt scans are spread evenly, so that small folders have theirs too.
    """
    generator = np.random.default_rng(args.seed)
    for folder in args.folders:
        for index, path in enumerate(find_scans(args.data / folder)):
            volume = decode(path)
            scan = f"{folder}/{image_stem(path.name)}"
            yield measure(folder, scan, volume, args.registration), volume
            for case, spoil in CASES.items() if index % args.every == 0 else ():
                spoilt = spoil(volume, generator)
                yield measure(case, scan, spoilt, args.registration), spoilt


def measure_heads(args: argparse.Namespace) -> Iterator[tuple[Row, np.ndarray]]:
    """Every head on the grid; with its voxels."""
    for path in args.heads:
        volume = head_on_grid(path)
        yield measure(HEADS, image_stem(path.name), volume, args.registration), volume


def head_on_grid(path: Path) -> np.ndarray:
    """A whole head on the grid, (91, 109, 91) float32, where the affine of its brain puts it."""
    recipe = Recipe(registration="affine", mask="subject", contents="head")
    with tempfile.TemporaryDirectory(prefix="quality-") as workspace:
        mapped = map_scan(path, recipe, workspace=Path(workspace))
        native = read_native(path)
        return resample(native.voxels, native.affine, load_transform(mapped.kept))


def markdown(rows: Sequence[Row]) -> str:
    """A table for a document: of each case how many were flagged, and with which codes."""
    lines = ["| case | n | flagged % | by which codes (%) |", "| --- | --: | --: | --- |"]
    named = dict.fromkeys(row.case for row in rows)
    for case in sorted(named, key=lambda case: case in CASES):  # scans as they are first
        found = [row.quality.flags for row in rows if row.case == case]
        share = 100 / len(found)
        codes = Counter(code for flags in found for code in flags)
        by = ", ".join(f"{code} {share * count:.0f}" for code, count in codes.most_common())
        flagged = share * sum(map(bool, found))
        lines.append(f"| {case} | {len(found)} | {flagged:.1f} | {by} |")
    return "\n".join(lines) + "\n"


def distribution(rows: Sequence[Row], folders: Sequence[str]) -> str:
    """A table of what scans measure as they are, pooled over folders, beside the limits."""
    lines = [
        "| measure | 0.5 %, 1 %, 50 %, 99 %, 99.5 % | limit: affine, deformable |",
        "| --- | --- | --- |",
    ]
    for rule in RULES:
        values = [getattr(row.quality, rule.measure) for row in rows if row.case in folders]
        parts = ", ".join(f"{part:.3g}" for part in np.percentile(values, (0.5, 1, 50, 99, 99.5)))
        lines.append(f"| {rule.measure} | {parts} | {rule.affine:g}, {rule.deformable:g} |")
    return "\n".join(lines) + "\n"


def write_measures(rows: Sequence[Row], path: Path, *, overwrite: bool) -> None:
    """Writes every measure of every volume, and its codes, as .tsv."""
    names = [field.name for field in fields(Measures)]
    values = [[getattr(row.quality, name) for name in names] for row in rows]
    cells = [
        [row.case, row.scan, round(row.seconds, 3), " ".join(row.quality.flags), *measured]
        for row, measured in zip(rows, values, strict=True)
    ]
    write_tsv(path, [["case", "scan", "seconds", "codes", *names], *cells], overwrite=overwrite)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("What the flags of quality catch, and how often they are wrong.")
    parser.add_argument(
        "--data", type=Path, required=True, help="holds folders of good scans on the grid"
    )
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS), metavar="NAME", help=" ")
    parser.add_argument(
        "--output_dir", type=Path, required=True,
        help="gets measures.tsv, table.md, and pictures of scans that are flagged as they are",
    )  # fmt: skip
    parser.add_argument(
        "--heads", nargs="+", type=Path, default=[], metavar="HEAD",
        help="whole heads, .nii.gz or .nii, to be laid on the grid with their skulls",
    )  # fmt: skip
    parser.add_argument(
        "--registration", choices=REGISTRATIONS, default="affine", help="whose limits are used"
    )
    parser.add_argument(
        "--every",
        type=number(int, low=1),
        default=30,
        help="one scan in so many is spoilt",
    )
    parser.add_argument("--seed", type=number(int, low=0), default=0, help="of the noise")
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measures, prints and returns the rows."""
    args = build_parser().parse_args(argv)
    table, measures = args.output_dir / "table.md", args.output_dir / "measures.tsv"
    if not args.overwrite:
        require_absent(table, measures)
    rows = []
    for row, volume in chain(measure_cohort(args), measure_heads(args)):
        rows.append(row)
        if row.case in args.folders and row.quality.flags:
            picture = args.output_dir / "flagged" / f"{row.scan.replace('/', '_')}.png"
            title = "\n".join((row.scan, *row.quality.flags.values()))
            draw_mosaic(volume, load_template().mask, picture, title=title, overwrite=True)
    seconds = np.median([row.seconds for row in rows])
    text = (
        f"{markdown(rows)}\n{distribution(rows, args.folders)}\n"
        f"Seconds of a processor for one scan, median: {seconds:.2f}\n"
    )
    print(text)
    write_measures(rows, measures, overwrite=args.overwrite)
    with replacing(table, overwrite=args.overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return rows


if __name__ == "__main__":
    run_entry(main)
