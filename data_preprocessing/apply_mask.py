r"""Copies of scans on the grid with nothing left outside the template's brain.

    python -m data_preprocessing.apply_mask --scan_folders data/train data/val \
        --labels data/Dataset.xls --output_dir masked

For experiments: what a network reads from outside the brain (neck, skull base, dura) is taken away.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from utils.cli import new_parser, run_entry


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Copy scans on the grid without what lies outside the template's brain.")
    parser.add_argument("--scan_folders", nargs="+", required=True, metavar="DIR", help="scans")
    parser.add_argument("--labels", metavar="SHEET", help="label sheet, copied as it is")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="one folder in it each")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the copies; those that exist are kept."""
    args = build_parser().parse_args(argv)
    import nibabel
    import numpy as np

    from utils.files import replacing
    from utils.scans.template import load_template
    from utils.scans.volumes import GRID_AFFINE, decode, find_scans, image_stem

    mask = load_template().mask
    output_dir, made = Path(args.output_dir), 0
    for folder in map(Path, args.scan_folders):
        for scan in find_scans(folder):
            copy = output_dir / folder.resolve().name / f"{image_stem(scan.name)}.nii.gz"
            if copy.exists():
                continue
            voxels = np.where(mask, decode(scan), 0).astype(np.float32)
            with replacing(copy) as temporary:
                nibabel.save(nibabel.Nifti1Image(voxels, GRID_AFFINE), temporary)
            made += 1
    if args.labels and not (output_dir / Path(args.labels).name).exists():
        shutil.copy(args.labels, output_dir)
    print(f"{made} masked scans written to {output_dir}")


if __name__ == "__main__":
    run_entry(main)
