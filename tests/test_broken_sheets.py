"""Broken and odd label sheets: each is read rightly, or refused in one message that names it."""

import csv
import os
import subprocess
import sys
import time
import zipfile
from datetime import date
from pathlib import Path

import openpyxl
import pytest
import xlwt
from conftest import ROOT, TINY, brain, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.people.codebook import SEX_WORDS, UNKNOWN_WORDS, parse_sex_codes
from utils.people.labels import read_labels
from utils.people.matching import scan_name
from utils.scans.cohort import open_cohort
from utils.scans.volumes import InputRule

HEAD = "id,age,sex\n"
OLE = bytes.fromhex("d0cf11e0a1b11ae1")  # of .xls, and of every password-protected .xlsx


def sheet(content: str | bytes, name: str = "labels.csv", encoding: str = "utf-8"):
    """A maker of a sheet of this text or these bytes."""

    def make(folder: Path) -> Path:
        data = content if isinstance(content, bytes) else content.encode(encoding)
        (folder / name).write_bytes(data)
        return folder / name

    return make


def xlsx(*rows, change=lambda page: None):
    def make(folder: Path) -> Path:
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        change(book.active)
        book.save(folder / "labels.xlsx")
        return folder / "labels.xlsx"

    return make


def xls(*rows):
    def make(folder: Path) -> Path:
        book = xlwt.Workbook()
        page = book.add_sheet("labels")
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                page.write(number, column, cell)
        book.save(str(folder / "labels.xls"))
        return folder / "labels.xls"

    return make


def xls_of(put):
    """A maker of an .xls whose one age is put by `put` into its row."""

    def make(folder: Path) -> Path:
        book = xlwt.Workbook()
        page = book.add_sheet("labels")
        for number, name in enumerate(("id", "a")):
            page.write(number, 0, name)
        page.write(0, 1, "age")
        put(page.row(1))
        book.save(str(folder / "labels.xls"))
        return folder / "labels.xls"

    return make


def cut(make, share: float):
    def make_cut(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return make_cut


def directory(folder: Path) -> Path:
    (folder / "labels.csv").mkdir()
    return folder / "labels.csv"


def link_loop(folder: Path) -> Path:
    (folder / "labels.csv").symlink_to(folder / "labels.csv")
    return folder / "labels.csv"


def zip_of(name: str):
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "labels.xlsx", "w") as archive:
            archive.writestr(name, "x")
        return folder / "labels.xlsx"

    return make


