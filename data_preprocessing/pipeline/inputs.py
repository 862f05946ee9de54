"""What the user named on the command line, as single scans with names of their own.

Files, folders, BIDS datasets (`sub-*`, with or without `ses-*`), outputs of fsl_anat and folders of
DICOM files. Names are file names without suffix; where two scans share one, the folders that tell
them apart are put in front, so that no scan takes the place of another.
"""

import hashlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preprocessing.pipeline.recipe import INSTALL
from utils.cli import raise_all
from utils.files import replacing, sha256_of, write_json
from utils.scans.volumes import IMAGE_SUFFIXES

VERSION = "1.10.0"

NAME = re.compile(
    r"(?P<subject>sub-[A-Za-z0-9]+)(?:_(?P<session>ses-[A-Za-z0-9]+))?"
    r"(?P<entities>(?:_[a-z]+-[A-Za-z0-9]+)*)_T1w"
)

# Entities of a derivative that ours replace.
DERIVED = re.compile(r"_(?:space|res|desc)-[A-Za-z0-9]+")

OURS = "_space-MNI152NLin6Asym_res-2_desc-brain"

# What lies in our folders and has no name in BIDS.
IGNORED = (
    "predictions.*", "report.html", "preprocessing*.html", "failures*.tsv", "*_brainage.json",
    "*.png", "scans",
)  # fmt: skip


SCAN_SUFFIXES = (*IMAGE_SUFFIXES, ".mgz", ".mgh")
# A folder is one of DICOM files if one of its first files is.
DICOM_FILES_TRIED = 3
# What fsl_anat leaves in its folder, the best to start from first: brain, head, head as it came.
FSL_ANAT = ".anat"
FSL_ANAT_SCANS = ("T1_biascorr_brain.nii.gz", "T1_biascorr.nii.gz", "T1.nii.gz")
# In a folder of predict.py's results, whose brains on the grid are no new scans.
RESULTS = ("predictions.tsv", "predictions.json")
# Beside raw data in a BIDS dataset: not scans of people, or not raw.
NOT_RAW = ("derivatives", "sourcedata", "code", "phenotype", "stimuli")


@dataclass(frozen=True)
class Source:
    """One scan to be preprocessed.

    Attributes:
        name: of its output, unique among all inputs of a call, without a suffix.
        path: a file, or the folder of a DICOM series.
    """

    name: str
    path: Path

    @property
    def is_dicom(self) -> bool:
        """Whether it is a folder of DICOM files."""
        return self.path.is_dir()

    def sha256(self) -> str:
        """Of the file, or of the hashes of a DICOM folder's files in the order of their names."""
        if not self.is_dicom:
            return sha256_of(self.path)
        hashes = [sha256_of(file) for file in sorted(_visible_files(self.path))]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()


def find_sources(inputs: Sequence[str | Path], *, output_dir: Path) -> list[Source]:
    """All scans of the inputs, each once, sorted by name.

    What lies in `output_dir` is left out: those are results, not scans.

    Raises:
        ValueError: every input that is missing, unknown, or holds no scan; scans beside which the
            results would be written.
    """
    paths: dict[Path, None] = {}  # a set that keeps the order
    problems = []
    for given in map(Path, inputs):
        try:
            found = _scans_of(given, beyond=output_dir.resolve())
            # Not resolved: a scan that is a link (as in DataLad) keeps its name.
            plain = (Path(os.path.abspath(path)) for path in found)  # noqa: PTH100
            paths.update(dict.fromkeys(plain))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    beside = [path for path in paths if path.parent.resolve() == output_dir.resolve()]
    if beside:
        problems.append(
            f"{beside[0]}: lies in --output_dir itself, where results would mix with scans and "
            "could replace files beside them; give another folder"
        )
    raise_all(problems)
    return sorted(_named(list(paths)), key=lambda source: source.name)


def _scans_of(given: Path, *, beyond: Path) -> list[Path]:
    if not (given.exists() or given.is_symlink()):
        raise ValueError(f"{given}: no such file or folder")
    if not given.is_dir():
        if given.name.lower().endswith(SCAN_SUFFIXES):
            return [given]
        advice = ": give the folder of its series" if _is_dicom(given) else ""
        raise ValueError(f"{given}: {', '.join(SCAN_SUFFIXES)} expected{advice}")
    if given.resolve().name.endswith(FSL_ANAT):
        return [_fsl_anat_scan(given)]
    bids = sorted(_bids_scans(given))
    if not bids and (given / "dataset_description.json").is_file():
        raise ValueError(f"{given}: a BIDS dataset without a sub-*/[ses-*/]anat/*_T1w.nii.gz")
    found = bids or sorted(_all_scans(given, beyond=beyond))
    if not found:
        raise ValueError(f"{given}: nothing to preprocess in it; scans or DICOM files expected")
    return found


def _bids_scans(folder: Path) -> Iterator[Path]:
    """Of a dataset, of one participant's folder in it, or of one session's."""
    name = folder.resolve().name
    beyond = "sub-*/" * (not name.startswith(("sub-", "ses-")))
    for session in ("", *(["ses-*/"] if not name.startswith("ses-") else [])):
        for path in folder.glob(f"{beyond}{session}anat/*_T1w.nii*"):
            if path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith("."):
                yield path


