"""Strangers' tables: which row belongs to a scan, and what its cells mean."""

import json
from pathlib import Path

import pytest

from utils.people.codebook import SEX_NAMES, parse_age
from utils.people.labels import examine_labels, read_labels


def table(path, *rows):
    """A text table of these rows, whose cells are separated by blanks; `_` is an empty cell."""
    separator = "\t" if path.suffix == ".tsv" else ","
    cells = ([cell.replace("_", "") if cell == "_" else cell for cell in r.split()] for r in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(row) + "\n" for row in cells))
    return path


def labels_of(sheet, *names, **options):
    """(age, F or M) of scans of these names."""
    scans = [Path(name) for name in names]
    labels = read_labels(sheet, scans, need_ages=False, **options)
    found = [labels.find(scan) for scan in scans]
    return [(label.age, SEX_NAMES[label.sex]) if label else None for label in found]


def ages_of(sheet, *names, **options):
    return [label and label[0] for label in labels_of(sheet, *names, **options)]


SESSIONS = [f"sub-0{n}_ses-{s}_T1w.nii.gz" for n in (1, 2) for s in (1, 2)]
SCANS = ["sub-001_T1w.nii.gz", "sub-002_T1w.nii.gz"]


# Sessions.


def test_each_session_of_a_participants_table_has_its_own_age(tmp_path):
    sheet = table(
        tmp_path / "participants.tsv",
        "participant_id session_id age sex",
        "sub-01 ses-1 60 F", "sub-01 ses-2 66 F", "sub-02 ses-1 70 M", "sub-02 ses-2 77 M",
    )  # fmt: skip
    assert labels_of(sheet, *SESSIONS) == [(60, "F"), (66, "F"), (70, "M"), (77, "M")]


@pytest.mark.parametrize("column", ["age", "age_at_session", "age_at_scan"])
@pytest.mark.parametrize("ids", [("ses-1", "ses-2"), ("1", "2"), ("01", "02")])
def test_a_sessions_table_gives_the_ages_of_sessions_by_label_or_number(tmp_path, column, ids):
    sheet = table(tmp_path / "participants.tsv", "participant_id sex", "sub-01 F", "sub-02 M")
    for person, first in (("sub-01", 60), ("sub-02", 70)):
        path = tmp_path / person / f"{person}_sessions.tsv"
        rows = (f"{name} {first + 7 * at}" for at, name in enumerate(ids))
        table(path, f"session_id {column}", *rows)
    assert labels_of(sheet, *SESSIONS) == [(60, "F"), (67, "F"), (70, "M"), (77, "M")]


def test_sessions_whose_numbers_are_not_unique_need_their_own_label(tmp_path):
    rows = ("sub-01 1 60", "sub-01 01 61")
    sheet = table(tmp_path / "a.tsv", "participant_id session_id age", *rows)
    assert ages_of(sheet, *(f"sub-01_ses-{s}_T1w.nii" for s in ("1", "01", "001"))) == [
        60, 61, None,
    ]  # fmt: skip


def test_a_scans_table_gives_the_age_of_a_scan(tmp_path):
    sheet = table(tmp_path / "participants.tsv", "participant_id age", "sub-01 50", "sub-02 70")
    folder = tmp_path / "sub-01" / "ses-2"
    table(folder / "sub-01_ses-2_scans.tsv", "filename age", f"anat/{SESSIONS[1]} 66")
    assert ages_of(sheet, *SESSIONS[:2]) == [50, 66]


def test_an_age_of_a_person_is_that_of_the_first_session_alone(tmp_path, capsys):
    sheet = table(tmp_path / "participants.tsv", "participant_id age sex", "sub-01 60 F")
    assert labels_of(sheet, *SESSIONS[:2]) == [(60, "F"), (None, "F")]
    said = capsys.readouterr().out
    assert "no age for sub-01_ses-2_T1w.nii.gz: participants.tsv gives one age" in said
    names = ("sub-01_ses-m12_T1w.nii", "sub-01_ses-baseline_T1w.nii", "sub-01_ses-m06_T1w.nii")
    assert ages_of(sheet, *names) == [None, 60, None]
    assert ages_of(sheet, "sub-01_ses-10_T1w.nii", "sub-01_ses-9_T1w.nii") == [None, 60]


