"""Which image of a person is the T1-weighted scan, by folders and names of other programs.

fsl_anat, FreeSurfer and the HCP pipelines write dozens of images of one scan; fMRIPrep, sMRIPrep
and QSIPrep write it in several spaces; SPM, CAT12 and ANTs put their results beside it. Each of
these would get an age of its own. What a rule takes or leaves out here is reported.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.files import IMAGE_SUFFIXES, SCAN_SUFFIXES, scan_stem
from utils.people.bids_names import BIDS_LABEL, parse_bids_name

Remarks = dict[str, list[Path]]  # paths by what is said of them

# Of each program the best file to start from first.
FSL_ANAT = ".anat"
FSL_ANAT_SCANS = ("T1_biascorr_brain.nii.gz", "T1_biascorr.nii.gz", "T1.nii.gz")
# Whole heads, the least corrected first (orig.mgz is there after any recon-all); then brains.
FREESURFER = "mri"
FREESURFER_SCANS = (
    "orig.mgz", "T1.mgz", "nu.mgz", "rawavg.mgz", "orig/001.mgz", "norm.mgz", "brain.mgz",
    "brainmask.mgz",
)  # fmt: skip
FREESURFER_FOLDERS = ("surf", "label", "stats", "scripts", "touch", "tmp", "trash")
FREESURFER_AVERAGES = re.compile(r"fsaverage.*|cvs_avg35.*|[lr]h\.EC_average|V1_average")
HCP = "T1w"
HCP_SCANS = ("T1w_acpc_dc_restore.nii.gz", "T1w_acpc_dc_restore_brain.nii.gz")

# Values of `space-` in BIDS that mean the space of the scan; no such entity means it too.
OWN_SPACES = ("T1w", "orig", "scanner", "native", "individual", "ACPC", "fsnative")
UNUSABLE = 9  # rank of a T1w in another space
DESCRIPTIONS = (None, "preproc")  # values of `desc-`, the best first; then any other
OTHER_PARTS = re.compile(r"_(?:part-(?:phase|real|imag)|inv-\d+)(?=_)")
# Names of other images: in BIDS or as FreeSurfer, ANTs, SPM and CAT12 give them.
NO_T1 = re.compile(
    r"(?i:(?:.*[_.])?(?:T2w|T2star\w*|FLAIR|PDw|PDT2|[TR][12]\w*map|M0map|MT[RS]\w*|UNIT1|MP2RAGE|"
    r"inplaneT[12]|bold|boldref|sbref|dwi|dwiref|asl|m0scan|epi|phase\d|phasediff|magnitude\d?|"
    r"fieldmap|angio|swi|pet|xfm|(?:deface|brain|lesion)?mask|d?seg|probseg|aparc.*|"
    r"(?:.*\+)?aseg|wmparc|ribbon))|"
    r".*(?:BrainExtractionMask|BrainSegmentation\w*|CorticalThickness\w*)|"
    rf".*_(?:label|hemi|seg|atlas)-{BIDS_LABEL}_.*|"
    r"(?:s\d*)?m0?w[cp]\d.*"
)
# What SPM and CAT12 put in front of the name of the scan that an image was made of, and what BET,
# FAST, FLIRT, dcm2niix and others put behind it.
MADE_PREFIX = re.compile(r"i?y_|u_|wm|mi?|w|r|(?:s\d*)?(?:r|w|m0?w)?[cp]\d")
MADE_SUFFIX = re.compile(
    r"(?i:_(?:brain|bet|hd-?bet|synthstrip|(?:skull)?strip(?:ped)?|n4|biascorr|restore|bias|"
    r"(?:all_)?fast|pve(?:seg)?|mixeltype|defaced?|reorient|std|(?:to_|2)(?:std|mni\w*)|reg|warped|crop|roi|"
    r"eq|tilt|ph|real|imaginary)(?:_\w+)?)"
)

TAKEN_FREESURFER = (
    "FreeSurfer: one scan per subject is taken, mri/orig.mgz (the whole head, before corrections), "
    f"else {', '.join(FREESURFER_SCANS[1:])}"
)
TAKEN_HCP = f"HCP: one scan per subject is taken, {HCP}/{' or '.join(HCP_SCANS)}"
NO_SUBJECT = "left out, FreeSurfer's averages, bases, and copies (.long.) of subjects beside them"
PARTS = "left out, phase, real or imaginary parts and inversions of a scan (part-, inv-)"
OTHERS = "left out, masks, segmentations, maps or other contrasts by their names"
MADE_OF_OTHERS = (
    "left out, what other programs made of a scan beside it, by their names (SPM: m, c1 in front; "
    "FSL, dcm2niix: _brain, _Crop_1 behind; NAME.anat); give those by name that are people"
)
COPIES = (
    "left out, copies of a scan; of derivatives (fMRIPrep, sMRIPrep and others) one T1w per person "
    "and session is taken, the one in its own space, else that in MNI152NLin6Asym res-2"
)
NO_OWN_SPACE = (
    "left out, T1w of people or sessions that have none in their own space and none in "
    "MNI152NLin6Asym res-2"
)
LINKS = "left out, links to folders; give those by name that are wanted"
DICOM_TOO = "left out, DICOM files of folders that hold converted scans as well"
NOT_BIDS = "left out, files without a name of BIDS in a BIDS dataset"
BESIDE = "left out, files and folders of scans beside sub-*, or that BIDS keeps for other things"
OTHER_FORMATS = "left out, images of other formats; convert those that are wanted to NIfTI"
NO_T1W = "people of a BIDS dataset without an anat/*_T1w.nii.gz"
NAMED_ALL_THE_SAME = "taken because they were named, though their names say they are no T1w"
SEVERAL = "several T1w of one session (runs, acquisitions), each taken as a scan of its own"


def is_scan_name(path: Path) -> bool:
    """Whether a file has the suffix of a scan and is not hidden."""
    return path.name.lower().endswith(SCAN_SUFFIXES) and path.name[0] != "."


def find_layout_scan(folder: Path, remarks: Remarks) -> list[Path] | None:
    """The scan in an output folder of fsl_anat, FreeSurfer (mri) or HCP; None for other folders.

    The list is empty for FreeSurfer's averages, and for copies of subjects that lie beside them.
    """
    if folder.resolve().name.endswith(FSL_ANAT):
        # Where it has failed, a file that is not there: a scan that fails by its name.
        return [_first_file(folder, FSL_ANAT_SCANS) or folder / FSL_ANAT_SCANS[-1]]
    place = folder if folder.resolve().name == HCP else folder / HCP
    if found := _first_file(place, HCP_SCANS):
        remarks.setdefault(TAKEN_HCP, []).append(found)
        return [found]
    found = _first_file(folder, FREESURFER_SCANS) if folder.resolve().name == FREESURFER else None
    if not found:
        return None
    person = folder.resolve().parent
    if _is_no_subject(person):
        remarks.setdefault(NO_SUBJECT, []).append(person)
        return []
    remarks.setdefault(TAKEN_FREESURFER, []).append(found)
    return [found]


def is_freesurfer(folder: Path) -> bool:
    """Whether a folder is that of a subject of FreeSurfer."""
    return _first_file(folder / FREESURFER, FREESURFER_SCANS) is not None


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    paths = (folder / name for name in names)
    return next((path for path in paths if path.is_file() or path.is_symlink()), None)


def _is_no_subject(person: Path) -> bool:
    """Whether a folder of FreeSurfer is an average, a base, or a copy of a subject beside it."""
    name, _, base = person.name.partition(".long.")
    if base:
        return (person.parent / name / FREESURFER).is_dir()
    is_base = any(person.glob("base-tps*")) or any(person.parent.glob(f"*.long.{person.name}"))
    return is_base or FREESURFER_AVERAGES.fullmatch(person.name) is not None


def select_scans(paths: Iterable[Path], remarks: Remarks) -> list[Path]:
    """The files that are T1-weighted scans of their own, as far as their names tell.

    Args:
        paths: files with the suffix of a scan, of any folders.
        remarks: what is left out is added.
    """
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        reason, stem = judge_name(path), scan_stem(path.name)
        if reason or is_made_of_another(path):
            remarks.setdefault(reason or MADE_OF_OTHERS, []).append(path)
            continue
        copies = rf"_(?:space|res|den|desc)-{BIDS_LABEL}" if parse_bids_name(stem) else r"(?!)"
        # Two files of one whole name are twins, not copies, and refused later.
        groups.setdefault((path.parent, re.sub(copies, "", stem)), []).append(path)
    found = [path for group in groups.values() for path in _best_of(group, remarks)]
    sessions: dict[tuple, list[Path]] = {}
    for path in found:
        if name := parse_bids_name(scan_stem(path.name)):
            sessions.setdefault((path.parent, *name[:2]), []).append(path)
    for several in sessions.values():
        if len(several) > 1:
            remarks.setdefault(SEVERAL, []).extend(several)
    return found


def judge_name(path: Path) -> str | None:
    """Why a file is no T1-weighted scan by its name; None if it may be one."""
    stem = scan_stem(path.name)
    if OTHER_PARTS.search(stem):
        return PARTS
    return OTHERS if NO_T1.fullmatch(stem) else None


def is_made_of_another(path: Path) -> bool:
    """Whether a file or a folder of fsl_anat was made of a scan beside it, or above its mri/."""
    stem, folders = scan_stem(path.name), [path.parent]
    if path.parent.name == "mri":
        folders.append(path.parent.parent)
    names = {stem[at:] for at in range(1, len(stem)) if MADE_PREFIX.fullmatch(stem[:at])}
    names |= {stem[:at] for at in range(1, len(stem)) if MADE_SUFFIX.fullmatch(stem[at:])}
    if stem.endswith(FSL_ANAT):
        names = {stem.removesuffix(FSL_ANAT)}
    raw = (f / f"{name}{end}" for f in folders for name in names for end in IMAGE_SUFFIXES)
    return any(map(os.path.lexists, raw))


def _best_of(group: list[Path], remarks: Remarks) -> list[Path]:
    """Of one scan in several spaces: that in its own space, else that on the network's grid."""
    ranks = {path: _rank(path) for path in group}
    best = min(ranks.values())
    if best is UNUSABLE:
        remarks.setdefault(NO_OWN_SPACE, []).extend(group)
        return []
    left = [path for path in group if ranks[path] != best]
    if left:
        remarks.setdefault(COPIES, []).extend(left)
    return [path for path in group if ranks[path] == best]


