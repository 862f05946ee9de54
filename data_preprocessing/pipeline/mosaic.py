"""Pictures of preprocessed scans for the eye: a mosaic of each, and one page of all, worst first.

Numbers find most failures; a wrong brain outline or a swapped hemisphere is seen at once.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from utils.files import replacing
from utils.results import pages
from utils.results.plots import Figure, FigureCanvasAgg
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

# MNI152 mm of the planes that are shown; as many of each as fill a row of the picture.
PLANES = {
    "z": (-44, -26, -8, 10, 30, 52),
    "y": (-82, -56, -32, -8, 18, 46),
    "x": (-46, -24, 4, 24, 46),  # the plane at 0 shows mostly the gap between the hemispheres
}
# What is at the left and the right edge of a plane: voxels run to the left and to the front (LAS).
EDGES = {"z": "RL", "y": "RL", "x": "PA"}
LEGEND = (
    "radiological: the person's right is on the left (R, L)  |  numbers: MNI152 mm  |  "
    "blue: outline of the template's brain"
)
MARGIN, BESIDE, BELOW = 2, 8, 7  # voxels around the brain, for letters, for a plane's mm
WINDOW = (2, 99.5)  # percentiles of the brain that are drawn black and white
COLOURS = 64  # of the stored picture: true colour looks the same and doubles the file
INCHES, DOTS = 8.6, 110  # width; dots per inch
LINE = 100  # characters of the title that fit in the width
# Okabe and Ito's sky blue and orange, which colour-blind readers can tell apart.
OUTLINE, WARNING = "#56B4E9", "#E69F00"
STATUSES = ("failed", "flagged", "done")  # in the order of the page


@dataclass(frozen=True)
class PageRow:
    """What the page shows of one scan.

    Attributes:
        name: of the scan.
        status: `done`, `flagged` or `failed`.
        correlation: with the template; None where unknown.
        overlap: Dice coefficient of the scan's brain and the template's; None where unknown.
        flags: why it was flagged, one sentence for each reason.
        message: why it failed.
        picture: its mosaic; None where there is none.
        seconds: that preprocessing took; None where unknown.
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


def write_page(
    rows: Sequence[PageRow],
    path: str | Path,
    *,
    title: str = "Preprocessed scans",
    overwrite: bool = False,
) -> None:
    """Writes one HTML file with all scans and their pictures, see `utils.results.pages`.

    Failed scans stand first, then flagged ones, then the others; within each of these the scan
    with the lowest correlation stands first. Later pictures are smaller.

    Args:
        rows: the scans, in any order.
        path: of the page.
        title: its heading.
        overwrite: whether `path` may exist already.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
    """
    pages.write_page(
        Path(__file__).with_name("mosaic.html.jinja"),
        path,
        overwrite=overwrite,
        title=title,
        rows=sorted(rows, key=_worst_first),
        statuses=STATUSES,
        counts=Counter(row.status for row in rows),
    )


def _worst_first(row: PageRow) -> tuple[int, float, str]:
    """A sort key; an unknown correlation counts as the lowest."""
    known = row.correlation is not None and math.isfinite(row.correlation)
    return STATUSES.index(row.status), row.correlation if known else -math.inf, row.name


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
    for name, array in (("volume", volume), ("template_mask", template_mask)):
        if array.shape != GRID_SHAPE:
            raise ValueError(f"{path}: {name} of shape {GRID_SHAPE} expected, got {array.shape}")
    figure = mosaic_figure(volume, template_mask > 0, title=title, flagged=flagged)
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    # Pillow's default method would replace the outline's few pixels by one more grey.
    few = drawn.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    with replacing(path, overwrite=overwrite) as temporary:
        few.save(temporary, format="PNG")


