"""One raw scan onto the grid, whatever happens: skipped when done, never half-written or raised.

A scan's files are written in an order that lets a later call tell what an interrupted one left: the
record first, the scan last. Each appears under its name when it is whole.
"""

import importlib
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np

from data_preprocessing.pipeline.inputs import Source, convert_dicom
from data_preprocessing.pipeline.mosaic import PageRow, draw_mosaic
from data_preprocessing.pipeline.quality import inspect, sentences
from data_preprocessing.pipeline.recipe import Identity, Mapped, Recipe
from utils.cli import shows_tracebacks
from utils.files import replacing, require_absent, sha256_of
from utils.scans.provenance import read_sidecar, sidecar_path, write_sidecar
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE

# What BIDS requires of the record of a derivative, beside what is ours.
BIDS_KEYS = {
    "Description": "brain in MNI152 space, what lies outside it set to zero",
    "SpatialReference": "MNI152NLin6Asym, 2 mm",
    "SkullStripped": True,
    "Resolution": "voxels of 2 mm",
}


@dataclass(frozen=True)
class Job:
    """What is the same for all scans of a call."""

    recipe: Recipe
    identity: Identity
    output_dir: Path
    keep_transform: bool
    overwrite: bool


def preprocess(source: Source, job: Job) -> PageRow:
    """Brings one scan onto the grid, or finds that this has been done.

    Writes `NAME.nii.gz`, float32; `NAME.json`, how it was made; `NAME.png`, a picture; and in
    `transforms/` the transform where asked for. The scan comes last: if it is there, all is.

    Returns:
        How it went; an error is a row of status `failed` and never raised.
    """
    start = time.perf_counter()
    try:
        record = finished(source, job)
        if record is None:
            with tempfile.TemporaryDirectory(prefix="tsan-") as folder:
                record = _make(source, job, Path(folder), start)
        return row_of(source.name, job.output_dir, record)
    except Exception as error:  # the engines raise what they like; the other scans go on
        return PageRow(source.name, "failed", message=message_of(error, source))


def message_of(error: Exception, source: Source) -> str:
    """What is said of a scan that failed; with `--debug` the traceback is printed as well."""
    if shows_tracebacks():
        traceback.print_exception(error)
    known = isinstance(error, (ValueError, OSError))
    return str(error) if known else f"{source.path}: {type(error).__name__}: {error}"


def finished(source: Source, job: Job) -> dict | None:
    """The record of this scan where it has been made as asked, None where it is to be made.

    Raises:
        FileExistsError: its output exists and is another scan's, or was made in another way; or
            files that are not ours bear its name.
    """
    scan = _scan_path(source, job)
    try:
        record = read_sidecar(scan)
        differing = ["there is no record of it"] if record is None else []
    except ValueError as error:
        record, differing = None, [str(error)]
    if record is None and not job.overwrite:
        require_absent(sidecar_path(scan), _picture_path(source, job))
    if not scan.exists():
        return None
    differing = differing or _differing(source, job, record)
    if not differing:
        kept = (_transform_path(source, job, suffix) for suffix in record["transform_files"])
        return record if not job.keep_transform or all(map(Path.is_file, kept)) else None
    if job.overwrite:
        return None
    raise FileExistsError(
        f"{scan} exists and is not what would be made ({'; '.join(differing)}): give another "
        "--output_dir, or --overwrite to replace it"
    )


def _differing(source: Source, job: Job, record: dict) -> list[str]:
    """In what the scan that is there differs from the one that would be made."""
    wanted = _wanted(source, job)
    # Another recipe has other parameters as well; the recipe is what the user knows.
    found = list(_changes(record.get("recipe"), wanted["recipe"], "recipe"))
    for name, value in wanted.items() if not found else ():
        found += _changes(record.get(name), value, name)
    if sha256_of(_scan_path(source, job)) != record.get("output_sha256"):
        found.append("it was changed or damaged since")
    return found


