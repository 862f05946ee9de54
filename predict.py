"""Brain ages of anybody's T1-weighted scans: preprocesses what needs it, predicts, and reports.

Run it through `bash script/predict.sh SCANS... --output_dir OUT`. Raw heads, extracted brains and
scans on the network's grid are told apart by their images. A row a scan is kept as it is finished;
run again, finished scans are skipped. Exit code: 0 all well, 1 the run failed, 2 wrong usage, 3
some scans failed.
"""

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_preprocessing.bids import (
    derivative_name,
    describe_dataset,
    find_participant_tables,
    select_participants,
    split_name,
)
from data_preprocessing.inputs import Source, find_sources
from data_preprocessing.recipe import BACKENDS, Recipe
from utils.entry import Switch, new_parser, number, run_entry
from utils.files import sha256_of, write_json
from utils.labels import Label, label_of, parse_sex_codes, raise_all, read_labels

if TYPE_CHECKING:
    from analysis.calibration import Calibration
    from data_preprocessing.prepare import Ready
    from utils.predictor import Predictor

FORMAT = "tsan-prediction-1"
SOME_FAILED = 3  # exit code
SHOWN_FAILURES = 5
CALIBRATION = Path(__file__).resolve().parent / "pretrained" / "tsan_oasis1_calibration.json"


