"""One scan, made ready for the network: judged where it lies on the grid, else brought onto it.

Used by preprocess.py and predict.py alike. Whatever goes wrong with a scan becomes its result and
never stops the others. The files of a scan are written in an order that tells a later call what an
interrupted one has left: the sidecar first, the scan last. Each file appears under its name only
when it is whole.
"""

import importlib
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from data_preprocessing.pipeline.dicom import CONVERTED, convert_dicom, read_dicom_label
from data_preprocessing.pipeline.inputs import Source
from data_preprocessing.pipeline.mosaic import draw_mosaic
from data_preprocessing.pipeline.quality import inspect
from data_preprocessing.pipeline.recipe import Identity, Recipe
from data_preprocessing.pipeline.workers import KILLED, in_processes
from utils.cli import shows_tracebacks
from utils.files import hash_file, naming_what_is_full, replacing, require_absent
from utils.people.codebook import SEX_NAMES
from utils.scans.provenance import Provenance, read_sidecar, sidecar_path, write_sidecar
from utils.scans.template import load_template
from utils.scans.volumes import (
    GRID_AFFINE,
    LARGEST_BRAIN,
    InputRule,
    as_input,
    decode,
    share_above_0,
)

SKULL_LEFT_ON = (
    f"on the network's grid, but more than {LARGEST_BRAIN:.0%} of it is above 0, as with skull or "
    "background left on"
)
TRANSFORMS = "transforms"  # a folder of their own: warps are NIfTI files, but not scans
# What BIDS requires in the sidecar of a derivative, beside our own keys.
BIDS_KEYS = {
    "Description": "brain in MNI152 space, what lies outside it set to zero",
    "SpatialReference": "MNI152NLin6Asym, 2 mm",
    "SkullStripped": True,
    "Resolution": "voxels of 2 mm",
}


@dataclass(frozen=True)
class Request:
    """What is the same for all scans of a call; every worker process gets a copy.

    Attributes:
        output_dir: for scans, sidecars and pictures.
        recipe: how a scan is brought onto the grid; None where every scan lies on it already.
        identity: what the recipe's backend works with, filled in by `check_backend`.
        registration: of the scans on the grid that have no sidecar; None where unknown.
        keep_transform: whether the transforms are written as well.
        overwrite: whether scans that were made in another way are replaced.
        trust_grid: whether a scan on the grid is used as it is, even with its skull.
        input_rule: of the networks that will read the scan; None where none will.
    """

    output_dir: Path
    recipe: Recipe | None = None
    identity: Identity | None = None
    registration: str | None = None
    keep_transform: bool = False
    overwrite: bool = False
    trust_grid: bool = False
    input_rule: InputRule | None = None

    def path(self, source: Source, suffix: str, *, folder: str = "") -> Path:
        """The file of a scan with this suffix, such as `.nii.gz`."""
        return self.output_dir / folder / f"{source.name}{suffix}"


@dataclass(frozen=True)
class Prepared:
    """A scan as the network may read it, or the reason why it may not.

    Attributes:
        scan: on the grid; None where it failed.
        contents: what the scan was: `grid` (on the grid already), `head` or `brain`.
        quality: the fields of `quality.Quality`, among them the flags, sentences by code.
        notes: what else people should know, one sentence each.
        picture: its mosaic; None where there is none.
        seconds: that the preprocessing took; None for a scan that lay on the grid.
        error: why there is no scan, or no image of it.
        image: (D, H, W) float32, what networks are given, where the request has an input rule.
        content_hash: of the scan, where there is an image.
    """

    scan: Path | None = None
    contents: str = ""
    quality: dict = field(default_factory=dict)
    notes: Sequence[str] = ()
    picture: Path | None = None
    seconds: float | None = None
    error: str = ""
    image: np.ndarray | None = None
    content_hash: str | None = None


def load_backend(recipe: Recipe):
    """The backend's module, see recipe.py; its packages are loaded when they are needed."""
    return importlib.import_module(f"data_preprocessing.pipeline.{recipe.backend}")


def check_backend(request: Request) -> Request:
    """The same request with the identity of its backend.

    Raises:
        ValueError, OSError: the backend cannot follow the recipe on this machine.
    """
    backend = load_backend(request.recipe)
    backend.check(request.recipe)
    return replace(request, identity=backend.identity(request.recipe))


def prepare_all(
    sources: Sequence[Source], request: Request, *, jobs: int
) -> Iterator[tuple[Source, Prepared]]:
    """Every scan as it becomes ready, in any order; a killed process loses its own scan only.

    Args:
        sources: scans of different names; a name may hold folders.
        request: from `check_backend` where any scan lies off the grid.
        jobs: processes at a time.
    """
    for source, prepared in in_processes(partial(prepare, request=request), sources, jobs=jobs):
        yield source, prepared or Prepared(error=f"{source.path}: {KILLED}")