GOOD = (["id", "age", "sex"], ["a", 50.5, 0], ["b", 60, 1])
WORKBOOK = "not a readable .xlsx? workbook.*save it again"
REFUSED = (
    # Files that are none.
    ("missing", lambda folder: folder / "none.csv", "no such table"),
    ("folder of the name", directory, "no such table"),
    ("link to itself", link_loop, "no such table"),
    ("empty", sheet(""), "empty"),
    ("empty .tsv", sheet("", "labels.tsv"), "empty"),
    ("empty .xls", sheet("", "labels.xls"), WORKBOOK),
    ("empty .xlsx", sheet("", "labels.xlsx"), WORKBOOK),
    ("BOM alone", sheet(b"\xef\xbb\xbf"), "empty"),
    ("blank lines alone", sheet("\n\n\n"), "no subject|neither|empty"),
    ("header alone", sheet(HEAD), "no subject in it"),
    ("header and empty rows", sheet(HEAD + ",,\n,,\n"), "no subject in it"),
    ("another format", sheet(HEAD + "a,50,0\n", "labels.ods"), ".csv or .tsv expected"),
    ("no suffix", sheet(HEAD + "a,50,0\n", "labels"), ".csv or .tsv expected"),
    (".xls that is HTML", sheet("<html><table><tr><td>a</table>", "labels.xls"), WORKBOOK),
    (".xls that is XML", sheet("<?xml version='1.0'?><Workbook/>", "labels.xls"), WORKBOOK),
    (".xls that is a zip archive", sheet(b"PK\x03\x04" + bytes(90), "labels.xls"), WORKBOOK),
    (".xlsx that is HTML", sheet("<html>", "labels.xlsx"), WORKBOOK),
    (".xlsx with a password", sheet(OLE + bytes(4000), "labels.xlsx"), WORKBOOK),
    (".xls with a password", sheet(OLE + bytes(4000), "labels.xls"), WORKBOOK),
    (".xlsx that is a Word file", zip_of("word/document.xml"), WORKBOOK),
    (".xlsx of another archive", zip_of("a.txt"), WORKBOOK),
    *((f".xlsx cut to {part} %", cut(xlsx(*GOOD), part / 100), WORKBOOK) for part in (1, 50, 95)),
    *((f".xls cut to {part} %", cut(xls(*GOOD), part / 100), WORKBOOK) for part in (1, 5, 20)),
    (".xlsx without a cell", xlsx(), "empty"),
    (".xls without a cell", xls(), "empty"),
    # Text that is none.
    ("latin-1", sheet(HEAD + "José,50,0\n", encoding="latin-1"), "not UTF-8"),
    ("UTF-16 cut short", sheet((HEAD + "a,50,0\n").encode("utf-16")[:-1]), "damaged utf-16"),
    ("Shift-JIS", sheet(HEAD + "脳,50,0\n", encoding="shift-jis"), "not UTF-8"),
    ("UTF-16 without a BOM", sheet(HEAD + "a,50,0\n", encoding="utf-16-le"), "NUL"),
    ("NUL bytes", sheet(HEAD + "a\0b,50,0\n"), "NUL"),
    ("NUL bytes behind", sheet((HEAD + "a,50,0\n").encode() + bytes(512)), "NUL"),
    ("gzip", sheet(b"\x1f\x8b\x08\x00" + bytes(range(256))), "not UTF-8|NUL"),
    ("NIfTI", sheet(b"\x5c\x01\0\0" + bytes(348)), "NUL"),
    # Columns.
    ("no column of names", sheet("age,sex\n50,0\n"), "no column with names of scans"),
    ("no column of ages", sheet("id,sex\na,0\n"), "no column of ages"),
    ("columns of another language", sheet("nom,jahre,ort\na,50,x\n"), "neither a header"),
    ("comma in a .tsv", sheet(HEAD + "a,50,0\n", "labels.tsv"), "row 1: neither"),
    ("blanks between cells", sheet("id age sex\na 50 0\n"), "row 1: neither"),
    ("JSON", sheet('{"a": 50}\n'), "row 1: neither"),
    ("columns two times with two ages", sheet("id,age,age\na,50,60\n"), "two columns"),
    ("two columns of the sex", sheet("id,age,sex,SEX\na,50,0,1\n"), "two columns"),
    # Rows.
    ("same id with another age", sheet(HEAD + "a,50,0\na,51,0\n"), "row 3: a stands in row 2"),
    ("same id with another sex", sheet(HEAD + "a,50,0\na,50,1\n"), "row 3: a stands in row 2"),
    ("same id by another suffix", sheet(HEAD + "a.nii,50,0\na.nii.gz,51,0\n"), "row 3: a stands"),
    ("empty id", sheet(HEAD + ",50,0\n"), "row 2: .*id is empty"),
    ("id of a suffix alone", sheet(HEAD + ".nii.gz,50,0\n"), "row 2: .*id is empty"),
    *((f"age {age!r}", sheet(f"{HEAD}a,{age},0\n"), "row 2: a: age .*expected years")
      for age in ("fifty", "-1", "-0.5", "121", "600", "1e9", "inf", "-inf", "1e999", "50q",
                  "P50Y", "1970-05-01", "01/05/1970", "<50", "50-55", "5 0",
                  "0x32", "=50", "=A1", "#REF!", "#VALUE!", "50%", "five", "１２３", "1_0",
                  "50;", "'50", "true", "<b>50</b>")),
    *((f"sex {sex!r}", sheet(f"{HEAD}a,50,{sex}\n"), "row 2: a: sex .*expected")
      for sex in ("3", "-1", "0.5", "x", "mf", "01", "=1", "男", "female male", "1e0")),
    *((f"sex {sex!r}", sheet(f"{HEAD}a,50,{sex}\n"), "row 2: sex 2, .*1=female")
      for sex in ("2", "2.0")),
    ("date in a workbook", xlsx(["id", "age"], ["a", date(1970, 5, 1)]), "expected years"),
    ("formula never calculated", xlsx(["id", "age"], ["a", "=25*2"]), "row 2: .*formula"),
    ("error in a workbook", xlsx(["id", "age"], ["a", "#REF!"]), "expected years"),
    ("error in an .xls", xls_of(lambda row: row.set_cell_error(1, "#REF!")), "'#REF!', expected"),
    ("truth in an .xls", xls_of(lambda row: row.set_cell_boolean(1, True)), "'True', expected"),
    ("formula in place of a name", xlsx(["id", "age"], ["=A9", 50]), "formula|id is empty"),
    ("title above an unknown header", xlsx(["Our study"], ["nom", "jahre"]), "row 2: neither"),
    ("age in the wrong column", sheet(HEAD + "50,a,0\n"), "row 2: 50: age 'a'"),
    ("more cells than the header", sheet(HEAD + "a,50,0,x\n"), "row 2: 4 cells, but row 1 has 3"),
    ("quote that never closes", sheet(HEAD + '"a,50,0\nb,50,1\n'), "a quote without an end"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "make", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_broken_sheet_is_refused_in_one_message_that_names_it(tmp_path, name, make, message):
    path = make(tmp_path)
    with pytest.raises((ValueError, OSError), match=f"(?s){message}") as raised:
        read_labels(path)
    assert str(path) in str(raised.value)


MERGED = xlsx(["id", "age", "sex"], ["a", 50, 0], ["b", 60, 1],
              change=lambda page: page.merge_cells("D1:E3"))  # fmt: skip
AB = {"a": (50.5, 0), "b": (60.0, 1)}
A = {"a": (50.0, 0)}
READ = (
    ("csv", sheet("id,age,sex\na,50.5,0\nb,60,1\n"), AB),
    ("no header", sheet("a,50.5,0\nb,60,1\n"), AB),
    ("xls", xls(*GOOD), AB),
    ("xls without a header", xls(*GOOD[1:]), AB),
    ("xlsx", xlsx(*GOOD), AB),
    ("xlsx, numbers as text", xlsx(GOOD[0], ["a", "50.5", "0"], ["b", "60", "1"]), AB),
    ("merged cells beside", MERGED, {"a": (50.0, 0), "b": (60.0, 1)}),
    ("BOM", sheet(HEAD + "a,50,0\n", encoding="utf-8-sig"), A),
    ("semicolons", sheet("id;age;sex\na;50,5;0\nb;60;1\n"), AB),
    ("tabs in a .csv", sheet("id\tage\tsex\na\t50\t0\n"), A),
    ("Windows line ends", sheet("id,age,sex\r\na,50,0\r\n"), A),
    ("old Macintosh line ends", sheet("id,age,sex\ra,50,0\r"), A),
    ("no line end at the end", sheet(HEAD + "a,50,0"), A),
    ("trailing blanks", sheet("id , age , sex \n a , 50 , 0 \n"), A),
    ("no-break blanks", sheet(HEAD + "a\u00a0,\u00a050,0\u3000\n"), A),
    ("quoted cells", sheet('"id","age","sex"\n"a","50","0"\n'), A),
    ("comma in a quoted cell", sheet('id,note,age,sex\na,"x, y",50,0\n'), A),
    ("line end in a quoted cell", sheet('id,note,age,sex\na,"x\ny",50,0\nb,"z",60,1\n'),
     {"a": (50.0, 0), "b": (60.0, 1)}),
    ("title above the header", xlsx(["Our study"], [], ["id", "age"], ["a", 50]),
     {"a": (50.0, None)}),
    ("blank rows above the header", xls([], ["", ""], *GOOD), AB),
    ("person of unknown age first", sheet("a,,\nb,50,1\n"),
     {"a": (None, None), "b": (50.0, 1)}),
    ("title of Apple Numbers", sheet("Table 1\nid;age;sex\na;50;0\n"), A),
    ("blank rows without a header", sheet("\n,,\na,50.5,0\nb,60,1\n"), AB),
    ("cell longer than csv's limit", sheet(f"id,note,age,sex\na,{'x' * 200_000},50,0\n"), A),
    ("capitals", sheet("ID,Age,SEX\na,50,F\n"), A),
    ("blank rows between", sheet(HEAD + "\na,50,0\n\n,,\n"), A),
    ("more columns", sheet("x,id,y,age,sex,z\n1,a,2,50,0,3\n"), A),
    ("empty cells behind the header", sheet(HEAD + "a,50,0,, ,\n"), A),
    ("cells below empty names of the header", sheet("id,age,sex,,\na,50,0,x,y\n"), A),
    ("fewer cells than the header", sheet(HEAD + "a,50\n"), {"a": (50.0, None)}),
    ("same row twice", sheet(HEAD + "a,50,0\na,50,0\n"), A),
    ("file names for ids", sheet(HEAD + "a.nii.gz,50,0\n"), A),
    ("unicode", sheet(HEAD + "Jürgen-脳,50,0\n"), {"Jürgen-脳": (50.0, 0)}),
    ("number for an id in .xlsx", xlsx(["id", "age", "sex"], [1001, 50, 0]), {"1001": (50.0, 0)}),
    ("number for an id in .xls", xls(["id", "age", "sex"], [1001, 50, 0]), {"1001": (50.0, 0)}),
    ("leading zeros", sheet(HEAD + "0001,50,0\n"), {"0001": (50.0, 0)}),
    ("89+", sheet(HEAD + "a,89+,0\n"), {"a": (None, 0)}),
    (">89", sheet(HEAD + "a,>89,0\n"), {"a": (None, 0)}),
    ("45 years", sheet(HEAD + "a,45 years,0\nb,045Y,0\nc,018M,0\nd,50y,0\n"),
     {"a": (45.0, 0), "b": (45.0, 0), "c": (1.5, 0), "d": (50.0, 0)}),
    ("90 +", sheet(HEAD + "a,90 +,0\n"), {"a": (None, 0)}),
    *((f"age {word!r}", sheet(f"{HEAD}a,{word},0\n"), {"a": (None, 0)})
      for word in ("", "n/a", "NA", "NaN", "null", "unknown", "?", "-")),
    *((f"sex {word!r}", sheet(f"{HEAD}a,50,{word}\n"), {"a": (50.0, None)})
      for word in ("", "n/a", "O", "other")),
    *((f"sex {word!r}", sheet(f"{HEAD}a,50,{word}\n"), {"a": (50.0, code)})
      for word, code in (("f", 0), ("Female", 0), ("WOMAN", 0), ("0.0", 0), ("M", 1), ("male", 1))),
    ("exponent", sheet(HEAD + "a,5e1,0\n"), A),
    ("age 0", sheet(HEAD + "a,0,0\n"), {"a": (0.0, 0)}),
    ("ids of formulas stay text", sheet(HEAD + "=cmd(),50,0\n+1,50,0\n@x,50,0\n-2+3,50,0\n"),
     dict.fromkeys(("=cmd()", "+1", "@x", "-2+3"), (50.0, 0))),
    ("id of markup stays text", sheet(HEAD + "<script>,50,0\n"), {"<script>": (50.0, 0)}),
    ("id of a way out of the folder", sheet(HEAD + "../../etc/passwd,50,0\n"),
     {"etc/passwd": (50.0, 0)}),
)  # fmt: skip


@pytest.mark.parametrize(("name", "make", "expected"), READ, ids=[case[0] for case in READ])
def test_odd_sheet_is_read_with_the_right_ages_and_sexes(tmp_path, name, make, expected):
    labels = read_labels(make(tmp_path))
    assert {key: (label.age, label.sex) for key, label in labels.rows.items()} == expected


@pytest.mark.parametrize("pair", ["1", "=male", "1=", "1=x", "1:male", ""])
def test_sex_codes_of_another_form_are_refused(pair):
    with pytest.raises(ValueError, match="CODE=male or CODE=female expected"):
        parse_sex_codes([pair])


def test_a_hundred_thousand_rows_are_read_in_seconds(tmp_path):
    rows = "".join(f"sub-{row},{row % 100},{row % 2}\n" for row in range(100_000))
    path = sheet(HEAD + rows)(tmp_path)
    started = time.monotonic()
    labels = read_labels(path)
    assert time.monotonic() - started < 30
    assert len(labels.rows) == 100_000
    assert labels.rows["sub-99999"].age == 99


def test_twenty_thousand_broken_rows_are_one_short_message(tmp_path):
    path = sheet(HEAD + "".join(f"sub-{row},x,0\n" for row in range(20_000)))(tmp_path)
    with pytest.raises(ValueError, match="and 19980 more") as raised:
        read_labels(path)
    assert len(str(raised.value).splitlines()) == 21


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("b,50,0\n", "no row named a in the label sheet"),
        ("A,50,0\n", "no row named a in the label sheet"),
        ("aa,50,0\n", "no row named a in the label sheet"),
        ("a,89+,0\n", "row 2 gives no age, expected years"),
        ("a,n/a,0\n", "row 2 gives no age, expected years"),
        ("a,50,\n", "row 2 gives no sex"),
    ],
)
def test_scan_without_what_training_needs_is_refused_by_name(tmp_path, rows, message):
    write_scan(tmp_path / "scans" / "a.nii.gz", brain(TINY, 50))
    labels = read_labels(sheet(HEAD + rows)(tmp_path))
    with pytest.raises(ValueError, match=rf"a\.nii\.gz: {message}"):
        open_cohort(
            tmp_path / "scans", labels, InputRule(any_grid=True), need_age=True, need_sex=True
        )
    assert open_cohort(tmp_path / "scans", labels, InputRule(any_grid=True))  # to predict