def _changes(before: object, now: object, name: str) -> Iterator[str]:
    """What differs of two nested records, such as `mask subject, now template`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _changes(before.get(key), now.get(key), key)
    elif before != now:
        yield f"{name} {before}, now {now}"


def _wanted(source: Source, job: Job) -> dict:
    """What the record of a finished scan must say."""
    return {"source_sha256": source.sha256(), "recipe": asdict(job.recipe)} | asdict(job.identity)


def _make(source: Source, job: Job, workspace: Path, start: float) -> dict:
    backend = load_backend(job.recipe)
    image = convert_dicom(source.path, workspace) if source.is_dicom else source.path
    mapped = backend.map_scan(image, job.recipe, workspace=workspace)
    # Another call may have been faster, with this recipe or with another one.
    if record := finished(source, job):
        return record
    made = workspace / "grid.nii.gz"
    save_scan(mapped.volume, made)
    registration = job.recipe.registration
    quality = inspect(mapped.volume, registration=registration, brain=mapped.brain)
    record = {
        "source": str(source.path),
        **_wanted(source, job),
        "contents": mapped.contents,
        "transform": mapped.transform,
        "transform_files": sorted(mapped.kept),
        "qc": asdict(quality),
        "notes": mapped.notes,
        "output_sha256": sha256_of(made),
        "seconds": round(time.perf_counter() - start, 1),
        **BIDS_KEYS,
    }
    _write(source, job, mapped, record)
    _copy(made, _scan_path(source, job))
    return record


def _write(source: Source, job: Job, mapped: Mapped, record: dict) -> None:
    """Everything but the scan; the record first, so that what a kill leaves is known for ours."""
    write_sidecar(_scan_path(source, job), record, overwrite=True)
    qc = record["qc"]
    title = (
        f"{source.name}   {job.recipe.registration}   correlation {qc['correlation']:.2f}   "
        f"overlap {qc['overlap']:.2f}"
    )
    draw_mosaic(
        mapped.volume,
        load_template().mask,
        _picture_path(source, job),
        title="\n".join((title, *sentences(qc["flags"]))),
        flagged=bool(qc["flags"]),
        overwrite=True,
    )
    if job.keep_transform:
        for suffix, path in mapped.kept.items():
            _copy(path, _transform_path(source, job, suffix))


def save_scan(volume: np.ndarray, path: Path) -> None:
    """Writes a (91, 109, 91) volume as float32 NIfTI on the MNI152 2 mm grid."""
    image = nibabel.Nifti1Image(volume.astype(np.float32), GRID_AFFINE)
    image.set_sform(GRID_AFFINE, code="mni")
    image.set_qform(GRID_AFFINE, code="mni")
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def load_backend(recipe: Recipe):
    """The backend's module, see recipe.py; its packages are loaded when they are needed."""
    return importlib.import_module(f"data_preprocessing.pipeline.{recipe.backend}")


def _scan_path(source: Source, job: Job) -> Path:
    return job.output_dir / f"{source.name}.nii.gz"


def _picture_path(source: Source, job: Job) -> Path:
    return job.output_dir / f"{source.name}.png"


def _transform_path(source: Source, job: Job, suffix: str) -> Path:
    # In a folder of their own: a displacement is a NIfTI file too, and not a scan.
    return job.output_dir / "transforms" / f"{source.name}{suffix}"


def _copy(made: Path, target: Path) -> None:
    with replacing(target, overwrite=True) as temporary:
        temporary.write_bytes(made.read_bytes())


def row_of(name: str, folder: Path, record: dict) -> PageRow:
    """What the page says of a scan that is in `folder`, from its record."""
    qc = record["qc"]
    picture = folder / f"{name}.png"
    return PageRow(
        name,
        "flagged" if qc["flags"] else "done",
        correlation=qc["correlation"],
        overlap=qc["overlap"],
        flags=sentences(qc["flags"]),
        message=" ".join(record["notes"]),
        picture=picture if picture.is_file() else None,
        seconds=record["seconds"],
    )
