"""What test.py writes: table, figures of merit, scatter plot and the authors' .npz."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.files import as_spreadsheet_text, replacing, require_absent, write_json
from utils.results.metrics import mae_difference, score_with_intervals
from utils.results.plots import age_scatter
from utils.scans.cohort import Scan
from utils.scans.labels import SEX_NAMES

PRINTED = ("mae", "rmse", "pearson", "r2", "mean_brain_pad")


@dataclass(frozen=True)
class ResultFiles:
    """Where the results go."""

    table: Path
    metrics: Path
    arrays: Path
    plot: Path

    def require_sound_names(self) -> None:
        """Raises ValueError, before any work, for two results of one name or an unknown picture."""
        names = (self.table, self.metrics, self.arrays, self.plot)
        if len(set(names)) < len(names):
            raise ValueError(f"{', '.join(map(str, names))}: four different result files expected")
        if self.plot.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
            raise ValueError(f"--plot_name {self.plot.name}: .png, .pdf, .svg or .jpg expected")

    def require_absent(self) -> None:
        """Raises FileExistsError, before any work, if a result would be overwritten."""
        require_absent(self.table, self.metrics, self.arrays, self.plot)


def write_predictions(
    scans: list[Scan], ages: dict[str, np.ndarray], files: ResultFiles, *, overwrite: bool
) -> None:
    """Writes the CSV and the .npz (target, prediction, ID), where unknown ages are NaN."""
    write_ages(files.table, scans, ages, overwrite=overwrite)
    with replacing(files.arrays, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            target=np.array([np.nan if scan.age is None else scan.age for scan in scans]),
            prediction=ages["predicted_age"],
            ID=np.array([scan.path.name for scan in scans]),
        )


def write_ages(
    path: Path,
    scans: list[Scan],
    ages: dict[str, np.ndarray],
    *,
    more: dict[str, Sequence] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a CSV of one row a scan in the order given; unknown ages and sexes are n/a.

    Args:
        path: the file.
        scans: who was scanned.
        ages: (scans,) years by name, `stage_one_age` and `predicted_age` among them; two decimals.
        more: further columns.
        overwrite: whether `path` may exist.
    """
    more = more or {}
    with (
        replacing(path, overwrite=overwrite) as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.writer(file)
        names = ["participant_id", "age", "sex", "stage_one_age", "predicted_age", "brain_pad"]
        writer.writerow([*names, *more])
        for index, scan in enumerate(scans):
            stage_one, predicted = (
                float(ages[name][index]) for name in ("stage_one_age", "predicted_age")
            )
            known = scan.age is not None
            writer.writerow(
                [
                    as_spreadsheet_text(scan.subject_id),
                    f"{scan.age:g}" if known else "n/a",
                    SEX_NAMES[scan.sex],
                    f"{stage_one:.2f}",
                    f"{predicted:.2f}",
                    f"{predicted - scan.age:.2f}" if known else "n/a",
                    *(values[index] for values in more.values()),
                ]
            )


def evaluate(
    scans: list[Scan], ages: dict[str, np.ndarray], *, stage: int, training_mean: float | None
) -> dict:
    """All figures with 95 % bootstrap intervals, overall, by decade and by sex.

    Args:
        scans: in file order; those without an age are left out and counted.
        ages: from `predict`.
        stage: 1 or 2; for 2, stage one's figures and the paired difference stand beside.
        training_mean: mean age of the training scans: the constant predictor to beat.
    """
    known = np.array([scan.age is not None for scan in scans])
    age = np.array([scan.age for scan in scans if scan.age is not None])
    if not known.any():
        return {"scans": len(scans), "scans_with_age": 0}
    groups = {"overall": np.ones(len(age), bool)}
    for decade in sorted(set((age // 10).astype(int))):
        groups[f"age {decade * 10}-{decade * 10 + 9}"] = age // 10 == decade
    sexes = np.array([SEX_NAMES[scan.sex] for scan in scans if scan.age is not None])
    groups |= {f"sex {name}": sexes == name for name in sorted(set(sexes))}
    predictors = {"predicted_age": ages["predicted_age"][known]}
    if stage == 2:
        predictors["stage_one_age"] = ages["stage_one_age"][known]
    if training_mean is not None:
        predictors["mean_training_age"] = np.full(len(age), training_mean)
    report: dict = {"scans": len(scans), "scans_with_age": len(age), "stage": stage}
    for predictor, values in predictors.items():
        report[predictor] = {
            group: {"n": int(inside.sum())} | score_with_intervals(age[inside], values[inside])
            for group, inside in groups.items()
        }
    if stage == 2:
        report["mae_stage_two_minus_stage_one"] = mae_difference(
            age, predictors["predicted_age"], predictors["stage_one_age"]
        )
    return report


def write_report(
    report: dict, scans: list[Scan], ages: dict[str, np.ndarray], files: ResultFiles, *, name: str
) -> None:
    """Writes metrics.json and, where ages are known, the scatter plot; files are replaced."""
    write_json(files.metrics, report, overwrite=True)
    known = np.array([scan.age is not None for scan in scans])
    if not known.any():
        return
    panels = {"predicted": ages["predicted_age"][known]}
    if report["stage"] == 2:
        panels = {"stage one": ages["stage_one_age"][known], "stage two": panels["predicted"]}
    age = np.array([scan.age for scan in scans if scan.age is not None])
    with replacing(files.plot, overwrite=True) as temporary:
        age_scatter(age, panels, title=name).savefig(temporary, dpi=150)


def format_report(report: dict) -> str:
    """The table that test.py prints: one line a predictor, intervals in brackets."""
    if not report["scans_with_age"]:
        return f"{report['scans']} scans predicted; no ages known, so no errors to report"
    titles = {
        "mean_training_age": "mean age",
        "stage_one_age": "stage one",
        "predicted_age": f"stage {'two' if report['stage'] == 2 else 'one'}",
    }
    lines = [f"{report['scans_with_age']} scans with an age; 95 % bootstrap intervals"]
    rows = {
        title: report[predictor]["overall"]
        for predictor, title in titles.items()
        if predictor in report
    }
    lines.append(format_figures(rows))
    if "mae_stage_two_minus_stage_one" in report:
        lines.append(
            format_difference(
                "MAE of stage two minus MAE of stage one", report["mae_stage_two_minus_stage_one"]
            )
        )
    return "\n".join(lines)


def format_difference(title: str, difference: dict[str, float]) -> str:
    """What `mae_difference` returns, as a line."""
    return f"{title}, paired: {format_figure(difference)} years"


def format_figures(rows: dict[str, dict]) -> str:
    """A table of PRINTED figures, from what `score_with_intervals` returns by row title."""
    lines = [f"{'':12s}" + "".join(f"{figure:>23s}" for figure in PRINTED)]
    for title, figures in rows.items():
        lines.append(
            f"{title:12s}" + "".join(f" {format_figure(figures[name]):>22s}" for name in PRINTED)
        )
    return "\n".join(lines)


def format_figure(figure: dict) -> str:
    """A value with its interval in brackets, where there is one; - where it is undefined."""
    text = "-" if figure["value"] is None else f"{figure['value']:.2f}"
    if figure["low"] is not None:
        text += f" [{figure['low']:.2f}, {figure['high']:.2f}]"
    return text
