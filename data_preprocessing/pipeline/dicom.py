"""DICOM series: recognised by their content, converted by dcm2niix; age and sex of the header."""

import json
import re
import struct
import subprocess
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from data_preprocessing.pipeline.recipe import INSTALL
from utils.files import list_visible
from utils.people.codebook import DAYS_PER_YEAR, FEMALE, MALE, parse_age

PREAMBLE = b"\0" * 128 + b"DICM"
BEGINNING = 4096  # bytes; the class of a file stands within them
# Groups of the first element of a file without preamble: of its meta header, of its data set.
META_GROUP, DATA_GROUP = 0x0002, 0x0008
CLASS_ROOT = b"1.2.840.10008."  # all classes of objects that DICOM defines
DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"  # a DICOMDIR, which lists files and holds no image
CONVERTED = "dicom"  # the folder of a workspace for what dcm2niix writes
LONGEST_ECHO_TIME = 30.0  # ms; T1-weighted scans have 2 to 20, T2-weighted scans and FLAIR over 60
UNEVEN = "Interslice distance varies"  # dcm2niix's warning

OLDEST_PATIENT = 110  # years; born in 1900 is what programs write that remove birth dates
SEXES = {"F": FEMALE, "M": MALE}


def is_dicom(path: Path) -> bool:
    """Whether a file holds an object of DICOM, with or without preamble and meta header."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(BEGINNING)
    if start[128:132] == b"DICM":
        return DIRECTORY_CLASS not in start
    # An element begins with group and number, and one of these two groups is always the first.
    group, number = struct.unpack("<HH", start[:4]) if len(start) > 8 else (0, 0)
    return group in (META_GROUP, DATA_GROUP) and number <= 0x0100 and CLASS_ROOT in start


def find_dicom(folder: Path) -> list[Path]:
    """The DICOM files of a folder, by content, in the order of their names."""
    return list(filter(is_dicom, list_visible(folder)))


def read_dicom_label(folder: Path) -> tuple[float | None, int | None]:
    """Age and sex of the patient at the study, by the header of one file of a series.

    Args:
        folder: of a series.

    Returns:
        Age in years, of PatientAge or else of the dates of study and birth; 0 female, 1 male. None
        where unknown, or where pydicom is not installed.
    """
    age, sex, born, study, series = _read_header(
        folder, "PatientAge", "PatientSex", "PatientBirthDate", "StudyDate", "SeriesDate"
    )
    return _years(age, born, study or series), SEXES.get(sex.upper())


def read_study(folder: Path) -> str:
    """What identifies the study (one person at one visit) of a series; "" where unknown."""
    return _read_header(folder, "StudyInstanceUID")[0]


def _read_header(folder: Path, *names: str) -> list[str]:
    """Elements of the header of a folder's first DICOM file; "" where unknown."""
    unknown = [""] * len(names)
    try:
        import pydicom
    except ImportError:
        return unknown
    file = next(filter(is_dicom, list_visible(folder)), None)
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=names)
        # As stored: pydicom would warn of values that do not fit their type.
        stored = [header.get_item(name) for name in names]
        return [str(item.value or b"", "latin-1").strip(" \0") if item else "" for item in stored]
    except Exception:  # pydicom raises anything for a damaged file, which dcm2niix reports later
        return unknown


def _years(age: str, born: str, study: str) -> float | None:
    """Years of an age such as 045Y, 018M, 006W or 010D, or between two dates; None if unknown."""
    with suppress(ValueError):
        # An age of 0 is what programs write that remove ages.
        if re.fullmatch(r"\d{1,3}[YMWD]", age.upper()) and 0 < parse_age(age) <= OLDEST_PATIENT:
            return parse_age(age)
    try:
        first, last = (datetime.strptime(day.replace(".", ""), "%Y%m%d") for day in (born, study))
    except ValueError:
        return None
    years = (last - first).days / DAYS_PER_YEAR
    return years if 0 < years <= OLDEST_PATIENT else None


def convert_dicom(folder: Path, workspace: Path) -> Path:
    """One DICOM series as a NIfTI file in `workspace`, by dcm2niix.

    Raises:
        ValueError: dcm2niix is missing, failed, or made no volume or several; no T1-weighted
            series of an MR scanner by its header.
    """
    try:
        import dcm2niix
    except ImportError as error:
        raise ValueError(f"{folder}: DICOM files need dcm2niix: {INSTALL}") from error
    made = workspace / CONVERTED
    made.mkdir()
    # %s_%p: series number and protocol, for the message where there are several. -d 0: series in
    # inner folders are scans of their own. -ba y: nothing about the patient.
    command = [
        dcm2niix.bin,
        *["-b", "y", "-ba", "y", "-z", "n", "-d", "0", "-f", "%s_%p", "-o"],
        str(made),
    ]
    given = _with_preambles(folder, workspace)
    done = subprocess.run([*command, str(given)], capture_output=True, text=True, check=False)
    volumes = sorted(made.glob("*.nii"))
    if volumes and UNEVEN in done.stdout:
        raise ValueError(
            f"{folder}: slices are missing, damaged, or not at equal distances: export it again"
        )
    if len(volumes) == 1 and done.returncode == 0:
        _require_t1(folder, volumes[0].with_suffix(".json"))
        return volumes[0]
    if len(volumes) > 1:
        names = ", ".join(path.stem for path in volumes)
        raise ValueError(f"{folder}: one T1-weighted series expected in a folder, found {names}")
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    raise ValueError(f"{folder}: dcm2niix made no whole volume of it ({' '.join(last)})")


def _with_preambles(folder: Path, workspace: Path) -> Path:
    """The folder; or copies, where files begin with the meta header, which dcm2niix cannot read."""
    files = find_dicom(folder)
    bare = [path for path in files if _begins_with_meta(path)]
    if not bare:
        return folder
    copies = workspace / "files"
    copies.mkdir()
    for path in files:
        (copies / path.name).write_bytes(PREAMBLE * (path in bare) + path.read_bytes())
    return copies


def _begins_with_meta(path: Path) -> bool:
    with path.open("rb") as file:
        return struct.unpack("<H", file.read(2))[0] == META_GROUP


def _require_t1(folder: Path, sidecar: Path) -> None:
    """Raises ValueError where what dcm2niix says of a series is not that of a T1-weighted scan."""
    if not sidecar.is_file():
        return
    header = json.loads(sidecar.read_text(encoding="utf-8", errors="replace"))
    modality, echo = header.get("Modality", "MR"), 1000 * header.get("EchoTime", 0)
    parts = {"PHASE", "REAL", "IMAGINARY"}.intersection(header.get("ImageType", ()))
    name = header.get("SeriesDescription") or header.get("ProtocolName") or "no name"
    if modality != "MR":
        raise ValueError(f"{folder}: modality {modality} ({name}), MR expected")
    if parts:
        raise ValueError(f"{folder}: {parts.pop()} images ({name}), MAGNITUDE expected")
    if echo > LONGEST_ECHO_TIME:
        raise ValueError(
            f"{folder}: an echo time of {echo:g} ms ({name}) is not that of a T1-weighted scan, "
            f"{LONGEST_ECHO_TIME:g} ms at most expected"
        )
