"""The scans of a call: where each is, who it shows, and its row in the label sheet."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preprocessing.pipeline.inputs import Source
from prediction.people import People, complete_from_header, find_label
from utils.files import IMAGE_SUFFIXES, scan_stem
from utils.people.bids_names import BidsName, parse_bids_name
from utils.people.matching import Label
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


def find_items(
    sources: Sequence[Source],
    tables: Sequence[People],
    *,
    output_dir: Path,
    contents: str = "auto",
    participants: Sequence[str] = (),
    headers: bool = True,
) -> list[Item]:
    """All scans of the inputs in the order of their names, with their rows in the sheets.

    Args:
        sources: from `find_sources`.
        tables: from `read_people`; may be empty.
        output_dir: for results, which are no inputs.
        contents: `head`, `brain`, `grid`, or `auto`: a scan that lies on the grid is used as it is.
        participants: of BIDS datasets, these alone; all where empty.
        headers: whether DICOM headers give ages and sexes that no sheet gives.

    Raises:
        ValueError: scans inside the output folder; participants without scans.
    """
    require_outside(sources, output_dir)
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
        if headers and source.is_dicom:
            label = complete_from_header(source, label)
        participant, session = who[:2] if who else (source.name, None)
        items.append(Item(Source(name, source.path, on_grid), participant, session, label))
    return items


def require_outside(sources: Sequence[Source], output_dir: Path) -> None:
    """Raises ValueError for a scan in the folder of results, which could take its place."""
    paths = (path for source in sources for path in (source.path, source.path.resolve()))
    if inside := [path for path in paths if path.is_relative_to(output_dir.resolve())]:
        text = "where results could take the place of scans; give another folder"
        raise ValueError(f"{inside[0]}: lies in --output_dir {output_dir}, {text}")


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
    """What BIDS says of a scan: by its name or, with folders in front of that, by its file's.

    A folder of FreeSurfer or DICOM files is called sub-01_ses-1, without the `_T1w` of a file.
    """
    names = (source.name, scan_stem(source.path.name), f"{source.name}_T1w")
    return next(filter(None, map(parse_bids_name, names)), None)


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