def test_the_folder_of_an_earlier_session_makes_a_lone_scan_a_later_one(tmp_path):
    sheet = table(tmp_path / "participants.tsv", "participant_id age", "sub-01 60")
    (tmp_path / "sub-01" / "ses-1" / "func").mkdir(parents=True)
    scan = tmp_path / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T1w.nii.gz"
    assert ages_of(sheet, scan) == [None]
    assert ages_of(sheet, scan.name) == [60]


def test_an_age_at_baseline_in_every_row_is_that_of_the_first_session(tmp_path):
    rows = ("sub-01 ses-1 60", "sub-01 ses-2 60")
    sheet = table(tmp_path / "a.tsv", "participant_id session_id age_at_baseline", *rows)
    assert ages_of(sheet, *SESSIONS[:2]) == [60, None]


def test_rows_of_a_person_that_contradict_each_other_are_unknown_and_named(tmp_path, capsys):
    rows = ("participant_id age sex", "sub-01 60 F", "sub-01 66 F", "sub-02 70 M")
    sheet = table(tmp_path / "participants.tsv", *rows)
    labels, problems = examine_labels(sheet, [Path(SCANS[0])])
    assert "row 3: sub-01 stands in row 2 already, with another age or sex" in problems[0]
    label = labels.find(Path("sub-01_T1w.nii.gz"))
    assert (label.age, label.sex) == (None, 0)
    assert "60 (row 2) and 66 (row 3)" in label.doubt
    with pytest.raises(ValueError, match="row 3: sub-01 stands in row 2 already"):
        read_labels(sheet)
    sessions = table(tmp_path / "b.tsv", "participant_id visit age", "sub-01 1 60", "sub-01 2 66")
    assert ages_of(sessions, "sub-01_T1w.nii.gz") == [None]
    assert "sub-01 has the ages 60 (row 2) and 66 (row 3)" in capsys.readouterr().out


def test_a_session_without_a_row_has_no_age(tmp_path, capsys):
    rows = ("sub-01 ses-1 60 F", "sub-01 ses-2 66 F")
    sheet = table(tmp_path / "a.tsv", "participant_id session_id age sex", *rows)
    assert labels_of(sheet, "sub-01_ses-3_T1w.nii.gz") == [(None, "F")]
    assert "no row of session 3" in capsys.readouterr().out


# Units and codes.


@pytest.mark.parametrize(
    ("units", "cell", "age"),
    [
        ("months", "24", 2.0),
        ("month", "96", 8.0),
        ("weeks", "40", 0.77),
        ("days", "731", 2.0),
        ("years", "24", 24.0),
        ("Years", "24", 24.0),
        ("", "24", 24.0),
        ("n/a", "24", 24.0),
        (None, "24", 24.0),
        ("decades", "2", None),
        ("gestational weeks", "40", None),
    ],
)
@pytest.mark.parametrize("kind", ["participants", "sessions"])
def test_the_dictionary_beside_a_table_gives_the_unit_of_ages(tmp_path, kind, units, cell, age):
    described = {"age": {"Description": "age"} | ({} if units is None else {"Units": units})}
    (tmp_path / f"{kind}.json").write_text(json.dumps(described))
    sheet = tmp_path / "participants.tsv"
    if kind == "participants":
        table(sheet, "participant_id age", f"sub-01 {cell}")
    else:
        table(sheet, "participant_id sex", "sub-01 F")
        sessions = tmp_path / "sub-01" / "sub-01_sessions.tsv"
        table(sessions, "session_id age", f"ses-1 {cell}")
    labels, problems = examine_labels(sheet, need_ages=False)
    found = labels.find(Path("sub-01_ses-1_T1w.nii")).age
    assert found == age or round(found, 2) == age
    assert bool(problems) == (age is None)
    if age is None:
        assert f"{kind}.json: age has the unit '{units}'" in problems[0]


