"""Tables as Excel, LibreOffice, R, pandas, Numbers and hospitals write them: right or refused."""

import csv
import io
import zipfile

import openpyxl
import pytest
import xlwt
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl.chart import BarChart
from openpyxl.worksheet.formula import ArrayFormula

from data_preprocessing.public.tables import Kind, read_tables
from utils.people.labels import read_labels
from utils.people.sheets import first_row, read_columns, read_rows

PEOPLE = [("sub-01", "50", "F"), ("sub-02", "60", "M"), ("sub-03", "70", "F")]
RIGHT = {"sub-01": 50.0, "sub-02": 60.0, "sub-03": 70.0}
HEADER = ("participant_id", "age", "sex")
OLE = bytes.fromhex("d0cf11e0a1b11ae1")


def ages(path) -> dict:
    return {name: label.age for name, label in read_labels(path, need_ages=False).rows.items()}


def write(path, text: str, encoding: str = "utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def with_notes(notes, separator: str, place: int, end: str = "\n") -> str:
    """The three people with a note each, as column `place` of four."""
    rows = [list(row) for row in (HEADER, *PEOPLE)]
    for row, note in zip(rows, ("note", *notes), strict=True):
        row.insert(place, note)
    return "".join(separator.join(row) + end for row in rows)


def xlsx_bytes(change) -> bytes:
    book, content = openpyxl.Workbook(), io.BytesIO()
    for row in (HEADER, *PEOPLE):
        book.active.append([int(cell) if cell.isdigit() else cell for cell in row])
    change(book)
    book.save(content)
    return content.getvalue()


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize(
    "notes",
    [
        ('"left early', 'said "ok', "x"),
        ('"left early', '"x', "y"),
        ('5" taller', '"said "ok""', 'a "b" c'),
        ('"ok"', '"said ""no"""', ""),
        ('"left early', '"x"', "y"),
        ('"said \\"ok\\""', '"C:\\"', "\\"),  # R's write.table escapes quotes so
    ],
)
def test_quotes_of_a_note_lose_and_mix_no_row(tmp_path, separator, place, notes):
    path = tmp_path / ("a.tsv" if separator == "\t" else "a.csv")
    assert ages(write(path, with_notes(notes, separator, place))) == RIGHT


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize(
    ("notes", "row"),
    [
        (('"left early', 'said ok"', "x"), 2),
        (('"left early', "x", 'y"'), 2),
        (('"left early', '"x', '"'), 3),
        (('"\\"\n""', "x", "y"), 2),  # a line end in quotes of R
    ],
)
def test_quote_that_a_later_row_could_close_is_refused_by_its_row(
    tmp_path, separator, place, notes, row
):
    path = tmp_path / ("a.tsv" if separator == "\t" else "a.csv")
    write(path, with_notes(notes, separator, place))
    if separator == "\t" and "\n" not in notes[0]:  # no cell of several lines has tabs
        assert ages(path) == RIGHT
        return
    with pytest.raises(ValueError, match=rf"row {row}: a quote without an end.*sub-0{row - 1}"):
        ages(path)


NOTES = st.lists(
    st.text(st.sampled_from('"""ab ,;\t\n\u2028\\'), max_size=5), min_size=1, max_size=5
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(notes=NOTES, mark=st.sampled_from("\t,;"), place=st.integers(0, 3), quotes=st.booleans())
def test_whatever_the_notes_hold_each_person_keeps_their_row_or_the_table_is_refused(
    tmp_path_factory, notes, mark, place, quotes
):
    rows = [
        ["id", "age", "sex"],
        *([f"sub-{at}", str(20 + at), "F" * (at % 2)] for at in range(len(notes))),
    ]
    if not quotes:
        notes = [note.replace(mark, "").replace("\n", "") for note in notes]
    for row, note in zip(rows, ["note", *notes], strict=True):
        row.insert(place, note)
    text = io.StringIO()
    if quotes:
        csv.writer(text, delimiter=mark).writerows(rows)
    else:
        text.write("\n".join(map(mark.join, rows)))
    path = write(tmp_path_factory.mktemp("notes") / "a.csv", text.getvalue())
    try:
        found = read_rows(path)
    except ValueError as error:
        assert f"{path}, row " in str(error)
        return
    at = [place for place, name in enumerate(rows[0]) if name != "note"]
    assert [[row[place] for place in at] for row in found] == [
        [row[place] for place in at] for row in rows
    ]


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_line_ends_in_closed_quotes_belong_to_the_cell(
    tmp_path, separator, place, end
):
    within = separator.strip("\t")  # no tab beside line ends
    notes = (f'"x{within} y{end}{end}""z"""', f'"{separator}"', f'"{end}"')
    path = tmp_path / ("a.tsv" if separator == "\t" else "a.csv")
    assert ages(write(path, with_notes(notes, separator, place, end))) == RIGHT


@pytest.mark.parametrize("mark", list("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"))
@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("place", [1, 3])
def test_only_lf_crlf_and_cr_end_a_line(tmp_path, mark, separator, place):
    path = tmp_path / ("a.tsv" if separator == "\t" else "a.csv")
    notes = (f"a{mark}b", f"{mark}x", f"x{mark}")
    assert ages(write(path, with_notes(notes, separator, place))) == RIGHT


@pytest.mark.parametrize(
    "row", ["sub-02,52,3,F", "sub-02,left, early,60,M", 'sub-02,"a", b,60,M', "sub-02,60,M,x,y"]
)
def test_row_with_more_cells_than_the_header_is_refused_by_its_row(tmp_path, row):
    header = "participant_id,age,sex" if row.count(",") == 3 else "participant_id,note,age,sex"
    path = write(tmp_path / "a.csv", f"{header}\nsub-01,50\n{row}\n")
    with pytest.raises(ValueError, match=r"a\.csv, row 3: .*(cells, but row 1|quote)"):
        ages(path)


DIALECTS = {
    "write.csv": '"","participant_id","age","sex"\n"1","sub-01",50,"F"\n"2","sub-02",60,"M"\n'
    '"3","sub-03",70,"F"\n',
    "write.csv2": '"";"participant_id";"age";"sex"\n"1";"sub-01";50,0;"F"\n"2";"sub-02";60;"M"\n'
    '"3";"sub-03";7e1;"F"\n',
    "write.table with tabs": '"participant_id"\t"age"\t"sex"\n"1"\t"sub-01"\t50\t"F"\n'
    '"2"\t"sub-02"\t60\t"M"\n"7"\t"sub-03"\t70\tNA\n',
    "write.table with commas": '"participant_id","age","sex"\n"1","sub-01",50,"F"\n'
    '"2","sub-02",60,"M"\n"7","sub-03",70,NA\n',
    "write.table, a comma and a quote in a note": '"participant_id","note","age"\n'
    '"1","sub-01","a, b",50\n"2","sub-02","\\"c\\"",60\n"3","sub-03",NA,70\n',
    "pandas with an index": ",participant_id,age\n0,sub-01,50\n1,sub-02,60\n2,sub-03,70\n",
    "Google Sheets": "participant_id,age,note\r\nsub-01,50,\"a, b\"\r\nsub-02,60,\r\nsub-03,70,",
    "every cell in quotes": '"participant_id","age"\n"sub-01","50"\n"sub-02","60"\n"sub-03","70"\n',
    "blanks around quotes": 'participant_id , "age"\n"sub-01" , "50"\n"sub-02" ,60\n'
    'sub-03, "70" \n',
    "sep=;": "sep=;\r\nparticipant_id;age\r\nsub-01;50\r\nsub-02;60\r\nsub-03;70\r\n",
    "sep=, and semicolons in notes": "sep=,\nnote,participant_id,age\na;b;c;d,sub-01,50\n"
    "e;f;g;h,sub-02,60\ni;j;k;l,sub-03,70\n",
    "sep=\\t": "SEP=\\t\nparticipant_id\tage\nsub-01\t50\nsub-02\t60\nsub-03\t70\n",
    "sep=|": "sep=|\nparticipant_id|age\nsub-01|50\nsub-02|60\nsub-03|70\n",
    "title with separators of another kind": "Participants, of X, 2020, v1\n\nparticipant_id;age\n"
    "sub-01;50,0\nsub-02;60,0\nsub-03;70,0\n",
    "comment lines": "# written by us\n#\nparticipant_id,age\nsub-01,50\nsub-02,60\nsub-03,70\n",
    "trailing separators": "participant_id\tage\t\t\nsub-01\t50\t\t\nsub-02\t60\n"
    "sub-03\t70\t\t\t\n",
    "blanks and marks around values": "\u200eparticipant_id\u00a0,age \n"
    "\u202asub-01\u202c,50\u202f\nsub-02\u200b,\u00a060\n\ufeffsub-03,70\n\x1a",
    "Windows line ends written twice": "participant_id,age\r\r\nsub-01,50\r\r\nsub-02,60\r\r\n"
    "sub-03,70\r\r\n",
}  # fmt: skip


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.xls"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_of_every_writer_is_read_rightly(tmp_path, text, name, encoding):
    found = ages(write(tmp_path / name, text, encoding))
    assert {key: age for key, age in found.items() if key} == RIGHT


@pytest.mark.parametrize(
    "rows",
    [
        '"sub-01",52,3,"F"\n"sub-02",60,5,"M"\n',  # decimal commas
        '"1","sub-01",52,3\n"2",60,5\n',
        "1,sub-01,52,F\n2,sub-02,60,M\n",
        '"1","sub-01",52,"F"\n"sub-02",60,"M"\n',
    ],
)
def test_row_names_that_are_not_certain_are_refused(tmp_path, rows):
    path = write(tmp_path / "a.csv", f'"participant_id","age","sex"\n{rows}')
    with pytest.raises(ValueError, match=r"row [23]: \d cells, but row 1 has \d"):
        ages(path)


def test_note_of_another_encoding_loses_no_row_but_a_name_is_refused(tmp_path):
    text = "participant_id,age,Größe\nsub-01,50,groß\nsub-02,60,x\nsub-03,70,y\n"
    assert ages(write(tmp_path / "a.csv", text, "cp1252")) == RIGHT
    with pytest.raises(ValueError, match=r"row 2: J\\xfcrgen: .*save the table as UTF-8"):
        ages(write(tmp_path / "b.csv", "id,age\nJürgen,50\n", "cp1252"))


def test_rows_in_messages_are_those_of_the_file(tmp_path):
    path = write(tmp_path / "a.csv", 'sep=,\nTitle\n\nscan,fold\na,"1"\n\nb,x\n')
    with pytest.raises(ValueError, match=r"row 7: b: fold 'x'"):
        read_columns(path, ("scan",), {"fold": _number})
    with pytest.raises(ValueError, match="row 4: no column age"):
        read_columns(path, ("scan",), {"age": _number})
    with pytest.raises(ValueError, match="row 1: two columns named fold"):
        read_columns(write(path, "scan,fold,fold\na,1,2\n"), ("scan",), {"fold": _number})


def test_quoted_separator_in_a_row_whose_last_cell_is_empty_belongs_to_its_cell(tmp_path):
    text = 'id,note,age,sex,,\na,"x, y",50,,,\nb,"x, y",60,F,,\nc,"x, y",70,,,\n'
    assert ages(write(tmp_path / "a.csv", text)) == {"a": 50, "b": 60, "c": 70}
    text = 'id\tn1\tn2\tage\na\t"x\ty"\t50\t\n'  # or n1 is `"x`, and 50 the age
    with pytest.raises(ValueError, match="row 2: a quote without an end"):
        ages(write(tmp_path / "a.tsv", text))


def test_quote_closed_below_an_incomplete_row_swallows_nobody(tmp_path):
    text = 'id\tnote\tage\tsex\na\t"left\t50\tF\nb\tok\nc\tback"\t70\tM\n'
    with pytest.raises(ValueError, match="row 2: a quote without an end"):
        ages(write(tmp_path / "a.tsv", text))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a number") from None


def test_tables_of_public_cohorts_may_have_a_title_too(tmp_path):
    path = write(tmp_path / "a.csv", "Cohort\n\nID,Age\nx,50\n")
    rows, problems = read_tables([path], {"people": Kind("a.csv", {"id": "id", "age": "age"})})
    assert [(row.where, row.number("age")) for row in rows["people"]] == [(f"{path}, row 4", 50.0)]
    assert not problems
    with pytest.raises(ValueError, match="row 3: two columns named age"):
        read_tables(
            [write(path, "Cohort\n\nID,Age,age\nx,50,60\n")],
            {"people": Kind("a.csv", {"id": "id", "age": "age"})},
        )


@pytest.mark.parametrize(
    ("rows", "begins"),
    [
        ([], 0),
        ([["a"], ["b"]], 0),
        ([[], ["", ""], ["a", "b"]], 2),
        ([["title", ""], [], ["a", "b"], ["c"]], 2),
        ([[""], ["a"], ["b"]], 1),
    ],
)
def test_a_table_begins_below_titles_and_blank_rows(rows, begins):
    assert first_row(rows) == begins


def _hide_first(state):
    def change(book):
        book.create_sheet("secret", 0).append(["participant_id", "age"])
        book["secret"].append(["sub-01", 5])
        book["secret"].sheet_state = state

    return change


def _chart_first(book):
    book.create_chartsheet("chart", 0).add_chart(BarChart())


@pytest.mark.parametrize("state", ["hidden", "veryHidden"])
def test_first_visible_sheet_is_read_and_said(tmp_path, capsys, state):
    path = tmp_path / "a.xlsx"
    path.write_bytes(xlsx_bytes(_hide_first(state)))
    assert ages(path) == RIGHT
    assert f"note: {path}: the first visible sheet is read, 'Sheet'" in capsys.readouterr().out


def test_hidden_first_sheet_of_an_old_workbook_is_passed_over(tmp_path, capsys):
    book = xlwt.Workbook()
    for name, rows in (("secret", [HEADER, ("sub-01", "5", "M")]), ("people", [HEADER, *PEOPLE])):
        page = book.add_sheet(name)
        for at, row in enumerate(rows):
            for column, cell in enumerate(row):
                page.write(at, column, cell)
    book.get_sheet(0).visibility = 2
    book.set_active_sheet(1)
    book.save(str(tmp_path / "a.xls"))
    assert ages(tmp_path / "a.xls") == RIGHT
    assert "the first visible sheet is read, 'people', of 'secret', 'people'" in (
        capsys.readouterr().out
    )


def test_chart_before_the_sheet_and_empty_sheets_behind_need_no_note(tmp_path, capsys):
    def change(book):
        _chart_first(book)
        book.create_sheet("Sheet2")

    (tmp_path / "a.xlsx").write_bytes(xlsx_bytes(change))
    assert ages(tmp_path / "a.xlsx") == RIGHT
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.xls", "a.xlsx", "a.csv", "a.tsv"])
def test_content_of_a_workbook_decides_not_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(xlsx_bytes(lambda book: None))
    assert ages(tmp_path / name) == RIGHT
    book = xlwt.Workbook()
    page = book.add_sheet("people")
    for at, row in enumerate([HEADER, *PEOPLE]):
        for column, cell in enumerate(row):
            page.write(at, column, cell)
    book.save(str(tmp_path / "old"))
    (tmp_path / name).write_bytes((tmp_path / "old").read_bytes())
    assert ages(tmp_path / name) == RIGHT


def test_empty_result_of_a_formula_is_an_empty_cell_and_an_array_formula_needs_a_value(tmp_path):
    def with_formula(formula, ref: str):
        def change(book):
            book.active[ref] = formula

        return xlsx_bytes(change)

    path = tmp_path / "a.xlsx"
    source = zipfile.ZipFile(io.BytesIO(with_formula('=IF(1=1,"","x")', "D2")))
    with zipfile.ZipFile(path, "w") as copy:  # as Excel stores it, once calculated
        for name in source.namelist():
            content = source.read(name).replace(b'<c r="D2">', b'<c r="D2" t="str">')
            copy.writestr(name, content)
    assert ages(path) == RIGHT
    path.write_bytes(with_formula(ArrayFormula("B3", "=SUM(1,2)"), "B3"))
    with pytest.raises(ValueError, match=r"row 3: '=SUM\(1,2\)' is a formula never calculated"):
        ages(path)


def test_date_in_an_old_workbook_is_no_age(tmp_path):
    book = xlwt.Workbook()
    page = book.add_sheet("people")
    for column, cell in enumerate(("id", "age")):
        page.write(0, column, cell)
    page.write(1, 0, "a")
    page.write(1, 1, 50, xlwt.easyxf(num_format_str="YYYY-MM-DD"))
    book.save(str(tmp_path / "a.xls"))
    assert read_rows(tmp_path / "a.xls")[1] == ["a", "1900-02-19 00:00:00"]
    with pytest.raises(ValueError, match="row 2: a: age '1900-02-19"):
        ages(tmp_path / "a.xls")


def _zip(name: str, content: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(name, content)
    return target.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", OLE + bytes(900) + "EncryptedPackage".encode("utf-16-le"), "save it .* without"),
        ("a.xls", b"<html><table><tr><td>id</td></tr></table>", "HTML or XML.*save it again"),
        ("a.xls", b'\xef\xbb\xbf\r\n<?xml version="1.0"?><Workbook/>', "HTML or XML.*save it"),
        ("a.ods", b"PK\x03\x04", "save it as one of these"),
        ("a.sav", b"$FL2", "save it as one of these"),
        ("a.xlsx", _zip("mimetype", "application/vnd.oasis.opendocument.spreadsheet"),
         "OpenDocument table; save it again as .xlsx"),
        ("._a.csv", bytes.fromhex("00051607") + bytes(80), "macOS keeps beside a file"),
    ],
)  # fmt: skip
def test_other_formats_are_refused_with_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}") as raised:
        ages(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
