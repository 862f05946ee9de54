"""The report of predicted ages: what stands in the file, and what a browser makes of it."""

import base64
import json
import re
import tracemalloc
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from analysis.brain_pad.bias_correction import BiasCorrection
from analysis.brain_pad.calibration import Calibration
from analysis.brain_pad.conformal import Limits
from analysis.report import page as report
from analysis.report.numbers import covered, group_errors, table_of, with_errors
from analysis.report.page import write_report
from tests.browser import Browser, find_chromium
from utils.results.metrics import score_with_intervals
from utils.results.tables import format_figure

YEARS = (
    "stage_one_age", "predicted_age", "predicted_age_low", "predicted_age_high", "brain_pad",
    "predicted_age_cole", "brain_pad_cole", "brain_pad_beheshti",
)  # fmt: skip
VOID = {"meta", "img"}
EVIL = "<script>alert(1)</script>"
CALIBRATION = Calibration(
    {"file": "unseen.csv", "sha256": "ab" * 32, "scans": 205, "without_age": 0},
    BiasCorrection(0.8, 9.5, (18.0, 90.0)),
    Limits((), {90: (12.5,)}),
    None,
)


def row(number: int, age: float | None, predicted: float, **changes) -> dict:
    """A row as predict.py hands it over; a straight line's correction."""
    pad = None if age is None else predicted - age
    ages = (predicted + 1, predicted, predicted - 9, predicted + 9, pad, predicted + 2)
    pads = (None, None) if pad is None else (pad + 2, pad + 1)
    return {
        "participant_id": f"sub-{number}", "session_id": "ses-1", "scan": f"in/sub-{number}.nii.gz",
        "sex": "FM"[number % 2], "age": age, "qc_flag": "ok", "status": "ok", "message": "",
        "model": "net", "site": f"site {number % 3}",
    } | dict(zip(YEARS, (*ages, *pads), strict=True)) | changes  # fmt: skip


def failed(number: int, message: str = "not a readable NIfTI file") -> dict:
    return row(
        number, 50.0, 0.0, status="failed", qc_flag="", message=message, **dict.fromkeys(YEARS)
    )


def cohort(count: int = 24) -> list[dict]:
    """Every 7th flagged, the last one failed, one without an age."""
    generator = np.random.default_rng(3)
    ages = generator.uniform(20, 90, count - 1)
    rows = [
        row(i, age, age + error, qc_flag="ok" if i % 7 else "tilt,dim")
        for i, (age, error) in enumerate(zip(ages, generator.normal(0, 8, count), strict=False))
    ]
    if count > 6:
        rows[5] = row(5, None, 40.25)
    return [*rows, failed(count - 1)]


