"""Tables that could give a person another's age, another unit or the other sex: known or said."""

import json
from pathlib import Path

import pytest
from test_people import SCANS, SESSIONS, ages_of, labels_of, table

from data_preprocessing.pipeline.inputs import Source
from data_preprocessing.public.bids import read_bids
from prediction.people import find_label, read_people
from utils.people.codebook import SEX_NAMES, parse_age, parse_sex_codes
from utils.people.labels import examine_labels, read_labels

THREE = [f"sub-0{number}_T1w.nii.gz" for number in (1, 2, 3)]


def found_in(sheet, *names, **options):
    """(age, F or M) of scans of these names and the problems, which are no errors here."""
    scans = [Path(name) for name in names]
    labels, problems = examine_labels(sheet, scans, need_ages=False, **options)
    found = [labels.find(scan) for scan in scans]
    return [(label.age, SEX_NAMES[label.sex]) if label else None for label in found], problems


def describe(sheet, **columns):
    sheet.with_suffix(".json").write_text(json.dumps(columns))
    return sheet


# Columns of numbers.


@pytest.mark.parametrize("column", ["scan", "id", "session", "row", "record_id", "_", "image"])
def test_numbers_that_fit_by_chance_do_not_outdo_names(tmp_path, column):
    rows = ("sub-01 3 30", "sub-02 1 20", "sub-03 2 80")
    sheet = table(tmp_path / "a.tsv", f"participant_id {column} age", *rows)
    assert ages_of(sheet, *THREE) == [30, 20, 80]


@pytest.mark.parametrize("column", ["score", "scan", "visit", "_", "iq_number"])
def test_numbers_of_something_else_name_no_scan_by_chance(tmp_path, capsys, column):
    rows = ("CON7 3 30", "CON8 1 20", "CON9 2 80")
    sheet = table(tmp_path / "a.tsv", f"participant_id {column} age", *rows)
    assert ages_of(sheet, *THREE) == [None] * 3
    assert "a row is named 'CON7'" in capsys.readouterr().out


def test_numbers_without_a_known_header_must_number_people(tmp_path):
    rows = ("7 1 30", "8 2 20")
    with pytest.raises(ValueError, match="none names the scans"):
        ages_of(table(tmp_path / "a.csv", "score visit age", *rows), "sub-07_T1w.nii")
    sheet = table(tmp_path / "b.csv", "Proband_Nr visit age", *rows)
    assert ages_of(sheet, "sub-07_T1w.nii", "sub-08_T1w.nii") == [30, 20]


def test_a_column_that_was_sorted_alone_is_an_error(tmp_path):
    rows = (f"sub-01 {THREE[1]} 30", f"sub-02 {THREE[0]} 20")
    sheet = table(tmp_path / "a.csv", "participant_id file_name age", *rows)
    with pytest.raises(ValueError, match=r"file_name \(row 3\) and by participant_id \(row 2\)"):
        ages_of(sheet, *THREE[:2])


def test_the_column_that_names_more_scans_loses_no_row(tmp_path):
    rows = (f"sub-01 {THREE[0]} 30", "sub-02 _ 20", "sub-03 _ 80")
    sheet = table(tmp_path / "a.tsv", "participant_id file_name age", *rows)
    assert ages_of(sheet, *THREE) == [30, 20, 80]


def test_numbers_as_pandas_and_spss_write_them_are_whole(tmp_path):
    rows = ("1.00 1.0 60 1.00", "1.00 2.0 66 1.00", "2.00 1.0 70 2.00")
    sheet = table(tmp_path / "a.csv", "id visit age sex", *rows)
    codes = parse_sex_codes(["1=male", "2=female"])
    found = labels_of(sheet, *SESSIONS[:3], sex_codes=codes)
    assert found == [(60, "M"), (66, "M"), (70, "F")]


def test_a_table_without_a_header_has_its_age_second(tmp_path):
    with pytest.raises(ValueError, match="third is one"):
        ages_of(table(tmp_path / "a.csv", "sub-01 1 45", "sub-02 0 50"), *THREE[:2])