def test_rows_of_scans_elsewhere_are_let_through(tmp_path):
    write_scan(tmp_path / "scans" / "a.nii.gz", brain(TINY, 50))
    labels = read_labels(sheet(HEAD + "z,20,1\na,50,0\nq,30,1\n")(tmp_path))
    (scan,) = open_cohort(tmp_path / "scans", labels, InputRule(any_grid=True), need_age=True)
    assert (scan.age, scan.sex) == (50.0, 0)


def test_no_name_in_a_sheet_leads_out_of_the_folder_of_scans(tmp_path):
    write_scan(tmp_path / "out.nii.gz", brain(TINY, 50))
    write_scan(tmp_path / "scans" / "a.nii.gz", brain(TINY, 50))
    rows = f"../out,50,0\n{tmp_path}/out,50,0\na,50,0\n"
    labels = read_labels(sheet(HEAD + rows)(tmp_path))
    scans = open_cohort(tmp_path / "scans", labels, InputRule(any_grid=True), need_age=True)
    assert [scan.path for scan in scans] == [tmp_path / "scans" / "a.nii.gz"]
    assert labels.find(tmp_path / "scans" / "a.nii.gz").row == 4


NAMES = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cn")), min_size=1, max_size=9
).filter(lambda name: name == scan_name(name) and not set(name) & set("/\\"))  # fmt: skip
ROWS = st.dictionaries(
    NAMES,
    st.tuples(
        st.one_of(st.none(), st.floats(0, 120)),
        st.sampled_from([*SEX_WORDS, *UNKNOWN_WORDS[:2]]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=ROWS, suffix=st.sampled_from([".csv", ".tsv"]), bom=st.booleans())
def test_any_sheet_is_read_back_as_it_was_written(tmp_path_factory, rows, suffix, bom):
    path = tmp_path_factory.mktemp("sheet") / f"labels{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        table = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        table.writerow(["participant_id", "age", "sex"])
        table.writerows(
            [name, "n/a" if age is None else repr(age), sex] for name, (age, sex) in rows.items()
        )
    read = read_labels(path)
    assert {name: (label.age, label.sex) for name, label in read.rows.items()} == {
        name: (age, SEX_WORDS.get(sex)) for name, (age, sex) in rows.items()
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".tsv", ".xls", ".xlsx"]))
def test_any_bytes_are_a_sheet_or_refused_by_name(tmp_path_factory, data, suffix):
    path = sheet(data, f"labels{suffix}")(tmp_path_factory.mktemp("bytes"))
    try:
        read_labels(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_fuzzing_that_could_not_run_is_no_clean_result(tmp_path):
    (tmp_path / "atheris.py").write_text("raise ImportError('not installed')\n")
    fuzz = [sys.executable, "-m", "tests.audit.fuzz_readers", ".csv", "--seconds", "1"]
    done = subprocess.run(
        [*fuzz, "--output_dir", str(tmp_path / "finds")],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "0 finds" in done.stdout
    assert "broken off, so not fuzzed to the end: .csv" in done.stdout
