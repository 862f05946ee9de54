"""What preprocess.py leaves beside the scans: the list of failures and the page of all pictures."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_preprocessing.pipeline.mosaic import PageRow, write_page
from data_preprocessing.pipeline.one_scan import Prepared, from_sidecar
from utils.files import image_stem, write_tsv
from utils.scans.provenance import read_sidecar


def page_row(name: str, prepared: Prepared) -> PageRow:
    """What the page says of a scan."""
    if prepared.error:
        return PageRow(name, "failed", message=prepared.error)
    quality = prepared.quality
    return PageRow(
        name,
        "flagged" if quality["flags"] else "done",
        correlation=quality["correlation"],
        overlap=quality["overlap"],
        flags=list(quality["flags"].values()),
        message=" ".join(prepared.notes),
        picture=prepared.picture,
        seconds=prepared.seconds,
    )


def add_earlier_rows(rows: Sequence[PageRow], folder: Path) -> tuple[list[PageRow], list[str]]:
    """The rows of this call and of the scans that earlier calls made in `folder`.

    Returns:
        All rows, and a warning for each scan that is there twice: it was given under another name
        before, alone or from another folder.
    """
    everything, same = {row.name: row for row in rows}, defaultdict(list)
    failed = {row.name for row in rows if row.status == "failed"}
    for scan in sorted(folder.glob("[!.]*.nii.gz")):
        name = image_stem(scan.name)
        if name in failed:
            continue
        try:
            sidecar = read_sidecar(scan)
        except ValueError:
            continue
        if sidecar and "source_sha256" in sidecar:
            everything.setdefault(name, page_row(name, from_sidecar(scan, sidecar)))
            same[sidecar["source_sha256"]].append(scan.name)
    return list(everything.values()), [
        f"{' and '.join(names)} in {folder} are the same scan: remove one"
        for names in same.values()
        if len(names) > 1
    ]


def write_reports(rows: Sequence[PageRow], folder: Path, *, shard: tuple[int, int]) -> list[Path]:
    """Writes failures.tsv and the page of all pictures; those of a shard have its number."""
    mark = "" if shard[1] == 1 else f"_{shard[0]}_of_{shard[1]}"
    failures, page = folder / f"failures{mark}.tsv", folder / f"preprocessing{mark}.html"
    failed = [(row.name, row.message) for row in rows if row.status == "failed"]
    write_tsv(failures, [("name", "message"), *failed], overwrite=True)
    write_page(rows, page, title="Preprocessed scans", overwrite=True)
    return [failures, page]