@pytest.mark.parametrize("further", ["id sex age", "subject_id visit Age"])
def test_a_table_below_the_table_is_refused(tmp_path, further):
    rows = ("id age sex", "sub-01 60 F", further, "sub-02 1 20")
    with pytest.raises(ValueError, match=r"row 3: a further header"):
        ages_of(table(tmp_path / "a.csv", *rows), *THREE[:2])
    with pytest.raises(ValueError, match=r"row 2: a further header"):
        ages_of(table(tmp_path / "b.tsv", "Demographics _ Scan", *rows[:2]), THREE[0])
    again = table(tmp_path / "c.csv", *rows[:2], rows[0], "sub-02 20 M")
    assert [age for age, _ in found_in(again, *THREE[:2])[0]] == [60, 20]


# Several datasets and sessions.


def test_people_of_two_datasets_are_not_one_by_one_sheet(tmp_path, capsys):
    sheet = table(tmp_path / "a.csv", "id age", "sub-01 60")
    scans = [
        tmp_path / "one" / "sub-01" / "anat" / "sub-01_T1w.nii.gz",
        tmp_path / "two" / "sub-01" / "anat" / "sub-01_acq-x_T1w.nii.gz",
    ]
    assert ages_of(sheet, *scans) == [None, None]
    assert "several folders have a sub-01" in capsys.readouterr().out
    inside = tmp_path / "one" / "derivatives" / "x" / "sub-01" / "anat" / "sub-01_desc-a_T1w.nii"
    assert ages_of(sheet, scans[0], inside) == [60, 60]
    files = table(tmp_path / "b.csv", "file age", f"{scans[0].name} 60", f"{scans[1].name} 20")
    assert ages_of(files, *scans) == [60, 20]


def test_the_nearest_table_knows_a_scan_best(tmp_path):
    outer, inner = tmp_path / "data", tmp_path / "data" / "more"
    for folder, age in ((outer, 60), (inner, 20)):
        table(folder / "participants.tsv", "participant_id age", f"sub-01 {age}")
    paths = [f / "sub-01" / "anat" / "sub-01_T1w.nii.gz" for f in (outer, inner)]
    sources = [Source(f"{at}", path) for at, path in enumerate(paths)]
    people = read_people(None, [str(outer), str(inner)], sources, None)
    assert find_label(sources[1], people).age == 20


def test_each_table_of_several_datasets_describes_its_own_scans(tmp_path):
    paths = []
    for name, age, acq in (("one", 60, ""), ("two", 20, "_acq-x")):
        table(tmp_path / name / "participants.tsv", "participant_id age", f"sub-01 {age}")
        paths.append(tmp_path / name / "sub-01" / "anat" / f"sub-01{acq}_T1w.nii.gz")
    tables = [path.parents[2] / "participants.tsv" for path in paths]
    subjects = read_bids(tables, paths, None).subjects
    assert [subjects[str(path)].age for path in paths] == [60, 20]


@pytest.mark.parametrize(
    ("labels", "ages"),
    [
        (("followup",), [None]),
        (("scan1", "followup"), [60, None]),
        (("retest", "test"), [None, 60]),
        (("post", "pre"), [None, 60]),
    ],
)
def test_a_session_whose_label_says_later_is_not_the_first(tmp_path, labels, ages):
    sheet = table(tmp_path / "a.tsv", "participant_id age", "sub-01 60")
    assert ages_of(sheet, *(f"sub-01_ses-{label}_T1w.nii" for label in labels)) == ages


def test_a_session_without_age_makes_the_age_of_a_scan_without_session_unknown(tmp_path, capsys):
    rows = ("1 baseline_arm_1 60", "1 followup_arm_1 _")  # of REDCap
    sheet = table(tmp_path / "a.csv", "record_id redcap_event_name age", *rows)
    names = ("sub-01_T1w.nii", "sub-01_ses-followup_T1w.nii")
    assert ages_of(sheet, *names) == [None, None]
    assert "several sessions, row 3 without an age" in capsys.readouterr().out


def test_sessions_are_found_under_the_ids_of_xnat(tmp_path):
    rows = ("sub-01 sub-01_ses-1 60", "sub-01 sub-01_ses-2 66")
    sheet = table(tmp_path / "a.tsv", "participant_id session_id age", *rows)
    assert ages_of(sheet, *SESSIONS[:2]) == [60, 66]