def picture(path, *, size=(120, 80)):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class Page(HTMLParser):
    """What a browser would find in the file."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.addresses, self.anchors = [], "", [], []
        self.articles, self.states, self.cells, self.images, self.scripts = [], [], [[]], [], []
        self.policy = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert not [name for name in attributes if name.startswith("on")]
        self.addresses += [attributes[name] for name in ("href", "src") if name in attributes]
        self.anchors += [attributes["id"]] if "id" in attributes else []
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]
        if tag == "img":
            self.images.append(attributes)
        elif tag == "article":
            self.states.append(attributes["class"])
        elif tag == "script":
            self.scripts.append("")
        elif tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] == "h3":
            self.articles.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def written(rows, tmp_path, **settings) -> Page:
    settings = {"title": "Ages", "pictures": {}, "overwrite": True} | settings
    write_report(rows, tmp_path / "report.html", **settings)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_every_scan_stands_once_in_table_and_pictures_the_failed_and_flagged_first(tmp_path):
    rows = cohort()
    page = written(rows, tmp_path)
    names = [f"{row['participant_id']} {row['session_id']}" for row in rows]
    assert sorted(page.articles) == sorted(names)
    assert page.states == ["failed"] + ["flagged"] * 4 + ["ok"] * 19
    table = [cells[0] for cells in page.cells if cells and cells[0].startswith("sub-")]
    assert table == [row["participant_id"] for row in rows]
    assert "▲ flagged tilt, dim" in page.text
    assert "✕ failed" in page.text
    pads = {name: abs(row["brain_pad"] or 0) for name, row in zip(names, rows, strict=True)}
    for inside in (page.articles[1:5], page.articles[5:]):
        sizes = [pads[name] for name in inside]
        assert sizes == sorted(sizes, reverse=True)


def test_text_from_outside_stays_text(tmp_path):
    rows = [
        row(0, 40.0, 41.0, participant_id=EVIL, message=EVIL, site="</script><b>"),
        row(1, 41.0, 45.0, participant_id="=cmd()", qc_flag='"><img src=x onerror=alert(1)>'),
        row(2, 42.0, 45.0, participant_id="sub-\udce9", scan="a/$x^\x00.nii", site="$x^\x00\u0007"),
        *(row(i, 40.0 + i, 45.0, site="$x^\x00\u0007") for i in range(3, 9)),
    ]
    texts = {"title": EVIL, "card": f"# Card\n{EVIL}", "command": EVIL, "versions": {EVIL: EVIL}}
    path = tmp_path / f"{EVIL.replace('/', '')}.png"
    page = written(rows, tmp_path, pictures={rows[0]["scan"]: path}, **texts)
    assert page.scripts == [report.SCRIPT.read_text(encoding="utf-8")]
    assert page.text.count(EVIL) >= 8
    assert "=cmd() ses-1" in page.articles
    assert r"sub-\udce9 ses-1" in page.articles
    assert all("x" not in image.get("src", "")[:1] for image in page.images)


def test_the_page_needs_and_may_load_nothing_from_elsewhere(tmp_path):
    rows = cohort()
    shown = {row["scan"]: picture(tmp_path / "one.png") for row in rows}
    page = written(rows, tmp_path, pictures=shown, overlays=shown, calibration=CALIBRATION)
    assert all(re.match(r"#|data:image/", address) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(page.anchors)
    assert len(page.anchors) == len(set(page.anchors))
    assert "default-src 'none'; img-src data:;" in page.policy
    assert "url(" not in (tmp_path / "report.html").read_text()
    assert all(len(image["alt"]) > 10 for image in page.images)
    drawings = [image["src"] for image in page.images if "svg" in image["src"][:20]]
    assert len(drawings) == 6
    for source in drawings:
        tree = ElementTree.fromstring(base64.b64decode(source.split("base64,")[1]))
        links = [v for e in tree.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith("#") for link in links)


def test_the_same_rows_make_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_report(cohort(), tmp_path / f"{name}.html", title="Ages", pictures={})
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_figures_are_those_of_the_metrics(tmp_path):
    rows = cohort()
    known = [row for row in rows if row["age"] is not None and row["status"] == "ok"]
    age = np.array([row["age"] for row in known])
    page = written(rows, tmp_path)
    lines = {cells[0]: cells[1:] for cells in page.cells if cells}
    for title, name in (("Stage one", "stage_one_age"), ("Stage two", "predicted_age"),
                        ("Stage two, corrected (Cole)", "predicted_age_cole")):  # fmt: skip
        figures = score_with_intervals(age, np.array([row[name] for row in known]))
        expected = [format_figure(figures[figure]) for figure in report.FIGURES]
        assert lines[title] == [str(len(known)), *expected]
    unflagged = [row for row in known if row["qc_flag"] == "ok"]
    assert lines["Stage two, unflagged scans"][0] == str(len(unflagged))
    women = [row for row in known if row["sex"] == "F"]
    pair = (np.array([row[name] for row in women]) for name in ("age", "predicted_age"))
    figures = score_with_intervals(*pair)
    assert lines["sex F"] == [
        str(len(women)), format_figure(figures["mae"]), format_figure(figures["mean_brain_pad"])
    ]  # fmt: skip


def test_groups_hold_every_scan_once_a_kind_and_small_ones_have_no_interval():
    lines = group_errors(with_errors(table_of(cohort())))
    for kind in ("age", "sex", "site"):
        assert sum(line.scans for line in lines if line.kind == kind) == 22
    decades = [line.title for line in lines if line.kind == "age"]
    assert decades == sorted(decades)
    small = [line for line in lines if line.scans < 5]
    assert small
    for line in small:
        assert line.figures["mae"]["low"] is None
        assert line.figures["pearson"]["value"] is None


def test_coverage_counts_the_ages_in_their_intervals():
    rows = [row(i, 50.0, 50.0 + error) for i, error in enumerate((0, 8.9, -9, 9.1, 30))]
    found = covered(with_errors(table_of(rows)))
    assert (found["inside"], found["scans"], found["value"]) == (3, 5, 0.6)
    assert found["low"] < 0.6 < found["high"]


def test_without_ages_there_are_no_errors_but_all_scans(tmp_path):
    page = written([row(i, None, 40.0 + i) for i in range(6)], tmp_path)
    assert "No chronological ages are known" in page.text
    assert "40.0 to 45.0" in page.text
    assert "MAE" not in page.text
    assert [image["alt"][:26] for image in page.images] == ["Histogram of predicted age"]
    assert len(page.articles) == 6
    headings = next(cells for cells in page.cells if cells and cells[0] == "Person")
    assert "PAD" not in headings and "Predicted age" in headings


def test_all_failed_and_one_scan_make_a_report(tmp_path):
    page = written([failed(i, f"reason {i}") for i in range(3)], tmp_path)
    assert "No scan could be predicted" in page.text
    assert page.images == []
    assert all(f"reason {i}" in page.text for i in range(3))
    page = written([row(0, 40.0, 44.5)], tmp_path)
    assert "4.50" in page.text
    assert "too few scans" in page.text
    assert page.images == []


def test_a_single_stage_is_not_called_two(tmp_path):
    page = written([row(i, 40.0 + i, 44.0, stage_one_age=None) for i in range(6)], tmp_path)
    assert "Stage two" not in page.text
    assert ["Predicted", "6"] in [cells[:2] for cells in page.cells]


def test_scans_outside_the_calibration_are_counted(tmp_path):
    rows = [row(i, age, 50.0) for i, age in enumerate((12.0, 40.0, 95.0))]
    text = written(rows, tmp_path, calibration=CALIBRATION).text
    assert "2 of 3 scans with an age here are outside" in text
    assert "predicted = 0.800 × age + 9.50 years" in text
    assert "± 12.5 years" in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([], "no scans", id="none"),
        pytest.param([row(0, 1.0, 2.0)] * 2, "in/sub-0.nii.gz: in several rows", id="double"),
        pytest.param([{"scan": "a"}], "row 0: without age, brain_pad", id="keys"),
        pytest.param([row(0, 1.0, 2.0, status="done")], "status 'done'", id="status"),
        pytest.param([row(0, 1.0, 2.0, qc_flag=None)], "qc_flag None", id="flag"),
        pytest.param([{**row(0, 1.0, 2.0), "age": "n/a"}],
                     "in/sub-0.nii.gz: age 'n/a', years or None expected", id="years"),
    ],
)  # fmt: skip
def test_rows_that_contradict_themselves_are_refused(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        written(rows, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_existing_report_is_kept(tmp_path):
    written(cohort(), tmp_path)
    with pytest.raises(FileExistsError, match="overwritten"):
        written(cohort(), tmp_path, overwrite=False)


def test_a_broken_or_missing_picture_is_said(tmp_path):
    rows = cohort(4)
    (tmp_path / "cut.png").write_bytes(picture(tmp_path / "one.png").read_bytes()[:2000])
    files = dict(
        zip((row["scan"] for row in rows), ("one.png", "cut.png", "none.png"), strict=False)
    )
    page = written(rows, tmp_path, pictures={scan: tmp_path / name for scan, name in files.items()})
    assert page.text.count("Its picture cannot be shown") == 2
    assert [image["width"] for image in page.images if "png" in image["src"][:20]] == ["120"]


def test_a_thousand_scans_take_little_memory_and_the_first_keep_their_detail(tmp_path):
    shown = picture(tmp_path / "one.png", size=(200, 120))
    table = table_of(cohort(1000))
    pictures = dict.fromkeys(table["scan"], shown)
    list(report._scans(table[:1], pictures, {}))  # what is imported once is not counted
    size, widths = 0, []
    tracemalloc.start()
    for part in report._scans(table, pictures, {}):
        size += len(part)
        widths += re.findall(r'<img loading="lazy" width="(\d+)"', part)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 2**20 < size / 4
    assert widths == ["200"] * report.FULL_PICTURES + ["100"] * (1000 - report.FULL_PICTURES)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome; or name one in CHROMIUM")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A report with everything in it, and its rows."""
    folder, rows = tmp_path_factory.mktemp("report"), cohort()
    rows[2] |= {"participant_id": EVIL, "message": f"{'long' * 60} {EVIL}", "age": 9.5}
    pictures = {row["scan"]: picture(folder / "one.png", size=(946, 520)) for row in rows[:-1]}
    write_report(
        rows, folder / "report.html", title="A report " + "x" * 80, pictures=pictures,
        overlays=dict(list(pictures.items())[:3]), calibration=CALIBRATION, card="card " * 500,
        command="python predict.py " + "--long_flag=" + "x" * 200, versions={"torch": "2"},
    )  # fmt: skip
    return folder / "report.html", rows


