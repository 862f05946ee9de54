"""What is known of each scan, kept in a file as soon as it is known, and its row of the table."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_preprocessing.pipeline.inputs import Source
from data_preprocessing.pipeline.one_scan import Job, load_backend
from data_preprocessing.pipeline.prepare import Ready, Wanted, prepare_all
from data_preprocessing.pipeline.recipe import Recipe
from data_preprocessing.pipeline.workers import jobs_that_fit
from prediction.items import Item
from utils.cli import raise_all
from utils.files import write_json
from utils.networks.predictor import Predictor
from utils.scans.labels import SEX_NAMES
from utils.scans.provenance import read_provenance

FORMAT = "tsan-prediction-1"
# What a record must have for a row to be made of it.
KEPT = {"format", "error", "ages", "flags", "notes", "picture", "sex", "model", "scan"}


@dataclass(frozen=True)
class Call:
    """What is the same for all scans.

    Attributes:
        predictor: gives the ages.
        model: identifies its networks in records and table.
        output_dir: for all results.
        contents: what the user says that the scans are, see items.py.
        backend: of the preprocessing.
        overwrite: whether results of another network or scan may be replaced.
    """

    predictor: Predictor
    model: str
    output_dir: Path
    contents: str = "auto"
    backend: str = "builtin"
    overwrite: bool = False


def predict_all(items: Sequence[Item], call: Call, *, jobs: int) -> dict[Source, dict]:
    """What is known of every scan; each is kept in its file once it is predicted.

    Args:
        items: scans; those that are predicted already are not done again.
        call: see there.
        jobs: scans prepared at a time; 0: as many as cores and memory allow.

    Raises:
        FileExistsError, ValueError: all records that are of another prediction, or damaged.
    """
    records, problems = {}, []
    for item in items:
        try:
            if record := finished(item, call):
                records[item.source] = record
        except (ValueError, OSError) as error:
            problems.append(str(error))
    raise_all(problems)
    todo = {item.source: item for item in items if item.source not in records}
    if records:
        print(f"{len(records)} of them are predicted already")
    if not todo:
        return records
    wanted = wanted_of(list(todo.values()), call)
    ready = {source for source, item in todo.items() if item.on_grid}
    made = prepare_all(list(todo), ready, wanted, jobs=jobs_that_fit(jobs, len(todo)))
    for source, found in tqdm(made, "scans", len(todo), disable=None, leave=False):
        records[source] = predict_one(todo[source], found, call)
    return records


def wanted_of(items: Sequence[Item], call: Call) -> Wanted:
    """How scans are prepared: as the network's training scans were.

    Raises:
        ValueError: that is unknown where scans are to be preprocessed, or the backend is missing.
    """
    checkpoint = call.predictor.checkpoint
    made, job = checkpoint.provenance, None
    if checkpoint.input_rule.any_grid:
        raise ValueError(
            f"{checkpoint.source}: trained with --any_grid, so nobody knows where its scans lie: "
            "predict with test.py"
        )
    if not all(item.on_grid for item in items):
        if made.registration is None or made.mask is None:
            raise ValueError(
                f"{checkpoint.source}: does not say how its training scans were preprocessed, so "
                "others cannot be made like them: give scans on the grid"
            )
        contents = "auto" if call.contents == "grid" else call.contents
        recipe = Recipe(call.backend, made.registration, made.mask, contents)
        backend = load_backend(recipe)
        backend.check(recipe)
        job = Job(recipe, backend.identity(recipe), call.output_dir, False, call.overwrite)
    return Wanted(call.output_dir, made.registration, job)


def finished(item: Item, call: Call) -> dict | None:
    """The record of a scan that is predicted already; None where it is to be done.

    Raises:
        FileExistsError: it was predicted by another network, or from another file of this name.
        ValueError: its record is damaged.
    """
    path = item.record_path(call.output_dir)
    if call.overwrite or not path.is_file():
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
        now = asked_of(item, call) | {"source_sha256": item.source.sha256()}
    except OSError:
        return None  # that the scan is gone becomes its row
    differing = [
        f"{name} {record.get(name)}, now {value}"
        for name, value in now.items()
        if record.get(name) != value
    ]
    if differing:
        raise FileExistsError(
            f"{path}: of another prediction ({'; '.join(differing)}): give another --output_dir, "
            "or --overwrite to replace it"
        )
    return record if record["sex"] == SEX_NAMES[item.sex] else None


def asked_of(item: Item, call: Call) -> dict:
    """What of the call an age depends on; a record of another call is not replaced unasked."""
    backend = None if item.on_grid else call.backend
    return {"model": call.model, "asked": call.contents, "backend": backend}


def predict_one(item: Item, ready: Ready, call: Call) -> dict:
    """Predicts a scan that is ready and keeps its record; an error becomes a part of it."""
    started = time.perf_counter()
    ages: dict[str, float] = {}
    flags, notes, error, sha256 = dict(ready.flags), list(ready.notes), ready.error, None
    if not error:
        try:
            ages = call.predictor.predict(ready.scan, sex=item.sex)
            if not all(map(math.isfinite, ages.values())):
                raise ValueError(f"{ready.scan}: the network gives no finite age")
            flags |= flags_of_preprocessing(ready.scan, call.predictor)
            sha256 = item.source.sha256()
            if call.predictor.has_seen(ready.scan):
                notes.append("in this network's training set: not the error of a new scan")
        except (ValueError, OSError, RuntimeError) as failure:
            ages, error = {}, str(failure)
    if ages and item.sex is None and call.predictor.checkpoint.uses_sex:
        notes.append("sex unknown: the mean of the ages as either sex")
    record = {
        "format": FORMAT,
        "source": str(item.source.path),
        "source_sha256": sha256,
        "scan": str(ready.scan) if ready.scan else None,
        **asked_of(item, call),
        "sex": SEX_NAMES[item.sex],
        "contents": ready.contents,
        "ages": {name: round(years, 4) for name, years in ages.items()},
        "flags": flags,
        "notes": notes,
        "picture": str(ready.picture.relative_to(call.output_dir)) if ready.picture else None,
        "seconds_of_network": round(time.perf_counter() - started, 2),
        "error": error,
    }
    write_json(item.record_path(call.output_dir), record, overwrite=True)
    item.overlay_path(call.output_dir).unlink(missing_ok=True)  # of an earlier age
    return record


def flags_of_preprocessing(scan: Path, predictor: Predictor) -> dict[str, str]:
    """A flag where a scan says that it was made in another way than the training scans."""
    (made,) = read_provenance([scan])
    differences = made.differences(predictor.checkpoint.provenance) if made else []
    # Backends differ little; registration and mask move ages by years.
    differences = [text for text in differences if not text.startswith("backend")]
    if not differences:
        return {}
    text = f"made in another way than the training scans: {'; '.join(differences)}"
    return {"preprocessing": text}


def row_of(item: Item, record: dict, trained: Sequence[float] | None) -> dict:
    """A scan's part of the table, see utils/results/tables.py.

    Args:
        item: the scan.
        record: from `predict_all`.
        trained: lowest and highest age of the training scans, years; None where unknown.
    """
    ages = record["ages"]
    row = {
        "participant_id": item.participant,
        "session_id": item.session,
        "scan": str(item.source.path),
        "sex": SEX_NAMES[item.sex],
        "age": item.label.age if item.label else None,
        "site": item.label.site if item.label else None,
        "stage_one_age": ages.get("stage_one_age"),
        "predicted_age": ages.get("predicted_age"),
        "status": "ok" if ages else "failed",
        "model": record["model"],
    }
    flags = record["flags"] | flag_of_age(row, trained)
    row["qc_flag"] = ",".join(flags) or ("ok" if ages else None)
    row["message"] = "; ".join(filter(None, (record["error"], *flags.values(), *record["notes"])))
    return row


def flag_of_age(row: dict, trained: Sequence[float] | None) -> dict[str, str]:
    """A flag where the age, or without one the predicted age, is beyond the training ages."""
    kind = "predicted_age" if row["age"] is None else "age"
    years = row[kind]
    if trained is None or years is None or trained[0] <= years <= trained[1]:
        return {}
    low, high = trained
    text = f"{kind.replace('_', ' ')} {years:.0f}, trained on {low:.0f} to {high:.0f} years"
    return {"outside_training_ages": text}
