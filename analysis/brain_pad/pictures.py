"""Pictures of brain-PAD, raw and corrected side by side."""

import numpy as np
import pandas as pd
from scipy.stats import t

from analysis.brain_pad.calibration import PADS
from utils.results.plots import BLUE, GREY, ORANGE, Axes, Figure, FigureCanvasAgg

TITLES = dict(zip(PADS, ("raw", "corrected (Cole)", "corrected (Beheshti)"), strict=True))


def pad_against_age(out_of_fold: pd.DataFrame, test: pd.DataFrame) -> Figure:
    """Brain-PAD against age: the scans that the correction was fitted on, and the test scans.

    Args:
        out_of_fold: calibrated scans, see `apply_calibration`.
        test: scans that neither network nor correction has seen, calibrated.
    """
    figure, panels = _panels()
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        axes.axhline(0, color=GREY, linewidth=1)
        for scans, colour, label in ((out_of_fold, GREY, "out of fold"), (test, BLUE, "test")):
            axes.scatter(
                scans["age"], scans[name], s=18, color=colour, linewidths=0,
                alpha=0.4 if scans is out_of_fold else 0.85, label=f"{label}, n = {len(scans)}",
            )  # fmt: skip
        slope = ""
        if len(test) > 2 and np.ptp(test["age"]) > 0:
            line = np.polynomial.Polynomial.fit(test["age"], test[name], 1)
            ends = np.array([test["age"].min(), test["age"].max()])
            axes.plot(ends, line(ends), "--", color=ORANGE, label="least squares, test")
            slope = f": slope {line.convert().coef[1]:+.2f} on test"
        axes.set_title(title + slope, fontsize=10)
        axes.set_xlabel("chronological age (years)")
    panels[0].legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def pad_by_group(groups: dict[str, pd.DataFrame]) -> Figure:
    """Brain-PAD of each group: every scan, and the mean with its 95 % interval (t).

    Args:
        groups: calibrated scans by name of group, the healthy first.
    """
    figure, panels = _panels()
    generator = np.random.default_rng(0)
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        axes.axhline(0, color=GREY, linewidth=1)
        for place, scans in enumerate(groups.values()):
            _draw_group(axes, place, scans[name].to_numpy(), generator)
        names = [f"{group}\nn = {len(scans)}" for group, scans in groups.items()]
        axes.set_xticks(range(len(groups)), names, fontsize=8)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_title(title, fontsize=10)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _draw_group(axes: Axes, place: int, pad: np.ndarray, generator: np.random.Generator) -> None:
    colour = BLUE if place == 0 else ORANGE
    spread = generator.uniform(-0.18, 0.18, len(pad))
    axes.scatter(place + spread, pad, s=18, color=colour, alpha=0.55, linewidths=0)
    if len(pad) > 1:
        half = t.ppf(0.975, len(pad) - 1) * pad.std(ddof=1) / np.sqrt(len(pad))
        label = None if place else "mean, 95 % interval"
        axes.errorbar(
            place + 0.32, pad.mean(), half, fmt="o", color="black", ms=4, capsize=3, label=label
        )  # fmt: skip


def _panels() -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(12.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(TITLES), sharey=True)
    panels[0].set_ylabel("brain-PAD (years)")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