def prepare(source: Source, request: Request) -> Prepared:
    """Judges a scan that lies on the grid, or brings it there unless this has been done.

    A scan on the grid that is more than a brain (a whole head, or a background that is not 0) is
    preprocessed like one that lies elsewhere, unless the request trusts the grid.

    Bringing it there writes `NAME.nii.gz` (float32), `NAME.json` (the sidecar), `NAME.png` (the
    picture), and its transforms where they are asked for. The scan comes last: if it exists, all
    the others do. With `--debug` the traceback of an error is printed.
    """
    workspace = ""
    try:
        if source.on_grid:
            volume = decode(source.path)
            if request.trust_grid or share_above_0(volume) <= LARGEST_BRAIN:
                return _add_image(_judge(source, volume, request), volume, request)
            request = _ready_to_make(source, request)
        sidecar = find_sidecar(source, request)
        if sidecar is None:
            with (
                naming_what_is_full(f"{source.path}: {tempfile.gettempdir()} (TMPDIR)"),
                tempfile.TemporaryDirectory(prefix="tsan-") as workspace,
            ):
                sidecar = _make(source, request, Path(workspace))
        prepared = from_sidecar(request.path(source, ".nii.gz"), sidecar)
        volume = decode(prepared.scan) if request.input_rule else None
        return _add_image(prepared, volume, request)
    except Exception as error:  # the engines raise anything; the other scans go on
        if shows_tracebacks():
            traceback.print_exception(error)
        known = isinstance(error, (ValueError, OSError))
        text = str(error) if known else f"{source.path}: {type(error).__name__}: {error}"
        if workspace:  # of a series the engines know only its converted file, which is gone by now
            converted = re.escape(str(Path(workspace, CONVERTED))) + r"[^\s:;,'\"]*"
            text = re.sub(converted, lambda _: str(source.path), text)
        return Prepared(error=text)


def _add_image(prepared: Prepared, volume: np.ndarray | None, request: Request) -> Prepared:
    """The scan with what networks are given of its `volume`, where the request asks for that."""
    if request.input_rule is None:
        return prepared
    try:
        image, content_hash = as_input(prepared.scan, volume, request.input_rule)
    except ValueError as error:  # its picture and its flags stay
        return replace(prepared, error=str(error))
    return replace(prepared, image=image, content_hash=content_hash)


def from_sidecar(scan: Path, sidecar: dict) -> Prepared:
    """The result of a scan that has been preprocessed, from its sidecar."""
    picture = sidecar_path(scan).with_suffix(".png")
    return Prepared(
        scan,
        sidecar["contents"],
        sidecar["qc"],
        sidecar["notes"],
        picture if picture.is_file() else None,
        sidecar["seconds"],
    )


def find_sidecar(source: Source, request: Request) -> dict | None:
    """The sidecar of a scan that has been made as requested; None where it is to be made.

    Raises:
        FileExistsError: the output exists and comes from another scan or was made in another way;
            or files of other programs have its name.
    """
    scan = request.path(source, ".nii.gz")
    try:
        sidecar = read_sidecar(scan)
        differing = ["there is no record of it"] if sidecar is None else []
    except ValueError as error:
        sidecar, differing = None, [str(error)]
    if sidecar is None and not request.overwrite:
        require_absent(sidecar_path(scan), request.path(source, ".png"))
    if not scan.exists():
        return None
    differing = differing or _find_differences(source, request, sidecar)
    if not differing:
        if request.keep_transform:
            ends = sidecar["transform_files"]
            kept = (request.path(source, end, folder=TRANSFORMS) for end in ends)
            return sidecar if all(path.is_file() for path in kept) else None
        return sidecar
    if request.overwrite:
        return None
    raise FileExistsError(
        f"{scan} exists and is not what would be made ({'; '.join(differing)}): give another "
        "--output_dir, or --overwrite to replace it"
    )


def _describe_request(source: Source, request: Request) -> dict:
    """What the sidecar of a finished scan must say."""
    asked = {"source_sha256": source.sha256(), "recipe": asdict(request.recipe)}
    return asked | asdict(request.identity)


def _describe_patient(source: Source) -> dict:
    """Age in years and sex by a DICOM header, and nothing else of it; empty for other files."""
    if not source.is_dicom:
        return {}
    age, sex = read_dicom_label(source.path)
    return {"age": age, "sex": SEX_NAMES[sex]}


