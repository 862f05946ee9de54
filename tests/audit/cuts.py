r"""Cuts heads as a field of view that is too small does, and measures how flat their brains end.

    python -m tests.audit.cuts HEAD... --output_dir cuts [--ages]

A cut takes away all planes of the scan up to so many millimetres of its own brain. Takes some
seconds per cut; with --ages, which gives every cut head to predict.py,
half a minute. Needs the packages of requirements-preprocessing.txt.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import nibabel
import numpy as np

from data_preprocessing.pipeline.builtin import engines_contained, find_brain
from data_preprocessing.pipeline.native import Native, flat_end, guess_contents, read_native
from utils.cli import Switch, new_parser, number, run_entry
from utils.files import image_stem, require_absent, write_tsv

ROOT = Path(__file__).resolve().parents[2]
SIDES = {
    "top": (2, 1), "bottom": (2, 0), "front": (1, 1), "back": (1, 0), "right": (0, 1),
    "left": (0, 0),
}  # fmt: skip
MILLIMETRES = (5, 10, 15, 20, 30, 40)


@dataclass(frozen=True)
class Row:
    """One cut; a whole head has `mm` 0."""

    scan: str
    contents: str
    side: str
    mm: float
    flat_end_mm2: float
    age: str = ""
    codes: str = ""


def cut(native: Native, mask: np.ndarray, side: str, mm: float) -> Native:
    """The scan without its planes up to `mm` of the brain `mask` from one side."""
    axis, from_above = SIDES[side]
    planes = np.nonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))[0]
    gone, affine = round(mm / native.voxel_size[axis]), native.affine.copy()
    kept = [slice(None)] * 3
    if from_above:
        kept[axis] = slice(0, planes.max() + 1 - gone)
    else:
        kept[axis] = slice(planes.min() + gone, None)
        affine[:3, 3] += affine[:3, axis] * kept[axis].start
    return Native(native.voxels[tuple(kept)], affine, [])


def measure(path: Path, args: argparse.Namespace) -> Iterator[Row]:
    """The whole head, then every cut of it."""
    native, name, rows = read_native(path), image_stem(path.name), {}
    contents = guess_contents(native)
    with tempfile.TemporaryDirectory(prefix="cuts-") as workspace:
        scans, log = Path(workspace) / "scans", Path(workspace) / "engines.log"
        scans.mkdir()
        with engines_contained(log):
            mask = find_brain(path, native, contents)
        for side, mm in [("whole", 0), *((s, mm) for s in args.sides for mm in args.mm)]:
            one = cut(native, mask, side, mm) if mm else native
            with engines_contained(log):
                own = find_brain(path, one, contents)
            area = round(flat_end(own, one.voxel_size))
            rows[f"{side}-{mm:g}"] = Row(name, contents, side, mm, area)
            image = nibabel.Nifti1Image(one.voxels, one.affine)
            image.to_filename(scans / f"{side}-{mm:g}.nii.gz")
        ages = predict(scans, contents, Path(workspace) / "ages") if args.ages else {}
        for scan, row in rows.items():
            yield replace(row, **ages.get(scan, {}))


def predict(scans: Path, contents: str, output: Path) -> dict[str, dict]:
    """Age and codes of every scan by its name, from predict.py and the shipped networks."""
    flags = ["--contents", contents, "--output_dir", output, "--no-report", "--jobs", "1"]
    subprocess.run([sys.executable, ROOT / "predict.py", scans, *flags], check=True)
    with (output / "predictions.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        row["participant_id"]: {"age": row["predicted_age"], "codes": row["qc_flag"]}
        for row in rows
    }


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("How flat the brains of cut heads end, and what their ages become.")
    parser.add_argument("heads", nargs="+", type=Path, help="whole heads or extracted brains")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets cuts.tsv")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES), help=" ")
    parser.add_argument(
        "--mm", nargs="*", type=number(float, low=0), default=MILLIMETRES, help="of brain"
    )
    parser.add_argument("--ages", action=Switch, default=False, help="preprocess and predict too")
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measures every head, prints and writes one row per cut, and returns the rows."""
    args = build_parser().parse_args(argv)
    table, rows = args.output_dir / "cuts.tsv", []
    if not args.overwrite:
        require_absent(table)
    for path in args.heads:
        for row in measure(path, args):
            rows.append(row)
            print(*astuple(row), sep="\t", flush=True)
    header = [column.name for column in fields(Row)]
    write_tsv(table, [header, *map(astuple, rows)], overwrite=args.overwrite)
    return rows


if __name__ == "__main__":
    run_entry(main)
