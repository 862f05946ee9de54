import pandas
import pytest

from utils.files import write_xls
from utils.scans.labels import label_of, parse_sex_codes, read_labels

ROWS = [("sub-1.nii.gz", 23.5, 0), ("sub-10.nii.gz", 71, 1), ("sub-2.nii.gz", 18, 0)]
EXPECTED = {"sub-1": (23.5, 0), "sub-10": (71.0, 1), "sub-2": (18.0, 0)}


def values(labels: dict) -> dict:
    return {key: (label.age, label.sex) for key, label in labels.items()}


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
    assert next(iter(labels)) == "sub-1"
    assert labels["sub-1"].row == 1


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


def test_ages_stay_floats_and_numeric_ids_stay_whole(tmp_path):
    labels = read_labels(write_xls(tmp_path / "d.xls", [(1001, 54.25, 1), (1002, 60.0, 0)]))
    assert values(labels) == {"1001": (54.25, 1), "1002": (60.0, 0)}


def test_semicolons_and_decimal_commas_are_read(tmp_path):
    sheet = tmp_path / "d.csv"
    sheet.write_text("id;age;sex\nsub-1;23,5;w\n".replace(";w", ";woman"))
    assert values(read_labels(sheet)) == {"sub-1": (23.5, 0)}


@pytest.mark.parametrize(
    ("word", "sex"),
    [
        ("F", 0),
        ("female", 0),
        ("m", 1),
        ("MALE", 1),
        ("0", 0),
        ("1.0", 1),
        ("", None),
        ("n/a", None),
    ],
)
def test_sex_words_are_understood(tmp_path, word, sex):
    sheet = write_text(tmp_path / "d.csv", [("id", "age", "sex"), ("a", 50, word)], ",")
    assert read_labels(sheet)["a"].sex == sex


@pytest.mark.parametrize("header", ["M/F", "Sex (M/F)", "Gender", "SEX"])
def test_headers_of_the_sex_are_understood(tmp_path, header):
    sheet = tmp_path / "a.csv"
    sheet.write_text(f"ID,{header},Age\na,M,50\nb,O,60\n")
    labels = read_labels(sheet)
    assert (labels["a"].sex, labels["b"].sex) == (1, None)


def test_sheet_of_ixi_needs_the_meaning_of_its_codes(tmp_path):
    sheet = tmp_path / "ixi.csv"
    sheet.write_text('IXI_ID,"SEX_ID (1=m, 2=f)",AGE\n2,2,35.8\n12,1,38.8\n')
    with pytest.raises(ValueError, match="--sex_codes 1=male 2=female"):
        read_labels(sheet)
    assert read_labels(sheet, sex_codes={"1": 1, "2": 0})["2"].sex == 0


def test_one_two_coding_is_refused_without_a_map_and_read_with_one(tmp_path):
    sheet = write_text(tmp_path / "d.csv", [("id", "age", "sex"), ("a", 50, 1), ("b", 60, 2)], ",")
    with pytest.raises(ValueError, match=r"d\.csv, row 3: b: sex 2, .*--sex_codes 1=male 2=female"):
        read_labels(sheet)
    codes = parse_sex_codes(["1=male", "2=female"])
    assert values(read_labels(sheet, sex_codes=codes)) == {"a": (50.0, 1), "b": (60.0, 0)}


@pytest.mark.parametrize("pair", ["1", "1=boys", "=male"])
def test_wrong_sex_codes_are_refused(pair):
    with pytest.raises(ValueError, match="CODE=male or CODE=female expected"):
        parse_sex_codes([pair])


def test_all_problems_are_reported_at_once_with_file_row_and_value(tmp_path):
    rows = [("id", "age", "sex"), ("a", "old", 0), ("b", 300, 1), ("c", -1, 0), ("d", 50, "x"),
            ("", 40, 1), ("e", 40, 1), ("e", 41, 1)]  # fmt: skip
    with pytest.raises(ValueError) as caught:
        read_labels(write_text(tmp_path / "d.csv", rows, ","))
    message = str(caught.value)
    for part in (
        "row 2: a: age 'old', expected years as a number",
        "row 3: b: age 300, expected years from 0 to 120",
        "row 4: c: age -1",
        "row 5: d: sex 'x'",
        "row 6: the file name or id is empty",
        "row 8: e stands in row 7 already",
    ):
        assert f"{tmp_path / 'd.csv'}, {part}" in message


def test_long_lists_of_problems_are_cut_and_counted(tmp_path):
    rows = [("id", "age")] + [(f"s{i}", "x") for i in range(100)]
    with pytest.raises(ValueError, match="and 80 more"):
        read_labels(write_text(tmp_path / "d.csv", rows, ","))


def test_identical_duplicate_rows_are_one_subject(tmp_path):
    sheet = write_text(tmp_path / "d.csv", [("a", 50, 0), ("a", 50, 0)], ",")
    assert values(read_labels(sheet)) == {"a": (50.0, 0)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "", "empty"),
        ("d.csv", "subject,years,city\na,50,x\n", "neither a header .* nor a row of file name"),
        ("d.csv", "age,sex\n50,0\n", "no column named subject_id"),
        ("d.csv", "id,sex\na,0\n", "no column named age"),
        ("d.csv", "id,age,sex\n", "no subject in it"),
        ("d.xls", "id,age\na,50\n", "not a readable .xls workbook"),
        ("d.xlsx", "<html>", "not a readable .xlsx workbook"),
        ("d.ods", "", ".xls, .xlsx, .csv or .tsv expected"),
    ],
)
def test_sheets_that_are_none_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        read_labels(tmp_path / name)


def test_missing_sheets_and_foreign_encodings_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such label sheet"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("id,age\nJosé,50\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv: not UTF-8"):
        read_labels(tmp_path / "latin.csv")


def test_names_match_exactly_so_that_sub_1_is_not_sub_10(tmp_path):
    labels = read_labels(write_text(tmp_path / "d.csv", ROWS, ","))
    assert label_of(tmp_path / "sub-1.nii.gz", labels).age == 23.5
    assert label_of(tmp_path / "sub-10.nii", labels).age == 71
    assert label_of(tmp_path / "sub-100.nii.gz", labels) is None
    assert label_of(tmp_path / "sub-1_ses-2_T1w.nii.gz", labels).age == 23.5
    assert label_of(tmp_path / "sub-100_T1w.nii.gz", labels) is None
