"""Raw T1-weighted scans onto the network's grid: brains in MNI152 space, 91x109x91 voxels of 2 mm.

One function, in one_scan.py, does one scan: it skips what is done and turns an error into a row of
failures.tsv. Everything else here is a loop over it, in processes of one thread each, on this
machine or, with --shard, on the nodes of a cluster.

    python -m data_preprocessing.preprocess SCANS... --output_dir OUT
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_preprocessing.pipeline.inputs import Source, find_sources
from data_preprocessing.pipeline.mosaic import PageRow, write_page
from data_preprocessing.pipeline.one_scan import Job, load_backend, preprocess, row_of
from data_preprocessing.pipeline.recipe import BACKENDS, CONTENTS, MASKS, REGISTRATIONS, Recipe
from data_preprocessing.pipeline.workers import KILLED, in_processes, jobs_that_fit
from utils.cli import SHOWN_PROBLEMS, Switch, new_parser, number, run_entry
from utils.files import require_writable, write_tsv
from utils.scans.provenance import read_sidecar
from utils.scans.volumes import image_stem

SOME_FAILED = 3  # exit code


def preprocess_all(sources: Sequence[Source], job: Job, *, jobs: int) -> list[PageRow]:
    """Rows of all scans, in the order of `sources`; a bar shows the progress.

    Args:
        sources: of this shard.
        job: the same for all.
        jobs: processes at a time.
    """
    from tqdm import tqdm

    done = in_processes(partial(preprocess, job=job), sources, jobs=jobs)
    rows = {
        source.name: row or PageRow(source.name, "failed", message=f"{source.path}: {KILLED}")
        for source, row in tqdm(done, total=len(sources), unit="scan", disable=None)
    }
    return [rows[source.name] for source in sources]


def add_earlier(rows: Sequence[PageRow], folder: Path) -> tuple[list[PageRow], list[str]]:
    """Rows of this call and of what earlier ones left in `folder`; and scans that are there twice.

    A scan is there twice where it was given under another name before, alone or from elsewhere.
    """
    everything, same = {row.name: row for row in rows}, defaultdict(list)
    for scan in sorted(folder.glob("*.nii.gz")):
        name = image_stem(scan.name)
        ours = everything.get(name)
        if scan.name.startswith(".") or (ours and ours.status == "failed"):
            continue
        try:
            record = read_sidecar(scan)
        except ValueError:
            continue
        if record and "source_sha256" in record:
            everything.setdefault(name, row_of(name, folder, record))
            same[record["source_sha256"]].append(scan.name)
    return list(everything.values()), [
        f"{' and '.join(names)} in {folder} are the same scan: remove one"
        for names in same.values()
        if len(names) > 1
    ]


def write_reports(rows: Sequence[PageRow], folder: Path, *, shard: tuple[int, int]) -> list[Path]:
    """Writes failures.tsv and the page of all pictures; a shard's have its number in the name."""
    mark = "" if shard[1] == 1 else f"_{shard[0]}_of_{shard[1]}"
    failures, page = folder / f"failures{mark}.tsv", folder / f"preprocessing{mark}.html"
    failed = [(row.name, row.message) for row in rows if row.status == "failed"]
    write_tsv(failures, [("name", "message"), *failed], overwrite=True)
    write_page(rows, page, title="Preprocessed scans", overwrite=True)
    return [failures, page]


def shard_of(text: str) -> tuple[int, int]:
    """An argparse type: (i, n) from `i/n`, 1 to n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"i/n expected, i from 1 to n, such as 3/16; got {text!r}")
    return index, count


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe of the flags, or of the checkpoint that the scans are for.

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
        registration, mask = _as_trained(args)
    registration = registration or "deformable"
    # An affine leaves the brain's own outline, which the template's mask would cut.
    subject = registration == "affine" and args.backend != "fsl"  # FSL knows the template's alone
    mask = mask or ("subject" if subject else "template")
    return Recipe(args.backend, registration, mask, args.contents)


def _as_trained(args: argparse.Namespace) -> tuple[str, str | None]:
    from utils.networks.checkpoint import load_checkpoint
    from utils.scans.provenance import Provenance

    trained = load_checkpoint(args.like).preprocessing
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
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="NIfTI or MGH files, folders of them, a BIDS dataset, folders of a DICOM series",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for scans and reports")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="builtin",
        help="builtin: pip packages; fsl: fsl_anat, as published; resample: scans in MNI152 space "
        "on another grid",
    )
    parser.add_argument(
        "--registration",
        choices=REGISTRATIONS,
        help="unset: deformable; affine has 12 degrees of freedom. With --backend resample: how "
        "the scans were registered",
    )
    parser.add_argument(
        "--mask",
        choices=MASKS,
        help="what is left of the head; unset: the template's brain after deformable, the "
        "subject's after affine registration (fsl: always the template's)",
    )
    parser.add_argument(
        "--contents",
        choices=CONTENTS,
        default="auto",
        help="heads, or brains that are extracted already; auto: seen from each image",
    )
    parser.add_argument(
        "--like",
        metavar="CHECKPOINT",
        help="registration and mask of the scans that this network was trained on",
    )
    parser.add_argument(
        "--jobs",
        type=number(int, low=0),
        default=0,
        help="scans at a time, one process each, of 1.4 GiB (2.4 for voxels of 0.5 mm); 0: as many "
        "as cores and memory allow",
    )
    parser.add_argument(
        "--shard", type=shard_of, default=(1, 1), metavar="I/N", help="do the I-th of N parts"
    )
    parser.add_argument(
        "--keep_transform", action=Switch, default=False, help="write the transforms as well"
    )
    parser.add_argument(
        "--overwrite", action=Switch, default=False, help="replace scans that exist"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Preprocesses what is named and returns the exit code: 0, or 3 where some scans failed."""
    args = build_parser().parse_args(argv)
    recipe = recipe_of(args)
    backend = load_backend(recipe)
    backend.check(recipe)
    job = Job(
        recipe, backend.identity(recipe), args.output_dir, args.keep_transform, args.overwrite
    )
    index, count = args.shard
    sources = find_sources(args.inputs, output_dir=args.output_dir)[index - 1 :: count]
    require_writable(args.output_dir)
    rows = preprocess_all(sources, job, jobs=jobs_that_fit(args.jobs, len(sources)))
    counts = Counter(row.status for row in rows)
    failed = [row.message for row in rows if row.status == "failed"]
    for message in failed[:SHOWN_PROBLEMS]:
        print(f"failed: {message}", file=sys.stderr)
    if len(failed) > SHOWN_PROBLEMS:
        print(f"... and {len(failed) - SHOWN_PROBLEMS} more in failures.tsv", file=sys.stderr)
    if count == 1:
        rows, twins = add_earlier(rows, args.output_dir)
        for twin in twins:
            print(f"warning: {twin}", file=sys.stderr)
    failures, page = write_reports(rows, args.output_dir, shard=args.shard)
    said = ", ".join(f"{counts[status]} {status}" for status in ("done", "flagged", "failed"))
    print(f"{said}; look at {page}" + (f" and {failures}" if counts["failed"] else ""))
    return SOME_FAILED if counts["failed"] else 0


if __name__ == "__main__":
    run_entry(lambda: sys.exit(main()))
