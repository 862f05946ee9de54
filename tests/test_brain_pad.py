import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.brain_pad import __main__ as brain_pad
from analysis.brain_pad.calibration import apply_calibration, read_calibration
from analysis.brain_pad.dementia import read_ratings
from utils.results.tables import read_predictions

ROOT = Path(__file__).parent.parent
HEADER = "participant_id,age,sex,stage_one_age,predicted_age,brain_pad\n"


def write_table(path: Path, rows: list[tuple], **more) -> Path:
    """Rows of (name, age, sex, predicted age), as test.py writes them."""
    table = pd.DataFrame(rows, columns=["participant_id", "age", "sex", "predicted_age"])
    table["stage_one_age"] = table["predicted_age"]
    table["brain_pad"] = table["predicted_age"] - table["age"]
    table.assign(**more).to_csv(path, index=False, float_format="%.2f", na_rep="n/a")
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    """100 out-of-fold, 40 test, 12 retest and 30 dementia scans, and their ratings."""
    folder = tmp_path_factory.mktemp("tables")
    generator = np.random.default_rng(0)

    def row(number: int, visit: int = 1, low: float = 20, extra: float = 0):
        age = round(float(np.random.default_rng(number).uniform(low, 90)))
        predicted_age = 0.8 * age + 12 + extra + generator.normal(0, 5)
        return f"OAS1_{number:04d}_MR{visit}", age, "FM"[number % 2], predicted_age

    rows = {
        "out_of_fold": [row(number) for number in range(100)],
        "test": [*map(row, range(100, 140)), ("OAS1_0999_MR1", np.nan, "F", 50.0)],
        "retest": [row(number, visit=2) for number in range(94, 106)],
        "dementia": [row(number, low=60, extra=8) for number in range(200, 230)],
    }
    files = {name: write_table(folder / f"{name}.csv", some) for name, some in rows.items()}
    write_table(files["out_of_fold"], rows["out_of_fold"], fold=3)
    files["participants"] = folder / "participants.tsv"
    ratings = [
        f"{name}\t{[0.5, 1, 2][at % 3]}" for at, (name, *_) in enumerate(rows["dementia"][:-1])
    ]
    files["participants"].write_text("scan_id\tCDR\nOAS1_0001_MR1\t0\n" + "\n".join(ratings))
    return files


def flags(tables: dict[str, Path], *names: str) -> list[str]:
    return [word for name in names for word in (f"--{name}", str(tables[name]))]


ALL = ("out_of_fold", "test", "retest", "dementia", "participants")


@pytest.fixture(scope="module")
def run(tables, tmp_path_factory) -> tuple[dict, Path]:
    output = tmp_path_factory.mktemp("run") / "out"
    return brain_pad.main([*flags(tables, *ALL), "--output_dir", str(output)]), output


def test_all_results_are_written_and_hold_the_same(run, tables):
    report, output = run
    assert {path.name for path in output.iterdir()} == {
        "brain_pad.csv", "brain_pad.json", "report.json", "pad_against_age.png", "pad_by_group.png",
    }  # fmt: skip
    assert json.loads((output / "report.json").read_text()) == report
    table = pd.read_csv(output / "brain_pad.csv", keep_default_na=False, index_col=0)
    assert table["group"].value_counts().to_dict() == {
        "out_of_fold": 100, "test": 40, "dementia": 30, "retest": 12,
    }  # fmt: skip
    assert report["tables"]["test"][0]["without_age"] == 1
    calibration = read_calibration(output / "brain_pad.json")
    again = apply_calibration(calibration, read_predictions(tables["test"]).scans)
    for name in ("brain_pad", "brain_pad_cole", "brain_pad_beheshti", "predicted_age_low"):
        written = table.loc[again.index, name].astype(float)
        assert written.to_numpy() == pytest.approx(again[name].to_numpy(), abs=0.0051)
    patients = table[(table["group"] == "dementia") & (table["matched_with"] != "n/a")]
    back = table.loc[patients["matched_with"], "matched_with"]
    assert back.tolist() == patients.index.tolist()


def test_report_has_what_was_put_into_the_tables(run):
    report, _ = run
    assert report["test"]["raw"]["brain_pad_age_correlation"]["high"] < 0
    assert report["out_of_fold"]["cole"]["brain_pad_age_correlation"]["value"] == pytest.approx(0)
    assert report["test"]["coverage"]["limits"]["90"]["n"] == 40
    assert set(report["test"]["coverage"]) == {"limits", "limits_by_predicted_age"}
    assert report["agreement"]["first_from"] == {"out_of_fold": 6, "test": 6}
    dementia = report["dementia"]
    assert dementia["pairs"] + len(dementia["unmatched"]) == 30
    assert sum(dementia["matched_healthy_from"].values()) == dementia["pairs"]
    aucs = dementia["auc"]
    assert set(aucs) == {"all", "CDR 0.5", "CDR >= 1", "CDR unknown"}
    assert aucs["all"]["brain_pad"]["low"] > 0.5
    assert aucs["all"]["brain_pad_cole"] == pytest.approx(aucs["all"]["brain_pad_beheshti"])
    means = dementia["mean"]
    assert means["all"]["brain_pad"]["low"] > means["matched_healthy"]["brain_pad"]["high"]


