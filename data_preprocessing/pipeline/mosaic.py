"""Pictures of preprocessed scans for the eye: a mosaic of each, and one page of all, worst first.

Numbers find most failures; a wrong brain outline or a swapped hemisphere is seen at once.
"""

import html
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel import aff2axcodes

from utils.files import replacing
from utils.results.pages import picture_element
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

# MNI152 mm of the planes that are shown; as many of each as fill a row of the picture.
PLANES = {
    "z": (-44, -26, -8, 10, 30, 52),
    "y": (-82, -56, -32, -8, 18, 46),
    "x": (-46, -24, 4, 24, 46),  # at 0 there is mostly the gap between the hemispheres
}
OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))
MARGIN, BESIDE, BELOW = 2, 8, 7  # voxels around what is shown, for letters, for a plane's mm
WINDOW = (2, 99.5)  # percentiles of the brain drawn black and white
COLOURS = 64  # of the stored picture; more are not seen, and true colour doubles the file
INCHES, DOTS = 8.6, 110  # width, and dots an inch
LINE = 100  # characters of the title that fit in the width
# Okabe and Ito's sky blue and orange, told apart by colour-blind readers.
OUTLINE, WARNING = "#56B4E9", "#E69F00"

STATUSES = ("failed", "flagged", "done")  # in the order of the page
FULL_PICTURES = 200  # the page shows the others at half size: thousands must still open
MARKS = {"failed": "✕", "flagged": "▲", "done": "●"}  # nothing is said by colour alone
STYLE = """
:root { --failed: #222222; --flagged: #A84300; --done: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; background: #F4F4F4; color: #111111;
  font: 1rem/1.4 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .5rem; }
header p { max-width: 60rem; margin: .5rem 0; }
nav a { display: inline-block; margin: 0 .5rem .5rem 0; padding: .4rem .8rem; color: #FFFFFF;
  border-radius: .3rem; text-decoration: none; }
main { display: grid; gap: 1rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); }
article { padding: .7rem; background: #FFFFFF; border-left: .5rem solid; border-radius: .3rem;
  overflow-wrap: anywhere; content-visibility: auto; contain-intrinsic-size: auto 27rem; }
article.failed { contain-intrinsic-size: auto 6rem; }
h2 { margin: 0; font-size: 1rem; color: #111111; }
article p { margin: .2rem 0; color: #111111; }
article p b { color: #FFFFFF; padding: 0 .4rem; border-radius: .2rem; }
.failed b, a.failed { background: var(--failed); } article.failed { border-color: var(--failed); }
.flagged b, a.flagged { background: var(--flagged); }
article.flagged { border-color: var(--flagged); }
.done b, a.done { background: var(--done); } article.done { border-color: var(--done); }
img { display: block; width: 100%; height: auto; margin-top: .4rem; background: #000000; }
@media print {
  body { padding: 0; background: #FFFFFF; font-size: 10pt; }
  main { display: block; }
  article { break-inside: avoid; content-visibility: visible; margin-bottom: .5cm;
    border: 1px solid #777777; }
  article p b, nav a { color: #111111; background: none !important; border: 1px solid #111111; }
}
"""


@dataclass(frozen=True)
class PageRow:
    """What the page says of one scan.

    Attributes:
        name: of the scan.
        status: `done`, `flagged` or `failed`.
        correlation: with the template; None where it is not known.
        overlap: Dice of the scan's brain with the template's; None where it is not known.
        flags: why it was flagged, one sentence each.
        message: why it failed.
        picture: its mosaic; None where there is none.
        seconds: that it took.
    """

    name: str
    status: str
    correlation: float | None = None
    overlap: float | None = None
    flags: Sequence[str] = ()
    message: str = ""
    picture: Path | None = None
    seconds: float | None = None

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(
                f"{self.name}: status {self.status!r}, one of {', '.join(STATUSES)} expected"
            )


def draw_mosaic(
    volume: np.ndarray,
    template_mask: np.ndarray,
    path: str | Path,
    *,
    title: str,
    flagged: bool = False,
    overwrite: bool = False,
) -> None:
    """Draws planes of a preprocessed scan with the outline of the template's brain over them.

    Left and right are as radiologists show them, and the picture says so.

    Args:
        volume: (91, 109, 91) on the MNI152 2 mm grid, in LAS order.
        template_mask: the same shape, True in the template's brain.
        path: of the PNG; the same scan and title make the same bytes.
        title: name and figures; each line is shortened to what fits.
        flagged: whether the title is marked.
        overwrite: whether `path` may exist already.

    Raises:
        ValueError: `volume` or `template_mask` is not on the grid.
        FileExistsError: `path` exists and `overwrite` is false.
    """
    from PIL import Image

    for name, array in (("volume", volume), ("template_mask", template_mask)):
        if array.shape != GRID_SHAPE:
            raise ValueError(f"{path}: {name} of shape {GRID_SHAPE} expected, got {array.shape}")
    figure = mosaic_figure(volume, template_mask > 0, title=title, flagged=flagged)
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    with replacing(path, overwrite=overwrite) as temporary:
        # The default method drops the outline's few pixels for one more grey.
        few = drawn.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(temporary, format="PNG")


