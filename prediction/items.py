"""The scans of a call: where each is, who it shows, and its row in the label sheet."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preprocessing.pipeline.inputs import (
    Source,
    find_participant_tables,
    scan_stem,
)
from utils.cli import raise_all
from utils.files import IMAGE_SUFFIXES
from utils.people.bids_names import BidsName, parse_bids_name
from utils.people.labels import LabelSheet, examine_labels
from utils.people.matching import Label
from utils.people.sheets import read_rows
from utils.scans.volumes import open_scan

SHOWN_PROBLEMS = 3  # of a table that the user did not name


@dataclass(frozen=True)
class Item:
    """One scan of the call.

    Attributes:
        source: its name is that of its results below the output folder.
        participant: `sub-...`, or the scan's name.
        session: `ses-...` or None.
        label: its row in the sheet; None where there is none.
    """

    source: Source
    participant: str
    session: str | None
    label: Label | None

    @property
    def sex(self) -> int | None:
        """0 female, 1 male, None where unknown."""
        return self.label.sex if self.label else None


@dataclass(frozen=True)
class People:
    """A label sheet and the folder whose scans it describes; None: any scan."""

    labels: LabelSheet
    folder: Path | None = None


def find_items(
    sources: Sequence[Source],
    tables: Sequence[People],
    *,
    output_dir: Path,
    contents: str = "auto",
    participants: Sequence[str] = (),
) -> list[Item]:
    """All scans of the inputs in the order of their names, with their rows in the sheets.

    Args:
        sources: from `find_sources`.
        tables: from `read_people`; may be empty.
        output_dir: for results, which are no inputs.
        contents: `head`, `brain`, `grid`, or `auto`: a scan that lies on the grid is used as it is.
        participants: of BIDS datasets, these alone; all where empty.

    Raises:
        ValueError: scans inside the output folder; participants without scans.
    """
    paths = (path for source in sources for path in (source.path, source.path.resolve()))
    if inside := [path for path in paths if path.is_relative_to(output_dir.resolve())]:
        text = "where results could take the place of scans; give another folder"
        raise ValueError(f"{inside[0]}: lies in --output_dir {output_dir}, {text}")
    if participants:
        sources = select_participants(sources, participants)
    found = [parse_bids_name(source.name) for source in sources]
    times = Counter(bids.derivative.lower() for bids in found if bids)
    items = []
    for source, bids in zip(sources, found, strict=True):
        # Two files that would become one derivative keep their own names.
        unique = bids and times[bids.derivative.lower()] == 1
        name = bids.derivative if unique else f"scans/{source.name}"
        on_grid = contents == "grid" or (contents == "auto" and _lies_on_grid(source))
        who, label = _bids_name(source), find_label(source, tables)
        participant, session = who[:2] if who else (source.name, None)
        items.append(Item(Source(name, source.path, on_grid), participant, session, label))
    return items


def _lies_on_grid(source: Source) -> bool:
    """Whether a scan is a NIfTI file on the network's grid, by its header alone."""
    if source.is_dicom or not source.path.name.lower().endswith(IMAGE_SUFFIXES):
        return False
    try:
        open_scan(source.path)
    except ValueError:
        return False
    return True


def _bids_name(source: Source) -> BidsName | None:
    """What BIDS says of a scan: by its name or, with folders in front of that, by its file's."""
    return parse_bids_name(source.name) or parse_bids_name(scan_stem(source.path))


def select_participants(sources: Sequence[Source], labels: Sequence[str]) -> list[Source]:
    """The scans of some participants.

    Args:
        sources: scans.
        labels: of the participants, with or without `sub-`.

    Raises:
        ValueError: a participant without a scan.
    """
    asked = {label if label.startswith("sub-") else f"sub-{label}" for label in labels}
    named = [(source, name.participant) for source in sources if (name := _bids_name(source))]
    known = sorted({participant for _, participant in named})
    if missing := sorted(asked.difference(known)):
        found = f"found {', '.join(known[:8])}" if known else "none has a name of BIDS"
        more = f" and {len(known) - 8} more" if len(known) > 8 else ""
        raise ValueError(f"--participant_label: no scan of {', '.join(missing)}; {found}{more}")
    return [source for source, participant in named if participant in asked]


def read_people(
    sheet: str | None,
    inputs: Sequence[str],
    sources: Sequence[Source],
    sex_codes: dict[str, int] | None,
) -> list[People]:
    """What a label sheet says of the scans, or every participants.tsv of the inputs.

    Ages may be missing. Wrong cells of a table that the user did not name count as unknown, and a
    note is printed; so are notes on scans whose rows do not give an age.

    Args:
        sheet: its path; "": no labels; None: participants.tsv.
        inputs: as for `find_sources`.
        sources: all scans.
        sex_codes: as for `read_labels`.

    Raises:
        FileNotFoundError, ValueError: as `read_labels`, for a sheet that the user named.
    """
    if sheet == "":
        return []
    found = [(Path(sheet), None)] if sheet is not None else []
    if sheet is None:
        found = [(table, table.parent) for table in find_participant_tables(inputs)]
    people = []
    for table, folder in found:
        inside = [source for source in sources if _describes(folder, source)]
        scans = [path for source in inside for path in _paths_of(source)]
        try:
            labels, problems = examine_labels(table, scans, sex_codes=sex_codes, need_ages=False)
        except ValueError as error:
            if sheet is not None:
                raise
            print(f"note: taken as unknown: {error}")
            continue
        if sheet is not None:
            raise_all(problems)
        for problem in problems[:SHOWN_PROBLEMS]:
            print(f"note: taken as unknown: {problem}")
        if len(problems) > SHOWN_PROBLEMS:
            print(f"note: and {len(problems) - SHOWN_PROBLEMS} more of {table}")
        people.append(People(labels, folder))
        notes = labels.notes([(source.path, find_label(source, people[-1:])) for source in inside])
        print("".join(f"{note}\n" for note in notes), end="")
    return people


def _describes(folder: Path | None, source: Source) -> bool:
    return folder is None or source.path.is_relative_to(folder)


def _paths_of(source: Source) -> list[Path]:
    """Where a scan's row is looked for: by its file, and by its name among all scans."""
    paths = [source.path, source.path.with_name(source.name)]
    return paths[: 1 + (scan_stem(source.path) != source.name)]


def find_label(source: Source, tables: Sequence[People]) -> Label | None:
    """What the first table that has a row of a scan says of it; None where none has."""
    for people in tables:
        if _describes(people.folder, source):
            for path in _paths_of(source):
                if label := people.labels.find(path):
                    return label
    return None


def require_all_rows(items: Sequence[Item], table: Path) -> None:
    """Raises FileExistsError for a table with scans that this call lacks: they would be lost.

    Args:
        items: of this call.
        table: predictions.tsv of an earlier one; may be missing.
    """
    if not table.is_file():
        return
    header, *rows = read_rows(table) or [[]]
    place = header.index("scan") if "scan" in header else len(header)
    # As tables have paths: bytes that are not UTF-8 are escapes.
    paths = (str(item.source.path).encode("utf-8", "backslashreplace") for item in items)
    ours = {" ".join(path.decode().split()) for path in paths}
    others = [row for row in rows if any(row) and (len(row) <= place or row[place] not in ours)]
    if others:
        raise FileExistsError(
            f"{table} has {len(others)} rows of scans that are not in this call, such as "
            f"{others[0][0]}: give all scans, another --output_dir, or --overwrite to replace it"
        )