COLUMN = """[...document.querySelectorAll('.sortable tbody tr')].map(
    (row) => row.cells[%d].textContent)"""


def column(browser, heading: str) -> tuple[int, list[str]]:
    headings = browser.evaluate(
        "[...document.querySelectorAll('.sortable thead th')].map((head) => head.textContent)"
    )
    place = headings.index(heading)
    return place, browser.evaluate(COLUMN % place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dark"),
    [
        pytest.param(1280, False, id="desktop"),
        pytest.param(360, False, id="telephone"),
        pytest.param(360, True, id="dark telephone"),
    ],
)
def test_a_browser_shows_all_pictures_and_no_complaint(browser, shown, width, dark):
    path, _ = shown
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(path, width=width, dark=dark)
    assert browser.evaluate("window.innerWidth") == width
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(overflow) == 0
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    widths = browser.evaluate("""(async () => {
        document.querySelectorAll('details').forEach((details) => { details.open = true; });
        const images = [...document.images];
        images.forEach((image) => { image.loading = 'eager'; });
        await Promise.all(images.map((image) => image.decode()));
        return images.map((image) => image.naturalWidth);
    })()""")
    assert len(widths) == 6 + 23 + 3
    assert min(widths) > 0
    assert browser.evaluate(overflow) == 0  # with all details open
    assert browser.complaints == []
    assert browser.requests == [path.as_uri()]