def mosaic_figure(
    volume: np.ndarray, template_mask: np.ndarray, *, title: str, flagged: bool = False
):
    """The matplotlib figure behind `draw_mosaic`; one voxel is one unit of its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    box = _box(template_mask | (volume > 0))
    image, labels = _assemble(volume, box=box)
    outline, _ = _assemble(template_mask, box=box)
    height, width = image.shape
    lines = [_shortened(line) for line in title.splitlines()] or [""]
    if flagged:
        lines[0] = f"▲ FLAGGED  {lines[0]}"
    above, below = 12 * len(lines) + 6, 14  # voxels
    total = height + above + below
    figure = Figure(figsize=(INCHES, INCHES * total / width), dpi=DOTS, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5 - below, height - 0.5 + above))
    axes.set_axis_off()
    low, high = _window(volume)
    axes.imshow(
        image, origin="lower", cmap="gray", vmin=low, vmax=high,
        interpolation="bilinear", aspect="auto",
    )  # fmt: skip
    axes.contour(outline, [0.5], colors=OUTLINE, linewidths=0.7)
    style = {"parse_math": False, "color": "white"}
    for text, column, row, edge in labels:
        axes.text(column, row, text, fontsize=6.5, ha=edge, va="center", **style)
    style["color"] = WARNING if flagged else "white"
    axes.text(4, height + above - 6, "\n".join(lines), fontsize=9, va="top", **style)
    axes.text(4, -below / 2, _legend(), fontsize=6.5, va="center", color="#BBBBBB")
    return figure


def _legend() -> str:
    """What is what in the picture, left and right as they are on the grid."""
    right_first = aff2axcodes(GRID_AFFINE)[0] == "L"  # voxels run from right to left
    convention = (
        "radiological: the person's right is on the left"
        if right_first
        else "neurological: the person's left is on the left"
    )
    return f"{convention} (R, L)  |  numbers: MNI152 mm  |  blue: outline of the template's brain"


def _window(volume: np.ndarray) -> tuple[float, float]:
    """The intensities drawn black and white."""
    brain = volume[volume > 0]
    if brain.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(brain, WINDOW)
    return low, max(high, low + 1e-6)


def _box(shown: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around `shown` with a margin; all where nothing is."""
    if not shown.any():
        return tuple(slice(0, size) for size in shown.shape)
    return tuple(
        slice(max(0, places.min() - MARGIN), min(size, places.max() + MARGIN + 1))
        for places, size in zip(np.nonzero(shown), shown.shape, strict=True)
    )


def _assemble(
    volume: np.ndarray, *, box: tuple[slice, ...]
) -> tuple[np.ndarray, list[tuple[str, float, float, str]]]:
    """Puts the planes of `volume` into one image, row 0 at the bottom.

    Returns:
        The image, and its labels: text, column, row, and which edge of the text is there.
    """
    sizes = [part.stop - part.start for part in box]
    axes = {name: [axis for axis in range(3) if "xyz"[axis] != name] for name in PLANES}
    total = max(
        (sizes[across] + 2 * BESIDE) * len(PLANES[name]) for name, (across, _) in axes.items()
    )
    rows, labels, bottom = [], [], 0
    for name in reversed(PLANES):
        across, up = axes[name]
        row = np.zeros((BELOW + sizes[up], total), volume.dtype)
        cell = total / len(PLANES[name])
        for number, place in enumerate(PLANES[name]):
            left = round(number * cell + (cell - sizes[across]) / 2)
            plane = _plane(volume, name, place)[box[across], box[up]]
            row[BELOW:, left : left + sizes[across]] = plane.T
            labels += [
                (text, left + column, bottom + up_by, edge)
                for text, column, up_by, edge in _labels(name, place, plane.shape)
            ]
        rows.append(row)
        bottom += len(row)
    return np.concatenate(rows), labels


def _plane(volume: np.ndarray, name: str, place: float) -> np.ndarray:
    """The plane of `volume` where x, y or z is `place` mm."""
    axis = "xyz".index(name)
    voxel = round((place - GRID_AFFINE[axis, 3]) / GRID_AFFINE[axis, axis])
    return np.take(volume, voxel, axis=axis)


