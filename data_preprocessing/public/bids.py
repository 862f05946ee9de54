"""Label sheets of datasets in BIDS form: participants.tsv with its sessions, units and codes."""

from collections.abc import Sequence
from pathlib import Path

from data_preprocessing.public.tables import Listing, Subject
from utils.people.codebook import SEX_NAMES
from utils.people.labels import examine_labels
from utils.people.matching import Label

NOT_RAW = {"derivatives", "sourcedata"}  # folders of BIDS, whose files repeat names of scans


def read_bids(
    tables: Sequence[Path], volumes: Sequence[Path], sex_codes: dict[str, int] | None
) -> Listing:
    """What the tables say of each scan; wrong cells count as unknown and become notes.

    Args:
        tables: participants.tsv of one dataset or several; sessions.tsv and scans.tsv below its
            folder are read too.
        volumes: all files that may be scans.
        sex_codes: as for `read_labels`.

    Returns:
        Subjects by the path of their scan.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a table without the columns, or with two that contradict each other.
    """
    subjects, notes = {}, []
    raw = [path for path in volumes if not NOT_RAW & set(path.parts)] or volumes
    for table in tables:
        inside = [path for path in raw if path.is_relative_to(table.parent)]
        # Of several datasets, each table knows the people of its own alone.
        mine = inside if inside and len(tables) > 1 else raw
        sheet, problems = examine_labels(table, mine, sex_codes=sex_codes)
        notes += [f"taken as unknown: {problem}" for problem in problems]
        mine = [path for path in volumes if mine is raw or path.is_relative_to(table.parent)]
        found = {str(path): label for path in mine if (label := sheet.find(path))}
        people = {label.subject_id for label in found.values()}
        rows = {(label.source, label.row) for label in found.values()}
        for name, label in sheet.rows.items():
            used = (label.source, label.row) in rows
            if not used and (label.session or label.subject_id not in people):
                found[name] = label  # a row without a scan
        for key, label in found.items():
            subjects.setdefault(key, _subject(table.parent / label.source, label))
    return Listing(subjects, notes=tuple(notes))


def _subject(table: Path, label: Label) -> Subject:
    sex = "" if label.sex is None else SEX_NAMES[label.sex]
    where, group, site = f"{table}, row {label.row}", label.group or "", label.site or ""
    return Subject(where, label.age, sex, group, site, doubt=label.doubt)
