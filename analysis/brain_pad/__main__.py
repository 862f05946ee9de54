r"""Brain-PAD: corrected for its age bias, with intervals, its repeatability, and dementia.

    python -m analysis.brain_pad --out_of_fold out_of_fold.csv --test runs/second/predictions.csv \
        --retest retest.csv --dementia dementia.csv --participants data/participants.tsv \
        --output_dir runs/brain_pad

Bias correction and limits of intervals are fitted on the out-of-fold ages of healthy scans and
applied to the other tables, which test.py writes. brain_pad.json keeps them for other programs,
report.json has all figures, brain_pad.csv a row a scan.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.cli import Switch, add_subject_pattern, new_parser, number, run_entry

TABLE, CALIBRATION, REPORT = "brain_pad.csv", "brain_pad.json", "report.json"
NOTES = {
    "beheshti": "uses the chronological age: its errors and correlations with age flatter",
    "agreement": "a second scan's network may have been trained on an out-of-fold first scan; "
    "first scans of the test table are of persons unknown to it",
    "dementia": "healthy scans are unseen: test and out-of-fold; the latter's networks are those "
    "of the folds, and the correction was fitted on them",
}
AGE_PICTURE, GROUP_PICTURE = "pad_against_age.png", "pad_by_group.png"


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Correct brain-PAD for its age bias, and say what it is worth.")
    add = parser.add_argument
    add("--out_of_fold", required=True, metavar="CSV",
        help="ages of healthy training scans, each from networks not trained on it")  # fmt: skip
    add("--test", required=True, metavar="CSV", help="ages of healthy persons not trained on")
    add("--retest", nargs="*", default=[], metavar="CSV", help="ages of second scans")
    add("--first", nargs="*", default=[], metavar="CSV",
        help="first scans of persons who are in neither --out_of_fold nor --test")  # fmt: skip
    add("--dementia", metavar="CSV", help="ages of people with dementia; '': none")
    add("--participants", metavar="TSV",
        help="scan_id (or participant_id) and CDR, for figures by CDR; '': none")  # fmt: skip
    add("--labels", metavar="SHEET",
        help="label sheet with age and sex of the scans in --out_of_fold; '' or unset: it has the "
        "columns age and sex itself")  # fmt: skip
    add("--caliper", type=number(float, low=0), default=5.0,
        help="largest age difference of a patient and the matched healthy scan, years")  # fmt: skip
    add_subject_pattern(parser)
    add("--output_dir", required=True, metavar="DIR", help="receives the results")
    add("--overwrite", action=Switch, default=False, help="replace results that exist")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Writes calibration, report, table and pictures; prints and returns the report."""
    args = build_parser().parse_args(argv)
    from analysis.brain_pad.agreement import pair_scans, report_agreement
    from analysis.brain_pad.calibration import apply_calibration, fit_calibration
    from analysis.brain_pad.tables import read_predictions, require_unseen
    from utils.files import require_absent
    from utils.scans.labels import read_labels

    output = Path(args.output_dir)
    if not args.overwrite:
        names = (TABLE, CALIBRATION, REPORT, AGE_PICTURE, GROUP_PICTURE)
        require_absent(*map(output.joinpath, names))
    tables = {"test": [args.test], "retest": args.retest}
    tables |= {"first": args.first, "dementia": [args.dementia] if args.dementia else []}
    labels = read_labels(args.labels) if args.labels else None
    read = {"out_of_fold": [read_predictions(args.out_of_fold, labels)]}
    read |= {group: [read_predictions(path) for path in paths] for group, paths in tables.items()}
    (out_of_fold,) = read["out_of_fold"]
    for other in (*read["test"], *read["dementia"]):
        require_unseen(out_of_fold, other, args.subject_pattern)
    for other in read["dementia"]:
        require_unseen(read["test"][0], other, args.subject_pattern)
    calibration = fit_calibration(out_of_fold)
    groups = {
        group: apply_calibration(calibration, join(found)).assign(group=group)
        for group, found in read.items()
        if found
    }
    report = {
        "notes": NOTES,
        "tables": {group: [describe(table) for table in found] for group, found in read.items()},
        "out_of_fold": report_ages(groups["out_of_fold"]),
        "test": report_ages(groups["test"]) | {"coverage": cover(calibration, groups["test"])},
    }
    if args.retest:
        second = groups["retest"]
        first = {name: groups[name] for name in ("out_of_fold", "test", "first") if name in groups}
        pairs = pair_scans(first, second, pattern=args.subject_pattern)
        report["agreement"] = report_agreement(pairs)
    if args.dementia:
        report["dementia"] = compare_dementia(groups, args.participants, args.caliper)
    write_results(output, calibration, report, groups, overwrite=args.overwrite)
    print(format_report(report))
    return report


