"""The figures of the report as SVG, each small enough for a telephone.

Flagged scans have another mark, not only another colour. The same numbers make the same bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.report.numbers import MINIMUM, Line
from utils.results.pages import PagePicture, data_address
from utils.results.plots import BLUE, GREY, ORANGE, Axes, Figure, FigureCanvasAgg, rc_context

FEWEST_DRAWN = 3  # scans; the table shows as much of fewer
SIZE = (4.2, 4.1)  # inches
PIXELS_PER_INCH = 96  # of CSS
STYLE = {
    "svg.hashsalt": "report", "svg.fonttype": "path", "font.size": 10, "axes.titlesize": 10,
    "legend.fontsize": 9.5, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip
WITH_INTERVALS = 100  # scans; the lines of more would hide the points
MANY = 300  # scans; the points of more are smaller
AS_PIXELS = 1000  # scans; the points of more are stored as pixels, which take less
GROUPS = 30  # in one figure
NAME = 24  # characters of a group's name
LIMITS_OF_AGREEMENT = 1.96  # SD (Bland and Altman 1986, doi 10.1016/S0140-6736(86)90837-8)


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        title: stands under it.
        note: stands behind the title.
        alt: what it shows, for readers who do not see it.
        figure: from matplotlib.
    """

    title: str
    note: str
    alt: str
    figure: Figure

    def picture(self) -> PagePicture:
        """The drawing as SVG."""
        buffer = io.BytesIO()
        with rc_context(STYLE):
            self.figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
        size = (round(PIXELS_PER_INCH * inches) for inches in self.figure.get_size_inches())
        return PagePicture(data_address(buffer.getvalue(), "svg+xml"), *size)


def draw_figures(table: pd.DataFrame, known: pd.DataFrame, groups: Sequence[Line]) -> list[Drawing]:
    """Draws the errors of at least `FEWEST_DRAWN` scans, and all ages where most lack errors.

    Args:
        table: from `build_table`.
        known: from `select_known`.
        groups: from `group_errors`.
    """
    predicted = table[table["predicted_age"].notna()]
    with rc_context(STYLE):
        found = draw_errors(known, groups) if len(known) >= FEWEST_DRAWN else []
        if len(predicted) >= FEWEST_DRAWN and len(predicted) > 2 * len(known):
            found.append(draw_histogram(predicted))
    return found


def draw_errors(known: pd.DataFrame, groups: Sequence[Line]) -> list[Drawing]:
    """All figures of errors, see `draw_figures`."""
    pads = {
        "brain_pad": ("Brain-PAD against age, as predicted.", "A slope is the age bias."),
        "brain_pad_cole": ("Corrected after Cole.", "Uses no chronological age."),
        "brain_pad_beheshti": (
            "Corrected after Beheshti.", "Uses the chronological age, so errors look too small.",
        ),
    }  # fmt: skip
    pads = {name: words for name, words in pads.items() if known[name].notna().any()}
    found = [draw_scatter(known), draw_bland_altman(known)]
    limit = np.nanmax(np.abs(known[[*pads]].to_numpy())) * 1.05 if pads else 0.0
    found += [draw_pad_against_age(known, name, *words, limit) for name, words in pads.items()]
    if sum(line.scans >= MINIMUM for line in groups) > 1:
        found.append(draw_error_by_group(groups))
    return found


def draw_scatter(known: pd.DataFrame) -> Drawing:
    """Draws predicted against chronological age, with the line where both are equal."""
    figure, axes = _new_figure("chronological age (years)", "predicted age (years)")
    columns = ["age", "predicted_age"]
    note = "On the line both are equal."
    if known["predicted_age_low"].notna().any() and len(known) <= WITH_INTERVALS:
        columns += ["predicted_age_low", "predicted_age_high"]
        axes.vlines(known["age"], *(known[name] for name in columns[2:]), color=GREY, alpha=0.4,
                    linewidth=1, label="90 % interval")  # fmt: skip
        note += " Grey: the 90\u00a0% interval of each scan."
    values = known[columns].to_numpy()
    low, high = np.nanmin(values) - 3, np.nanmax(values) + 3
    axes.plot([low, high], [low, high], color="black", linewidth=1, zorder=4, label="identity")
    _draw_points(axes, known, "age", "predicted_age")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    _draw_legend(figure)
    mae = np.abs(known["predicted_age"] - known["age"]).mean()
    alt = "Scatter of predicted against chronological age with the identity line: "
    alt += f"{_count(known)}, mean absolute error {mae:.2f} years."
    return Drawing("Predicted against chronological age.", note, alt, figure)


def draw_bland_altman(known: pd.DataFrame) -> Drawing:
    """Draws brain-PAD against the mean of both ages, with its mean and limits of agreement."""
    figure, axes = _new_figure(
        "mean of predicted and chronological age (years)", "predicted − chronological (years)"
    )
    difference = known["predicted_age"] - known["age"]
    shown = known.assign(mean=(known["predicted_age"] + known["age"]) / 2, difference=difference)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axhline(difference.mean(), color="black", linewidth=1.2, label="mean")
    words = f"mean {difference.mean():+.1f}"
    if len(known) >= MINIMUM:
        half = LIMITS_OF_AGREEMENT * difference.std(ddof=1)
        for sign, label in ((1, "mean ± 1.96 SD"), (-1, None)):
            at = difference.mean() + sign * half
            axes.axhline(at, color="black", linewidth=1, linestyle="--", label=label)
        ends = (difference.mean() - half, difference.mean() + half)
        words += ", limits of agreement {:+.1f} and {:+.1f}".format(*ends)
    _draw_points(axes, shown, "mean", "difference")
    _draw_legend(figure)
    alt = f"Bland-Altman plot of predicted and chronological age: {_count(known)}, {words} years."
    return Drawing("Bland-Altman.", f"Years: {words}.", alt, figure)


