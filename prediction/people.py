"""Whose scans they are: the label sheets and headers of a call, and what they say of each scan."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_preprocessing.pipeline.dicom import read_dicom_label
from data_preprocessing.pipeline.inputs import Source, find_participant_tables
from utils.cli import raise_all
from utils.files import scan_stem
from utils.people.labels import LabelSheet, examine_labels
from utils.people.matching import Label

SHOWN_PROBLEMS = 3  # of a table that the user did not name
HEADER = "DICOM header"


@dataclass(frozen=True)
class People:
    """A label sheet and the folder whose scans it describes; None: any scan."""

    labels: LabelSheet
    folder: Path | None = None


def read_people(
    sheets: Sequence[str] | None,
    inputs: Sequence[str],
    sources: Sequence[Source],
    sex_codes: dict[str, int] | None,
) -> list[People]:
    """What label sheets say of the scans, or every participants.tsv of the inputs.

    Ages may be missing. Wrong cells of a table that the user did not name count as unknown, and a
    note is printed; so are notes on scans whose rows do not give an age.

    Args:
        sheets: their paths; none or "": no labels; None: participants.tsv.
        inputs: as for `find_sources`.
        sources: all scans.
        sex_codes: as for `read_labels`.

    Raises:
        FileNotFoundError, ValueError: as `read_labels`, for sheets that the user named.
    """
    if sheets is None:
        found = [([table], table.parent) for table in find_participant_tables(inputs)]
    else:
        named = [sheet for sheet in sheets if sheet]
        found = [(named, None)] if named else []
    people = []
    for tables, folder in found:
        inside = [source for source in sources if _describes(folder, source)]
        scans = [path for source in inside for path in _paths_of(source)]
        options = {"sex_codes": sex_codes, "need_ages": False}
        if folder:
            labels = _read_leniently(tables[0], scans, options)
        else:
            labels, problems = examine_labels(tables, scans, **options)
            raise_all(problems)
        if labels:
            people.append(People(labels, folder))
            pairs = [(source.path, find_label(source, people[-1:])) for source in inside]
            print("".join(f"{note}\n" for note in labels.notes(pairs)), end="")
    return people


def _read_leniently(table: Path, scans: Sequence[Path], options: dict) -> LabelSheet | None:
    """A table that the user did not name; what is wrong with it is printed and taken as unknown."""
    try:
        labels, problems = examine_labels(table, scans, **options)
    except ValueError as error:
        labels, problems = None, [str(error)]
    for problem in problems[:SHOWN_PROBLEMS]:
        print(f"note: taken as unknown: {problem}")
    if len(problems) > SHOWN_PROBLEMS:
        print(f"note: and {len(problems) - SHOWN_PROBLEMS} more of {table}")
    return labels


def _describes(folder: Path | None, source: Source) -> bool:
    return folder is None or source.path.is_relative_to(folder)


def _paths_of(source: Source) -> list[Path]:
    """Where a scan's row is looked for: by its name among all scans, and by its file.

    But not by the number of a DICOM series, which may be that of another person.
    """
    paths = [source.path.with_name(source.name), source.path]
    if source.is_dicom and source.path.name.isdigit():
        return paths[:1]
    return paths[scan_stem(source.path.name) == source.name :]


def find_label(source: Source, tables: Sequence[People]) -> Label | None:
    """What the first table that has a row of a scan says of it; None where none has."""
    for people in tables:
        if _describes(people.folder, source):
            for path in _paths_of(source):
                if label := people.labels.find(path):
                    return label
    return None


def complete_from_header(source: Source, label: Label | None) -> Label | None:
    """What the sheets say of a DICOM series; its header where they do not know age or sex."""
    if label and None not in (label.age, label.sex):
        return label
    age, sex = read_dicom_label(source.path)
    if label is None:
        known = (age, sex) != (None, None)
        return Label(source.name, age, sex, row=0, source=HEADER) if known else None
    completed = replace(label, sex=sex if label.sex is None else label.sex)
    if label.age is None and age is not None:
        completed = replace(completed, age=age, doubt="")
    if completed == label:
        return label
    return replace(completed, source=", ".join(filter(None, (label.source, HEADER))))
