r"""Degrades heads by transforms that are known, and measures where preprocessing then puts them.

    python -m tests.audit.heads head.nii.gz --output_dir errors

Takes about half a minute per degradation, so ten minutes per head. Each head is preprocessed as it
is and once for each degradation. A point p of the template's brain lies at T(p) in the head and at
T'(p) in the degraded head. The known transform takes T'(p) back into the head; its distance from
T(p) is the error there, in mm of the head. This measures whether the same brain lands in the same
place however it was scanned, not where it should land.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import nibabel
import numpy as np

from data_preprocessing.pipeline.builtin import check, map_scan
from data_preprocessing.pipeline.mosaic import PageRow, draw_mosaic, write_page
from data_preprocessing.pipeline.quality import correlation
from data_preprocessing.pipeline.recipe import REGISTRATIONS, Recipe
from tests.audit.degradation import Degradation, degrade, moved
from tests.audit.transforms import template_to_scan
from utils.cli import Switch, new_parser, number, raise_all, run_entry
from utils.files import image_stem, replacing, require_absent, write_tsv
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE

FAILURES = (ValueError, OSError, RuntimeError)  # the last from engines
CASES = {
    "rotation_x_25": Degradation(rotation_degrees=(25, 0, 0)),
    "rotation_y_25": Degradation(rotation_degrees=(0, 25, 0)),
    "rotation_z_25": Degradation(rotation_degrees=(0, 0, 25)),
    "shift_30_mm": Degradation(shift_mm=(10, -20, 20)),
    "scale_0.9": Degradation(scale=(0.9, 0.9, 0.9)),
    "scale_1.1": Degradation(scale=(1.1, 1.1, 1.1)),
    "shear_0.1": Degradation(shear=(0.1, -0.1, 0.1)),
    "warp_6_mm": Degradation(warp_mm=6),
    "warp_12_mm": Degradation(warp_mm=12),
    "bias_0.2": Degradation(bias=0.2),
    "noise_5_percent": Degradation(noise=0.05),
    "voxels_1x1x1.5_mm": Degradation(voxel_mm=(1, 1, 1.5)),
    "voxels_0.9x0.9x1.2_mm": Degradation(voxel_mm=(0.9, 0.9, 1.2)),
    **{
        f"axes_{code}": Degradation(orientation=code)
        for code in ("LPS", "ASR", "LPI", "RAS", "PIR")
    },
    "all_together": Degradation(
        warp_mm=9,
        shear=(0.05, -0.05, 0.05),
        scale=(1.1, 0.9, 1.05),
        rotation_degrees=(14.4, -14.4, 14.4),  # 25 degrees about an oblique axis
        shift_mm=(10, -20, 20),
        voxel_mm=(1, 1, 1.5),
        bias=0.2,
        noise=0.05,
        orientation="PIR",
    ),
}


@dataclass(frozen=True)
class Row:
    """One degraded head in the table; errors in mm of the original head."""

    head: str
    case: str
    mean_mm: float | None = None
    p95_mm: float | None = None
    max_mm: float | None = None
    correlation_before: float | None = None
    correlation_after: float | None = None
    seconds: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Placed:
    """A head on the template: where points of the template lie in it, and how alike they are."""

    points: np.ndarray
    correlation: float
    seconds: float


def preprocess(path: Path, recipe: Recipe, *, picture: Path, title: str) -> Placed:
    """Brings a head onto the grid and draws it.

    Args:
        path: of the head.
        recipe: of backend `builtin`, the one that tells where points of the template lie.
        picture: the mosaic to make.
        title: of the mosaic.
    """
    template = load_template()
    with tempfile.TemporaryDirectory(prefix="heads-") as workspace:
        start = time.perf_counter()
        mapped = map_scan(path, recipe, workspace=Path(workspace))
        seconds = time.perf_counter() - start
        points = template_to_scan(moved(np.argwhere(template.mask), GRID_AFFINE), mapped.kept)
    alike = correlation(mapped.volume, template)
    title = f"{title}\ncorrelation {alike:.3f}"
    draw_mosaic(mapped.volume, template.mask, picture, title=title, overwrite=True)
    return Placed(points, alike, seconds)


def measure(
    head: Path,
    cases: Sequence[str],
    recipe: Recipe,
    *,
    seed: int,
    pictures: Path,
) -> Iterator[Row]:
    """Yields one row for each of `cases`; a case that cannot be preprocessed is a row too."""
    name = image_stem(head.name)
    try:
        original = preprocess(head, recipe, picture=pictures / f"{name}.png", title=name)
    except FAILURES as error:
        yield Row(name, "as it is", failure=str(error))
        return
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="heads-") as folder:
            degraded, known = degrade(nibabel.load(head), CASES[case], seed=seed)
            path = Path(folder) / "degraded.nii"
            nibabel.save(degraded, path)
            picture = pictures / f"{name}_{case}.png"
            try:
                placed = preprocess(path, recipe, picture=picture, title=f"{name}, {case}")
            except FAILURES as error:
                yield Row(name, case, correlation_before=original.correlation, failure=str(error))
                continue
        errors = np.linalg.norm(known.back(placed.points) - original.points, axis=1)
        yield Row(
            name,
            case,
            float(errors.mean()),
            float(np.percentile(errors, 95)),
            float(errors.max()),
            original.correlation,
            placed.correlation,
            placed.seconds,
        )


def page_row(row: Row, pictures: Path) -> PageRow:
    """The row as it stands on the page of pictures, its errors in words."""
    title = f"{row.head}, {row.case}"
    if row.failure:
        return PageRow(title, "failed", message=row.failure)
    return PageRow(
        title,
        "done",
        row.correlation_after,
        message=f"error {row.mean_mm:.2f} mm on average, {row.max_mm:.2f} mm at most",
        picture=pictures / f"{row.head}_{row.case}.png",
        seconds=row.seconds,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table for a document."""
    lines = [
        "| head | degradation | error, mean (mm) | 95 % (mm) | largest (mm) "
        "| correlation before | after | seconds |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        figures = (
            [row.failure, "", "", "", "", ""]
            if row.failure
            else [
                f"{row.mean_mm:.2f}", f"{row.p95_mm:.2f}", f"{row.max_mm:.2f}",
                f"{row.correlation_before:.3f}", f"{row.correlation_after:.3f}",
                f"{row.seconds:.1f}",
            ]
        )  # fmt: skip
        cells = (row.head, row.case, *figures)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def write_tables(rows: Sequence[Row], tables: tuple[Path, Path], *, overwrite: bool) -> None:
    """Writes the rows as .tsv and as .md."""
    tsv, document = tables
    header = [field.name for field in fields(Row)]
    write_tsv(tsv, [header, *map(astuple, rows)], overwrite=overwrite)
    with replacing(document, overwrite=overwrite) as temporary:
        temporary.write_text(markdown(rows), encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Errors of preprocessing on heads degraded by known transforms.")
    parser.add_argument("heads", nargs="+", type=Path, metavar="HEAD", help=".nii.gz or .nii")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="gets errors.tsv, .md, page.html, pictures"
    )
    parser.add_argument("--registration", choices=REGISTRATIONS, default="deformable", help=" ")
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        metavar="CASE",
        help="degradations to try; give them after the heads",
    )
    parser.add_argument("--seed", type=number(int, low=0), default=0, help="of warp, bias, noise")
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measures, prints and returns the rows."""
    args = build_parser().parse_args(argv)
    tables = (args.output_dir / "errors.tsv", args.output_dir / "errors.md")
    page, pictures = args.output_dir / "page.html", args.output_dir / "pictures"
    if not args.overwrite:
        require_absent(*tables, page, pictures)
    _check_heads(args.heads)
    recipe = Recipe(backend="builtin", registration=args.registration)
    check(recipe)
    rows = []
    for head in args.heads:
        for row in measure(head, args.cases, recipe, seed=args.seed, pictures=pictures):
            rows.append(row)
            # A run takes long: what is known is shown, and kept if it is stopped.
            print(markdown([row]).splitlines()[-1], flush=True)
            write_tables(rows, tables, overwrite=args.overwrite or len(rows) > 1)
    write_page(
        [page_row(row, pictures) for row in rows],
        page,
        title="Degraded heads",
        overwrite=args.overwrite,
    )
    return rows


def _check_heads(heads: Sequence[Path]) -> None:
    """Raises ValueError naming every head that is missing or has the name of another."""
    problems, seen = [], {}
    for head in heads:
        if not head.is_file():
            problems.append(f"{head}: no such file; a head as .nii.gz or .nii expected")
        other = seen.setdefault(image_stem(head.name), head)
        if other is not head:
            problems.append(f"{other} and {head}: two heads of one name, rename one")
    raise_all(problems)


if __name__ == "__main__":
    run_entry(main)