def draw_pad_against_age(
    known: pd.DataFrame, column: str, title: str, note: str, limit: float
) -> Drawing:
    """Draws one of the brain-PADs against chronological age.

    Args:
        known: from `select_known`.
        column: which PAD.
        title: of the figure.
        note: what to keep in mind.
        limit: years at the top and the bottom, the same for all PADs, to compare them.
    """
    scans = known.dropna(subset=column)
    figure, axes = _new_figure("chronological age (years)", "brain-PAD (years)")
    axes.axhline(0, color="black", linewidth=1)
    slope = ""
    if len(scans) >= MINIMUM and np.ptp(scans["age"]) > 0:
        line = np.polynomial.Polynomial.fit(scans["age"], scans[column], 1)
        ends = np.array([scans["age"].min(), scans["age"].max()])
        axes.plot(
            ends, line(ends), "--", color="black", linewidth=1.2, zorder=4, label="least squares"
        )
        slope = f" Slope {line.convert().coef[1]:+.2f} years per year."
    _draw_points(axes, scans, "age", column)
    axes.set_ylim(-limit, limit)
    _draw_legend(figure)
    alt = f"Scatter of brain-PAD against chronological age. {title} {_count(scans)}.{slope}"
    return Drawing(title, note + slope, alt, figure)


def draw_error_by_group(groups: Sequence[Line]) -> Drawing:
    """Draws the MAE of each group that is large enough for an interval, in the order given."""
    shown = [line for line in groups if line.scans >= MINIMUM]
    left_out = len(groups) - len(shown[:GROUPS])
    shown = shown[:GROUPS]
    figure, axes = _new_figure("mean absolute error (years)", "")
    figure.set_size_inches(SIZE[0], max(SIZE[1], 0.8 + 0.3 * len(shown)))
    places = -np.arange(len(shown))
    mae = [line.figures["mae"] for line in shown]
    value, low, high = (
        np.array([figure[end] for figure in mae]) for end in ("value", "low", "high")
    )
    axes.errorbar(value, places, xerr=(value - low, high - value), fmt="o", color=BLUE, ms=5,
                  ecolor=GREY, capsize=3)  # fmt: skip
    names = [f"{line.kind} {_shorten(line.title)}, n = {line.scans}" for line in shown]
    for label in axes.set_yticks(places, names):
        label.label1.set_parse_math(False)
    axes.set_ylim(-len(shown) + 0.4, 0.6)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    note = "Dots: mean absolute error; lines: 95\u00a0% intervals."
    if left_out:
        note += f" {left_out} more groups, mostly of fewer than {MINIMUM} scans, are in the table."
    words = "; ".join(f"{name}: {at:.1f}" for name, at in zip(names, value, strict=True))
    return Drawing("Error by group.", note, f"Mean absolute error in years. {words}.", figure)


def draw_histogram(predicted: pd.DataFrame) -> Drawing:
    """Draws how many scans have which predicted age; needs no chronological ages.

    Args:
        predicted: scans of `build_table` with a predicted age, at least one.
    """
    ages, flagged = predicted["predicted_age"], (predicted["state"] == "flagged").to_numpy()
    edges = np.arange(ages.min() // 5 * 5, ages.max() // 5 * 5 + 6, 5)
    figure, axes = _new_figure("predicted age (years)", "scans")
    _, _, bars = axes.hist(
        [ages[~flagged], ages[flagged]], edges, stacked=True, color=[BLUE, ORANGE],
        edgecolor="white", label=[f"{(~flagged).sum()} ok", f"{flagged.sum()} flagged"],
    )  # fmt: skip
    for bar in bars[1]:
        bar.set_hatch("////")
    axes.yaxis.get_major_locator().set_params(integer=True)
    _draw_legend(figure)
    span = f"{ages.min():.0f} to {ages.max():.0f}"
    alt = f"Histogram of predicted ages: {_count(predicted)}, {span}."
    return Drawing("Predicted ages.", "In steps of five years.", alt, figure)


def _new_figure(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=across, ylabel=up)
    return figure, axes


def _draw_points(axes: Axes, scans: pd.DataFrame, across: str, up: str) -> None:
    """The scans as points, flagged ones as triangles above the others."""
    flagged = scans["state"] == "flagged"
    area = 1 if len(scans) <= MANY else 0.4
    style = {"linewidths": 0.5 * area, "edgecolors": "white", "rasterized": len(scans) > AS_PIXELS}
    for inside, colour, mark, size, word in (
        (~flagged, BLUE, "o", 24, "ok"),
        (flagged, ORANGE, "^", 44, "flagged"),
    ):
        if inside.any():
            axes.scatter(
                scans.loc[inside, across], scans.loc[inside, up], s=size * area, color=colour,
                marker=mark, zorder=3, label=f"{inside.sum()} {word}", **style,
            )  # fmt: skip


def _draw_legend(figure: Figure) -> None:
    """Above the axes, where it covers no point."""
    figure.legend(
        loc="outside upper left", ncols=4, columnspacing=0.8, handletextpad=0.3, handlelength=1.3
    )


def _count(scans: pd.DataFrame) -> str:
    flagged = int((scans["state"] == "flagged").sum())
    return f"{len(scans)} scans, {flagged} of them flagged"


def _shorten(name: str) -> str:
    """At most NAME characters, all of which can stand in a drawing."""
    name = "".join(letter if letter.isprintable() else "�" for letter in name)
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"