def _labels(
    name: str, place: float, shape: tuple[int, ...]
) -> Iterator[tuple[str, float, float, str]]:
    """Text, column, row, and which edge of the text is there: sides and mm of one plane."""
    width, height = shape
    # The letter that the first axis of the plane runs to.
    end = aff2axcodes(GRID_AFFINE)[1 if name == "x" else 0]
    yield OPPOSITE[end], -1, BELOW + height / 2, "right"
    yield end, width, BELOW + height / 2, "left"
    # World x, unlike the voxels', runs to the right.
    hemisphere = "" if name != "x" else " R" if place > 0 else " L"
    yield f"{name} {place:+d}{hemisphere}", width / 2, BELOW / 2, "center"


def _shortened(line: str) -> str:
    """At most `LINE` characters: both ends are kept, the name's and the figures'."""
    # Bytes of a file name that are no text cannot be drawn.
    line = line.encode("utf-8", "backslashreplace").decode()
    half = LINE // 2
    return line if len(line) <= LINE else f"{line[: half - 2]} … {line[-half + 1 :]}"


def write_page(
    rows: Sequence[PageRow],
    path: str | Path,
    *,
    title: str = "Preprocessed scans",
    overwrite: bool = False,
) -> None:
    """Writes one HTML file with all scans, worst first, that needs nothing beside it.

    Failed scans stand first, then flagged ones, then the others, each group by correlation, lowest
    first. Pictures are inside; one at a time is in memory, and those after the first
    `FULL_PICTURES` are halved.

    Args:
        rows: the scans, in any order.
        path: of the page.
        title: its heading.
        overwrite: whether `path` may exist already.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
    """
    ordered = sorted(rows, key=_badness)
    # Bytes of a file name that are no text cannot be written as UTF-8.
    with (
        replacing(path, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(_head(ordered, title=title))
        seen, pictures = set(), 0
        for row in ordered:
            anchor = "" if row.status in seen else f' id="{row.status}"'
            seen.add(row.status)
            pictures += row.picture is not None
            file.write(_article(row, anchor=anchor, halved=pictures > FULL_PICTURES))
        file.write("</main>\n</body>\n</html>\n")


def _badness(row: PageRow) -> tuple[int, float, str]:
    """Sorts worst first; a correlation that is not known counts as the lowest."""
    known = row.correlation is not None and math.isfinite(row.correlation)
    return STATUSES.index(row.status), row.correlation if known else -math.inf, row.name


def _head(rows: Sequence[PageRow], *, title: str) -> str:
    """Everything before the first scan: style, counts with links, what the figures are."""
    counts = Counter(row.status for row in rows)
    links = "\n".join(
        f'<a class="{status}" href="#{status}">{MARKS[status]} {counts[status]} {status}</a>'
        for status in STATUSES
    )
    escaped = html.escape(title)
    pictures = sum(row.picture is not None for row in rows)
    halved = ""
    if pictures > FULL_PICTURES:
        halved = (
            f" The pictures after the first {FULL_PICTURES} are at half size here; the full ones "
            "are beside the scans."
        )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escaped}: {len(rows)}</h1>
<nav>
{links}
</nav>
<p>Worst first: failed, flagged, done, each by correlation with the template, lowest first.
Overlap is of the scan's brain with the template's (Dice). 1 is best for both.{halved}</p>
</header>
<main>
"""


def _article(row: PageRow, *, anchor: str, halved: bool) -> str:
    """One scan."""
    figures = [
        form.format(value)
        for form, value in (
            ("correlation {:.3f}", row.correlation),
            ("overlap {:.3f}", row.overlap),
            ("{:.0f} s", row.seconds),
        )
        if value is not None
    ]
    status = f"<b>{MARKS[row.status]} {row.status}</b>"
    lines = [" &middot; ".join([status, *figures])]
    lines += [html.escape(sentence) for sentence in (row.message, *row.flags) if sentence]
    picture = ""
    if row.picture is not None:
        try:
            alt = f"planes of {row.name} with the template's outline"
            picture = picture_element(row.picture, alt=alt, halved=halved)
        # The second is what Pillow raises for a broken PNG.
        except (OSError, SyntaxError) as error:
            lines.append(html.escape(f"Its picture cannot be shown: {error}"))
    text = "\n".join(f"<p>{line}</p>" for line in lines)
    heading = f"<h2>{html.escape(row.name)}</h2>"
    return f'<article class="{row.status}"{anchor}>\n{heading}\n{text}\n{picture}</article>\n'
