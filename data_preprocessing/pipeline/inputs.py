"""Which scans a call means, and what they are called: names in BIDS included.

The user names files, folders, BIDS datasets (`sub-*`, with or without `ses-*`), outputs of fsl_anat
and folders of DICOM files. A scan is called by its file name without suffix. Where two scans share
a name, the folders that tell them apart are put in front, so that no scan overwrites another.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preprocessing.pipeline.dicom import is_dicom, read_study
from utils.cli import raise_all
from utils.files import (
    SCAN_SUFFIXES,
    describe_pointer,
    hash_file,
    list_visible,
    replacing,
    require_fetched,
    scan_stem,
    write_json,
)
from utils.people.bids_names import parse_bids_name
from utils.scans.layouts import (
    BESIDE,
    DICOM_TOO,
    FREESURFER_FOLDERS,
    FSL_ANAT,
    LINKS,
    MADE_OF_OTHERS,
    NAMED_ALL_THE_SAME,
    NO_T1W,
    NOT_BIDS,
    OTHER_FORMATS,
    Remarks,
    describe_remarks,
    find_layout_scan,
    is_freesurfer,
    is_made_of_another,
    is_scan_name,
    judge_name,
    named_for,
    select_scans,
)

UNSAFE = re.compile(r"[^\w.+-]+")  # what some file system refuses in a name
# Both lie in a folder of predict.py's results, whose brains on the grid are no new scans.
RESULTS = ("predictions.tsv", "predictions.json")
# Beside raw data in a BIDS dataset: not scans of people, or not raw.
NOT_RAW = ("derivatives", "sourcedata", "code", "phenotype", "stimuli")
# Images that are not read: Analyze, MINC, AFNI, ITK, Philips, other compression.
UNREAD = (
    ".img", ".img.gz", ".mnc", ".brik", ".brik.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".par",
    ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip",
)  # fmt: skip
# Files beside scans in thousands, which need not be opened to be known.
NO_DICOM = (*SCAN_SUFFIXES, ".gz", ".json", ".tsv", ".png", ".bval", ".bvec")

BIDS_VERSION = "1.10.0"
# Files in our folders that have no name in BIDS.
IGNORED = (
    "predictions.*", "report.html", "preprocessing*.html", "failures*.tsv", "*_brainage.json",
    "*.png", "scans",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One scan of a call.

    Attributes:
        name: of its output, unique among all scans of the call, without suffix; may hold folders.
        path: a file, or the folder of a DICOM series.
        on_grid: whether it lies on the network's grid already and is used as it is.
    """

    name: str
    path: Path
    on_grid: bool = False

    @property
    def is_dicom(self) -> bool:
        """Whether it is a folder of DICOM files."""
        return self.path.is_dir()

    def sha256(self) -> str:
        """Of the file, or of the hashes of a DICOM folder's files in the order of their names."""
        if not self.is_dicom:
            return hash_file(self.path)
        hashes = [hash_file(file) for file in list_visible(self.path) if not file.is_dir()]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()


def find_sources(inputs: Sequence[str | Path], *, output_dir: Path) -> list[Source]:
    """All scans of the inputs, each once, sorted by name; prints notes on what is left out.

    Files below `output_dir` are left out of the folders given: those are results, not scans.

    Raises:
        ValueError: every input that is missing, unknown, or holds no scan; scans beside which the
            results would be written.
    """
    paths: dict[Path, None] = {}  # a set that keeps the order
    problems, remarks = [], {}
    for given in map(Path, inputs):
        try:
            found = _find_scans(given, output_dir=output_dir.resolve(), remarks=remarks)
            # Not resolved: a scan that is a link (as in DataLad) keeps its name.
            whole = (Path(os.path.abspath(path)) for path in found)  # noqa: PTH100
            paths.update(dict.fromkeys(whole))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    beside = [path for path in paths if path.parent.resolve() == output_dir.resolve()]
    if beside:
        problems.append(
            f"{beside[0]}: lies in --output_dir itself, where results would mix with scans and "
            "could replace files beside them; give another folder"
        )
    raise_all(problems)
    for text in describe_remarks(remarks):
        print(f"note: {text}")
    return sorted(_give_names(list(paths)), key=lambda source: source.name)