@dataclass(frozen=True)
class Item:
    """One scan of the call: where it is, who it shows, and what the sheet says of it.

    Attributes:
        source: its name is that of its results below the output folder.
        participant: `sub-...`, or the scan's name.
        session: `ses-...` or None.
        label: its row of the sheet; None where there is none.
        on_grid: whether it is predicted as it is.
    """

    source: Source
    participant: str
    session: str | None
    label: Label | None
    on_grid: bool

    def record_path(self, folder: Path) -> Path:
        """Where its result is kept."""
        return folder / f"{self.source.name}_brainage.json"


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Predict the brain ages of T1-weighted scans, and report.")
    parser.add_argument(
        "inputs", nargs="+", metavar="SCANS",
        help="NIfTI or MGH files, folders of them, BIDS datasets, outputs of fsl_anat, folders of a "
        "DICOM series",
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
        "--contents", choices=("auto", "head", "brain", "grid"), default="auto",
        help="whole heads, extracted brains, or brains on the network's grid; auto: seen from each "
        "header and image",
    )  # fmt: skip
    group.add_argument(
        "--backend", choices=[name for name in BACKENDS if name != "resample"], default="builtin",
        help="of the preprocessing, whose recipe is that of the network's training scans",
    )  # fmt: skip
    group = parser.add_argument_group("network")
    group.add_argument(
        "--model_name", nargs="+", metavar="FILE",
        help="checkpoints of one stage, whose mean is taken; unset: the networks in pretrained/",
    )  # fmt: skip
    group.add_argument(
        "--calibration", metavar="JSON",
        help="brain_pad.json of analysis/brain_pad.py, for intervals and corrections; unset: the "
        "one of the networks in pretrained/, with those alone; '': none",
    )  # fmt: skip
    group = parser.add_argument_group("results")
    group.add_argument("--csv", action=Switch, default=False, help="predictions.csv as well")
    group.add_argument("--report", action=Switch, default=True, help="report.html")
    group.add_argument(
        "--overwrite", action=Switch, default=False, help="replace results that exist"
    )
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--jobs", type=number(int, low=0), default=0,
        help="scans prepared at a time; 0: as many as cores and memory allow",
    )  # fmt: skip
    group.add_argument(
        "--device", default="auto", help="of the network; auto: a GPU if there is one"
    )
    group.add_argument(
        "--threads", type=number(int, low=0), default=0, help="of the network; 0: as many as cores"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts what is named and returns the exit code: 0, or 3 where some scans failed."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from analysis.predictions import complete_row, write_table
    from data_preprocessing.preprocess import require_writable

    items = find_items(args)
    require_table_of(items, args)
    predictor, model = open_predictor(args)
    calibration = open_calibration(args)
    require_writable(args.output_dir)
    if any(split_name(Path(item.source.name).name) for item in items):
        describe_dataset(args.output_dir)
    records = predict_all(items, predictor, model, args)
    trained = predictor.checkpoint.summary.get("training_ages")
    rows = [
        complete_row(row_of(item, records[item.source], model, trained), calibration)
        for item in items
    ]
    table = write_table(rows, args.output_dir, as_csv=args.csv, overwrite=True)
    written = [table]
    if args.report:
        pictures = {
            row["scan"]: args.output_dir / records[item.source]["picture"]
            for row, item in zip(rows, items, strict=True)
            if records[item.source]["picture"]
        }
        written.append(report(rows, pictures, predictor, calibration, argv, args))
    return conclude(rows, written)


def find_items(args: argparse.Namespace) -> list[Item]:
    """All scans of the call in the order of their names, with their rows of the sheet.

    Raises:
        FileNotFoundError, ValueError: inputs without scans, an unreadable sheet, or participants
            asked for who are not there.
    """
    from data_preprocessing.prepare import lies_on_grid

    sources = find_sources(args.inputs, output_dir=args.output_dir)
    if args.participant_label:
        names = [source.name for source in sources]
        sources = [sources[place] for place in select_participants(names, args.participant_label)]
    labels = read_all_labels(args)
    items = []
    for source in sources:
        participant, session = split_name(source.name) or (source.name, None)
        on_grid = args.contents == "grid" or (args.contents == "auto" and lies_on_grid(source))
        result = replace(source, name=derivative_name(source.name) or f"scans/{source.name}")
        items.append(Item(result, participant, session, find_label(source, labels), on_grid))
    unlabelled = sum(item.label is None for item in items) if labels else 0
    print(
        f"{len(items)} scans, {sum(item.on_grid for item in items)} of them on the network's grid"
        + (f"; {unlabelled} have no row in the label sheet" if unlabelled else "")
    )
    return items


def read_all_labels(args: argparse.Namespace) -> dict[str, Label]:
    """Rows of the sheet that is named, or of all participants.tsv of the inputs."""
    sheets = [args.labels] if args.labels else []
    if args.labels is None:
        sheets = find_participant_tables(args.inputs)
    codes = parse_sex_codes(args.sex_codes)
    return {
        name: label
        for sheet in sheets
        for name, label in read_labels(sheet, sex_codes=codes).items()
    }


def find_label(source: Source, labels: dict[str, Label]) -> Label | None:
    """The row of a scan: by its file's name, or by the name that tells it from the others."""
    named = source.path.with_name(source.path.name.removesuffix(".mgz").removesuffix(".mgh"))
    return label_of(named, labels) or label_of(Path(source.name), labels)


def require_table_of(items: Sequence[Item], args: argparse.Namespace) -> None:
    """Refuses to replace a table of other scans, which this call would lose."""
    table = args.output_dir / "predictions.tsv"
    if args.overwrite or not table.is_file():
        return
    from utils.labels import read_rows

    header, *rows = read_rows(table)
    place = header.index("scan") if "scan" in header else None
    ours = {" ".join(str(item.source.path).split()) for item in items}
    others = [row for row in rows if place is None or row[place] not in ours]
    if others:
        raise FileExistsError(
            f"{table} has {len(others)} rows of scans that are not in this call, such as "
            f"{others[0][0]}: give all scans, another --output_dir, or --overwrite to replace it"
        )


def open_predictor(args: argparse.Namespace) -> tuple["Predictor", str]:
    """The network made ready, and what identifies it in the table."""
    from utils.checkpoint import load_ensemble
    from utils.engine import choose_execution
    from utils.machine import use_machine_well
    from utils.predictor import Predictor, shipped_networks

    use_machine_well(args.threads)
    files = [Path(name) for name in args.model_name or shipped_networks()]
    predictor = Predictor(load_ensemble(files), choose_execution(args.device, "float32"))
    print(f"stage {predictor.checkpoint.stage}, {predictor.checkpoint.source}")
    names = "+".join(file.name.partition(".")[0] for file in files)
    digits = "+".join(sha256_of(file)[:8] for file in files)
    return predictor, f"{names} {digits}"


def open_calibration(args: argparse.Namespace) -> "Calibration | None":
    """What gives intervals and corrections; None where there is none for this network."""
    from analysis.calibration import read_calibration

    if args.calibration:
        return read_calibration(args.calibration)
    if args.calibration is None and not args.model_name:
        return read_calibration(CALIBRATION)
    print("note: no calibration: the columns of intervals and corrected ages stay n/a")
    return None


def wanted_of(items: Sequence[Item], predictor: "Predictor", args: argparse.Namespace):
    """How scans are prepared: as the network's training scans were."""
    from data_preprocessing.one_scan import Job, load_backend
    from data_preprocessing.prepare import Wanted

    made = predictor.checkpoint.preprocessing
    job = None
    if not all(item.on_grid for item in items):
        if made.registration is None or made.mask is None:
            raise ValueError(
                f"{predictor.checkpoint.source}: does not say how its training scans were "
                "preprocessed, so others cannot be made like them: give scans on the grid"
            )
        contents = args.contents if args.contents in ("head", "brain") else "auto"
        recipe = Recipe(args.backend, made.registration, made.mask, contents)
        backend = load_backend(recipe)
        backend.check(recipe)
        job = Job(recipe, backend.identity(recipe), args.output_dir, False, args.overwrite)
    return Wanted(args.output_dir, made.registration, job)


def predict_all(
    items: Sequence[Item], predictor: "Predictor", model: str, args: argparse.Namespace
) -> dict[Source, dict]:
    """What is known of every scan; each is kept in a file of its own once it is predicted."""
    from tqdm import tqdm

    from data_preprocessing.prepare import prepare_all
    from data_preprocessing.preprocess import jobs_that_fit

    records, problems = {}, []
    for item in items:
        try:
            found = finished(item, model, args)
        except (ValueError, OSError) as error:
            problems.append(str(error))
        else:
            if found:
                records[item.source] = found
    raise_all(problems)
    if records:
        print(f"{len(records)} of them are predicted already")
    todo = {item.source: item for item in items if item.source not in records}
    if not todo:
        return records
    wanted = wanted_of(list(todo.values()), predictor, args)
    ready = {source for source, item in todo.items() if item.on_grid}
    jobs = jobs_that_fit(args.jobs, len(todo))
    made = prepare_all(list(todo), ready, wanted, jobs=jobs)
    for source, found in tqdm(made, "scans", len(todo), disable=None, leave=False):
        records[source] = predict_one(todo[source], found, predictor, model, args)
    return records


def finished(item: Item, model: str, args: argparse.Namespace) -> dict | None:
    """The record of a scan that is predicted already; None where it is to be done.

    Raises:
        FileExistsError: it was predicted by another network, or from another file of this name.
        ValueError: its record is damaged.
    """
    path = item.record_path(args.output_dir)
    if args.overwrite or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, {FORMAT!r} expected")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a record of a prediction ({error}); remove it") from error
    if record["error"]:
        return None
    differing = [
        f"{name} {record.get(name)}, now {now}"
        for name, now in (("model", model), ("source_sha256", item.source.sha256()))
        if record.get(name) != now
    ]
    if differing:
        raise FileExistsError(
            f"{path}: of another prediction ({'; '.join(differing)}): give another --output_dir, "
            "or --overwrite to replace it"
        )
    as_asked = record["sex"] == sex_of(item) and record["asked"] == args.contents
    return record if as_asked else None


