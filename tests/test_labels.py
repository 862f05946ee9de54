import pandas
import pytest

from utils.files import write_xls
from utils.people.codebook import SEX_NAMES, parse_sex_codes
from utils.people.labels import read_labels

ROWS = [("sub-1.nii.gz", 23.5, 0), ("sub-10.nii.gz", 71, 1), ("sub-2.nii.gz", 18, 0)]
EXPECTED = {"sub-1": (23.5, 0), "sub-10": (71.0, 1), "sub-2": (18.0, 0)}


def values(labels: dict) -> dict:
    return {key: (label.age, label.sex) for key, label in labels.rows.items()}


def write_text(path, rows, separator):
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    return path


def write(path, rows):
    if path.suffix == ".xls":
        return write_xls(path, rows)
    if path.suffix == ".xlsx":
        pandas.DataFrame(rows).to_excel(path, header=False, index=False)
        return path
    return write_text(path, rows, "\t" if path.suffix == ".tsv" else ",")


@pytest.mark.parametrize("suffix", [".xls", ".xlsx", ".csv", ".tsv"])
@pytest.mark.parametrize("header", [None, ("File name", "Age", "Gender"), ("ID", "age", "sex")])
def test_every_format_reads_alike_with_and_without_header(tmp_path, suffix, header):
    rows = ROWS if header is None else [header, *ROWS]
    labels = read_labels(write(tmp_path / f"sheet{suffix}", rows))
    assert values(labels) == EXPECTED


def test_published_sheet_without_header_keeps_its_first_subject(tmp_path):
    labels = read_labels(write_xls(tmp_path / "Dataset.xls", ROWS))
    assert next(iter(labels.rows)) == "sub-1"
    assert labels.rows["sub-1"].row == 1


def test_bids_participants_in_any_column_order_with_words(tmp_path):
    sheet = tmp_path / "participants.tsv"
    sheet.write_text(
        "participant_id\tgroup\tsex\tage\nsub-31\tdepr\tF\t19\nsub-57\tcontrol\tmale\tn/a\n"
        "sub-60\tcontrol\tn/a\t89+\n"
    )
    assert values(read_labels(sheet)) == {
        "sub-31": (19.0, 0),
        "sub-57": (None, 1),
        "sub-60": (None, None),
    }


@pytest.mark.parametrize("header", ["M/F", "Sex (M/F)", "Gender", "SEX"])
def test_headers_of_the_sex_are_understood(tmp_path, header):
    sheet = tmp_path / "a.csv"
    sheet.write_text(f"ID,{header},Age\na,M,50\nb,O,60\n")
    labels = read_labels(sheet)
    assert (labels.rows["a"].sex, labels.rows["b"].sex) == (1, None)


@pytest.mark.parametrize(
    ("header", "sexes"),
    [
        ('"SEX_ID (1=m, 2=f)"', ("M", "F")),
        ("sex (1 = female; 2 = male)", ("F", "M")),
        ("Sex [male=1 female=2]", ("M", "F")),
        ("male", ("M", None)),
    ],
)
def test_codes_that_a_header_states_are_taken_as_it_says(tmp_path, header, sexes):
    sheet = tmp_path / "ixi.csv"
    second = "n/a" if None in sexes else 2
    sheet.write_text(f"IXI_ID,{header},AGE\n12,1,38.8\n2,{second},35.8\n")
    assert tuple(SEX_NAMES[row.sex] for row in read_labels(sheet).rows.values()) == tuple(
        name or "n/a" for name in sexes
    )
    stated = read_labels(sheet, sex_codes={"1": 1, "2": 0})
    assert stated.rows["12"].sex == 1


@pytest.mark.parametrize(("header", "sexes"), [("is_female", (0, 1)), ("Male", (1, 0))])
def test_a_column_of_one_sex_says_yes_or_no(tmp_path, header, sexes):
    sheet = write_text(tmp_path / "d.csv", [("id", "age", header), ("a", 50, 1), ("b", 60, 0)], ",")
    assert tuple(row.sex for row in read_labels(sheet).rows.values()) == sexes


def test_one_two_coding_is_refused_without_a_map_and_read_with_one(tmp_path):
    sheet = write_text(tmp_path / "d.csv", [("id", "age", "sex"), ("a", 50, 1), ("b", 60, 2)], ",")
    with pytest.raises(
        ValueError, match=r"d\.csv, row 3: sex 2, .*1=male 2=female, or .*1=female 2=male"
    ):
        read_labels(sheet)
    codes = parse_sex_codes(["1=male", "2=female"])
    assert values(read_labels(sheet, sex_codes=codes)) == {"a": (50.0, 1), "b": (60.0, 0)}


def test_all_problems_are_reported_at_once_with_file_row_and_value(tmp_path):
    rows = [("id", "age", "sex"), ("a", "old", 0), ("b", 300, 1), ("c", -1, 0), ("d", 50, "x"),
            ("", 40, 1), ("e", 40, 1), ("e", 41, 1)]  # fmt: skip
    with pytest.raises(ValueError) as caught:
        read_labels(write_text(tmp_path / "d.csv", rows, ","))
    message = str(caught.value)
    for part in (
        "row 2: a: age 'old', expected years as a number",
        "row 3: b: age '300', expected years from 0 to 120",
        "row 4: c: age '-1'",
        "row 5: d: sex 'x'",
        "row 6: the file name or id is empty",
        "row 8: e stands in row 7 already",
    ):
        assert f"{tmp_path / 'd.csv'}, {part}" in message


def test_names_match_exactly_so_that_sub_1_is_not_sub_10(tmp_path):
    labels = read_labels(write_text(tmp_path / "d.csv", ROWS, ","))
    assert labels.find(tmp_path / "sub-1.nii.gz").age == 23.5
    assert labels.find(tmp_path / "sub-10.nii").age == 71
    assert labels.find(tmp_path / "sub-100.nii.gz") is None
    assert labels.find(tmp_path / "sub-1_ses-2_T1w.nii.gz").age == 23.5
    assert labels.find(tmp_path / "sub-100_T1w.nii.gz") is None