def _rank(path: Path) -> int:
    """The lower the better; UNUSABLE for a T1w in a space that is of no use."""
    stem = scan_stem(path.name)
    if not parse_bids_name(stem):
        return 0
    entities = dict(part.partition("-")[::2] for part in stem.split("_") if "-" in part)
    space, description = entities.get("space"), entities.get("desc")
    known = DESCRIPTIONS.index(description) if description in DESCRIPTIONS else len(DESCRIPTIONS)
    if space is None or space in OWN_SPACES:
        return known
    on_grid = space == "MNI152NLin6Asym" and entities.get("res", "").lstrip("0") == "2"
    return len(DESCRIPTIONS) + 1 + known if on_grid else UNUSABLE


def named_for(path: Path) -> Path:
    """The folder that a scan is called by where its own name says nothing; otherwise the scan."""
    parent = path.parent
    if parent.name.endswith(FSL_ANAT):
        return parent
    if parent.name == HCP and path.name in HCP_SCANS:
        return parent.parent
    mri = parent.parent if parent.name == "orig" else parent
    is_freesurfer = mri.name == FREESURFER and str(path.relative_to(mri)) in FREESURFER_SCANS
    return mri.parent if is_freesurfer else path


def describe_remarks(remarks: Remarks) -> list[str]:
    """One sentence for each remark, with the count and the first path."""
    return [f"{text}: {len(paths)}, the first {min(paths)}" for text, paths in remarks.items()]