def sex_of(item: Item) -> int | None:
    """0 female, 1 male, None where unknown."""
    return item.label.sex if item.label else None


def predict_one(
    item: Item, ready: "Ready", predictor: "Predictor", model: str, args: argparse.Namespace
) -> dict:
    """Predicts a scan that is ready and keeps the record; an error becomes a part of it."""
    from utils.results import SEX_NAMES

    started = time.perf_counter()
    ages, error = {}, ready.error
    if not error:
        try:
            ages = predictor.predict(ready.scan, sex=sex_of(item))
        except (ValueError, OSError, RuntimeError) as failure:
            error = str(failure)
    notes = list(ready.notes)
    if ages and sex_of(item) is None and predictor.checkpoint.uses_sex:
        notes.append("sex unknown: the mean of the ages as either sex")
    folder = args.output_dir
    record = {
        "format": FORMAT,
        "source": str(item.source.path),
        "source_sha256": None if error else item.source.sha256(),
        "model": model,
        "sex": sex_of(item),
        "sex_name": SEX_NAMES[sex_of(item)],
        "asked": args.contents,
        "contents": ready.contents,
        "ages": {name: round(years, 4) for name, years in ages.items()},
        "flags": ready.flags | flags_of_preprocessing(ready, predictor),
        "notes": notes,
        "picture": str(ready.picture.relative_to(folder)) if ready.picture else None,
        "seconds": round(time.perf_counter() - started, 2),
        "error": error,
    }
    write_json(item.record_path(folder), record, overwrite=True)
    return record


