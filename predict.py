"""Brain ages of anybody's T1-weighted scans: preprocesses what needs it, predicts, and reports.

Run it through `bash script/predict.sh SCANS... --output_dir OUT`. Raw heads, extracted brains and
scans on the network's grid are told apart by their images. A row a scan is kept as it is finished;
run again, finished scans are skipped. Exit code: 0 all well, 1 the run failed, 2 wrong usage, 3
some scans failed.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import Switch, new_parser, number, run_entry

if TYPE_CHECKING:
    from analysis.brain_pad.calibration import Calibration
    from prediction.items import Item
    from utils.networks.predictor import Predictor

CONTENTS = ("auto", "head", "brain", "grid")
BACKENDS = ("builtin", "fsl")
REPORT = "report.html"
SOME_FAILED = 3  # exit code
SHOWN_FAILURES = 5
CALIBRATION = Path(__file__).resolve().parent / "pretrained" / "tsan_oasis1_calibration.json"


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Predict the brain ages of T1-weighted scans, and report.")
    parser.add_argument(
        "inputs", nargs="+", metavar="SCANS",
        help="NIfTI or MGH files, folders of them, BIDS datasets, outputs of fsl_anat, folders of "
        "a DICOM series; before all flags",
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="for results")
    group = parser.add_argument_group("people")
    group.add_argument(
        "--labels", metavar="SHEET",
        help="sheet with ages and sexes, both optional; unset: participants.tsv of BIDS datasets; "
        "'': none",
    )  # fmt: skip
    group.add_argument(
        "--sex_codes", nargs="+", metavar="CODE=SEX",
        help="for sheets with other codes, such as 1=male 2=female",
    )  # fmt: skip
    group.add_argument(
        "--participant_label", nargs="+", metavar="LABEL",
        help="of a BIDS dataset, these participants alone, with or without sub-",
    )  # fmt: skip
    group = parser.add_argument_group("scans")
    group.add_argument(
        "--contents", choices=CONTENTS, default="auto",
        help="whole heads, extracted brains, or brains on the network's grid; auto: seen from each "
        "header and image",
    )  # fmt: skip
    group.add_argument(
        "--backend", choices=BACKENDS, default="builtin",
        help="of the preprocessing, whose recipe is that of the network's training scans",
    )  # fmt: skip
    group = parser.add_argument_group("network")
    group.add_argument(
        "--model_name", nargs="+", metavar="FILE",
        help="checkpoints of one stage, whose mean is taken; unset: the networks in pretrained/",
    )  # fmt: skip
    group.add_argument(
        "--calibration", metavar="JSON",
        help="brain_pad.json of script/brain_pad.sh, for intervals and corrections; unset: the "
        "one of the networks in pretrained/, with those alone; '': none",
    )  # fmt: skip
    group = parser.add_argument_group("results")
    group.add_argument("--csv", action=Switch, default=False, help="predictions.csv as well")
    group.add_argument("--report", action=Switch, default=True, help=REPORT)
    group.add_argument(
        "--saliency", action=Switch, default=False,
        help="show in the report which voxels moved each age (SmoothGrad; seconds a scan)",
    )  # fmt: skip
    group.add_argument(
        "--overwrite", action=Switch, default=False, help="replace results that exist"
    )
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--jobs", type=number(int, low=0), default=0,
        help="scans prepared at a time; 0: as many as cores and memory allow",
    )  # fmt: skip
    group.add_argument("--device", default="auto", help="auto: a GPU if there is one")
    group.add_argument(
        "--threads", type=number(int, low=0), default=0, help="of the network; 0: as many as cores"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts what is named and returns the exit code: 0, or 3 where some scans failed."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from analysis.brain_pad.calibration import complete_row
    from data_preprocessing.pipeline.inputs import describe_dataset
    from prediction.items import find_items, read_people, require_table_of
    from prediction.overlays import draw_overlays
    from prediction.records import Call, predict_all, row_of
    from utils.files import require_writable
    from utils.results.tables import TABLE, write_table
    from utils.scans.labels import parse_sex_codes

    output = args.output_dir
    people = read_people(args.labels, args.inputs, parse_sex_codes(args.sex_codes))
    items = find_items(
        args.inputs,
        people,
        output_dir=output,
        contents=args.contents,
        participants=args.participant_label or (),
    )
    print(describe(items, known=bool(people)))
    if not args.overwrite:
        require_table_of(items, output / TABLE)
    predictor, model = open_predictor(args)
    calibration = open_calibration(args)
    require_writable(output)
    if any(item.is_bids for item in items):
        describe_dataset(output)
    call = Call(predictor, model, output, args.contents, args.backend, args.overwrite)
    records = predict_all(items, call, jobs=args.jobs)
    trained = predictor.checkpoint.summary.get("training_ages")
    rows = [
        complete_row(row_of(item, records[item.source], trained), calibration) for item in items
    ]
    written = [write_table(output / TABLE, rows, overwrite=True)]
    if args.csv:
        write_table(output / "predictions.csv", rows, overwrite=True)
    if args.report:
        command = shlex.join(["predict.py", *(sys.argv[1:] if argv is None else argv)])
        overlays = draw_overlays(items, records, predictor, output) if args.saliency else {}
        written.append(
            report_on(
                rows,
                output,
                pictures=pictures_of(items, records, output),
                overlays=overlays,
                calibration=calibration,
                card=card_of(predictor),
                command=command,
            )
        )
    return conclude(rows, written)


def describe(items: Sequence["Item"], *, known: bool) -> str:
    """One line: how many scans, how many are preprocessed already, of how many the sheet knows."""
    text = f"{len(items)} scans, {sum(item.on_grid for item in items)} on the network's grid"
    if known:
        text += f"; {sum(item.label is not None for item in items)} have a row in the label sheet"
    return text


def pictures_of(items: Sequence["Item"], records: Mapping, folder: Path) -> dict[str, Path]:
    """The picture of each scan that has one, by the scan's path."""
    pictures = {str(item.source.path): records[item.source]["picture"] for item in items}
    return {scan: folder / picture for scan, picture in pictures.items() if picture}


