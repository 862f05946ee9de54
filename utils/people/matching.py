"""Which row of the tables belongs to a scan: by its file name, its session, or its person.

`sub-1` is not `sub-10`: nothing is matched by a part of a name, but that BIDS sets person and
session off (`sub-01_ses-2_T1w`). Where no row has a name as it stands, `sub-` and leading zeros may
be missing on either side (Excel makes 1 of 001), as long as one person alone is meant.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.files import scan_stem
from utils.people.bids_names import BIDS_LABEL
from utils.people.codebook import whole_number

WHO = re.compile(rf"sub-(?P<person>{BIDS_LABEL})(?:_ses-(?P<session>{BIDS_LABEL}))?(?=_|$)")
FIRST_SESSIONS = ("baseline", "base", "bl", "pre", "initial", "screening")
LATER_SESSIONS = re.compile(r"(follow-?up|fu|post|retest)\d*")


@dataclass(frozen=True)
class Label:
    """What the tables say of a scan; None where unknown.

    Attributes:
        subject_id: the name or id in the row, without the suffix of an image.
        age: years at the scan.
        sex: 0 female, 1 male.
        row: its number in the table.
        site: where, or by which scanner.
        group: such as a diagnosis.
        session: what the row says of it; None where it says nothing.
        folders: in front of the name in the row.
        source: the name of the table that gives the age, or the sex where there is no age.
        doubt: why the age is unknown although a row gives one; mostly empty.
    """

    subject_id: str
    age: float | None
    sex: int | None
    row: int
    site: str | None = None
    group: str | None = None
    session: str | None = None
    folders: tuple[str, ...] = ()
    source: str = ""
    doubt: str = ""


def scan_name(text: str) -> str:
    """A file name or id without the suffix of an image, in one form of Unicode."""
    # macOS stores ü as u and two dots.
    return unicodedata.normalize("NFC", scan_stem(text))


def find_who(name: str) -> tuple[str, str | None]:
    """Person without `sub-` and session without `ses-` of a name in BIDS; else the whole name."""
    who = WHO.match(name)
    return (who["person"], who["session"]) if who else (name, None)


def is_person(scan: Path, label: Label) -> bool:
    """Whether a row names the person of a scan exactly, not with or without leading zeros."""
    return find_who(scan_name(scan.name))[0] == find_who(label.subject_id)[0]


class Matcher:
    """Finds what the rows of tables say of each scan.

    A scan may have a row of its file, of its session and of its person. Each of age, sex and site
    is that of the first row that gives it. But the age in a row of a person is that of one day: it
    belongs to the person's first session, and is unknown for later ones.
    """

    def __init__(self, labels: Iterable[Label], scans: Sequence[Path] = ()):
        """`scans` are all at hand: they decide what is unique, and which session is the first."""
        self._files = defaultdict(list)  # rows by the name of a file
        self._people = defaultdict(list)  # rows by person
        self._people_by_number = defaultdict(set)
        self._scans = defaultdict(set)  # paths by name
        self._scanned_by_number = defaultdict(set)  # people of scans
        self._sessions = defaultdict(set)  # by person, of rows and scans
        self._homes = defaultdict(set)  # folders with sub-01, by person
        for label in labels:
            self._add_row(label)
        for scan in scans:
            self._add_scan(scan)

    def _add_row(self, label: Label) -> None:
        name = label.subject_id
        self._files[name].append(label)
        if label.session:
            self._files[f"{name}_{label.session}"].append(label)
        person, session = find_who(name)
        if name not in (person, f"sub-{person}", f"sub-{person}_ses-{session}"):
            return  # of a file alone
        label = replace(label, session=label.session or session)
        self._people[person].append(label)
        self._people_by_number[_number(person)].add(person)
        if label.session:
            self._sessions[_number(person)].add(_session(label.session))

    def _add_scan(self, scan: Path) -> None:
        name = scan_name(scan.name)
        self._scans[name].add(scan)
        person, session = find_who(name)
        self._scanned_by_number[_number(person)].add(person)
        self._homes[person] |= {up.parent for up in scan.parents if up.name == f"sub-{person}"}
        if session:
            self._sessions[_number(person)].add(_session(session))
            folder = next((up for up in scan.parents if up.name == f"ses-{session}"), scan)
            self._sessions[_number(person)] |= {
                _session(up.name) for up in folder.parent.glob("ses-*")
            }

    def find(self, scan: Path) -> Label | None:
        """What the tables say of a scan; None where they have no row of it, or of several."""
        name = scan_name(scan.name)
        person, session = find_who(name)
        of_file = self._files.get(name, [])
        if len(of_file) > 1 or len(self._scans.get(name, ())) > 1:
            of_file = [row for row in of_file if row.folders and _lies_in(scan, row.folders)]
        rows = self._rows_of(person)
        doubt = ""
        if len(self._scans.get(name, ())) > 1:
            doubt = f"several scans are called {name}: give their folders in the sheet"
        elif self._is_of_several_datasets(person):
            doubt = f"several folders have a sub-{person}: give the names of files in the sheet"
        if doubt and not of_file:
            found = self._files.get(name, rows)
            unknown = {"age": None, "sex": None, "site": None, "doubt": doubt}
            return replace(found[0], **unknown) if found else None
        rows = [] if doubt else rows
        of_session = _rows_of_session(rows, session)
        of_person = [row for row in rows if not row.session]
        layers = [_agreed(found) for found in (of_file, of_session, of_person) if found]
        if of_person and session and not self._is_first(person, session):
            layers[-1] = replace(layers[-1], age=None, doubt=_later(layers[-1], session))
        if rows and not layers:
            layers = [_agreed(rows)]
            if session:
                doubt = f"no row of session {session}"
                layers = [replace(layers[0], age=None, doubt=doubt)]
        return first_of_each(layers) if layers else None

    def _rows_of(self, person: str) -> list[Label]:
        """The rows of a person, whose number may be written with or without leading zeros."""
        if person in self._people:
            return self._people[person]
        number = _number(person)
        alike = self._people_by_number.get(number, set())
        if len(alike) == 1 and len(self._scanned_by_number.get(number, ())) <= 1:
            return self._people[next(iter(alike))]
        return []

    def _is_of_several_datasets(self, person: str) -> bool:
        """Whether folders that do not lie in each other have this person: then it may be two."""
        homes = self._homes.get(person, ())
        return len([home for home in homes if not homes & set(home.parents)]) > 1

    def _is_first(self, person: str, session: str) -> bool:
        if LATER_SESSIONS.fullmatch(_session(session)):
            return False
        return _session(session) == min(
            {*self._sessions[_number(person)], _session(session)}, key=_order
        )


def _rows_of_session(rows: Sequence[Label], session: str | None) -> list[Label]:
    """The rows of a session, by its label or, where that is unique, by its number."""
    if session is None:
        return []
    labelled = [row for row in rows if row.session]
    if exact := [row for row in labelled if _bare(row.session) == session]:
        return exact
    alike = [row for row in labelled if _session(row.session) == _session(session)]
    return alike if len({row.session for row in alike}) == 1 else []


def _agreed(rows: Sequence[Label]) -> Label:
    """One row for several of the same thing: what they contradict each other about is unknown."""
    first = rows[0]
    found = {}
    for name in ("age", "sex", "site", "group"):
        known = {getattr(row, name): row for row in rows if getattr(row, name) is not None}
        found[name] = next(iter(known)) if len(known) == 1 else None
        untold = [row for row in rows if row.age is None]
        if name == "age" and known and untold and len({row.session for row in rows}) > 1:
            text = f"{first.subject_id} has several sessions, row {untold[0].row} without an age"
            found |= {"age": None, "doubt": f"{text} in {first.source}"}
        if name == "age" and len(known) > 1:
            told = " and ".join(f"{age:g} (row {row.row})" for age, row in known.items())
            found["doubt"] = f"{first.subject_id} has the ages {told} in {first.source}"
    return replace(first, **found)


def first_of_each(layers: Sequence[Label]) -> Label:
    """Age, sex and site of the first layer that gives each; of the age a doubt counts too."""
    dated = next((row for row in layers if row.age is not None or row.doubt), layers[0])
    sexed = next((row for row in layers if row.sex is not None), layers[0])
    site, group = (
        next((value for row in layers if (value := getattr(row, name))), None)
        for name in ("site", "group")
    )
    source = dated.source if dated.age is not None else sexed.source
    return replace(dated, sex=sexed.sex, site=site, group=group, source=source)


def _later(row: Label, session: str) -> str:
    return f"{row.source} gives one age, which is not that of the later session {session}"


def _lies_in(scan: Path, folders: tuple[str, ...]) -> bool:
    last = scan.parent.parts[-len(folders) :]
    return tuple(map(scan_name, last)) == tuple(map(scan_name, folders))


def _number(person: str) -> str:
    """`1` of `001` and of `1.0`; other names as they are."""
    person = whole_number(person)
    return str(int(person)) if person.isascii() and person.isdigit() else person


def _bare(session: str) -> str:
    """The label in `ses-1` and `sub-01_ses-1`."""
    return re.sub(r"^(?:sub-[^_]+_)?ses-", "", session)


def _session(label: str) -> str:
    return _number(_bare(label).casefold())


def _order(session: str) -> tuple:
    """Sorts sessions by time as far as their labels tell: baseline, 2, 10, m06, m12."""
    parts = re.findall(r"\d+|\D+", session)
    natural = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
    return (session not in FIRST_SESSIONS, bool(LATER_SESSIONS.fullmatch(session)), natural)