def flags_of_preprocessing(ready: "Ready", predictor: "Predictor") -> dict[str, str]:
    """A flag where a scan says that it was made in another way than the training scans."""
    from utils.sidecars import read_preprocessing

    made = read_preprocessing([ready.scan])[0] if ready.scan else None
    differences = made.differences(predictor.checkpoint.preprocessing) if made else []
    # The backends differ little; registration and mask move ages by years.
    differences = [text for text in differences if not text.startswith("backend")]
    if not differences:
        return {}
    return {
        "preprocessing": f"made in another way than the training scans: {'; '.join(differences)}"
    }


def row_of(item: Item, record: dict, model: str, trained: Sequence[float] | None) -> dict:
    """A scan's part of the table; `trained` are the lowest and highest training age."""
    ages = record["ages"]
    row = {
        "participant_id": item.participant,
        "session_id": item.session,
        "scan": str(item.source.path),
        "sex": record["sex_name"],
        "age": item.label.age if item.label else None,
        "site": item.label.site if item.label else None,
        "stage_one_age": ages.get("stage_one_age"),
        "predicted_age": ages.get("predicted_age"),
        "status": "ok" if ages else "failed",
        "model": model,
    }
    flags = record["flags"] | flag_of_age(row, trained)
    sentences = filter(None, (record["error"], *flags.values(), *record["notes"]))
    row["qc_flag"] = ",".join(flags) or ("ok" if ages else None)
    row["message"] = "; ".join(sentences)
    return row


def flag_of_age(row: dict, trained: Sequence[float] | None) -> dict[str, str]:
    """A flag where the age, or without one the predicted age, is beyond the training ages."""
    kind = "predicted_age" if row["age"] is None else "age"
    years = row[kind]
    if trained is None or years is None or trained[0] <= years <= trained[1]:
        return {}
    name = kind.replace("_", " ")
    return {
        "age": f"{name} {years:.0f}, the network was trained on {trained[0]:.0f} to "
        f"{trained[1]:.0f} years"
    }


def report(
    rows: Sequence[dict],
    pictures: dict[str, Path],
    predictor: "Predictor",
    calibration: "Calibration | None",
    argv: Sequence[str] | None,
    args: argparse.Namespace,
) -> Path:
    """Writes report.html and returns its path."""
    from analysis.report import write_report

    path = args.output_dir / "report.html"
    write_report(
        rows,
        path,
        title=f"Brain ages: {args.output_dir.resolve().name}",
        pictures=pictures,
        calibration=calibration,
        card=predictor.checkpoint.summary.get("card"),
        command=shlex.join(["predict.py", *(sys.argv[1:] if argv is None else argv)]),
        versions=versions(),
        overwrite=True,
    )
    return path


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
    flagged = Counter(row["status"] == "ok" and row["qc_flag"] != "ok" for row in rows)[True]
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
