"""What predict.py does: finds the scans, predicts them, writes table and report."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scipy.stats import binom

from analysis.brain_pad.calibration import (
    KNOWN_PERCENT,
    Calibration,
    add_flag,
    complete_row,
    is_unlike,
    read_calibration,
)
from analysis.report.page import Origin, write_report
from data_preprocessing.pipeline.inputs import describe_dataset, find_sources
from data_preprocessing.pipeline.one_scan import Request
from data_preprocessing.pipeline.recipe import Recipe
from prediction.items import Item, find_items, require_all_rows
from prediction.overlays import draw_overlays
from prediction.people import read_people
from prediction.records import PredictionRequest, note_same_files, predict_all, table_row
from utils.files import require_writable
from utils.machine import use_machine_well
from utils.networks.checkpoint import load_ensemble
from utils.networks.execution import choose_execution
from utils.networks.predictor import PRETRAINED, Predictor, shipped_networks
from utils.people.codebook import parse_sex_codes
from utils.results.tables import (
    TABLE,
    UNLIKE,
    describe_model,
    format_figure,
    model_hashes,
    write_table,
)
from utils.scans.provenance import note_unreadable

REPORT = "report.html"
CALIBRATION = PRETRAINED / "tsan_calibration.json"
SOME_FAILED = 3  # exit code
SHOWN_FAILURES = 5
FEWEST_OF_SCANNER = 5  # scans by which a scanner is judged
CERTAINTY = 0.999  # that scans of a known scanner are not taken for those of another
PACKAGES = ("torch", "numpy", "nibabel", "deepbet", "SimpleITK", "picsl-greedy")


def run(args: argparse.Namespace, *, command: str) -> int:
    """Predicts the scans that the flags name and writes the results.

    Args:
        args: flags of predict.py.
        command: as the user gave it, for the report.

    Returns:
        The exit code: 0, or SOME_FAILED.
    """
    output = args.output_dir
    items = find_scans(args)
    request = open_networks(args)
    calibration = open_calibration(args, request.model)
    require_writable(output)
    note_unreadable(item.source.path for item in items if item.source.on_grid)
    if any(not item.source.name.startswith("scans/") for item in items):
        describe_dataset(output)  # some names are those of BIDS
    records = predict_all(items, request, jobs=args.jobs)
    note_same_files(records)
    trained = request.predictor.checkpoint.summary.get("training_ages")
    rows = [table_row(item, records[item.source], trained, site=args.site) for item in items]
    rows = [complete_row(row, calibration) for row in rows]
    flag_scanners(rows, calibration)
    written = [write_table(output / TABLE, rows, overwrite=True)]
    if args.csv:
        write_table(output / "predictions.csv", rows, overwrite=True)
    if args.report:
        pictures = {str(source.path): record["picture"] for source, record in records.items()}
        write_report(
            rows,
            output / REPORT,
            title=f"Brain ages: {output.resolve().name}",
            pictures={scan: output / path for scan, path in pictures.items() if path},
            overlays=draw_overlays(items, records, request) if args.saliency else {},
            origin=describe_origin(request.predictor, calibration, command),
        )
        written.append(output / REPORT)
    return conclude(rows, written)


def flag_scanners(rows: Sequence[dict], calibration: Calibration | None) -> None:
    """Flags all scans of a site where more are unlike the training scans than chance explains.

    Single scans of another scanner may lie within the limit; five or more of one tell. Without
    sites all scans of the call are taken as of one.

    Args:
        rows: of the table, complete.
        calibration: with the limit, which 5 % of new scans of known scanners exceed.
    """
    predicted = [row for row in rows if row["unlikeness"] is not None]
    for site in sorted({row["site"] or "" for row in predicted}):
        scans = [row for row in predicted if (row["site"] or "") == site]
        unlike = sum(is_unlike(row, calibration) for row in scans)
        expected = binom.ppf(CERTAINTY, len(scans), 1 - KNOWN_PERCENT / 100)
        if len(scans) >= FEWEST_OF_SCANNER and unlike > expected:
            text = f"{unlike} of {len(scans)} scans{f' of {site}' if site else ''} are unlike the "
            text += "training scans: the scanner is, and ages may be off by years"
            print(f"warning: {text}; docs/analyse.md, Recalibrate")
            for row in scans:
                add_flag(row, UNLIKE, text)


def find_scans(args: argparse.Namespace) -> list[Item]:
    """The scans of the call; prints how many there are.

    Raises:
        ValueError, FileNotFoundError: as `find_sources`, `read_people` and `find_items`.
        FileExistsError: the table of an earlier call has other scans.
    """
    sources = find_sources(args.inputs, output_dir=args.output_dir)
    people = read_people(args.labels, args.inputs, sources, parse_sex_codes(args.sex_codes))
    items = find_items(
        sources,
        people,
        output_dir=args.output_dir,
        contents=args.contents,
        participants=args.participant_label or (),
        headers=args.labels is None or any(args.labels),
    )
    text = f"{len(items)} scans, {sum(item.source.on_grid for item in items)} on the network's grid"
    known = sum(item.label is not None for item in items)
    if people or known:
        text += f"; labels of {known} are known"
    print(text)
    if not args.overwrite:
        require_all_rows(items, args.output_dir / TABLE)
    return items


def open_networks(args: argparse.Namespace) -> PredictionRequest:
    """Loads the networks; scans are to be prepared as their training scans were.

    Raises:
        FileNotFoundError, ValueError: as `load_ensemble`; training scans of an unknown place.
    """
    use_machine_well(args.threads)
    files = [Path(name) for name in args.model_name or shipped_networks()]
    predictor = Predictor(load_ensemble(files), choose_execution(args.device, "float32"))
    checkpoint, recipe = predictor.checkpoint, None
    print(f"stage {checkpoint.stage}, {checkpoint.source}")
    if checkpoint.input_rule.any_grid:
        raise ValueError(
            f"{checkpoint.source}: trained with --any_grid, so nobody knows where its scans lie: "
            "predict with test.py"
        )
    trained = checkpoint.provenance
    if trained.registration and trained.mask:
        contents = "auto" if args.contents == "grid" else args.contents
        recipe = Recipe(args.backend, trained.registration, trained.mask, contents)
    scans = Request(
        args.output_dir,
        recipe,
        registration=trained.registration,
        overwrite=args.overwrite,
        trust_grid=args.contents == "grid",
    )
    return PredictionRequest(predictor, describe_model(files), args.contents, scans)


def open_calibration(args: argparse.Namespace, model: str) -> Calibration | None:
    """What intervals and corrections are made of; None where these networks have none.

    Args:
        args: flags of predict.py.
        model: of the networks that predict, as the table names them.

    Raises:
        ValueError: not a calibration, or one that script/recalibrate.sh made of other networks.
    """
    if args.calibration:
        calibration = read_calibration(args.calibration)
        scanner = calibration.scanner
        if scanner and model_hashes(scanner.model) != model_hashes(model):
            raise ValueError(
                f"{args.calibration}: made from ages of {scanner.model}, which are not the "
                f"networks that predict ({model}): predict the local people with these, and run "
                "script/recalibrate.sh again"
            )
        return calibration
    if args.calibration is None and not args.model_name:
        return read_calibration(CALIBRATION)
    print("note: no calibration: the columns of intervals and corrected ages stay n/a")
    return None


def describe_origin(predictor: Predictor, calibration: Calibration | None, command: str) -> Origin:
    """How the ages were made, with the versions of Python and the packages that matter."""
    card = predictor.checkpoint.summary.get("card") or {}
    text = "\n".join(format_card(card)) or "The checkpoint has no model card."
    versions = {"Python": sys.version.split()[0]}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Origin(calibration=calibration, card=text, command=command, versions=versions)


def format_card(content: Mapping, depth: int = 0) -> Iterator[str]:
    """The lines of a model card: nested plain values, indented, one per line."""
    for name, value in content.items():
        indent = "  " * depth
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            yield f"{indent}{name}: {format_figure(value)}"
        elif isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from format_card(value, depth + 1)
        else:
            yield f"{indent}{name}: {value}"


def conclude(rows: Sequence[dict], written: Sequence[Path]) -> int:
    """Prints how many scans were predicted, flagged and failed, and returns the exit code."""
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
