"""The record of each scan, kept in a file as soon as it is known, and its row of the table."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from data_preprocessing.pipeline.inputs import Source
from data_preprocessing.pipeline.one_scan import Prepared, Request, check_backend, prepare_all
from data_preprocessing.pipeline.workers import jobs_that_fit
from prediction.items import Item
from utils.cli import raise_all
from utils.files import write_json
from utils.networks.predictor import Predictor
from utils.people.codebook import SEX_NAMES
from utils.scans.leakage import SEEN_IN_TRAINING
from utils.scans.provenance import Provenance, read_sidecar
from utils.scans.volumes import GRID_SHAPE

FORMAT = "tsan-prediction-1"
RECORD, SALIENCY = "_brainage.json", "_saliency.png"  # behind a scan's name
SHOWN_TWINS = 5
MEMORY = 2**30  # bytes of images, at most, that wait for the network
# The keys of a record that its row of the table is made of.
KEPT = {"format", "error", "ages", "flags", "notes", "picture", "sex", "model", "scan"}


@dataclass(frozen=True)
class PredictionRequest:
    """What is the same for all scans of a call.

    Attributes:
        predictor: gives the ages.
        model: identifies its networks in records and table.
        contents: `auto`, `head`, `brain` or `grid`, as the user says, see items.py.
        scans: how scans are prepared: as the training scans of the networks were.
    """

    predictor: Predictor
    model: str
    contents: str
    scans: Request


def predict_all(
    items: Sequence[Item], request: PredictionRequest, *, jobs: int
) -> dict[Source, dict]:
    """The record of every scan; each is written to its file once the scan is predicted.

    Args:
        items: scans; those that are predicted already are not predicted again.
        request: the same for all.
        jobs: scans prepared at a time; 0: as many as cores and memory allow.

    Raises:
        FileExistsError, ValueError: all records that are damaged or of another prediction; scans to
            be preprocessed by a backend that is missing, or for a network of unknown preprocessing.
    """
    records = find_records(items, request)
    todo = {item.source: item for item in items if item.source not in records}
    if records:
        print(f"{len(records)} of them are predicted already")
    if not todo:
        return records
    scans = request.scans
    # A link to nowhere fails by itself and needs no backend.
    if any(not source.on_grid and source.path.exists() for source in todo):
        if scans.recipe is None:
            raise ValueError(
                f"{request.predictor.checkpoint.source}: does not say how its training scans were "
                "preprocessed, so others cannot be made like them: give scans on the grid"
            )
        scans = check_backend(scans)
    scans = replace(scans, input_rule=request.predictor.checkpoint.input_rule)
    prepared = _prepare_in_parts(list(todo), scans, jobs=jobs_that_fit(jobs, len(todo)))
    for source, found in tqdm(prepared, "scans", len(todo), disable=None, leave=False):
        records[source] = predict_one(todo[source], found, request)
    return records


def find_records(items: Sequence[Item], request: PredictionRequest) -> dict[Source, dict]:
    """The records of scans that are predicted already; raises as `find_record`, all at once."""
    records, problems = {}, []
    for item in items:
        try:
            if record := find_record(item, request):
                records[item.source] = record
        except (ValueError, OSError) as error:
            problems.append(str(error))
    raise_all(problems)
    return records


def _prepare_in_parts(
    sources: list[Source], request: Request, *, jobs: int
) -> Iterator[tuple[Source, Prepared]]:
    """As `prepare_all`; part by part, since images wait in memory for a network that is slower."""
    at_once = MEMORY // (4 * math.prod(request.input_rule.input_shape(GRID_SHAPE)))
    for start in range(0, len(sources), at_once):
        yield from prepare_all(sources[start : start + at_once], request, jobs=jobs)


def note_same_files(records: Mapping[Source, dict]) -> None:
    """Prints a note where files of several scans hold the same bytes: copies, or links to one."""
    groups: dict[str, list[str]] = {}
    for source, record in records.items():
        if content := record.get("source_sha256"):
            groups.setdefault(content, []).append(str(source.path))
    if twins := [" = ".join(names) for names in groups.values() if len(names) > 1]:
        print(
            "note: the same content under several names, each a row of the table: "
            f"{', '.join(twins[:SHOWN_TWINS])}{', ...' * (len(twins) > SHOWN_TWINS)}"
        )


def find_record(item: Item, request: PredictionRequest) -> dict | None:
    """The record of a scan that has been predicted as requested; None where it is to be predicted.

    Raises:
        FileExistsError: the scan was predicted by another network, or the record is of another
            file of this name.
        ValueError: the record is damaged.
    """
    path = request.scans.path(item.source, RECORD)
    if request.scans.overwrite or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, {FORMAT!r} expected")
        if missing := KEPT - record.keys():
            raise ValueError(f"{', '.join(sorted(missing))} not in it")
        if record["error"]:
            return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a record of a prediction ({error}); remove it") from error
    try:
        expected = _describe_request(request, record.get("contents")) | {
            "source_sha256": item.source.sha256()
        }
    except OSError:
        return None  # the scan is gone, which its row will tell
    differing = [
        f"{name} {record.get(name)}, now {value}"
        for name, value in expected.items()
        if record.get(name) != value
    ]
    if differing:
        raise FileExistsError(
            f"{path}: of another prediction ({'; '.join(differing)}): give another --output_dir, "
            "or --overwrite to replace it"
        )
    return record if record["sex"] == SEX_NAMES[item.sex] else None


def _describe_request(request: PredictionRequest, contents: str) -> dict:
    """The part of the request on which an age depends; other records are not replaced unasked."""
    recipe = None if contents == "grid" else request.scans.recipe
    backend = recipe.backend if recipe else None
    return {"model": request.model, "asked": request.contents, "backend": backend}


def predict_one(item: Item, prepared: Prepared, request: PredictionRequest) -> dict:
    """Predicts a prepared scan and writes its record; an error becomes a part of the record."""
    started, predictor = time.perf_counter(), request.predictor
    ages, unlikeness, sha256, error = {}, None, None, prepared.error
    flags, notes = dict(prepared.quality.get("flags", {})), list(prepared.notes)
    try:
        if prepared.image is not None:
            found = predictor.ages_of_input(prepared.image, item.sex)
            if not all(map(math.isfinite, found.values())):
                raise ValueError(f"{prepared.scan}: the network gives no finite age")
            flags |= _flag_preprocessing(prepared.scan, predictor.checkpoint.provenance)
            sha256 = item.source.sha256()
            if prepared.content_hash in (predictor.checkpoint.trained_on or ()):
                notes.append(f"{SEEN_IN_TRAINING}: not the error of a new scan")
            if item.sex is None and predictor.checkpoint.uses_sex:
                notes.append("sex unknown: the mean of the ages as either sex")
            ages = {name: round(years, 4) for name, years in found.items()}
            unlikeness = ages.pop("unlikeness", None)
    except (ValueError, OSError, RuntimeError) as failure:
        error = str(failure)
    folder, picture = request.scans.output_dir, prepared.picture
    record = {
        "format": FORMAT,
        "source": str(item.source.path),
        "source_sha256": sha256,
        "scan": str(prepared.scan) if prepared.scan else None,
        **_describe_request(request, prepared.contents),
        "sex": SEX_NAMES[item.sex],
        "contents": prepared.contents,
        "ages": ages,
        "unlikeness": unlikeness,
        "flags": flags,
        "notes": notes,
        "picture": str(picture.relative_to(folder)) if picture else None,
        "seconds_of_network": round(time.perf_counter() - started, 2),
        "error": error,
    }
    try:
        write_json(request.scans.path(item.source, RECORD), record, overwrite=True)
        request.scans.path(item.source, SALIENCY).unlink(missing_ok=True)  # of an earlier age
    except OSError as failure:  # the disk is full: the scan is done again by the next call
        record |= {"ages": {}, "error": str(failure)}
    return record


def _flag_preprocessing(scan: Path, trained: Provenance) -> dict[str, str]:
    """A flag where the sidecar tells another registration or mask than the training scans had."""
    sidecar = read_sidecar(scan)
    differences = Provenance.from_sidecar(sidecar).differences(trained) if sidecar else []
    # Backends differ little; registration and mask move ages by years.
    differences = [text for text in differences if not text.startswith("backend")]
    if not differences:
        return {}
    text = f"made in another way than the training scans: {'; '.join(differences)}"
    return {"preprocessing": text}


def table_row(
    item: Item, record: dict, trained: Sequence[float] | None, *, site: str | None = None
) -> dict:
    """What is known of a scan, by the names of the table's columns.

    Args:
        item: the scan.
        record: from `predict_all`.
        trained: lowest and highest age of the training scans, years; None where unknown.
        site: where no sheet gives one.
    """
    ages, label = record["ages"], item.label
    row = {
        "participant_id": item.participant,
        "session_id": item.session,
        "scan": str(item.source.path),
        "sex": SEX_NAMES[item.sex],
        "age": label.age if label else None,
        "label_source": label.source if label else None,
        "site": (label.site if label else None) or site,
        "stage_one_age": ages.get("stage_one_age"),
        "predicted_age": ages.get("predicted_age"),
        "unlikeness": record.get("unlikeness"),
        "status": "ok" if ages else "failed",
        "model": record["model"],
    }
    flags = record["flags"] | flag_age(row, trained)
    row["qc_flag"] = ",".join(flags) or ("ok" if ages else None)
    doubt = f"age unknown: {label.doubt}" if label and label.doubt else None
    messages = (record["error"], *flags.values(), *record["notes"], doubt)
    row["message"] = "; ".join(filter(None, messages))
    return row


def flag_age(row: dict, trained: Sequence[float] | None) -> dict[str, str]:
    """A flag where the age, or the predicted age if that is unknown, exceeds the training ages."""
    kind = "predicted_age" if row["age"] is None else "age"
    years = row[kind]
    if trained is None or years is None or trained[0] <= years <= trained[1]:
        return {}
    low, high = trained
    text = f"{kind.replace('_', ' ')} {years:.0f}, trained on {low:.0f} to {high:.0f} years"
    return {"outside_training_ages": text}