def test_results_are_replaced_only_on_request_and_are_the_same_again(run, tables):
    report, output = run
    call = [*flags(tables, *ALL), "--output_dir", str(output)]
    with pytest.raises(FileExistsError, match=r"report\.json"):
        brain_pad.main(call)
    assert brain_pad.main([*call, "--overwrite"]) == report


def test_two_tables_are_enough(tables, tmp_path, capsys):
    report = brain_pad.main(
        [*flags(tables, "out_of_fold", "test"), "--output_dir", str(tmp_path / "out")]
    )
    assert {"agreement", "dementia"}.isdisjoint(report)
    assert not (tmp_path / "out" / "pad_by_group.png").exists()
    assert "fitted on 100 out-of-fold scans; tested on 40" in capsys.readouterr().out


def test_in_sample_first_scans_are_used_for_nobody_who_is_out_of_fold(tables, tmp_path):
    first = write_table(
        tmp_path / "first.csv",
        [("OAS1_0094_MR1", 50, "F", 50.0), ("OAS1_0300_MR1", 50, "F", 50.0)],
    )
    retest = write_table(tmp_path / "more.csv", [("OAS1_0300_MR2", 50, "F", 51.0)])
    words = [*flags(tables, "out_of_fold", "test"), "--first", str(first)]
    words += ["--retest", str(tables["retest"]), str(retest), "--output_dir", str(tmp_path / "out")]
    report = brain_pad.main(words)
    assert report["agreement"]["first_from"] == {"out_of_fold": 6, "test": 6, "first": 1}


def test_persons_of_training_are_refused_as_test_and_as_patients(tables, tmp_path):
    second = {"out_of_fold": tables["out_of_fold"], "test": tables["retest"]}
    output = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"retest\.csv: 6 scans are of persons in .*out_of_fold"):
        brain_pad.main([*flags(second, "out_of_fold", "test"), *output])
    words = [*flags(tables, "out_of_fold", "test"), "--dementia", str(tables["test"]), *output]
    with pytest.raises(ValueError, match="40 scans are of persons"):
        brain_pad.main(words)
    assert not (tmp_path / "out").exists()


def test_a_scan_in_two_tables_of_a_kind_is_refused(tables, tmp_path):
    retest = str(tables["retest"])
    words = [*flags(tables, "out_of_fold", "test"), "--retest", retest, retest]
    with pytest.raises(ValueError, match="one age per scan expected"):
        brain_pad.main([*words, "--output_dir", str(tmp_path / "out")])


