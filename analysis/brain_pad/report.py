"""What analysis.brain_pad does: reads the tables, calibrates, compares, writes and prints."""

import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.brain_pad.agreement import pair_scans, report_agreement
from analysis.brain_pad.calibration import (
    PADS,
    apply_calibration,
    fit_calibration,
    report_coverage,
    write_calibration,
)
from analysis.brain_pad.conformal import coverage_across_sites
from analysis.brain_pad.dementia import (
    match_healthy,
    read_ratings,
    report_dementia,
    require_sound_ratings,
    split_by_rating,
)
from analysis.brain_pad.pictures import pad_against_age, pad_by_group
from utils.files import replacing, require_absent, write_json, write_tsv
from utils.results.metrics import score_with_intervals
from utils.results.tables import (
    Predictions,
    format_cell,
    format_figure,
    format_figures,
    read_predictions,
)
from utils.scans.leakage import find_people

TABLE, CALIBRATION, REPORT = "brain_pad.csv", "brain_pad.json", "report.json"
AGE_PICTURE, GROUP_PICTURE = "pad_against_age.png", "pad_by_group.png"
NOTES = {
    "beheshti": "uses the chronological age: its errors and correlations with age flatter",
    "agreement": "a second scan's network may have been trained on an out-of-fold first scan; "
    "first scans of the test table are of persons unknown to it",
    "dementia": "healthy scans are unseen: test and out-of-fold; the latter's networks are those "
    "of the folds, and the correction was fitted on them",
}


def make_report(args: Namespace) -> dict:
    """Writes calibration, report, table and pictures; prints and returns the report."""
    output = Path(args.output_dir)
    if not args.overwrite:
        names = (TABLE, CALIBRATION, REPORT, AGE_PICTURE, GROUP_PICTURE)
        require_absent(*map(output.joinpath, names))
    labels = [sheet for sheet in args.labels if sheet]
    tables, elsewhere = read_tables(args, labels), None
    if args.held_out_sites:
        elsewhere = read_predictions(args.held_out_sites, labels)
    calibration = fit_calibration(tables["out_of_fold"][0], elsewhere)
    groups = {
        group: apply_calibration(calibration, join(found)).assign(group=group)
        for group, found in tables.items()
        if found
    }
    report = {
        "notes": NOTES,
        "tables": {group: [each.describe() for each in found] for group, found in tables.items()},
        "out_of_fold": report_ages(groups["out_of_fold"]),
        "test": report_ages(groups["test"])
        | {"coverage": report_coverage(calibration, groups["test"])},
    }
    if elsewhere is not None:
        report["tables"]["held_out_sites"] = [elsewhere.describe()]
        report["held_out_sites"] = report_sites(elsewhere)
    if args.retest:
        first = {name: groups[name] for name in ("out_of_fold", "test", "first") if name in groups}
        pairs = pair_scans(first, groups["retest"], pattern=args.subject_pattern)
        report["agreement"] = report_agreement(pairs)
    if args.dementia:
        report["dementia"] = compare_dementia(groups, args.participants, args.caliper)
    write_calibration(output / CALIBRATION, calibration, overwrite=args.overwrite)
    write_json(output / REPORT, report, overwrite=args.overwrite)
    write_scans(output / TABLE, pd.concat(groups.values()), overwrite=args.overwrite)
    draw_pictures(output, groups, overwrite=args.overwrite)
    print(format_report(report))
    return report


def read_tables(args: Namespace, labels: list[str]) -> dict[str, list[Predictions]]:
    """The tables of each group; `labels` are the sheets of the out-of-fold one.

    Raises:
        FileNotFoundError, ValueError: as `read_predictions`; or a table of persons not trained on
            holds persons of another one.
    """
    out_of_fold = read_predictions(args.out_of_fold, labels)
    test = read_predictions(args.test)
    tables = {"out_of_fold": [out_of_fold], "test": [test]}
    for group, paths in (
        ("retest", args.retest),
        ("first", args.first),
        ("dementia", [args.dementia] if args.dementia else []),
    ):
        tables[group] = [read_predictions(path) for path in paths]
    require_other_persons(out_of_fold, test, args.subject_pattern)
    for other in tables["dementia"]:
        require_other_persons(out_of_fold, other, args.subject_pattern)
        require_other_persons(test, other, args.subject_pattern)
    return tables


