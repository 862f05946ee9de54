"""Names of the Brain Imaging Data Structure: who was scanned, and what a derivative is called.

Source: the BIDS specification 1.10, "Common principles" and "Derivatives"
(https://bids-specification.readthedocs.io). Raw scans are `sub-01[_ses-1][_key-value...]_T1w`;
brains on the grid become `..._space-MNI152NLin6Asym_res-2_desc-brain_T1w`, in folders of their own.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from utils.files import replacing, write_json

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
