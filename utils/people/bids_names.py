"""Names of files in BIDS: whose scan it is, of which session, and what was done with it."""

import re
from typing import NamedTuple

# What stands behind `sub-`, `ses-` and the like; BIDS 1.9 and later takes the plus sign too.
BIDS_LABEL = r"[A-Za-z0-9+]+"
BIDS_NAME = re.compile(
    rf"(?P<participant>sub-{BIDS_LABEL})(?:_(?P<session>ses-{BIDS_LABEL}))?"
    rf"(?P<entities>(?:_[a-z]+-{BIDS_LABEL})*)_T1w"
)
# Entities of a derivative that are replaced by those of ours.
DERIVED = re.compile(rf"_(?:space|res|desc)-{BIDS_LABEL}")
OURS = "_space-MNI152NLin6Asym_res-2_desc-brain"


class BidsName(NamedTuple):
    """What the name of a T1-weighted scan in BIDS says.

    Attributes:
        participant: `sub-...`.
        session: `ses-...` or None.
        derivative: where its brain on the grid belongs in a derivative dataset, without suffix:
            `sub-01_ses-1_run-2_T1w` becomes
            `sub-01/ses-1/anat/sub-01_ses-1_run-2_space-..._T1w`.
    """

    participant: str
    session: str | None
    derivative: str


def parse_bids_name(name: str) -> BidsName | None:
    """The parts of a file name without suffix; None if it is not a BIDS name of a T1 scan."""
    found = BIDS_NAME.fullmatch(name)
    if not found:
        return None
    participant, session = found["participant"], found["session"]
    people = [participant, session] if session else [participant]
    stem = f"{'_'.join(people)}{DERIVED.sub('', found['entities'])}{OURS}_T1w"
    return BidsName(participant, session, "/".join((*people, "anat", stem)))