def join(tables: list):
    """The scans of several tables as one; ValueError if one stands in two of them."""
    import pandas as pd

    scans = pd.concat([table.scans for table in tables])
    twice = scans.index[scans.index.duplicated()]
    if len(twice):
        names = ", ".join(str(table.path) for table in tables)
        raise ValueError(f"{names}: {', '.join(twice[:5])} in several, one age a scan expected")
    return scans


def describe(table) -> dict:
    """Which file a table was, and how much of it could be used."""
    from utils.files import sha256_of

    return {
        "file": str(table.path), "sha256": sha256_of(table.path),
        "scans": len(table.scans), "without_age": table.without_age,
    }  # fmt: skip


def report_ages(scans) -> dict:
    """Figures of raw and corrected ages; those of Beheshti's correction flatter, see there."""
    from utils.results.metrics import score_with_intervals

    age = scans["age"].to_numpy()
    forms = {"raw": "predicted_age"}
    forms |= {form: f"predicted_age_{form}" for form in ("cole", "beheshti")}
    report = {form: score_with_intervals(age, scans[at].to_numpy()) for form, at in forms.items()}
    outside = int(scans["outside_fitted_ages"].sum())
    return {"scans": len(scans), "outside_fitted_ages": outside} | report


def cover(calibration, scans) -> dict:
    """Coverage of both kinds of limits on scans that they were not made from."""
    from analysis.brain_pad.conformal import coverage
    from analysis.brain_pad.tables import as_arrays

    kinds = {"limits": calibration.limits}
    if calibration.limits_by_predicted_age is not None:
        kinds["limits_by_predicted_age"] = calibration.limits_by_predicted_age
    return {name: coverage(limits, *as_arrays(scans)) for name, limits in kinds.items()}


def compare_dementia(groups: dict, participants: str, caliper: float) -> dict:
    """Figures of dementia against matched healthy scans; notes the matches in `groups`."""
    import pandas as pd

    from analysis.brain_pad.dementia import match_healthy, report_dementia, require_sound_ratings
    from analysis.brain_pad.tables import read_ratings

    patients, healthy = groups["dementia"], pd.concat([groups["out_of_fold"], groups["test"]])
    ratings = read_ratings(participants) if participants else {}
    require_sound_ratings(ratings, patients, healthy)
    patients = patients.assign(CDR=[ratings.get(name) for name in patients.index])
    groups["dementia"] = patients.astype({"CDR": float})
    matched = match_healthy(patients, healthy, caliper=caliper)
    report = report_dementia(groups["dementia"], healthy, matched, caliper=caliper)
    partner = pd.concat([matched, pd.Series(matched.index, index=matched.to_numpy())])
    for group in ("dementia", "out_of_fold", "test"):
        groups[group] = groups[group].assign(matched_with=groups[group].index.map(partner))
    return report