@pytest.mark.slow
def test_a_click_sorts_numbers_as_numbers_and_leaves_the_unknown_at_the_end(browser, shown):
    path, rows = shown
    browser.open(path, width=1280)
    place, before = column(browser, "Age")
    button = f".sortable thead th:nth-child({place + 1}) button"
    browser.click(button)
    ages = sorted(row["age"] for row in rows if row["age"] is not None)
    assert column(browser, "Age")[1] == [f"{age:.1f}" for age in ages] + ["n/a"]
    assert column(browser, "Age")[1][0] == "9.5"  # the first as a number, the last as a word
    sorting = f"document.querySelector({json.dumps(button)}).parentElement.ariaSort"
    assert browser.evaluate(sorting) == "ascending"
    browser.click(button)
    assert column(browser, "Age")[1] == [f"{age:.1f}" for age in ages[::-1]] + ["n/a"]
    assert browser.evaluate(sorting) == "descending"
    assert sorted(before) == sorted(column(browser, "Age")[1])


@pytest.mark.slow
def test_the_keyboard_sorts_too_and_one_column_alone_says_so(browser, shown):
    path, rows = shown
    browser.open(path, width=1280)
    for heading in ("Age", "PAD"):
        place, _ = column(browser, heading)
        browser.evaluate(f"document.querySelectorAll('.sortable thead button')[{place}].focus()")
        browser.press("Enter", 13, "\r")
    pads = sorted(row["brain_pad"] for row in rows if row["brain_pad"] is not None)
    assert column(browser, "PAD")[1] == [f"{pad:+.1f}" for pad in pads] + ["n/a"] * 2
    assert browser.evaluate("document.querySelectorAll('[aria-sort]').length") == 1


@pytest.mark.slow
def test_the_browser_would_run_no_other_script_and_fetch_nothing(browser, shown):
    path, _ = shown
    browser.open(path, width=1280)
    browser.requests.clear()
    ran = browser.evaluate("""(async () => {
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
        const image = new Image();
        image.src = 'http://127.0.0.1:9/picture.png';
        await image.decode().catch(() => null);
        return [window.ran === true, await fetch('http://127.0.0.1:9/').then(() => 1, () => 0)];
    })()""")
    assert ran == [False, 0]
    assert any("Content Security Policy" in text for text in browser.complaints)