def test_a_scans_table_without_file_names_is_named(tmp_path):
    sheet = table(tmp_path / "participants.tsv", "participant_id age", "sub-01 60")
    table(tmp_path / "sub-01" / "sub-01_scans.tsv", "scan_name age", "x 5")
    found, problems = found_in(sheet, THREE[0])
    assert found == [(60, "n/a")]
    assert "sub-01_scans.tsv: no column filename" in problems[0]


# Units.


def test_one_age_too_high_for_years_makes_all_unknown_where_no_unit_is_stated(tmp_path):
    rows = ("sub-001 96", "sub-002 150")
    sheet = table(tmp_path / "participants.tsv", "participant_id age", *rows)
    found, problems = found_in(sheet, *SCANS)
    assert found == [(None, "n/a")] * 2
    assert "the age in row 3 is too high for years and no unit is stated" in problems[0]
    missing = table(tmp_path / "b.tsv", "participant_id age", "sub-001 96", "sub-002 999")
    assert found_in(missing, *SCANS)[0] == [(96, "n/a"), (None, "n/a")]
    describe(sheet, age={"Units": "months"})
    assert found_in(sheet, *SCANS) == ([(8, "n/a"), (12.5, "n/a")], [])


@pytest.mark.parametrize(
    ("units", "age"),
    [
        ("year(s)", 24),
        ("years old", 24),
        ("yrs.", 24),
        (["years"], 24),
        ("months (completed)", 2),
        ("months/years", None),
        ({"years": "x"}, None),
    ],
)
def test_units_are_read_in_the_words_of_people(tmp_path, units, age):
    sheet = table(tmp_path / "participants.tsv", "participant_id age", "sub-01 24")
    ((found, _),), problems = found_in(describe(sheet, age={"Units": units}), THREE[0])
    assert found == age
    assert bool(problems) == (age is None)


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("Age at scan, months", 2),
        ("Age (months)", 2),
        ("Age in full months", 2),
        ("Number of months since birth", 2),
        ("rounded to months", None),
        ("Postmenstrual age in weeks", None),
        ("age in years on the day of the scan, 2 weeks later", 24),
        ("age on the day of the scan", 24),
    ],
)
@pytest.mark.parametrize("key", ["Description", "LongName"])
def test_a_unit_in_words_counts_or_makes_the_ages_unknown(tmp_path, key, text, age):
    sheet = table(tmp_path / "participants.tsv", "participant_id age", "sub-01 24")
    ((found, _),), problems = found_in(describe(sheet, age={key: text}), THREE[0])
    assert found == age
    assert bool(problems) == (age is None)


def test_dictionaries_further_up_describe_what_nearer_ones_do_not(tmp_path):
    sheet = table(tmp_path / "participants.tsv", "participant_id", "sub-01")
    sessions = table(tmp_path / "sub-01" / "sub-01_sessions.tsv", "session_id age", "ses-1 96")
    describe(sessions, session_id={"Description": "x"})
    describe(sheet, age={"Units": "months"})
    assert ages_of(sheet, SESSIONS[0]) == [8]
    (tmp_path / "sessions.json").write_text('{"age": {"Units": "weeks"}}')
    assert ages_of(sheet, SESSIONS[0]) == [pytest.approx(1.84, abs=0.01)]


def test_levels_of_an_age_that_mean_unknown_are_no_ages(tmp_path):
    sheet = table(tmp_path / "participants.tsv", "participant_id age", "sub-001 99", "sub-002 50")
    describe(sheet, age={"Levels": {"99": "missing"}})
    assert ages_of(sheet, *SCANS) == [None, 50]


@pytest.mark.parametrize(
    ("cell", "unit"), [("12,345", 1 / 365.25), ("45M", 1.0), ("999", 1 / 12), ("1.234", 1 / 12)]
)
def test_cells_that_may_mean_two_ages_are_refused(cell, unit):
    with pytest.raises(ValueError, match="expected"):
        parse_age(cell, unit)


def test_the_age_at_the_scan_is_not_that_at_another_examination(tmp_path):
    header = "id age_at_assessment age age_at_visit age_at_mri"
    assert ages_of(table(tmp_path / "a.tsv", header, "1 60 61 62 63"), THREE[0]) == [63]
    header = header.rpartition(" ")[0]
    assert ages_of(table(tmp_path / "b.tsv", header, "1 60 61 62"), THREE[0]) == [62]
    header = header.rpartition(" ")[0]
    assert ages_of(table(tmp_path / "c.tsv", header, "1 60 61"), THREE[0]) == [61]


