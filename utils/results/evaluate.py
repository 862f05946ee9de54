"""What test.py does: predicts a folder of scans and compares the ages with those of the sheet."""

from argparse import Namespace
from pathlib import Path

import numpy as np

from utils.files import replacing, require_absent, write_json
from utils.machine import use_machine_well
from utils.networks.checkpoint import Checkpoint, load_ensemble
from utils.networks.execution import choose_execution
from utils.networks.predictor import PredictionSettings, Predictor, find_checkpoints, introduce
from utils.people.codebook import SEX_NAMES, parse_sex_codes
from utils.people.labels import read_labels
from utils.results import tables
from utils.results.metrics import mae_difference, score_with_intervals
from utils.results.plots import age_scatter
from utils.scans.cohort import Scan, group_by_site, open_cohort
from utils.scans.dataset import open_for_one_pass
from utils.scans.leakage import note_seen
from utils.scans.volumes import find_scans

METRICS = "metrics.json"
SETTINGS = ("batch_size", "num_workers", "fuse", "compile", "tta")
PICTURES = (".png", ".pdf", ".svg", ".jpg")


def evaluate(args: Namespace) -> dict:
    """Predicts, writes the results, prints and returns the figures of metrics.json."""
    table, metrics, arrays, plot = files = result_files(args)
    use_machine_well(args.threads)
    execution = choose_execution(args.device, args.precision)
    networks = find_checkpoints(table.parent, args.model_name)
    checkpoint = load_ensemble(
        networks,
        first_stage_net=args.first_stage_net,
        use_sex=args.use_sex,
        age_step=args.age_step,
    )
    scans = open_scans(args, checkpoint)
    comparison = introduce(checkpoint, scans, role="test")
    dataset = open_for_one_pass(scans, checkpoint.input_rule)
    seen = note_seen(scans, dataset.content_hashes, checkpoint.trained_on)
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings = PredictionSettings(**settings, insist=args.precision == "bfloat16")
    ages = Predictor(checkpoint, execution, settings).ages(dataset)
    mean = checkpoint.summary.get("mean_training_age")
    report = score_groups(scans, ages, stage=checkpoint.stage, training_mean=mean) | {
        "preprocessing": comparison,
        "scans_in_training_set": seen,
        "checkpoint": str(checkpoint.source),
    }
    first = [Path(args.first_stage_net)] if args.first_stage_net else []
    model = {"model": tables.describe_model([*networks, *first])}
    rows = [row | model for row in tables.scan_rows(scans, ages)]
    tables.write_table(table, rows, overwrite=args.overwrite)
    write_arrays(arrays, scans, ages, overwrite=args.overwrite)
    write_json(metrics, report, overwrite=args.overwrite)
    if report["scans_with_age"]:
        folders = (Path(folder).resolve() for folder in args.test_folder)
        title = ", ".join("/".join(folder.parts[-2:]) for folder in folders)
        draw_ages(plot, scans, ages, stage=checkpoint.stage, title=title)
    print(format_report(report))
    written = files if report["scans_with_age"] else files[:3]
    print(f"results: {', '.join(map(str, written))}")
    return report


def result_files(args: Namespace) -> tuple[Path, Path, Path, Path]:
    """Table, figures, the authors' arrays and the plot.

    Raises, before any work:
        ValueError: two results of one name, or a picture of an unknown format.
        FileExistsError: results that exist, without --overwrite.
    """
    names = (tables.TABLE, METRICS, args.npz_name, args.plot_name)
    table, metrics, arrays, plot = (Path(args.output_dir) / name for name in names)
    files = [*tables.table_files(table), metrics, arrays, plot]
    if len(set(files)) < len(files):
        raise ValueError(f"{', '.join(map(str, files))}: five different result files expected")
    if plot.suffix.lower() not in PICTURES:
        raise ValueError(f"--plot_name {plot.name}: {', '.join(PICTURES)} expected")
    if not args.overwrite:
        require_absent(*files)
    return table, metrics, arrays, plot


def open_scans(args: Namespace, checkpoint: Checkpoint) -> list[Scan]:
    """The scans of the test folders, with their rows of the sheet where there is one."""
    labels = None
    if any(args.labels or ()):  # '': none
        found, codes = find_scans(*args.test_folder), parse_sex_codes(args.sex_codes)
        labels = read_labels(args.labels, found, sex_codes=codes, site=args.site)
    return open_cohort(
        args.test_folder, labels, checkpoint.input_rule, smallest_side=checkpoint.smallest_side
    )


def write_arrays(
    path: Path, scans: list[Scan], ages: dict[str, np.ndarray], *, overwrite: bool
) -> None:
    """Writes target, prediction and ID as the authors do; unknown ages are NaN."""
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            target=np.array([np.nan if scan.age is None else scan.age for scan in scans]),
            prediction=ages["predicted_age"],
            ID=np.array([scan.path.name for scan in scans]),
        )


def score_groups(
    scans: list[Scan], ages: dict[str, np.ndarray], *, stage: int, training_mean: float | None
) -> dict:
    """All figures with 95 % bootstrap intervals, overall, by decade, sex and, if known, site.

    Args:
        scans: in file order; those without an age are left out and counted.
        ages: (scans,) years by name, from `Predictor.ages`.
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
    sites = group_by_site([scan for scan in scans if scan.age is not None])
    groups |= {f"site {name}": np.isin(np.arange(len(age)), at) for name, at in sites.items()}
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


def draw_ages(
    path: Path, scans: list[Scan], ages: dict[str, np.ndarray], *, stage: int, title: str
) -> None:
    """Draws predicted against chronological ages, for both stages where there are two."""
    known = np.array([scan.age is not None for scan in scans])
    panels = {"predicted": ages["predicted_age"][known]}
    if stage == 2:
        panels = {"stage one": ages["stage_one_age"][known], "stage two": panels["predicted"]}
    age = np.array([scan.age for scan in scans if scan.age is not None])
    with replacing(path, overwrite=True) as temporary:
        age_scatter(age, panels, title=title).savefig(temporary, dpi=150)


def format_report(report: dict) -> str:
    """The table that is printed: one line per predictor and site, intervals in brackets."""
    if not report["scans_with_age"]:
        return f"{report['scans']} scans predicted; no ages known, so no errors to report"
    titles = {
        "mean_training_age": "mean age",
        "stage_one_age": "stage one",
        "predicted_age": f"stage {'two' if report['stage'] == 2 else 'one'}",
    }
    rows = {title: report[name]["overall"] for name, title in titles.items() if name in report}
    sites = [group for group in report["predicted_age"] if group.startswith("site ")]
    if len(sites) > 1:
        rows |= {group: report["predicted_age"][group] for group in sites}
    lines = [f"{report['scans_with_age']} scans with an age; 95 % bootstrap intervals"]
    lines.append(tables.format_figures(rows))
    if difference := report.get("mae_stage_two_minus_stage_one"):
        lines.append(
            tables.format_difference("MAE of stage two minus MAE of stage one", difference)
        )
    return "\n".join(lines)
