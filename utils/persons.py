"""Who was scanned, from a scan's name: the scans of one person belong on one side of a split."""

import argparse
import re
from collections.abc import Sequence

from utils.entry import regular_expression

# sub-01_ses-2_T1w (BIDS), OAS1_0001_MR1 (OASIS-1 and -2), OAS30001_MR_d0129 (OASIS-3 and -4).
PERSON_IN_KNOWN_NAMES = re.compile(r"^(sub-[A-Za-z0-9]+|OAS[12]_\d{4}|OAS[34]\d{4})(?=_|$)")


def person_of_scan(scan: str, *, pattern: re.Pattern | None = None) -> str:
    """Who was scanned, from a scan's name without image suffix.

    Args:
        scan: such as `sub-01_ses-2_T1w` or `OAS1_0001_MR1`.
        pattern: where in the name the person stands: its first group, or all of the match.
            None: BIDS and OASIS names as they are defined; any other name is a person of its own.

    Raises:
        ValueError: `pattern` is given and does not occur in the name.
    """
    if pattern is None:
        known = PERSON_IN_KNOWN_NAMES.search(scan)
        return known[1] if known else scan
    match = pattern.search(scan)
    person = match and (match[1] if pattern.groups else match[0])
    if not person:
        raise ValueError(f"{scan}: --subject_pattern {pattern.pattern!r} finds no person in it")
    return person


def people_of(scans: Sequence[str], *, pattern: re.Pattern | None = None) -> dict[str, str]:
    """Who was scanned, by scan; ValueError listing every name in which no person is found."""
    from utils.labels import raise_all  # it loads nibabel, which --help does not wait for

    people, problems = {}, []
    for scan in scans:
        try:
            people[scan] = person_of_scan(scan, pattern=pattern)
        except ValueError as error:
            problems.append(str(error))
    raise_all(problems)
    return people


def add_subject_pattern(parser: argparse._ActionsContainer) -> None:
    """How the person is found in a scan's name, see `person_of_scan`."""
    parser.add_argument(
        "--subject_pattern",
        type=regular_expression,
        help="regular expression for the person in a scan's name (its first group, or the whole "
        "match); without it sub-01 of BIDS and OAS1_0001 of OASIS names, else the whole name",
    )
