"""Raw T1-weighted scans onto the network's grid: brains in MNI152 space, 91x109x91 voxels of 2 mm.

pipeline/one_scan.py does one scan: it skips finished ones and turns an error into a row of
failures.tsv. This program runs it for all scans, in processes of one thread each, on this machine
or, with --shard, on the nodes of a cluster.

    python -m data_preprocessing.preprocess SCANS... --output_dir OUT
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data_preprocessing.pipeline.inputs import find_sources
from data_preprocessing.pipeline.one_scan import Request, check_backend, prepare_all
from data_preprocessing.pipeline.recipe import BACKENDS, CONTENTS, MASKS, REGISTRATIONS, Recipe
from data_preprocessing.pipeline.reports import add_earlier_rows, page_row, write_reports
from data_preprocessing.pipeline.workers import jobs_that_fit
from utils.cli import SHOWN_PROBLEMS, Switch, new_parser, number, run_entry
from utils.files import require_writable
from utils.scans.provenance import Provenance

SOME_FAILED = 3  # exit code


def parse_shard(text: str) -> tuple[int, int]:
    """An argparse type: (i, n) from `i/n`, 1 to n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"i/n expected, i from 1 to n, such as 3/16; got {text!r}")
    return index, count


def choose_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that the flags give, or that the checkpoint of --like was trained with.

    Raises:
        ValueError: flags that contradict the checkpoint or leave the recipe open.
    """
    registration, mask = args.registration, args.mask
    if registration is None and args.backend == "resample":
        raise ValueError(
            "--backend resample: say how these scans were registered to MNI152 space: "
            "--registration deformable or affine"
        )
    if args.like:
        registration, mask = _read_training(args)
    registration = registration or "deformable"
    # An affine leaves the brain's own outline, which the template's mask would cut.
    subject = registration == "affine" and args.backend != "fsl"  # FSL knows the template's alone
    mask = mask or ("subject" if subject else "template")
    return Recipe(args.backend, registration, mask, args.contents)


def _read_training(args: argparse.Namespace) -> tuple[str, str | None]:
    """Registration and mask of the training scans of --like."""
    # Only here, so that nothing else waits for torch.
    from utils.networks.checkpoint import load_checkpoint

    trained = load_checkpoint(args.like).provenance
    if trained.registration is None:
        raise ValueError(f"{args.like}: does not say how its training scans were registered")
    if differences := Provenance(args.registration, args.mask).differences(trained):
        raise ValueError(
            f"{args.like} was trained on scans made in another way than asked: "
            f"{'; '.join(differences)}"
        )
    if trained.backend not in (None, args.backend):
        print(f"note: {args.like} was trained on scans of --backend {trained.backend}")
    return trained.registration, trained.mask


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Bring raw T1-weighted scans onto the network's grid.")
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="NIfTI or MGH files, folders of them, a BIDS dataset, folders of a DICOM series",
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True, help="for scans and reports")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="builtin",
        help="builtin: pip packages; fsl: fsl_anat, as published; resample: scans in MNI152 space "
        "on another grid",
    )  # fmt: skip
    parser.add_argument(
        "--registration", choices=REGISTRATIONS,
        help="unset: deformable; affine has 12 degrees of freedom. With --backend resample: how "
        "the scans were registered",
    )  # fmt: skip
    parser.add_argument(
        "--mask", choices=MASKS,
        help="the part of the head that is kept; unset: the template's brain after deformable, the "
        "subject's after affine registration (fsl: always the template's)",
    )  # fmt: skip
    parser.add_argument(
        "--contents", choices=CONTENTS, default="auto",
        help="heads, or brains that are extracted already; auto: seen from each image",
    )  # fmt: skip
    parser.add_argument(
        "--like", metavar="CHECKPOINT",
        help="registration and mask of the scans that this network was trained on",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=number(int, low=0), default=0,
        help="scans at a time, one process each, of 1.4 GiB (2.4 for voxels of 0.5 mm); 0: as many "
        "as cores and memory allow",
    )  # fmt: skip
    parser.add_argument(
        "--shard", type=parse_shard, default=(1, 1), metavar="I/N", help="do the I-th of N parts"
    )
    parser.add_argument(
        "--keep_transform", action=Switch, default=False, help="write the transforms as well"
    )
    parser.add_argument(
        "--overwrite", action=Switch, default=False, help="replace scans that exist"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Preprocesses the scans named and returns the exit code: 0, or 3 where some scans failed."""
    args = build_parser().parse_args(argv)
    request = check_backend(
        Request(
            args.output_dir,
            choose_recipe(args),
            keep_transform=args.keep_transform,
            overwrite=args.overwrite,
        )
    )
    index, count = args.shard
    sources = find_sources(args.inputs, output_dir=args.output_dir)[index - 1 :: count]
    require_writable(args.output_dir)
    prepared = prepare_all(sources, request, jobs=jobs_that_fit(args.jobs, len(sources)))
    found = dict(tqdm(prepared, total=len(sources), unit="scan", disable=None))
    rows = [page_row(source.name, found[source]) for source in sources]
    counts = Counter(row.status for row in rows)
    failed = [row.message for row in rows if row.status == "failed"]
    for message in failed[:SHOWN_PROBLEMS]:
        print(f"failed: {message}", file=sys.stderr)
    if len(failed) > SHOWN_PROBLEMS:
        print(f"... and {len(failed) - SHOWN_PROBLEMS} more in failures.tsv", file=sys.stderr)
    if count == 1:
        rows, warnings = add_earlier_rows(rows, args.output_dir)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    failures, page = write_reports(rows, args.output_dir, shard=args.shard)
    text = ", ".join(f"{counts[status]} {status}" for status in ("done", "flagged", "failed"))
    print(f"{text}; look at {page}" + (f" and {failures}" if failed else ""))
    return SOME_FAILED if failed else 0


if __name__ == "__main__":
    run_entry(lambda: sys.exit(main()))