def report_on(
    rows: Sequence[Mapping], folder: Path, *, pictures: Mapping, overlays: Mapping, **origin
) -> Path:
    """Writes the report of the rows; `origin` is what `Origin` holds beside the versions."""
    from analysis.report.page import Origin, write_report

    title = f"Brain ages: {folder.resolve().name}"
    write_report(
        rows, folder / REPORT, title=title, pictures=pictures, overlays=overlays,
        origin=Origin(versions=versions(), **origin),
    )  # fmt: skip
    return folder / REPORT


def open_predictor(args: argparse.Namespace) -> tuple["Predictor", str]:
    """The network made ready, and what identifies it in the table."""
    from utils.files import sha256_of
    from utils.machine import use_machine_well
    from utils.networks.checkpoint import load_ensemble
    from utils.networks.execution import choose_execution
    from utils.networks.predictor import Predictor, shipped_networks

    use_machine_well(args.threads)
    files = [Path(name) for name in args.model_name or shipped_networks()]
    predictor = Predictor(load_ensemble(files), choose_execution(args.device, "float32"))
    print(f"stage {predictor.checkpoint.stage}, {predictor.checkpoint.source}")
    names = (f"{file.name.partition('.')[0]} {sha256_of(file)[:8]}" for file in files)
    return predictor, ", ".join(names)


def open_calibration(args: argparse.Namespace) -> "Calibration | None":
    """What gives intervals and corrections; None where there is none for this network."""
    from analysis.brain_pad.calibration import read_calibration

    if args.calibration:
        return read_calibration(args.calibration)
    if args.calibration is None and not args.model_name:
        return read_calibration(CALIBRATION)
    print("note: no calibration: the columns of intervals and corrected ages stay n/a")
    return None


def card_of(predictor: "Predictor") -> str:
    """What the checkpoints say of themselves, as text."""
    card = predictor.checkpoint.summary.get("card") or {}
    return "\n".join(lines_of(card)) or "The checkpoint has no model card."


def lines_of(content: Mapping, depth: int = 0) -> Iterator[str]:
    """Nested plain values, one a line, indented."""
    from utils.results.tables import format_figure

    for name, value in content.items():
        indent = "  " * depth
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            yield f"{indent}{name}: {format_figure(value)}"
        elif isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from lines_of(value, depth + 1)
        else:
            yield f"{indent}{name}: {value}"


def versions() -> dict[str, str]:
    """Of Python and the packages that ages depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"Python": sys.version.split()[0]}
    for package in ("torch", "numpy", "nibabel", "deepbet", "SimpleITK", "picsl-greedy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def conclude(rows: Sequence[dict], written: Sequence[Path]) -> int:
    """Prints what came of it and returns the exit code."""
    failed = [row for row in rows if row["status"] == "failed"]
    flagged = sum(row["status"] == "ok" and row["qc_flag"] != "ok" for row in rows)
    for row in failed[:SHOWN_FAILURES]:
        print(f"failed: {row['message']}", file=sys.stderr)
    if len(failed) > SHOWN_FAILURES:
        print(f"... and {len(failed) - SHOWN_FAILURES} more in the table", file=sys.stderr)
    print(
        f"{len(rows) - len(failed)} predicted ({flagged} flagged), {len(failed)} failed: "
        f"{', '.join(map(str, written))}"
    )
    return SOME_FAILED if failed else 0


if __name__ == "__main__":
    run_entry(lambda: sys.exit(main()))