@pytest.mark.parametrize(
    ("description", "age"),
    [("age in months", 2.0), ("Age of the person in years (not in months)", 24.0), ("x", 24.0)],
)
def test_a_unit_in_the_description_counts_where_it_is_the_only_one(tmp_path, description, age):
    sheet = table(tmp_path / "participants.tsv", "participant_id age", "sub-01 24")
    described = {"age": {"Description": description}}
    (tmp_path / "participants.json").write_text(json.dumps(described))
    assert ages_of(sheet, "sub-01_T1w.nii") == [age]


def test_a_dictionary_that_contradicts_the_header_makes_the_ages_unknown(tmp_path):
    sheet = table(tmp_path / "participants.tsv", "participant_id age_years", "sub-01 24")
    (tmp_path / "participants.json").write_text('{"age_years": {"Units": "months"}}')
    labels, (problem,) = examine_labels(sheet)
    assert labels.find(Path("sub-01_T1w.nii")).age is None
    assert "another unit" in problem


@pytest.mark.parametrize(
    ("levels", "sexes"),
    [
        ({"0": "male", "1": "female"}, "MF?"),
        ({"1": "male", "2": "female"}, "?MF"),
        ({"1": "female", "2": "male"}, "?FM"),
        ({"0": {"Description": "Male sex"}, "1": {"Description": "Female sex"}}, "MF?"),
        ({"male": "1", "female": "2"}, "?MF"),
    ],
)
def test_the_levels_of_a_dictionary_say_what_codes_of_sexes_mean(tmp_path, levels, sexes):
    rows = [f"sub-{code} 50 {code}" for code in range(3) if sexes[code] != "?"]
    sheet = table(tmp_path / "participants.tsv", "participant_id age Sex", *rows)
    (tmp_path / "participants.json").write_text(json.dumps({"sex": {"Levels": levels}}))
    names = [f"sub-{code}_T1w.nii" for code in range(3) if sexes[code] != "?"]
    assert [sex for _, sex in labels_of(sheet, *names)] == list(sexes.replace("?", ""))
    swapped = {
        str(code): "FM".index("MF"["FM".index(sex)]) for code, sex in enumerate(sexes) if sex != "?"
    }
    assert [sex for _, sex in labels_of(sheet, *names, sex_codes=swapped)] != list(
        sexes.replace("?", "")
    )


def test_a_column_with_a_two_is_not_read_as_zero_and_one(tmp_path):
    sheet = table(
        tmp_path / "participants.tsv", "participant_id age sex", "sub-1 50 1", "sub-2 60 2",
        "sub-3 70 F",
    )  # fmt: skip
    labels, (problem,) = examine_labels(sheet)
    assert [row.sex for row in labels.rows.values()] == [None, None, 0]
    assert "row 3: sex 2" in problem
    assert "--sex_codes 1=male 2=female, or --sex_codes 1=female 2=male" in problem


@pytest.mark.parametrize(
    "content",
    [
        b'{"age": {"Units": "months", "Description": "M\xe4dchen"}}',
        b'\xef\xbb\xbf{"age": {"Units": "months"}}',
        b'{"age": {"Units": "months",},}',
    ],
)
def test_a_dictionary_as_people_write_it_is_read(tmp_path, content):
    sheet = table(tmp_path / "participants.tsv", "participant_id age", "sub-01 24")
    (tmp_path / "participants.json").write_bytes(content)
    assert ages_of(sheet, "sub-01_T1w.nii") == [2.0]


def test_a_broken_dictionary_makes_the_ages_unknown_and_is_named(tmp_path):
    sheet = table(tmp_path / "participants.tsv", "participant_id age sex", "sub-01 24 F")
    (tmp_path / "participants.json").write_text('{"age": {')
    labels, (problem,) = examine_labels(sheet)
    label = labels.find(Path("sub-01_T1w.nii"))
    assert (label.age, label.sex) == (None, 0)
    assert "participants.json: not readable as JSON" in problem


