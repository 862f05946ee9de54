"""Any scan, made ready for the network: found on the grid, or brought there; judged and drawn.

What `predict.py` needs of this package in one function. A scan that lies on the network's grid is
left where it is; any other is preprocessed as `preprocess.py` does it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_preprocessing.pipeline.inputs import Source
from data_preprocessing.pipeline.mosaic import draw_mosaic
from data_preprocessing.pipeline.one_scan import Job, message_of, preprocess
from data_preprocessing.pipeline.quality import inspect, sentences
from data_preprocessing.pipeline.workers import KILLED, in_processes
from utils.scans.provenance import Provenance, read_sidecar
from utils.scans.template import load_template
from utils.scans.volumes import IMAGE_SUFFIXES, decode, open_scan


@dataclass(frozen=True)
class Ready:
    """A scan as the network may read it, or why it may not.

    Attributes:
        scan: on the grid; None where it failed.
        contents: what it was: `grid` (ready already), `head` or `brain`.
        flags: code of quality to a sentence, see quality.py.
        notes: what else people should know, a sentence each.
        picture: its mosaic; None where there is none.
        error: why there is no scan.
    """

    scan: Path | None
    contents: str = ""
    flags: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    picture: Path | None = None
    error: str = ""


def lies_on_grid(source: Source) -> bool:
    """Whether a scan is a NIfTI file on the network's grid, by its header alone."""
    if source.is_dicom or not source.path.name.lower().endswith(IMAGE_SUFFIXES):
        return False
    try:
        open_scan(source.path)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Wanted:
    """What is the same for all scans of a call.

    Attributes:
        output_dir: for pictures, and for the scans that are made.
        registration: of the network's training scans, for scans that do not say theirs.
        job: how scans off the grid are preprocessed; None where there are none.
    """

    output_dir: Path
    registration: str | None
    job: Job | None


def prepare_all(
    sources: Sequence[Source], ready: set[Source], wanted: Wanted, *, jobs: int
) -> Iterator[tuple[Source, Ready]]:
    """Every scan as it becomes ready, in any order; a process that is killed costs its own scan.

    Args:
        sources: all scans; their names may hold folders.
        ready: those that lie on the grid already, to be left where they are.
        wanted: see there.
        jobs: processes at a time.
    """
    # Each task says of its own scan whether it is ready: the whole set would travel with every one.
    tasks = [(source, source in ready) for source in sources]
    for (source, _), found in in_processes(partial(_prepare, wanted=wanted), tasks, jobs=jobs):
        yield source, found or Ready(None, error=f"{source.path}: {KILLED}")


def _prepare(task: tuple[Source, bool], wanted: Wanted) -> Ready:
    source, ready = task
    try:
        if ready:
            return _as_it_is(source, wanted)
        return _preprocessed(source, wanted.job)
    except Exception as error:  # whatever it is, the other scans go on
        return Ready(None, error=message_of(error, source))


def _as_it_is(source: Source, wanted: Wanted) -> Ready:
    """Judges and draws a scan that lies on the grid; the scan itself is not copied."""
    volume = decode(source.path)
    record = read_sidecar(source.path)
    registration = Provenance.from_sidecar(record).registration if record else wanted.registration
    quality = inspect(volume, registration=registration)
    picture = wanted.output_dir / f"{source.name}.png"
    draw_mosaic(
        volume,
        load_template().mask,
        picture,
        title="\n".join((Path(source.name).name, *quality.flags.values())),
        flagged=bool(quality.flags),
        overwrite=True,  # of an earlier call that was interrupted before its row
    )
    notes = () if record else ("no record of how it was preprocessed",)
    return Ready(source.path, "grid", quality.flags, notes, picture)


def _preprocessed(source: Source, job: Job) -> Ready:
    row = preprocess(source, job)
    if row.status == "failed":
        return Ready(None, error=row.message)
    scan = job.output_dir / f"{source.name}.nii.gz"
    record = read_sidecar(scan)
    flags = record["qc"]["flags"]
    if not isinstance(flags, dict):  # of before flags had codes
        flags = {"quality": "; ".join(sentences(flags))} if flags else {}
    return Ready(scan, record["contents"], flags, tuple(record["notes"]), row.picture)