def write_results(
    output: Path, calibration, report: dict, groups: dict, *, overwrite: bool
) -> None:
    """Writes all results; the picture of groups only with a dementia table."""
    import pandas as pd

    from analysis.brain_pad.calibration import PADS, write_calibration
    from analysis.brain_pad.dementia import levels_of
    from analysis.brain_pad.pictures import pad_against_age, pad_by_group
    from utils.files import as_spreadsheet_text, replacing, write_json

    pictures = {AGE_PICTURE: pad_against_age(groups["out_of_fold"], groups["test"])}
    scans = pd.concat(groups.values())
    if "dementia" in groups:
        patients = groups["dementia"].dropna(subset="matched_with")
        healthy = pd.concat([groups["out_of_fold"], groups["test"]])
        shown = {"matched healthy": healthy.loc[patients["matched_with"]]}
        for level, inside in levels_of(patients["CDR"]).items():
            shown["dementia" if level == "CDR unknown" else level] = patients[inside]
        pictures[GROUP_PICTURE] = pad_by_group(shown)
    columns = ["group", "age", "sex", "predicted_age", *PADS, "age_low_90", "age_high_90"]
    more = [name for name in ("outside_fitted_ages", "CDR", "matched_with") if name in scans]
    with replacing(output / TABLE, overwrite=overwrite) as temporary:
        scans["age"] = scans["age"].map("{:g}".format)
        named = scans[[*columns, *more]].rename(index=as_spreadsheet_text)
        if "matched_with" in named:
            matched = named["matched_with"].map(as_spreadsheet_text, na_action="ignore")
            named["matched_with"] = matched
        named.to_csv(temporary, float_format="%.2f", na_rep="n/a")
    write_calibration(output / CALIBRATION, calibration, overwrite=overwrite)
    write_json(output / REPORT, report, overwrite=overwrite)
    for name, figure in pictures.items():
        with replacing(output / name, overwrite=overwrite) as temporary:
            figure.savefig(temporary, dpi=150)


def format_report(report: dict) -> str:
    """What is printed: ages raw and corrected, coverage, agreement and dementia."""
    from utils.results.tables import format_figure, format_figures

    test = report["test"]
    rows = {"unseen, raw": report["out_of_fold"]["raw"], "test, raw": test["raw"]}
    rows |= {"Cole": test["cole"], "Beheshti": test["beheshti"]}
    lines = [
        f"fitted on {report['out_of_fold']['scans']} out-of-fold scans; tested on {test['scans']}, "
        f"{test['outside_fitted_ages']} of them beyond the fitted ages; 95 % intervals",
        format_figures(rows),
        f"Beheshti's correction {NOTES['beheshti']}",
    ]
    for name, found in test["coverage"].items():
        shares = (
            f"{percent} %: {_share(cell)} +-{cell['mean_half_width']:.1f} years"
            for percent, cell in found.items()
        )
        lines.append(f"{name.replace('_', ' ')}, covered on test: {'; '.join(shares)}")
    if "agreement" in report:
        found = report["agreement"]
        sources = ", ".join(f"{count} {source}" for source, count in found["first_from"].items())
        lines.append(f"test-retest, {found['pairs']} pairs (first scans: {sources})")
        for name in ("predicted_age", "brain_pad"):
            figures = ("mean_absolute_difference", "sd_of_difference", "icc_2_1", "icc_3_1")
            cells = (f"{key} {format_figure(found['all'][name][key])}" for key in figures)
            lines.append(f"  {name}: {', '.join(cells)}")
    if "dementia" in report:
        lines += _format_dementia(report["dementia"])
    return "\n".join(lines)


def _format_dementia(report: dict) -> list[str]:
    from utils.results.tables import format_figure

    balance, healthy = report["balance"], report["mean"]["matched_healthy"]
    shown = ("brain_pad", "brain_pad_cole", "svm")
    sources = ", ".join(f"{n} {group}" for group, n in report["matched_healthy_from"].items())
    lines = [
        f"dementia: {report['pairs']} of {report['patients']} patients matched with healthy scans "
        f"({sources}); mean ages {balance['patients']['mean_age']:.1f} and "
        f"{balance['matched_healthy']['mean_age']:.1f}, largest difference "
        f"{balance['largest_age_difference_in_pair']:g} years",
        f"  mean PAD, matched healthy: {format_figure(healthy['brain_pad'])}",
    ]
    for level, aucs in report["auc"].items():
        mean = format_figure(report["mean"][level]["brain_pad"])
        cells = (f"{name} {format_figure(aucs[name])}" for name in shown)
        lines.append(f"  {level}, n = {aucs['pairs']}: mean PAD {mean}; AUC {', '.join(cells)}")
    return lines


def _share(cell: dict) -> str:
    return f"{100 * cell['value']:.0f} [{100 * cell['low']:.0f}, {100 * cell['high']:.0f}]"


if __name__ == "__main__":
    run_entry(main)