def _find_scans(given: Path, *, output_dir: Path, remarks: Remarks) -> list[Path]:
    """The scans of one input."""
    require_fetched(given)
    if not (given.exists() or given.is_symlink()):
        raise ValueError(f"{given}: no such file or folder")
    if not given.is_dir():
        if given.name.lower().endswith(SCAN_SUFFIXES):
            if judge_name(given):
                remarks.setdefault(NAMED_ALL_THE_SAME, []).append(given)
            return [given]
        advice = ": give the folder of its series" if is_dicom(given) else ""
        raise ValueError(f"{given}: {', '.join(SCAN_SUFFIXES)} expected{advice}")
    own: Remarks = {}
    found = list(_walk(given, output_dir=output_dir, remarks=own))
    is_bids = (given / "dataset_description.json").is_file()
    if is_bids and not _bids_files(given):  # then only what has a place or a name of its own
        known = [p for p in found if named_for(p) != p or parse_bids_name(scan_stem(p.name))]
        if left := [p for p in found if p not in known]:
            own[NOT_BIDS] = left
        found = known
    left_out = "".join(f"; {text}" for text in describe_remarks(own))
    if not found and is_bids:
        wanted = "sub-*/[ses-*/]anat/*_T1w.nii.gz"
        raise ValueError(f"{given}: a BIDS dataset without a {wanted}{left_out}")
    if not found:
        expected = "scans or DICOM files expected"
        raise ValueError(f"{given}: nothing to preprocess in it; {expected}{left_out}")
    for text, paths in own.items():
        remarks.setdefault(text, []).extend(paths)
    return found


def _bids_files(folder: Path) -> list[Path]:
    """The T1-weighted scans of a dataset, or of the folder of one participant or one session."""
    name = folder.resolve().name
    participants = "sub-*/" * (not name.startswith(("sub-", "ses-")))
    sessions = ("", *(["ses-*/"] if not name.startswith("ses-") else []))
    found = [p for s in sessions for p in folder.glob(f"{participants}{s}anat/*_T1w.nii*")]
    return sorted(path for path in found if is_scan_name(path))


def _walk(folder: Path, *, output_dir: Path, remarks: Remarks) -> Iterator[Path]:
    """Scan files and DICOM folders at any depth, without hidden ones and links to folders.

    Of a dataset in BIDS, and of an output folder of another program, its T1-weighted scans.
    """
    scans = find_layout_scan(folder, remarks)
    if scans is None and (bids := _bids_files(folder)):
        scans = select_scans(bids, remarks)
        _note_left_beside(folder, bids, output_dir=output_dir, remarks=remarks)
    if scans is not None:
        yield from scans
        return
    inside = list_visible(folder)
    files = [path for path in inside if not path.is_dir()]
    scans = select_scans(filter(is_scan_name, files), remarks)
    yield from scans
    if left := [path for path in files if path.name.lower().endswith(UNREAD)]:
        remarks.setdefault(OTHER_FORMATS, []).extend(left)
    if any(is_dicom(path) for path in files if path.suffix not in NO_DICOM):
        if scans:
            remarks.setdefault(DICOM_TOO, []).append(folder)
        else:
            yield folder
    elif not scans and (left := next(filter(describe_pointer, files), None)):
        remarks.setdefault(f"folders of files, {describe_pointer(left)}", []).append(folder)
    skipped = FREESURFER_FOLDERS if is_freesurfer(folder) else ()
    for inner in (path for path in inside if path.is_dir() and path.name not in skipped):
        if _is_ours(inner, output_dir):
            continue
        if inner.name in NOT_RAW:
            if _holds_scans(inner):
                remarks.setdefault(BESIDE, []).append(inner)
        elif inner.is_symlink():
            remarks.setdefault(LINKS, []).append(inner)
        elif inner.name.endswith(FSL_ANAT) and is_made_of_another(inner):
            remarks.setdefault(MADE_OF_OTHERS, []).append(inner)
        else:
            yield from _walk(inner, output_dir=output_dir, remarks=remarks)


