r"""Large folders: check, training start-up, prediction and report of up to 10,000 scans.

    python -m tests.audit.load --counts 1000 3000 10000

Takes about 10 minutes on two cores. Each step runs in a process of its own on generated scans, no
two of which are alike. Printed are its seconds and the highest memory that it, or a process that it
started, held. The scans of the check are on the network's grid; those of the other steps are small,
because otherwise the network would take nearly all of the time.
"""

import argparse
import gzip
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np

from benchmark.compare import in_own_process
from tests.audit.load_steps import STEPS
from utils.cli import new_parser, number, run_entry
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

SMALL = (32, 36, 32)  # voxels


def write_scans(folder: Path, shape: tuple[int, int, int], count: int) -> None:
    """`count` brains without detail, each with its number in its voxels, and their sheet."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij", sparse=True)
    # A radius of 0.75 fills a quarter of the box, as a brain fills a quarter of the grid.
    ball = np.where(sum(axis**2 for axis in axes) < 0.75**2, 100, 0).astype(np.uint8)
    inside = np.argwhere(ball)[:32]
    scans = folder / "scans"
    scans.mkdir(parents=True)
    rows = []
    for index in range(count):
        for bit, place in enumerate(inside):
            ball[tuple(place)] = 90 + 5 * (index >> bit & 1)
        image = nibabel.Nifti1Image(ball, GRID_AFFINE)
        name = f"sub-{index:05d}.nii.gz"
        (scans / name).write_bytes(gzip.compress(image.to_bytes(), 1))
        rows.append(f"{name},{20 + index % 70},{index % 2}\n")
    (folder / "labels.csv").write_text("".join(rows))


def measure(folder: Path, counts: Sequence[int]) -> Iterator[tuple[int, str, dict[str, float]]]:
    """Every step for every count, each in a process of its own."""
    for count in counts:
        small, grid = folder / f"small-{count}", folder / f"grid-{count}"
        write_scans(grid, GRID_SHAPE, count)
        write_scans(small, SMALL, count)
        for step in STEPS:
            request = {"step": step, "folder": str(grid if step == "check" else small)}
            yield count, step, in_own_process("tests.audit.load_steps", request)
        for used in (small, grid):
            shutil.rmtree(used)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Time and memory of check, start-up, prediction and report of many scans.")
    parser.add_argument(
        "--counts", nargs="+", type=number(int, low=1), default=[1000, 3000, 10000], help="scans"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> list[tuple[int, str, dict[str, float]]]:
    """Measures, prints and returns the rows."""
    args = build_parser().parse_args(argv)
    rows = []
    print("| scans | step | seconds | ms per scan | MiB | page MB |")
    print("| --: | --- | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        for count, step, figures in measure(Path(folder), args.counts):
            rows.append((count, step, figures))
            page = f"{figures['page MB']:.0f}" if "page MB" in figures else ""
            seconds = figures["seconds"]
            cells = (count, step, f"{seconds:.1f}", f"{1000 * seconds / count:.1f}")
            print(f"| {' | '.join(map(str, cells))} | {figures['MiB']:.0f} | {page} |", flush=True)
    return rows


if __name__ == "__main__":
    run_entry(main)