def test_few_out_of_fold_scans_are_named_with_their_table(tables, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("".join(tables["out_of_fold"].read_text().splitlines(keepends=True)[:11]))
    with pytest.raises(ValueError, match=r"few\.csv: 10 scans: at least 20"):
        brain_pad.main(
            ["--out_of_fold", str(few), *flags(tables, "test"), "--output_dir", str(tmp_path / "o")]
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("participant_id,age,sex\na,50,F\n", r"row 1: no column predicted_age; found"),
        ("", "no column participant_id, age, sex, predicted_age"),
        (HEADER + "a,old,F,1,50,0\n", r"row 2: a: age 'old', years from 0 to 120 or n/a"),
        (HEADER + "a,500,F,1,50,0\n", r"row 2: a: age '500'"),
        (HEADER + "a,50,F,1,n/a,0\n", r"predicted_age 'n/a', years as a number expected"),
        (HEADER + "a,50,F,1,nan,0\n", r"predicted_age 'nan'"),
        (HEADER + "a,50,F\n", r"row 2: a: predicted_age ''"),
        (HEADER + "a,50,2,1,50,0\n", r"sex '2', F, M or n/a expected"),
        (HEADER + ",50,F,1,50,0\n", "row 2: participant_id is empty"),
        (HEADER + "a,50,F,1,50,0\n\na,51,F,1,50,0\n", "row 4: a stands in row 2 already"),
        (HEADER + "a,n/a,F,1,50,n/a\n", "no scan of known age"),
    ],
)
def test_bad_tables_are_refused_with_file_row_value_and_expectation(text, message, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_predictions(path)
    assert "bad.csv" in str(caught.value)


def test_all_problems_are_said_at_once_and_missing_files_by_name(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(HEADER + "a,old,F,1,50,0\nb,50,X,1,50,0\n")
    with pytest.raises(ValueError, match=r"(?s)'old'.*'X'"):
        read_predictions(path)
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such table"):
        read_predictions(tmp_path / "none.csv")


def test_unknown_ages_are_left_out_and_counted(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(HEADER + "a,n/a,F,1,50,n/a\nb,50,n/a,1,52.5,2.5\nc,40,male,1,41,1\n")
    read = read_predictions(path)
    assert read.without_age == 1
    assert read.scans.index.tolist() == ["b", "c"]
    assert read.scans["sex"].tolist() == ["n/a", "M"]
    assert read.scans["brain_pad"].tolist() == [2.5, 1]


def test_ratings_are_read_under_either_name(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tage\tCDR\na\t70\t0.5\nb\t30\tn/a\n")
    assert read_ratings(path) == {"a": 0.5, "b": None}
    path.write_text("scan_id\tCDR\na\tmild\n")
    with pytest.raises(ValueError, match=r"participants\.tsv, row 2: a: CDR 'mild', a rating from"):
        read_ratings(path)


def test_bad_patterns_are_refused_by_the_parser(capsys):
    words = ["--out_of_fold", "a", "--test", "b", "--output_dir", "c"]
    with pytest.raises(SystemExit):
        brain_pad.build_parser().parse_args([*words, "--subject_pattern", "("])
    assert "a regular expression expected" in capsys.readouterr().err


def test_ages_and_sexes_may_come_from_the_label_sheet(tables, tmp_path):
    whole = pd.read_csv(tables["out_of_fold"])
    bare, sheet = tmp_path / "bare.csv", tmp_path / "labels.csv"
    whole[["participant_id", "predicted_age"]].to_csv(bare, index=False)
    whole[["participant_id", "age", "sex"]].to_csv(sheet, index=False)
    common = ["--test", str(tables["test"]), "--output_dir"]
    given = ["--out_of_fold", str(bare), "--labels", str(sheet)]
    first = brain_pad.main([*given, *common, str(tmp_path / "a")])
    second = brain_pad.main(
        ["--out_of_fold", str(tables["out_of_fold"]), *common, str(tmp_path / "b")]
    )
    assert first["test"] == second["test"]
    sheet.write_text("\n".join(sheet.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="OAS1_0099_MR1 have no row in the label sheet"):
        brain_pad.main([*given, *common, str(tmp_path / "c")])


def test_limits_are_those_of_held_out_sites_where_such_a_table_is_given(tables, run, tmp_path):
    """Ages and sexes of both tables may come from sheets; the limits of each site are printed."""
    generator = np.random.default_rng(1)
    names = [f"P{number:03d}" for number in range(90)]
    ages = generator.uniform(20, 80, 90).round(1)
    site = np.repeat(["oslo", "lyon", "graz"], 30)
    predicted = ages + np.repeat([0, 12, -9], 30) + generator.normal(0, 2, 90)
    rows = zip(names, ages, ["F"] * 90, predicted, strict=True)
    elsewhere = write_table(tmp_path / "elsewhere.csv", list(rows), site=site)
    more = ["--held_out_sites", str(elsewhere), "--output_dir", str(tmp_path / "out")]
    report = brain_pad.main([*flags(tables, "out_of_fold", "test"), *more])
    sites = report["held_out_sites"]
    assert sites["lyon"]["mean_brain_pad"]["value"] == pytest.approx(12, abs=1.5)
    assert sites["oslo"]["coverage"]["90"]["value"] == 1.0
    assert sites["lyon"]["coverage"]["90"]["value"] < 0.3
    calibration = read_calibration(tmp_path / "out" / "brain_pad.json")
    known = read_calibration(run[1] / "brain_pad.json")
    assert calibration.bias == known.bias
    assert calibration.limits.years[90][0] == pytest.approx((3.5 + 15 + 12) / 3, abs=1.5)
    assert calibration.limits != known.limits
    assert calibration.source["limits_from"]["scans"] == 90

    sheets = [tmp_path / "a.csv", tmp_path / "b.csv"]
    everyone = {name: (age, "F") for name, age in zip(names, ages, strict=True)}
    table = pd.read_csv(tables["out_of_fold"], index_col=0)
    everyone |= {name: (row.age, row.sex) for name, row in table.iterrows()}
    for sheet, part in zip(sheets, (0, 1), strict=True):
        rows = [f"{n},{a},{s}" for n, (a, s) in everyone.items() if n.startswith("P") == bool(part)]
        sheet.write_text("\n".join(["name,age,sex", *rows]))
    bare = tmp_path / "bare.csv"
    pd.read_csv(elsewhere)[["participant_id", "site", "predicted_age"]].to_csv(bare, index=False)
    more = ["--held_out_sites", str(bare), "--labels", *map(str, sheets)]
    more += ["--output_dir", str(tmp_path / "again")]
    again = brain_pad.main([*flags(tables, "out_of_fold", "test"), *more])
    assert again["held_out_sites"] == sites