# Columns.


def test_file_names_name_the_scans_where_the_ids_name_others(tmp_path):
    rows = ("3 1.nii.gz 30", "1 2.nii.gz 20", "2 3.nii.gz 80")
    sheet = table(tmp_path / "a.csv", "ID file_name age", *rows)
    assert ages_of(sheet, "1.nii.gz", "2.nii.gz", "3.nii.gz") == [30, 20, 80]


def test_ids_name_the_scans_where_the_file_names_are_of_others(tmp_path):
    rows = ("a x1.nii.gz 30", "b x2.nii.gz 20")
    sheet = table(tmp_path / "a.csv", "ID file_name age", *rows)
    assert ages_of(sheet, "a.nii.gz", "b.nii.gz") == [30, 20]


def test_a_column_of_an_unknown_header_names_the_scans_where_no_other_does(tmp_path):
    sheet = table(tmp_path / "a.csv", "subject MPRAGE age", "1 s7 30", "2 s8 20")
    assert ages_of(sheet, "s7.nii.gz", "s8.nii.gz") == [30, 20]


def test_without_a_known_header_the_column_that_names_the_scans_is_found(tmp_path):
    rows = ("Pitt_0050003 50003 24.5 1 Pitt", "NYU_0051009 51009 30 2 NYU")
    sheet = table(tmp_path / "abide.csv", "FILE_ID SUB_ID AGE_AT_SCAN SEX SITE_ID", *rows)
    codes = {"1": 1, "2": 0}
    for names in (
        ("Pitt_0050003.nii.gz", "NYU_0051009.nii.gz"),
        ("sub-0050003_T1w.nii", "51009.nii"),
    ):
        assert labels_of(sheet, *names, sex_codes=codes) == [(24.5, "M"), (30, "F")]
    with pytest.raises(ValueError, match=r"none names the scans; found .*SUB_ID"):
        ages_of(sheet, "other.nii", sex_codes=codes)


def test_an_unnamed_column_may_name_the_scans(tmp_path):
    (tmp_path / "a.csv").write_text(",age,sex\nx1,30,F\nx2,20,M\n")  # as pandas writes an index
    assert ages_of(tmp_path / "a.csv", "x1.nii.gz", "x2.nii.gz") == [30, 20]


def test_a_row_that_ends_before_its_age_is_a_problem(tmp_path):
    (tmp_path / "a.csv").write_text("id,note,age\na,left\nearly,50\nb,x,60\n")
    _, problems = examine_labels(tmp_path / "a.csv")
    assert [text.partition("; a line")[0].partition("row ")[2] for text in problems] == [
        "2: a: ends before the column of ages", "3: early: ends before the column of ages",
    ]  # fmt: skip


def test_a_path_means_its_last_part_and_its_folders_where_names_repeat(tmp_path):
    rows = ("/data/A/T1.nii.gz 30", "C:\\data\\B\\T1.nii.gz 20", "x/y/other.nii.gz 50")
    sheet = table(tmp_path / "a.csv", "path age", *rows)
    assert ages_of(sheet, "/data/A/T1.nii.gz", "/data/B/T1.nii.gz", "z/other.nii.gz") == [
        30, 20, 50,
    ]  # fmt: skip
    alone = table(tmp_path / "b.csv", "path age", "T1.nii.gz 30")
    assert ages_of(alone, "A/T1.nii.gz", "B/T1.nii.gz") == [None, None]


def test_two_columns_that_fit_equally_and_contradict_each_other_are_an_error(tmp_path):
    rows = ("1 2 30", "2 1 20")
    sheet = table(tmp_path / "a.csv", "id subject age", *rows)
    with pytest.raises(
        ValueError, match=r"columns? id \(row 2\) and by subject \(row 3\)|with another"
    ):
        ages_of(sheet, "1.nii.gz", "2.nii.gz")
    alike = table(tmp_path / "b.csv", "id subject age", "1 1 30", "2 2 20")
    assert ages_of(alike, "1.nii.gz", "2.nii.gz") == [30, 20]


