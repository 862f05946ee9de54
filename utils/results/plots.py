"""Pictures, drawn without a display and without pyplot's global state.

What draws gets matplotlib's classes here: its first import fails where MPLBACKEND names a backend
that is not installed, such as a notebook's, which programs started in that inherit.
"""

import os
import sys

import numpy as np

if not hasattr(sys, "ps1"):  # a session in which somebody may want to see figures of his own
    os.environ["MPLBACKEND"] = "agg"

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

__all__ = [
    "BLUE", "GREY", "ORANGE", "Axes", "Figure", "FigureCanvasAgg", "Normalize", "ScalarMappable",
    "age_scatter", "rc_context",
]  # fmt: skip

# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"


def age_scatter(
    age: np.ndarray,
    ages: dict[str, np.ndarray],
    *,
    title: str = "",
    name: str = "scans",
) -> Figure:
    """Predicted against chronological age, one panel for each entry of `ages`.

    Args:
        age: (n,) chronological years.
        ages: title of a panel -> (n,) predicted years.
        title: above the panels.
        name: what the points are.
    """
    figure = Figure(figsize=(0.4 + 4.4 * len(ages), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(ages), squeeze=False)[0]
    everything = np.concatenate([age, *ages.values()])
    low, high = np.floor(everything.min() / 5) * 5 - 2, np.ceil(everything.max() / 5) * 5 + 2
    for axes, (panel, predicted_age) in zip(panels, ages.items(), strict=True):
        axes.plot([low, high], [low, high], color=GREY, linewidth=1, label="identity")
        axes.scatter(age, predicted_age, s=18, color=BLUE, alpha=0.75, linewidths=0, label=name)
        if len(age) > 2 and np.ptp(age) > 0:
            slope, intercept = np.polyfit(age, predicted_age, 1)
            ends = np.array([age.min(), age.max()])
            axes.plot(ends, slope * ends + intercept, "--", color=ORANGE, label="least squares")
        mae = np.abs(predicted_age - age).mean()
        axes.set_title(f"{panel}: MAE {mae:.2f} years, n = {len(age)}", fontsize=10)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel="chronological age (years)", ylabel="predicted age (years)")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
