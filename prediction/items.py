"""The scans of a call: where each is, who it shows, and its row in the label sheet."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_preprocessing.pipeline.inputs import (
    UNSAFE,
    Source,
    find_participant_tables,
    find_sources,
    scan_stem,
)
from utils.files import IMAGE_SUFFIXES
from utils.people.bids_names import BidsName, parse_bids_name
from utils.people.labels import Label, examine_labels, match_label, read_labels
from utils.people.sheets import read_rows
from utils.scans.volumes import open_scan


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
    """Rows of a label sheet by name, and the folder whose scans they describe; None: any scan."""

    labels: dict[str, Label]
    folder: Path | None = None


def find_items(
    inputs: Sequence[str],
    tables: Sequence[People],
    *,
    output_dir: Path,
    contents: str = "auto",
    participants: Sequence[str] = (),
) -> list[Item]:
    """All scans of the inputs in the order of their names, with their rows in the sheets.

    Args:
        inputs: see pipeline/inputs.py.
        tables: from `read_people`; may be empty.
        output_dir: for results, which are no inputs.
        contents: `head`, `brain`, `grid`, or `auto`: a scan that lies on the grid is used as it is.
        participants: of BIDS datasets, these alone; all where empty.

    Raises:
        ValueError: inputs without scans or inside the output folder; participants without scans.
    """
    sources = find_sources(inputs, output_dir=output_dir)
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
    sheet: str | None, inputs: Sequence[str], sex_codes: dict[str, int] | None
) -> list[People]:
    """The rows of a label sheet, or of every participants.tsv of the inputs and its sessions.tsv.

    Ages may be missing. Wrong cells of a table that the user did not name count as unknown, and a
    note is printed.

    Args:
        sheet: its path; "": no labels; None: participants.tsv.
        inputs: as for `find_items`.
        sex_codes: as for `read_labels`.

    Raises:
        FileNotFoundError, ValueError: as `read_labels`, for a sheet that the user named.
    """
    if sheet == "":
        return []
    if sheet is not None:
        return [People(read_labels(sheet, sex_codes=sex_codes, need_ages=False))]
    found = []
    for table in find_participant_tables(inputs):
        labels = _known_labels(table, sex_codes)
        for sessions in sorted(table.parent.glob("sub-*/sub-*_sessions.tsv")):
            labels |= _session_labels(sessions, labels, sex_codes)
        found.append(People(labels, table.parent))
    return found


def _known_labels(table: Path, sex_codes: dict[str, int] | None) -> dict[str, Label]:
    """The rows of a table that the user did not name; prints a note where cells are wrong."""
    try:
        labels, problems = examine_labels(table, sex_codes=sex_codes, need_ages=False)
    except ValueError as error:
        labels, problems = {}, [str(error)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        print(f"note: taken as unknown: {problems[0]}{more}")
    return labels


def _session_labels(
    table: Path, people: dict[str, Label], sex_codes: dict[str, int] | None
) -> dict[str, Label]:
    """The rows of a BIDS sessions.tsv as `sub-1_ses-2`, completed with the person's own row."""
    name = table.name.removesuffix("_sessions.tsv")
    person = people.get(name, Label(name, None, None, row=0))
    return {
        f"{name}_{session}": replace(
            label,
            subject_id=f"{name}_{session}",
            age=person.age if label.age is None else label.age,
            sex=person.sex if label.sex is None else label.sex,
            site=label.site or person.site,
        )
        for session, label in _known_labels(table, sex_codes).items()
    }


def find_label(source: Source, tables: Sequence[People]) -> Label | None:
    """The row of a scan: by its name among all scans of the call, or by its file's name.

    A file's name that needed folders in front of it is not unique, so it finds a row only where it
    is a name of BIDS.
    """
    stem, names = scan_stem(source.path), [source.name]
    if parse_bids_name(stem) or UNSAFE.sub("_", stem) == source.name:
        names.append(stem)
    for people in tables:
        if people.folder is None or source.path.is_relative_to(people.folder):
            for name in names:
                if label := match_label(Path(name), people.labels):
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