@pytest.mark.parametrize(
    ("header", "age"),
    [
        ("Age (y)", 24.0),
        ("age_years", 24.0),
        ("age_at_first_scan_years", 24.0),
        ("age_months", 2.0),
        ("Age at scan (months)", 2.0),
        ("AgeAtScan", 24.0),
        ("AGE", 24.0),
        ("ageAtEntry", 24.0),
        ("PatientAge", 24.0),
        ("age_in_weeks", 0.46),
        ("Age at MRI [days]", 0.07),
    ],
)
def test_headers_of_ages_are_understood_with_their_units(tmp_path, header, age):
    (tmp_path / "a.csv").write_text(f"id,{header},sex\na,24,F\n")
    assert round(ages_of(tmp_path / "a.csv", "a.nii")[0], 2) == age


@pytest.mark.parametrize(
    "header", ["age_at_onset", "age_group", "mother_age", "brain_age", "age_m", "age_t1"]
)
def test_another_age_is_not_taken_for_the_persons_and_the_headers_are_listed(tmp_path, header):
    (tmp_path / "a.csv").write_text(f"id,{header},sex\na,24,F\n")
    with pytest.raises(ValueError, match=f"no column of ages.*{header}"):
        read_labels(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=f"not understood: {header}.*found"):
        read_labels(tmp_path / "a.csv", need_ages=False)
    (tmp_path / "b.csv").write_text(f"id,{header},age\na,24,50\n")
    assert ages_of(tmp_path / "b.csv", "a.nii") == [50]


def test_the_age_at_the_scan_is_preferred_to_others(tmp_path):
    sheet = table(tmp_path / "a.csv", "id age_at_baseline age age_at_scan", "a 1 2 3")
    assert ages_of(sheet, "a.nii") == [3]


# Names.


@pytest.mark.parametrize("ids", [("001", "002"), ("1", "2"), ("sub-1", "sub-2"), ("01", "02")])
@pytest.mark.parametrize("names", [SCANS, ["001.nii.gz", "002.nii.gz"]])
def test_ids_match_without_sub_and_without_leading_zeros(tmp_path, ids, names):
    sheet = table(tmp_path / "a.csv", "id age", f"{ids[0]} 50", f"{ids[1]} 60")
    assert ages_of(sheet, *names) == [50, 60]


def test_numbers_match_only_where_one_person_is_meant(tmp_path):
    sheet = table(tmp_path / "a.csv", "id age", "1 50", "01 60")
    assert ages_of(sheet, "sub-1_T1w.nii", "sub-01_T1w.nii", "sub-001_T1w.nii") == [50, 60, None]
    sheet = table(tmp_path / "b.csv", "id age", "1 50")
    assert ages_of(sheet, "sub-01_T1w.nii", "sub-001_T1w.nii") == [None, None]


def test_accents_match_in_either_form_of_unicode(tmp_path):
    sheet = table(tmp_path / "a.csv", "id age", "Ju\u0308rgen 50")
    assert ages_of(sheet, "J\u00fcrgen.nii.gz") == [50]


def test_a_sheet_without_a_row_of_any_scan_is_said_loudly_with_two_names(tmp_path, capsys):
    sheet = table(tmp_path / "a.csv", "id age", "P001 50", "P002 60")
    assert ages_of(sheet, *SCANS) == [None, None]
    said = capsys.readouterr().out
    assert "WARNING" in said
    assert "'P001'" in said
    assert "'sub-001_T1w.nii.gz'" in said


@pytest.mark.parametrize(
    ("cell", "years"), [("045Y", 45), ("018M", 1.5), ("006W", 0.115), ("010D", 0.0274), ("45", 45)]
)
def test_ages_as_dicom_writes_them(cell, years):
    assert parse_age(cell) == pytest.approx(years, abs=1e-3)
    assert parse_age(cell, 1.0) == parse_age(cell)