def _is_ours(folder: Path, output_dir: Path) -> bool:
    """Whether a folder holds results of this call or of an earlier one."""
    return folder.resolve() == output_dir or all((folder / name).is_file() for name in RESULTS)


def _holds_scans(folder: Path) -> bool:
    """Whether a file at any depth of a folder has the name of a scan."""
    return any(map(is_scan_name, folder.rglob("*")))


def _note_left_beside(
    folder: Path, taken: list[Path], *, output_dir: Path, remarks: Remarks
) -> None:
    """Notes people without a T1w in a dataset, and what lies beside the people and is no BIDS."""
    if not (people := {path for path in folder.glob("sub-*") if path.is_dir()}):
        return  # the folder of one participant or session
    if left := people.difference(*(path.parents for path in taken)):
        remarks.setdefault(NO_T1W, []).extend(left)
    for path in list_visible(folder):
        other = path.is_dir() and path.name not in NOT_RAW and path not in people
        if is_scan_name(path) or (other and not _is_ours(path, output_dir) and _holds_scans(path)):
            remarks.setdefault(BESIDE, []).append(path)


def _give_names(paths: list[Path]) -> list[Source]:
    """Puts as many parent folders in front of equal names as tell them apart.

    And one in front of numbers of series: a sheet may have a person of this number.
    """
    studies = {path: read_study(path) for path in paths if path.is_dir()}
    times = Counter(studies.values())
    series = [path for path, study in studies.items() if study and times[study] > 1]
    numbered = {path for path in series if path.name.isdigit()}
    names = {path: _with_parents(path, int(path in numbered)) for path in paths}
    for depth in range(1, 1 + max((len(path.parts) for path in paths), default=0)):
        # File systems of macOS and Windows do not tell a.nii from A.nii.
        times = Counter(name.lower() for name in names.values())
        if max(times.values()) == 1:
            return [Source(name, path) for path, name in names.items()]
        for path, name in names.items():
            if times[name.lower()] > 1:
                names[path] = _with_parents(path, depth)
    twins = sorted(str(path) for path, name in names.items() if times[name.lower()] > 1)
    raise ValueError(f"{', '.join(twins)}: names that cannot be told apart, rename or leave out")


def _with_parents(path: Path, count: int) -> str:
    """The name of a scan with this many parent folders in front."""
    named = named_for(path)
    parents, stem = named.parts[1:-1], scan_stem(named.name).removesuffix(FSL_ANAT)
    return UNSAFE.sub("_", "_".join((*parents[max(0, len(parents) - count) :], stem)))


def find_participant_tables(inputs: Sequence[str | Path]) -> list[Path]:
    """The participants.tsv of datasets that are an input, or hold one in `sub-*` or `derivatives`.

    Returns:
        Absolute paths, each once; of datasets in datasets the inner one first, which knows best.
    """
    tables = {}
    for given in inputs:
        path = Path(os.path.abspath(given))  # noqa: PTH100  links (as in DataLad) keep their place
        # Of the raw dataset around derivatives too: FreeSurfer and fMRIPrep write no ages.
        around = (path, *path.parents)
        inside = [p for p in around if p.name.startswith("sub-") or p.name in NOT_RAW]
        for folder in (path, *(part.parent for part in inside)):
            table = folder / "participants.tsv"
            if table.is_file() or describe_pointer(table):  # what the reader will say
                tables[table] = None
    return sorted(tables, key=lambda table: -len(table.parts))


def describe_dataset(folder: Path) -> None:
    """Writes dataset_description.json and .bidsignore to `folder`, unless they exist."""
    description = {
        "Name": "TSAN brain age",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "TSAN brain age"}],
    }
    if not (folder / "dataset_description.json").exists():
        write_json(folder / "dataset_description.json", description)
    if not (folder / ".bidsignore").exists():
        with replacing(folder / ".bidsignore") as temporary:
            temporary.write_text("\n".join(IGNORED) + "\n")