def mosaic_figure(
    volume: np.ndarray, template_mask: np.ndarray, *, title: str, flagged: bool = False
) -> Figure:
    """The figure behind `draw_mosaic`; one voxel is one unit of its axes."""
    box = _box_around(template_mask | (volume > 0))
    image, labels = _assemble(volume, box)
    outline, _ = _assemble(template_mask, box)
    height, width = image.shape
    lines = [_shorten(line) for line in title.splitlines()] or [""]
    if flagged:
        lines[0] = f"▲ FLAGGED  {lines[0]}"
    above, below = 12 * len(lines) + 6, 14  # voxels
    total = height + above + below
    figure = Figure(figsize=(INCHES, INCHES * total / width), dpi=DOTS, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5 - below, height - 0.5 + above))
    axes.set_axis_off()
    brain = volume[volume > 0]
    low, high = np.percentile(brain, WINDOW) if brain.size else (0.0, 1.0)
    axes.imshow(
        image, origin="lower", cmap="gray", vmin=low, vmax=max(high, low + 1e-6),
        interpolation="bilinear", aspect="auto",
    )  # fmt: skip
    axes.contour(outline, [0.5], colors=OUTLINE, linewidths=0.7)
    style = {"parse_math": False, "color": "white"}
    for text, column, row, alignment in labels:
        axes.text(column, row, text, fontsize=6.5, ha=alignment, va="center", **style)
    style["color"] = WARNING if flagged else "white"
    axes.text(4, height + above - 6, "\n".join(lines), fontsize=9, va="top", **style)
    axes.text(4, -below / 2, LEGEND, fontsize=6.5, va="center", color="#BBBBBB")
    return figure


def _box_around(shown: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around the true voxels with a margin; everything where there are none."""
    if not shown.any():
        return tuple(slice(0, size) for size in shown.shape)
    return tuple(
        slice(max(0, places.min() - MARGIN), min(size, places.max() + MARGIN + 1))
        for places, size in zip(np.nonzero(shown), shown.shape, strict=True)
    )


def _assemble(volume: np.ndarray, box: tuple[slice, ...]) -> tuple[np.ndarray, list[tuple]]:
    """Puts the planes of `volume` into one image, whose row 0 is at the bottom.

    Returns:
        The image, and its labels: text, column, row, and horizontal alignment there.
    """
    planes = {}
    for axis, name in enumerate("xyz"):
        voxels = (np.array(PLANES[name]) - GRID_AFFINE[axis, 3]) / GRID_AFFINE[axis, axis]
        sides = (*box[:axis], *box[axis + 1 :])
        planes[name] = [volume.take(voxel, axis)[sides] for voxel in voxels.round().astype(int)]
    total = max((found[0].shape[0] + 2 * BESIDE) * len(found) for found in planes.values())
    rows, labels, bottom = [], [], 0
    for name in reversed(PLANES):
        width, height = planes[name][0].shape
        row = np.zeros((BELOW + height, total), volume.dtype)
        cell = total / len(planes[name])
        for number, (place, plane) in enumerate(zip(PLANES[name], planes[name], strict=True)):
            left = round(number * cell + (cell - width) / 2)
            row[BELOW:, left : left + width] = plane.T
            # World x runs to the right, voxels to the left.
            hemisphere = "" if name != "x" else " R" if place > 0 else " L"
            middle = bottom + BELOW + height / 2
            labels += [
                (EDGES[name][0], left - 1, middle, "right"),
                (EDGES[name][1], left + width, middle, "left"),
                (f"{name} {place:+d}{hemisphere}", left + width / 2, bottom + BELOW / 2, "center"),
            ]
        rows.append(row)
        bottom += len(row)
    return np.concatenate(rows), labels


def _shorten(line: str) -> str:
    """At most `LINE` characters of a title: the start of the name and the figures at the end."""
    line = line.encode("utf-8", "backslashreplace").decode()  # a file name may be invalid UTF-8
    half = LINE // 2
    return line if len(line) <= LINE else f"{line[: half - 2]} … {line[-half + 1 :]}"