def _all_scans(folder: Path, *, beyond: Path) -> Iterator[Path]:
    """Scan files and DICOM folders at any depth; hidden ones and links to folders are left out."""
    files = sorted(_visible_files(folder))
    scans = [path for path in files if path.name.lower().endswith(SCAN_SUFFIXES)]
    yield from scans
    if not scans and any(_is_dicom(path) for path in files[:DICOM_FILES_TRIED]):
        yield folder
    for inner in sorted(folder.iterdir()):
        hidden = inner.name[0] == "." or inner.name in NOT_RAW
        ours = inner.resolve() == beyond
        results = all((inner / file).is_file() for file in RESULTS)
        if not inner.is_dir() or inner.is_symlink() or hidden or ours or results:
            continue
        if inner.name.endswith(FSL_ANAT):
            yield _fsl_anat_scan(inner)
        else:
            yield from _all_scans(inner, beyond=beyond)


def _fsl_anat_scan(folder: Path) -> Path:
    """The scan in an output folder of fsl_anat; its other images are steps on the way."""
    for name in FSL_ANAT_SCANS:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder}: an output of fsl_anat without {' or '.join(FSL_ANAT_SCANS)}")


def _visible_files(folder: Path) -> Iterator[Path]:
    """Files, and links that lead nowhere, of which a scan's failure will tell."""
    return (path for path in folder.iterdir() if not path.is_dir() and path.name[0] != ".")


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _named(paths: list[Path]) -> list[Source]:
    """Puts as many parent folders in front of equal names as tell them apart."""
    names = {path: _with_parents(path, 0) for path in paths}
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
    parents, stem = path.parts[1:-1], scan_stem(path)
    if parents and parents[-1].endswith(FSL_ANAT):  # all have the same file names
        *parents, stem = (*parents[:-1], parents[-1].removesuffix(FSL_ANAT))
    return plain("_".join((*parents[max(0, len(parents) - count) :], stem)))


def scan_stem(path: Path) -> str:
    """The name of a file without the suffix of a scan; of a folder all of it."""
    suffix = next((end for end in SCAN_SUFFIXES if path.name.lower().endswith(end)), "")
    return path.name[: len(path.name) - len(suffix)]


def plain(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.+-]+", "_", name)


def convert_dicom(folder: Path, workspace: Path) -> Path:
    """One DICOM series as a NIfTI file in `workspace`, by dcm2niix.

    Raises:
        ValueError: dcm2niix is missing, failed, or made no volume or several.
    """
    try:
        import dcm2niix
    except ImportError as error:
        raise ValueError(f"{folder}: DICOM files need dcm2niix: {INSTALL}") from error
    made = workspace / "dicom"
    made.mkdir()
    # %s_%p: series number and protocol, for the message where there are several.
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "%s_%p", "-o", str(made), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    volumes = sorted(made.glob("*.nii"))
    if len(volumes) == 1:
        return volumes[0]
    if volumes:
        names = ", ".join(path.stem for path in volumes)
        raise ValueError(f"{folder}: one T1-weighted series expected in a folder, found {names}")
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    raise ValueError(f"{folder}: dcm2niix made no volume of it ({' '.join(last)})")


def split_name(name: str) -> tuple[str, str | None] | None:
    """(`sub-...`, `ses-...` or None) of a file name without suffix; None if it is not of BIDS."""
    found = NAME.fullmatch(name)
    return (found["subject"], found["session"]) if found else None


def derivative_name(name: str) -> str | None:
    """Where a scan's brain on the grid belongs in a derivative dataset, without a suffix.

    `sub-01_ses-1_run-2_T1w` becomes `sub-01/ses-1/anat/sub-01_ses-1_run-2_space-..._T1w`; None if
    the name is not of BIDS.
    """
    found = NAME.fullmatch(name)
    if not found:
        return None
    folders = [found["subject"], *([found["session"]] if found["session"] else []), "anat"]
    stem = "_".join(folders[:-1]) + DERIVED.sub("", found["entities"])
    return "/".join((*folders, f"{stem}{OURS}_T1w"))


def select_participants(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """The places of the scans of the participants asked for.

    Args:
        names: of the scans, file names without suffix.
        labels: participants, with or without `sub-`.

    Raises:
        ValueError: a participant of whom there is no scan.
    """
    asked = {label if label.startswith("sub-") else f"sub-{label}" for label in labels}
    found = [(split_name(name) or (None,))[0] for name in names]
    missing = sorted(asked - set(found))
    if missing:
        known = sorted({one for one in found if one})
        raise ValueError(
            f"--participant_label: no scan of {', '.join(missing)}; found {', '.join(known[:8])}"
            + (f" and {len(known) - 8} more" if len(known) > 8 else "")
            if known
            else f"--participant_label: no scan of {', '.join(missing)}: none has a name of BIDS"
        )
    return [place for place, one in enumerate(found) if one in asked]


def find_participant_tables(inputs: Sequence[str | Path]) -> list[Path]:
    """`participants.tsv` of the datasets that the inputs are, or lie in as `sub-*/...`.

    Returns:
        Absolute paths, each once.
    """
    tables = {}
    for given in inputs:
        path = Path(os.path.abspath(given))  # noqa: PTH100  links (as in DataLad) keep their place
        inside = [part for part in (path, *path.parents) if part.name.startswith("sub-")]
        for folder in (path, *(part.parent for part in inside)):
            if (folder / "participants.tsv").is_file():
                tables[folder / "participants.tsv"] = None
    return list(tables)


def describe_dataset(folder: Path) -> None:
    """Writes dataset_description.json and .bidsignore to `folder`, unless they are there."""
    description = {
        "Name": "TSAN brain age",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "TSAN brain age"}],
    }
    if not (folder / "dataset_description.json").exists():
        write_json(folder / "dataset_description.json", description)
    if not (folder / ".bidsignore").exists():
        with replacing(folder / ".bidsignore") as temporary:
            temporary.write_text("\n".join(IGNORED) + "\n")
