r"""Large folders: check, training start-up, prediction and report of up to 10,000 scans.

    python -m tests.audit.load --counts 1000 3000 10000

Takes about 10 minutes on two cores, and an hour more for predict.py (`--steps` names some). Each
step runs in a process of its own on generated scans, no two of which are alike. Printed are its
seconds and the highest memory that it, or a process that it started, held. The scans of the check
and of predict.py are on the network's grid; those of the other steps are small, because otherwise
the network would take nearly all of the time.
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
from tests.audit.load_steps import ON_GRID, STEPS
from utils.cli import new_parser, number, run_entry
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE

SMALL = (32, 36, 32)  # voxels


def small_brain() -> np.ndarray:
    """A ball of one brightness; its radius fills a quarter of the box, as a brain of the grid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in SMALL), indexing="ij", sparse=True)
    return np.where(sum(axis**2 for axis in axes) < 0.75**2, 100, 0).astype(np.uint8)


def brain_on_the_grid() -> np.ndarray:
    """The template's fluid, grey and white matter, with noise, as hard to compress as a scan."""
    template = load_template()
    brain = np.where(template.mask > 0, 40.0, 0.0)
    brain[template.grey], brain[template.white] = 70, 100
    noise = np.random.default_rng(0).normal(0, 6, brain.shape)
    return np.where(template.mask > 0, (brain + noise).clip(1, 255), 0).astype(np.uint8)


def write_scans(folder: Path, brain: np.ndarray, count: int) -> None:
    """`count` copies of a brain, each with its number in its voxels, and their sheet."""
    inside = np.argwhere(brain)[:32]
    scans = folder / "scans"
    scans.mkdir(parents=True)
    rows = []
    for index in range(count):
        for bit, place in enumerate(inside):
            brain[tuple(place)] = 90 + 5 * (index >> bit & 1)
        image = nibabel.Nifti1Image(brain, GRID_AFFINE)
        name = f"sub-{index:05d}.nii.gz"
        (scans / name).write_bytes(gzip.compress(image.to_bytes(), 1))
        rows.append(f"{name},{20 + index % 70},{index % 2}\n")
    (folder / "labels.csv").write_text("".join(rows))


def measure(
    folder: Path, counts: Sequence[int], steps: Sequence[str]
) -> Iterator[tuple[int, str, dict[str, float]]]:
    """Every step for every count, each in a process of its own."""
    for count in counts:
        small, grid = folder / f"small-{count}", folder / f"grid-{count}"
        write_scans(grid, brain_on_the_grid(), count)
        write_scans(small, small_brain(), count)
        for step in steps:
            request = {"step": step, "folder": str(grid if step in ON_GRID else small)}
            yield count, step, in_own_process("tests.audit.load_steps", request)
        for used in (small, grid):
            shutil.rmtree(used)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Time and memory of check, start-up, prediction and report of many scans.")
    parser.add_argument(
        "--counts", nargs="+", type=number(int, low=1), default=[1000, 3000, 10000], help="scans"
    )
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS),
        help="in this order; report needs the ages of prediction",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> list[tuple[int, str, dict[str, float]]]:
    """Measures, prints and returns the rows."""
    args = build_parser().parse_args(argv)
    rows = []
    print("| scans | step | seconds | ms per scan | MiB | page MB |")
    print("| --: | --- | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        for count, step, figures in measure(Path(folder), args.counts, args.steps):
            rows.append((count, step, figures))
            page = f"{figures['page MB']:.0f}" if "page MB" in figures else ""
            seconds = figures["seconds"]
            cells = (count, step, f"{seconds:.1f}", f"{1000 * seconds / count:.1f}")
            print(f"| {' | '.join(map(str, cells))} | {figures['MiB']:.0f} | {page} |", flush=True)
    return rows


if __name__ == "__main__":
    run_entry(main)