def _find_differences(source: Source, request: Request, sidecar: dict) -> list[str]:
    """In what the scan that exists differs from the one that would be made."""
    expected = _describe_request(source, request)
    # Another recipe has other parameters as well; the recipe is what the user knows.
    found = list(_changes(sidecar.get("recipe"), expected["recipe"], "recipe"))
    for name, value in expected.items() if not found else ():
        found += _changes(sidecar.get(name), value, name)
    if hash_file(request.path(source, ".nii.gz")) != sidecar.get("output_sha256"):
        found.append("it was changed or damaged since")
    return found


def _changes(before: object, now: object, name: str) -> Iterator[str]:
    """What differs between two nested dicts, such as `mask subject, now template`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _changes(before.get(key), now.get(key), key)
    elif before != now:
        yield f"{name} {before}, now {now}"


def _ready_to_make(source: Source, request: Request) -> Request:
    """The request with its backend checked, for a scan on the grid with its skull or background.

    Raises:
        ValueError: as `check_backend`, or no recipe; names the scan and what else can be done.
    """
    try:
        if request.recipe is None:
            raise ValueError("the network does not say how its training scans were preprocessed")
        return request if request.identity else check_backend(request)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{source.path}: {SKULL_LEFT_ON}, and it cannot be preprocessed here ({error}); give "
            "its brain, or --contents grid to predict it as it is"
        ) from error


def _judge(source: Source, volume: np.ndarray, request: Request) -> Prepared:
    """Judges and draws a scan that lies on the grid; the scan itself is not copied."""
    sidecar = read_sidecar(source.path)
    registration = (
        Provenance.from_sidecar(sidecar).registration if sidecar else request.registration
    )
    # Only the record knows how the brain ended before it was registered.
    flat_end_mm2 = (sidecar or {}).get("qc", {}).get("flat_end_mm2")
    quality = asdict(inspect(volume, registration=registration, flat_end_mm2=flat_end_mm2))
    picture = request.path(source, ".png")
    _draw(volume, picture, title=Path(source.name).name, flags=quality["flags"])
    notes = () if sidecar else ("no record of how it was preprocessed",)
    return Prepared(source.path, "grid", quality, notes, picture)


def _make(source: Source, request: Request, workspace: Path) -> dict:
    """Brings a scan onto the grid and writes its files; returns its sidecar."""
    start, recipe = time.perf_counter(), request.recipe
    image = convert_dicom(source.path, workspace) if source.is_dicom else source.path
    mapped = load_backend(recipe).map_scan(image, recipe, workspace=workspace)
    mapped.notes += [f"{SKULL_LEFT_ON}: preprocessed"] if source.on_grid else []
    # Another call may have been faster, with this recipe or with another one.
    if sidecar := find_sidecar(source, request):
        return sidecar
    made, scan = workspace / "grid.nii.gz", request.path(source, ".nii.gz")
    _save_on_grid(mapped.volume, made)
    own = {"brain": mapped.brain, "flat_end_mm2": mapped.flat_end_mm2}
    quality = inspect(mapped.volume, registration=recipe.registration, **own)
    sidecar = {
        "source": str(source.path),
        **_describe_patient(source),
        **_describe_request(source, request),
        "contents": mapped.contents,
        "transform": mapped.transform,
        "transform_files": sorted(mapped.kept),
        "qc": asdict(quality),
        "notes": mapped.notes,
        "output_sha256": hash_file(made),
        "seconds": round(time.perf_counter() - start, 1),
        **BIDS_KEYS,
    }
    # Written first: after an interruption it tells that the files are ours.
    write_sidecar(scan, sidecar, overwrite=True)
    title = (
        f"{source.name}   {recipe.registration}   correlation {quality.correlation:.2f}   "
        f"overlap {quality.overlap:.2f}"
    )
    _draw(mapped.volume, request.path(source, ".png"), title=title, flags=quality.flags)
    kept = mapped.kept if request.keep_transform else {}
    copies = {request.path(source, end, folder=TRANSFORMS): path for end, path in kept.items()}
    for target, path in (copies | {scan: made}).items():  # the scan last
        with replacing(target, overwrite=True) as temporary:
            temporary.write_bytes(path.read_bytes())
    return sidecar


def _draw(volume: np.ndarray, picture: Path, *, title: str, flags: dict[str, str]) -> None:
    """Draws the mosaic of a scan, over the one that an interrupted call may have left."""
    lines = "\n".join((title, *flags.values()))
    mask = load_template().mask
    draw_mosaic(volume, mask, picture, title=lines, flagged=bool(flags), overwrite=True)


def _save_on_grid(volume: np.ndarray, path: Path) -> None:
    """Writes a (91, 109, 91) volume as float32 NIfTI on the MNI152 2 mm grid."""
    image = nibabel.Nifti1Image(volume.astype(np.float32), GRID_AFFINE)
    image.set_sform(GRID_AFFINE, code="mni")
    image.set_qform(GRID_AFFINE, code="mni")
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
