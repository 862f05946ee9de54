"""The scans of a call: where each is, who it shows, and what the label sheet says of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_preprocessing.pipeline.inputs import (
    Source,
    derivative_name,
    find_participant_tables,
    find_sources,
    plain,
    scan_stem,
    select_participants,
    split_name,
)
from data_preprocessing.pipeline.prepare import lies_on_grid
from utils.scans.labels import Label, examine_labels, label_of, read_labels
from utils.scans.sheets import read_rows


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

    def overlay_path(self, folder: Path) -> Path:
        """Where the picture of its saliency is kept."""
        return folder / f"{self.source.name}_saliency.png"

    def record_path(self, folder: Path) -> Path:
        """Where its result is kept."""
        return folder / f"{self.source.name}_brainage.json"


def find_items(
    inputs: Sequence[str],
    tables: Sequence["People"],
    *,
    output_dir: Path,
    contents: str = "auto",
    participants: Sequence[str] = (),
) -> list[Item]:
    """All scans of the inputs in the order of their names, with their rows of the sheet.

    Args:
        inputs: files, folders, BIDS datasets, outputs of fsl_anat, folders of a DICOM series.
        tables: from `read_people`; may be empty.
        output_dir: for results, which are no inputs.
        contents: `head`, `brain`, `grid`, or `auto`, which takes what lies on the grid as it is.
        participants: of BIDS datasets, these alone; all where empty.

    Raises:
        ValueError: inputs without scans, or that lie in the output folder; participants asked for
            who are not there.
    """
    sources = find_sources(inputs, output_dir=output_dir)
    require_outside(sources, output_dir)
    if participants:
        places = select_participants([_bids_name(source) for source in sources], participants)
        sources = [sources[place] for place in places]
    names = [derivative_name(source.name) for source in sources]
    times = Counter(name.lower() for name in names if name)
    items = []
    for source, name in zip(sources, names, strict=True):
        # Of two files that would become one derivative, both get names of their own.
        plain = name is None or times[name.lower()] > 1
        participant, session = split_name(_bids_name(source)) or (source.name, None)
        on_grid = contents == "grid" or (contents == "auto" and lies_on_grid(source))
        result = replace(source, name=f"scans/{source.name}" if plain else name)
        items.append(Item(result, participant, session, find_label(source, tables), on_grid))
    return items


def require_outside(sources: Sequence[Source], output_dir: Path) -> None:
    """Raises ValueError where scans lie in the output folder: results could take their place."""
    for source in sources:
        for path in (source.path, source.path.resolve()):
            if path.is_relative_to(output_dir.resolve()):
                raise ValueError(
                    f"{path}: lies in --output_dir {output_dir}, where results could take the "
                    "place of scans; give another folder"
                )


@dataclass(frozen=True)
class People:
    """Rows of a label sheet by name, and the folder whose scans it is of; None: of all."""

    labels: dict[str, Label]
    folder: Path | None = None


def read_people(
    sheet: str | None, inputs: Sequence[str], sex_codes: dict[str, int] | None
) -> list[People]:
    """The rows of a label sheet, or of every participants.tsv of the inputs and its sessions'.

    Ages may be missing. What is wrong in a table that nobody named is unknown, and said.

    Args:
        sheet: its path; "": no labels; None: participants.tsv.
        inputs: as for `find_items`.
        sex_codes: as for `read_labels`.

    Raises:
        FileNotFoundError, ValueError: as `read_labels`, of a sheet that was named.
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
    """The rows of a table that nobody named; what is wrong in it is said."""
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
    """The rows of a BIDS sessions.tsv as `sub-1_ses-2`; what they leave open is the person's."""
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
    """The row of a scan: by the name that tells it from the others, or by its file's name.

    The file's name alone says nothing where folders had to be put in front of it, unless it is one
    of BIDS.
    """
    names = [source.name]
    if split_name(scan_stem(source.path)) or plain(scan_stem(source.path)) == source.name:
        names.append(scan_stem(source.path))
    for people in tables:
        if people.folder is None or source.path.is_relative_to(people.folder):
            for name in names:
                if label := label_of(Path(name), people.labels):
                    return label
    return None


def _bids_name(source: Source) -> str:
    """The name that BIDS gives: the scan's or, with folders in front of it, the file's."""
    return source.name if split_name(source.name) else scan_stem(source.path)


def require_table_of(items: Sequence[Item], table: Path) -> None:
    """Raises FileExistsError where a table holds scans that are not in this call, and be lost.

    Args:
        items: of this call.
        table: predictions.tsv of an earlier one; may be missing.
    """
    if not table.is_file():
        return
    header, *rows = read_rows(table) or [[]]
    place = header.index("scan") if "scan" in header else len(header)
    ours = {" ".join(shown(item.source.path).split()) for item in items}
    others = [row for row in rows if any(row) and (len(row) <= place or row[place] not in ours)]
    if others:
        raise FileExistsError(
            f"{table} has {len(others)} rows of scans that are not in this call, such as "
            f"{others[0][0]}: give all scans, another --output_dir, or --overwrite to replace it"
        )


def shown(path: Path) -> str:
    """A path as tables have it: bytes that are no text as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()
