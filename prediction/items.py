"""The scans of a call: where each is, who it shows, and what the label sheet says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_preprocessing.bids import (
    derivative_name,
    find_participant_tables,
    select_participants,
    split_name,
)
from data_preprocessing.inputs import Source, find_sources
from data_preprocessing.prepare import lies_on_grid
from utils.labels import Label, label_of, read_labels, read_rows


@dataclass(frozen=True)
class Item:
    """One scan of the call.

    Attributes:
        source: its name is that of its results below the output folder.
        participant: `sub-...`, or the scan's name.
        session: `ses-...` or None.
        label: its row of the sheet; None where there is none.
        on_grid: whether it is predicted as it is.
    """

    source: Source
    participant: str
    session: str | None
    label: Label | None
    on_grid: bool

    @property
    def is_bids(self) -> bool:
        """Whether its name is one of BIDS."""
        return not self.source.name.startswith("scans/")

    @property
    def sex(self) -> int | None:
        """0 female, 1 male, None where unknown."""
        return self.label.sex if self.label else None

    def record_path(self, folder: Path) -> Path:
        """Where its result is kept."""
        return folder / f"{self.source.name}_brainage.json"


def find_items(
    inputs: Sequence[str],
    labels: dict[str, Label],
    *,
    output_dir: Path,
    contents: str = "auto",
    participants: Sequence[str] = (),
) -> list[Item]:
    """All scans of the inputs in the order of their names, with their rows of the sheet.

    Args:
        inputs: files, folders, BIDS datasets, outputs of fsl_anat, folders of a DICOM series.
        labels: rows by name; may be empty.
        output_dir: for results, which are no inputs.
        contents: `head`, `brain`, `grid`, or `auto`, which takes what lies on the grid as it is.
        participants: of BIDS datasets, these alone; all where empty.

    Raises:
        ValueError: inputs without scans, or participants asked for who are not there.
    """
    sources = find_sources(inputs, output_dir=output_dir)
    if participants:
        names = [source.name for source in sources]
        sources = [sources[place] for place in select_participants(names, participants)]
    items = []
    for source in sources:
        participant, session = split_name(source.name) or (source.name, None)
        on_grid = contents == "grid" or (contents == "auto" and lies_on_grid(source))
        result = replace(source, name=derivative_name(source.name) or f"scans/{source.name}")
        items.append(Item(result, participant, session, find_label(source, labels), on_grid))
    return items


def read_all_labels(
    sheet: str | None, inputs: Sequence[str], sex_codes: dict[str, int] | None
) -> dict[str, Label]:
    """Rows of a label sheet, by name.

    Args:
        sheet: its path; "": no labels; None: every participants.tsv of the inputs.
        inputs: as for `find_items`.
        sex_codes: as for `read_labels`.
    """
    sheets = find_participant_tables(inputs) if sheet is None else list(filter(None, [sheet]))
    return {
        name: label
        for path in sheets
        for name, label in read_labels(path, sex_codes=sex_codes).items()
    }


def find_label(source: Source, labels: dict[str, Label]) -> Label | None:
    """The row of a scan: by its file's name, or by the name that tells it from the others."""
    file = source.path.with_name(source.path.name.removesuffix(".mgz").removesuffix(".mgh"))
    return label_of(file, labels) or label_of(Path(source.name), labels)


def require_table_of(items: Sequence[Item], table: Path) -> None:
    """Raises FileExistsError where a table holds scans that are not in this call, and be lost.

    Args:
        items: of this call.
        table: predictions.tsv of an earlier one; may be missing.
    """
    if not table.is_file():
        return
    header, *rows = read_rows(table) or [[]]
    place = header.index("scan") if "scan" in header else None
    ours = {" ".join(str(item.source.path).split()) for item in items}
    others = [row for row in rows if place is None or row[place] not in ours]
    if others:
        raise FileExistsError(
            f"{table} has {len(others)} rows of scans that are not in this call, such as "
            f"{others[0][0]}: give all scans, another --output_dir, or --overwrite to replace it"
        )
