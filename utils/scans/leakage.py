"""Guards against leakage: no network may be judged by scans, or people, that it has learnt from.

A scan is known by its content, whatever it is called and however it is stored; a person by the
scan's name. Training refuses either on both of its sides, checkpoints keep the
contents of all scans that any of their stages was trained on, and test.py says which of its scans
are among them.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from utils.cli import raise_all

# sub-01_ses-2_T1w (BIDS), OAS1_0001_MR1 (OASIS-1 and -2), OAS30001_MR_d0129 (OASIS-3 and -4).
PERSON_IN_KNOWN_NAMES = re.compile(r"^(sub-[A-Za-z0-9]+|OAS[12]_\d{4}|OAS[34]\d{4})(?=_|$)")


if TYPE_CHECKING:  # it loads torch, which --help does not wait for
    from utils.scans.cohort import Scan

SHOWN = 5  # scans, persons or images that a message names
HOW_TO_PASS = "or let it pass with --allow_shared_persons"
ANOTHER_SPLIT = (
    f"give a network trained on other scans, or the same split to both trainings, {HOW_TO_PASS}"
)


def require_separate_persons(
    train: Sequence["Scan"],
    validation: Sequence["Scan"],
    *,
    pattern: re.Pattern | None = None,
    allowed: bool = False,
) -> None:
    """Refuses scans of one person on both sides; where they are `allowed`, it prints a note.

    Args:
        train: scans to learn from.
        validation: scans that choose the best epoch.
        pattern: how the person is found in a scan's name, see `person_of_scan`.
        allowed: whether the user has said so.

    Raises:
        ValueError: names the persons and their scans; or `pattern` does not fit a name.
    """
    people = people_of([scan.subject_id for scan in [*train, *validation]], pattern=pattern)
    sides = [[people[scan.subject_id] for scan in scans] for scans in (train, validation)]
    texts = [f"{person} ({scans})" for person, scans in _meeting(train, validation, *sides)]
    _refuse(
        texts,
        f"the same person in training and in validation, {len(texts)} in all: errors would look "
        "smaller than they are",
        "put all scans of a person on one side, as data_preprocessing/split_dataset.py and "
        f"make_folds.py do, {HOW_TO_PASS}",
        allowed=allowed,
    )


def require_separate_images(
    train: Sequence["Scan"],
    validation: Sequence["Scan"],
    contents: tuple[Sequence[str], Sequence[str]],
    *,
    allowed: bool = False,
) -> None:
    """Refuses the same image on both sides; where it is `allowed`, it prints a note.

    Args:
        train: scans to learn from.
        validation: scans that choose the best epoch.
        contents: of both, see `content_hash`; empty where they are not known.
        allowed: whether the user has said so.

    Raises:
        ValueError: names the scans.
    """
    texts = [scans for _, scans in _meeting(train, validation, *contents)]
    _refuse(
        texts,
        f"the same image in training and in validation, {len(texts)} in all",
        f"keep each once, {HOW_TO_PASS}",
        allowed=allowed,
    )


def require_unseen(
    scans: Sequence["Scan"],
    contents: Sequence[str],
    trained_on: Collection[str],
    *,
    source: object,
    role: str = "validation scans",
    what_to_do: str = ANOTHER_SPLIT,
    allowed: bool = False,
) -> None:
    """Refuses to judge a network, or one that starts from it, by scans that it was trained on.

    Args:
        scans: to judge it by.
        contents: theirs, see `content_hash`.
        trained_on: contents of that network's training scans; empty where they are not known.
        source: its file.
        role: of the scans, as the message says it.
        what_to_do: as the message says it.
        allowed: whether the user has said so; a note is printed then.

    Raises:
        ValueError: names file and scans.
    """
    seen = seen_in_training(scans, contents, trained_on)
    what = f"{source}: trained on {len(seen)} of the {len(scans)} {role}"
    _refuse(seen, what, what_to_do, allowed=allowed)


def seen_in_training(
    scans: Sequence["Scan"], contents: Sequence[str], trained_on: Collection[str]
) -> list[str]:
    """The file names of those `scans` whose contents are among `trained_on`, in their order."""
    known = set(trained_on)
    return [
        scan.path.name for scan, content in zip(scans, contents, strict=False) if content in known
    ]


def note_seen(
    scans: Sequence["Scan"], contents: Sequence[str], trained_on: Collection[str] | None
) -> int | None:
    """Prints which `scans` a network was trained on; returns how many, None where it is unknown."""
    if trained_on is None:
        return None
    seen = seen_in_training(scans, contents, trained_on)
    if seen:
        print(
            f"note: {len(seen)} of {len(scans)} scans were in this network's training set, their "
            f"errors are not those of new scans: {_first(seen)}"
        )
    return len(seen)


def _meeting(
    train: Sequence["Scan"],
    validation: Sequence["Scan"],
    train_keys: Iterable[str],
    validation_keys: Iterable[str],
) -> list[tuple[str, str]]:
    """Keys on both sides, each with a text that names its scans, in the order of training."""
    found: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, scans, keys in ((0, train, train_keys), (1, validation, validation_keys)):
        for scan, key in zip(scans, keys, strict=False):
            found[key][side].append(scan.path.name)
    return [
        (key, f"{', '.join(left)} in training, {', '.join(right)} in validation")
        for key, (left, right) in found.items()
        if left and right
    ]


def _refuse(found: Sequence[str], what: str, what_to_do: str, *, allowed: bool) -> None:
    """Raises ValueError where something was found; prints a note instead where it is allowed."""
    if found and allowed:
        print(f"note: {what}: {_first(found)}")
    elif found:
        raise ValueError(f"{what}: {_first(found)}; {what_to_do}")


def _first(found: Sequence[str]) -> str:
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


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
    people, problems = {}, []
    for scan in scans:
        try:
            people[scan] = person_of_scan(scan, pattern=pattern)
        except ValueError as error:
            problems.append(str(error))
    raise_all(problems)
    return people