# Sexes.


@pytest.mark.parametrize(
    ("header", "sexes"),
    [
        ("sex (0-M; 1-F)", "MF"),
        ("Sex_0M_1F", "MF"),
        ("gender_m0_f1", "MF"),
        ("sex(0 female/1 male)", "FM"),
        ("sex_female", "MF"),
        ("sex_male", "FM"),
        ("Geschlecht (0=m; 1=w)", "MF"),
        ("gender_m_f", None),
    ],
)
def test_codes_in_any_form_of_header_are_taken_or_unknown(tmp_path, header, sexes):
    (tmp_path / "a.csv").write_text(f"id,{header},age\nsub-001,0,30\nsub-002,1,20\n")
    found, problems = found_in(tmp_path / "a.csv", *SCANS)
    assert [sex for _, sex in found] == list(sexes or ["n/a", "n/a"])
    assert ["give --sex_codes 0=male 1=female" in text for text in problems] == [True] * (not sexes)


@pytest.mark.parametrize(
    ("described", "sexes"),
    [
        ({"Levels": "0 = male, 1 = female"}, "MF"),
        ({"Description": "sex of the participant (0: male; 1: female)"}, "MF"),
        ({"Levels": {"0": {"Label": "Male"}, "1": {"Label": "Female"}}}, "MF"),
        ({"Annotations": {"Levels": {"0": {"Label": "Male"}, "1": {"Label": "Female"}}}}, "MF"),
        ({"Levels": ["male", "female"]}, None),
        ({"Description": "1 if male, 0 otherwise"}, None),
    ],
)
def test_levels_in_any_form_are_taken_or_unknown(tmp_path, described, sexes):
    rows = ("participant_id age sex", "sub-001 9 0", "sub-002 9 1")
    sheet = describe(table(tmp_path / "participants.tsv", *rows), sex=described)
    found, problems = found_in(sheet, *SCANS)
    assert [sex for _, sex in found] == list(sexes or ["n/a", "n/a"])
    assert bool(problems) == (sexes is None)


def test_letters_of_another_language_are_unknown_until_they_are_stated(tmp_path):
    sheet = table(tmp_path / "a.csv", "id age sex", "sub-001 50 H", "sub-002 60 M")
    found, (problem,) = found_in(sheet, *SCANS)
    assert found == [(50, "n/a"), (60, "n/a")]
    assert "sexes H and M" in problem
    assert len(found_in(sheet, *SCANS, sex_codes={"h": 1})[1]) == 1
    codes = parse_sex_codes(["h=male", "m=female"])
    assert found_in(sheet, *SCANS, sex_codes=codes) == ([(50, "M"), (60, "F")], [])
    spanish = table(tmp_path / "participants.tsv", "id age sex", "sub-001 50 H", "sub-002 60 M")
    describe(spanish, sex={"Levels": {"H": "hombre", "M": "mujer"}})
    assert found_in(spanish, *SCANS) == ([(50, "M"), (60, "F")], [])
    with_other = table(tmp_path / "b.csv", "id age sex", "sub-001 50 F", "sub-002 60 O")
    assert found_in(with_other, *SCANS) == ([(50, "F"), (60, "n/a")], [])


def test_codes_of_the_user_that_contradict_the_table_are_said(tmp_path, capsys):
    sheet = table(tmp_path / "participants.tsv", "participant_id age sex", "sub-001 50 1")
    describe(sheet, sex={"Levels": {"1": "female", "2": "male"}})
    read_labels(sheet, sex_codes=parse_sex_codes(["1=male", "2=female"]))
    assert "sex 1 is read as M, as --sex_codes say, though its own" in capsys.readouterr().out


@pytest.mark.parametrize("headers", ["gender_code gender_text", "sex gender"])
def test_words_are_preferred_to_codes_as_cam_can_has_both(tmp_path, headers):
    rows = ("sub-001 30 1 MALE", "sub-002 31 2 FEMALE")
    sheet = table(tmp_path / "a.csv", f"participant_id age {headers}", *rows)
    assert found_in(sheet, *SCANS) == ([(30, "M"), (31, "F")], [])
    of_one = table(tmp_path / "b.csv", f"participant_id age {headers}", "sub-001 30 1 F")
    assert labels_of(of_one, SCANS[0]) == [(30, "F")]