def require_other_persons(
    known: Predictions, other: Predictions, pattern: re.Pattern | None
) -> None:
    """Raises ValueError where `other` holds scans of persons who are in `known` already."""
    persons = set(find_people(known.scans.index, pattern=pattern).values())
    others = find_people(other.scans.index, pattern=pattern)
    seen = [scan for scan, person in others.items() if person in persons]
    if seen:
        raise ValueError(
            f"{other.path}: {len(seen)} scans are of persons in {known.path} too, such as "
            f"{', '.join(seen[:5])}; a table of other persons expected"
        )


def join(tables: list[Predictions]) -> pd.DataFrame:
    """The scans of several tables as one; ValueError if a scan stands in two of them."""
    scans = pd.concat([table.scans for table in tables])
    twice = scans.index[scans.index.duplicated()]
    if len(twice):
        names = ", ".join(str(table.path) for table in tables)
        raise ValueError(f"{names}: {', '.join(twice[:5])} in several, one age per scan expected")
    return scans


def report_ages(scans: pd.DataFrame) -> dict:
    """Figures of raw and corrected ages; those of Beheshti's correction flatter, see NOTES."""
    age = scans["age"].to_numpy()
    forms = {"raw": "predicted_age"}
    forms |= {form: f"predicted_age_{form}" for form in ("cole", "beheshti")}
    report = {form: score_with_intervals(age, scans[at].to_numpy()) for form, at in forms.items()}
    outside = int(scans["outside_fitted_ages"].sum())
    return {"scans": len(scans), "outside_fitted_ages": outside} | report


def report_sites(elsewhere: Predictions) -> dict:
    """Figures of sites that were held out, and what limits fitted on the other sites cover there.

    Of two sites there is no coverage: limits over sites need two others.
    """
    scans = elsewhere.scans
    age, predicted_age, site = (scans[n].to_numpy() for n in ("age", "predicted_age", "site"))
    report = {
        str(name): score_with_intervals(age[site == name], predicted_age[site == name])
        for name in np.unique(site)
    }
    if len(report) > 2:
        for name, found in coverage_across_sites(age, predicted_age, site).items():
            report[name]["coverage"] = found
    return report


def compare_dementia(groups: dict[str, pd.DataFrame], participants: str, caliper: float) -> dict:
    """Figures of dementia against matched healthy scans; notes the matches in `groups`."""
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


def write_scans(path: Path, scans: pd.DataFrame, *, overwrite: bool) -> None:
    """Writes one row per scan: raw and corrected brain-PADs, the interval, and the match."""
    columns = ["participant_id", "group", "age", "sex", "predicted_age", *PADS]
    columns += ["predicted_age_low", "predicted_age_high", "outside_fitted_ages"]
    columns += [name for name in ("CDR", "matched_with") if name in scans]
    rows = scans.reset_index()[columns].itertuples(index=False)
    cells = [[format_cell(value) for value in row] for row in rows]
    write_tsv(path, [columns, *cells], delimiter=",", overwrite=overwrite)


def draw_pictures(output: Path, groups: dict[str, pd.DataFrame], *, overwrite: bool) -> None:
    """Draws brain-PAD against age and, with a dementia table, brain-PAD by group."""
    pictures = {AGE_PICTURE: pad_against_age(groups["out_of_fold"], groups["test"])}
    if "dementia" in groups:
        patients = groups["dementia"].dropna(subset="matched_with")
        healthy = pd.concat([groups["out_of_fold"], groups["test"]])
        shown = {"matched healthy": healthy.loc[patients["matched_with"]]}
        for level, inside in split_by_rating(patients["CDR"]).items():
            shown["dementia" if level == "CDR unknown" else level] = patients[inside]
        pictures[GROUP_PICTURE] = pad_by_group(shown)
    for name, figure in pictures.items():
        with replacing(output / name, overwrite=overwrite) as temporary:
            figure.savefig(temporary, dpi=150)


def format_report(report: dict) -> str:
    """What is printed: ages raw and corrected, coverage, agreement and dementia."""
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
    if "held_out_sites" in report:
        sites = report["held_out_sites"]
        lines += ["each site held out as a whole:", format_figures(sites)]
        for site, found in sites.items():
            if cell := found.get("coverage", {}).get("90"):
                lines.append(
                    f"  {site}, covered by the 90 % limits of the other sites: {_share(cell)} "
                    f"+-{cell['mean_half_width']:.1f} years"
                )
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
