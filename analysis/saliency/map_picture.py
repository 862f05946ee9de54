"""The picture of a map of effects over the template's brain."""

import numpy as np

from utils.results.plots import Axes, Figure, FigureCanvasAgg, Normalize, ScalarMappable
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE

# MNI152 mm of the planes that are shown, as many of each axis.
PLANES = {
    "z": (-44, -26, -8, 8, 24, 44),
    "y": (-78, -54, -32, -10, 16, 42),
    "x": (-46, -26, -4, 4, 26, 46),
}
ENDS = {"z": ("R", "L"), "y": ("R", "L"), "x": ("P", "A")}  # left and right of a plane, LAS voxels
WINDOW = (2, 99.5)  # percentiles of the template's brain drawn black and white
FULL_COLOUR = 99.5  # percentile of the brain's effects where the colours end
VISIBLE_FROM, OPAQUE_FROM = 0.1, 0.6  # of the last colour; between, the template shines through
OPACITY = 0.9
COLOURS = {True: "RdBu_r", False: "inferno"}  # with and without a sign


def draw_map(
    effect: np.ndarray, *, title: str, unit: str, signed: bool, meaning: str = ""
) -> Figure:
    """Draws planes of a map over the template, as radiologists show them, with a colour bar.

    Only the template's brain is coloured; weak effects let the template shine through.

    Args:
        effect: (91, 109, 91) on the MNI152 2 mm grid, in LAS order.
        title: above the planes.
        unit: of the effect, at the colour bar.
        signed: whether colours run from negative through 0 to positive, or from 0 up.
        meaning: what the sign means, at the foot.
    """
    brain, mask = load_template().brain, load_template().mask
    low, high = np.percentile(brain[mask], WINDOW)
    limit = float(np.percentile(np.abs(effect[mask]), FULL_COLOUR)) or 1.0
    opacity = (np.abs(effect) / limit - VISIBLE_FROM) / (OPAQUE_FROM - VISIBLE_FROM)
    opacity = OPACITY * np.clip(opacity, 0, 1) * mask
    box = tuple(slice(places.min() - 1, places.max() + 2) for places in np.nonzero(mask))
    figure = Figure(figsize=(11.5, 6.4), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(PLANES), len(PLANES["z"]))
    scale = ScalarMappable(Normalize(-limit if signed else 0.0, limit), COLOURS[signed])
    for row, (name, places) in zip(panels, PLANES.items(), strict=True):
        for axes, place in zip(row, places, strict=True):
            image, effects, opaque = (
                plane(volume, name, place, box) for volume in (brain, effect, opacity)
            )
            axes.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high)
            axes.imshow(effects, origin="lower", cmap=scale.cmap, norm=scale.norm, alpha=opaque)
            _label(axes, name, place)
    extend = "both" if signed else "max"
    bar = figure.colorbar(scale, ax=panels, fraction=0.025, pad=0.01, extend=extend)
    bar.set_label(unit, color="white")
    bar.ax.tick_params(colors="white")
    figure.suptitle(title, color="white", fontsize=11, parse_math=False)
    foot = "MNI152 mm  |  R, L: the person's right and left"
    figure.supxlabel("  |  ".join(filter(None, (foot, meaning))), color="#BBBBBB", fontsize=8)
    return figure


def plane(volume: np.ndarray, name: str, place: float, box: tuple[slice, ...]) -> np.ndarray:
    """The plane of a volume on the grid at x, y or z of `place` mm, its rows upward.

    Args:
        volume: (91, 109, 91) in LAS order.
        name: x, y or z, the axis across the plane.
        place: MNI152 mm.
        box: what is shown of each axis.
    """
    axis = "xyz".index(name)
    voxel = round((place - GRID_AFFINE[axis, 3]) / GRID_AFFINE[axis, axis])
    across = tuple(part for index, part in enumerate(box) if index != axis)
    return np.take(volume, voxel, axis=axis)[across].T


def _label(axes: Axes, name: str, place: float) -> None:
    """Writes the sides and the place of a plane into its panel."""
    axes.set_axis_off()
    style = {"color": "white", "fontsize": 8, "transform": axes.transAxes}
    side = "" if name != "x" else " (right)" if place > 0 else " (left)"
    axes.text(0.5, -0.02, f"{name} {place:+d}{side}", ha="center", va="top", **style)
    left, right = ENDS[name]
    axes.text(0.02, 0.98, left, ha="left", va="top", **style)
    axes.text(0.98, 0.98, right, ha="right", va="top", **style)
