"""Guards against leakage: no network is judged by scans, or people, that it was trained on.

The content hash identifies a scan, whatever its name and file format; the scan's name identifies
the person. Training refuses scans and people that are on both of its sides, checkpoints keep the
content hashes of all scans that any of their stages was trained on, and test.py counts those of its
scans that are among them.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence

from utils.cli import raise_all
from utils.people.bids_names import BIDS_LABEL
from utils.scans.cohort import Scan

# sub-01_ses-2_T1w (BIDS), OAS1_0001_MR1 (OASIS-1 and -2), OAS30001_MR_d0129 (OASIS-3 and -4).
PERSON_IN_KNOWN_NAMES = re.compile(rf"^(sub-{BIDS_LABEL}|OAS[12]_\d{{4}}|OAS[34]\d{{4}})(?=_|$)")
SEEN_IN_TRAINING = "in this network's training set"  # in the column `message`
SHOWN = 5  # scans, persons or images that a message names
HOW_TO_PASS = "or let it pass with --allow_shared_persons"
ANOTHER_SPLIT = (
    "give a network trained on other scans, or the same split (or --folds) that it was trained "
    f"with, {HOW_TO_PASS}"
)


def find_person(scan: str, *, pattern: re.Pattern | None = None) -> str:
    """Who was scanned, from a scan's name without image suffix.

    Args:
        scan: such as `sub-01_ses-2_T1w` or `OAS1_0001_MR1`.
        pattern: where in the name the person stands: its first group, or the whole match.
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


def find_people(scans: Sequence[str], *, pattern: re.Pattern | None = None) -> dict[str, str]:
    """Who was scanned, by scan; ValueError listing every name in which no person is found."""
    people, problems = {}, []
    for scan in scans:
        try:
            people[scan] = find_person(scan, pattern=pattern)
        except ValueError as error:
            problems.append(str(error))
    raise_all(problems)
    return people


def require_separate_persons(
    train: Sequence[Scan],
    validation: Sequence[Scan],
    *,
    pattern: re.Pattern | None = None,
    allowed: bool = False,
) -> None:
    """Refuses scans of one person on both sides; where that is `allowed`, it prints a note.

    `pattern` finds the person in a scan's name, see `find_person`.

    Raises:
        ValueError: names the persons and their scans; or `pattern` does not fit a name.
    """
    people = find_people([scan.subject_id for scan in [*train, *validation]], pattern=pattern)
    sides = [[people[scan.subject_id] for scan in scans] for scans in (train, validation)]
    shared = _scans_on_both_sides(train, validation, *sides)
    _refuse(
        [f"{person} ({scans})" for person, scans in shared.items()],
        f"the same person in training and in validation, {len(shared)} in all: errors would look "
        "smaller than they are",
        "put all scans of a person on one side, as data_preprocessing/split_dataset.py and "
        f"make_folds.py do, {HOW_TO_PASS}",
        allowed=allowed,
    )


def require_separate_images(
    train: Sequence[Scan],
    validation: Sequence[Scan],
    content_hashes: tuple[Sequence[str], Sequence[str]],
    *,
    allowed: bool = False,
) -> None:
    """Refuses the same image on both sides; where that is `allowed`, it prints a note.

    `content_hashes` has those of the training scans, and those of the validation scans.

    Raises:
        ValueError: names the scans.
    """
    shared = _scans_on_both_sides(train, validation, *content_hashes)
    _refuse(
        list(shared.values()),
        f"the same image in training and in validation, {len(shared)} in all",
        f"keep each once, {HOW_TO_PASS}",
        allowed=allowed,
    )


def require_unseen(
    scans: Sequence[Scan],
    content_hashes: Sequence[str],
    trained_on: Collection[str],
    *,
    source: object,
    allowed: bool = False,
) -> None:
    """Refuses to judge a network, or one that starts from it, by scans that it was trained on.

    Args:
        scans: to judge it by.
        content_hashes: of `scans`.
        trained_on: content hashes of the network's training scans; empty where they are unknown.
        source: the network's file.
        allowed: whether the user allows it; then a note is printed.

    Raises:
        ValueError: names file and scans.
    """
    seen = seen_in_training(scans, content_hashes, trained_on)
    what = f"{source}: trained on {len(seen)} of the {len(scans)} scans that should be new to it"
    _refuse(seen, what, ANOTHER_SPLIT, allowed=allowed)


def seen_in_training(
    scans: Sequence[Scan], content_hashes: Sequence[str], trained_on: Collection[str]
) -> list[str]:
    """The file names of the `scans` whose content hashes are among `trained_on`, in their order."""
    known = set(trained_on)
    pairs = zip(scans, content_hashes, strict=True)
    return [scan.path.name for scan, content in pairs if content in known]


def note_seen(
    scans: Sequence[Scan], content_hashes: Sequence[str], trained_on: Collection[str] | None
) -> int | None:
    """Prints which `scans` a network was trained on; returns how many, None where it is unknown."""
    if trained_on is None:
        return None
    seen = seen_in_training(scans, content_hashes, trained_on)
    if seen:
        print(
            f"note: {len(seen)} of {len(scans)} scans were in this network's training set, their "
            f"errors are not those of new scans: {_first(seen)}"
        )
    return len(seen)


def _scans_on_both_sides(
    train: Sequence[Scan],
    validation: Sequence[Scan],
    train_keys: Sequence[str],
    validation_keys: Sequence[str],
) -> dict[str, str]:
    """The keys that both sides have, each with a text that names its scans, in training's order."""
    left, right = defaultdict(list), defaultdict(list)
    for names, scans, keys in ((left, train, train_keys), (right, validation, validation_keys)):
        for scan, key in zip(scans, keys, strict=True):
            names[key].append(scan.path.name)
    return {
        key: f"{', '.join(left[key])} in training, {', '.join(right[key])} in validation"
        for key in left
        if key in right
    }


def _refuse(found: Sequence[str], what: str, what_to_do: str, *, allowed: bool) -> None:
    """Raises ValueError where something was found; prints a note instead where it is allowed."""
    if found and allowed:
        print(f"note: {what}: {_first(found)}")
    elif found:
        raise ValueError(f"{what}: {_first(found)}; {what_to_do}")


def _first(found: Sequence[str]) -> str:
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
