"""The report of predicted ages: what stands in the file, and what a browser makes of it."""

import base64
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis.brain_pad.bias_correction import BiasCorrection
from analysis.brain_pad.calibration import Calibration
from analysis.brain_pad.conformal import Limits
from analysis.report.numbers import build_table, group_errors, measure_coverage, select_known
from analysis.report.page import FIRST_ROWS, Origin, write_report
from data_preprocessing.pipeline.mosaic import PageRow, write_page
from tests.browser import Browser, find_chromium
from tests.page_parser import Page, picture
from utils.results.metrics import score_with_intervals
from utils.results.pages import FULL_PICTURES
from utils.results.tables import format_figure

YEARS = (
    "stage_one_age", "predicted_age", "predicted_age_low", "predicted_age_high", "brain_pad",
    "predicted_age_cole", "brain_pad_cole", "brain_pad_beheshti",
)  # fmt: skip
FIGURES = ("mae", "rmse", "pearson", "mean_brain_pad", "brain_pad_age_correlation")
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


def written(rows, tmp_path, **settings) -> Page:
    settings = {"title": "Ages", "pictures": {}} | settings
    write_report(rows, tmp_path / "report.html", **settings)
    return Page(tmp_path / "report.html")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A folder with a report that has everything in it and a page of mosaics; rows of the first."""
    folder, rows = tmp_path_factory.mktemp("pages"), cohort()
    rows[2] |= {"participant_id": EVIL, "message": f"{'long' * 60} {EVIL}", "age": 9.5}
    pictures = {row["scan"]: picture(folder / "one.png", size=(440, 300)) for row in rows[:-1]}
    write_report(
        rows, folder / "report.html", title="A report " + "x" * 80, pictures=pictures,
        overlays=dict(list(pictures.items())[:3]),
        origin=Origin(CALIBRATION, "card " * 500, "python --long=" + "x" * 200, {"torch": "2"}),
    )  # fmt: skip
    scans = [PageRow("x" * 200, "failed", message=EVIL * 9), PageRow("a", "flagged", 0.2, 0.9),
             *(PageRow(name, "done", picture=folder / "one.png") for name in "bc")]  # fmt: skip
    write_page(scans, folder / "mosaics.html")
    return folder, rows


@pytest.fixture(scope="module")
def usual(shown):
    """The rows of the report in `shown`, and what is in it."""
    return shown[1], Page(shown[0] / "report.html")


def test_every_scan_stands_once_in_table_and_pictures_the_failed_and_flagged_first(usual):
    rows, page = usual
    pads = {f"{row['participant_id']} ses-1": abs(row["brain_pad"] or 0) for row in rows}
    assert sorted(page.names) == sorted(pads)
    assert page.states == ["failed"] + ["flagged"] * 4 + ["ok"] * 19
    assert [cells[0] for cells in page.rows][-24:] == [row["participant_id"] for row in rows]
    assert "▲ flagged tilt, dim" in page.text
    assert "✕ failed" in page.text
    for inside in (page.names[1:5], page.names[5:]):
        sizes = [pads[name] for name in inside]
        assert sizes == sorted(sizes, reverse=True)


def test_of_thousands_every_scan_stands_once_the_later_ones_as_text(tmp_path):
    rows = [row(i, 20 + i / 100, 50.0) for i in range(FIRST_ROWS + 5)]
    page = written(rows, tmp_path)
    (later,) = page.later_rows
    names = [cells[0] for cells in page.rows if cells[0].startswith("sub-")]
    names += re.findall(r">(sub-\d+)</a>", later)
    assert names == [row["participant_id"] for row in rows]
    assert len(page.names) == len(rows)


def test_a_group_with_a_name_that_cannot_be_drawn_is_drawn(tmp_path):
    sites = ["a", *["$x^\x00\u0007" * 20] * 11]
    page = written([row(i, 40.0 + i, 45.0, site=site) for i, site in enumerate(sites)], tmp_path)
    assert len(page.images) == 6


def test_links_lead_into_the_page_and_drawings_load_nothing(usual):
    _, page = usual
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(page.anchors)
    drawings = [image["src"] for image in page.images if "svg" in image["src"][:20]]
    assert len(drawings) == 6
    assert len(page.photos()) == 23 + 3
    for source in drawings:
        tree = ElementTree.fromstring(base64.b64decode(source.split("base64,")[1]))
        links = [v for e in tree.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith("#") for link in links)


def test_the_same_rows_make_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_report(cohort(8), tmp_path / f"{name}.html", title="Ages", pictures={})
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_figures_are_those_of_the_metrics(usual):
    rows, page = usual
    known = [row for row in rows if row["age"] is not None and row["status"] == "ok"]
    lines = {cells[0]: cells[1:] for cells in page.rows}
    for title, name, scans, names in (
        ("Stage one", "stage_one_age", known, FIGURES),
        ("Stage two", "predicted_age", known, FIGURES),
        ("Stage two, corrected (Cole)", "predicted_age_cole", known, FIGURES),
        ("Stage two, unflagged scans", "predicted_age",
         [row for row in known if row["qc_flag"] == "ok"], FIGURES),
        ("sex F", "predicted_age", [row for row in known if row["sex"] == "F"],
         ("mae", "mean_brain_pad")),
    ):  # fmt: skip
        ages = (np.array([row[key] for row in scans]) for key in ("age", name))
        figures = score_with_intervals(*ages)
        expected = [format_figure(figures[figure]) for figure in names]
        assert lines[title] == [str(len(scans)), *expected]


def test_groups_hold_every_scan_once_a_kind_and_small_ones_have_no_interval():
    lines = group_errors(select_known(build_table(cohort())))
    for kind in ("age", "sex", "site"):
        assert sum(line.scans for line in lines if line.kind == kind) == 22
    decades = [line.title for line in lines if line.kind == "age"]
    assert decades == sorted(decades)
    small = [line.figures for line in lines if line.scans < 5]
    assert small
    assert all(line["mae"]["low"] is line["pearson"]["value"] is None for line in small)


def test_coverage_counts_the_ages_in_their_intervals():
    rows = [row(i, 50.0, 50.0 + error) for i, error in enumerate((0, 8.9, -9, 9.1, 30))]
    found = measure_coverage(select_known(build_table(rows)))
    assert (found["inside"], found["scans"], found["value"]) == (3, 5, 0.6)
    assert found["low"] < 0.6 < found["high"]


def test_without_ages_there_are_no_errors_but_all_scans(tmp_path):
    page = written([row(i, None, 40.0 + i) for i in range(6)], tmp_path)
    assert "No chronological ages are known" in page.text
    assert "40.0 to 45.0" in page.text
    assert "MAE" not in page.text
    assert [image["alt"][:26] for image in page.images] == ["Histogram of predicted age"]
    assert len(page.names) == 6
    (headings,) = (cells for cells in page.rows if cells[0] == "Person")
    assert "PAD" not in headings and "Predicted age" in headings


def test_one_scan_a_single_stage_and_none_but_failed_ones_make_a_report(tmp_path):
    page = written([failed(i, f"reason {i}") for i in range(3)], tmp_path)
    assert "No scan could be predicted" in page.text
    assert all(f"reason {i}" in page.text for i in range(3))
    page = written([row(0, 40.0, 44.5)], tmp_path)
    assert "4.50" in page.text
    assert "too few scans" in page.text
    assert page.images == []
    page = written([row(i, 40.0 + i, 44.0, stage_one_age=None) for i in range(6)], tmp_path)
    assert "Stage two" not in page.text
    assert ["Predicted", "6"] in [cells[:2] for cells in page.rows]


def test_scans_outside_the_calibration_are_counted(tmp_path):
    rows = [row(i, age, 50.0) for i, age in enumerate((12.0, 40.0, 95.0))]
    text = written(rows, tmp_path, origin=Origin(CALIBRATION)).text
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if (program := find_chromium()) is None:
        pytest.skip("no chromium, chromium-browser or google-chrome; or name one in CHROMIUM")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def press(browser, heading: str) -> list[str]:
    """Presses Enter on the heading of a column; its cells from top to bottom."""
    find = """(heading) => {
        const heads = [...document.querySelectorAll('.sortable thead th')];
        const place = heads.findIndex((head) => head.textContent === heading);
        const button = heads[place].querySelector('button');
        button.scrollIntoView({ block: 'center', inline: 'center' });
        button.focus();
        const { x, y, width, height } = button.getBoundingClientRect();
        const hit = document.elementFromPoint(x + width / 2, y + height / 2);
        return hit === button ? place : 'a mouse would hit something else';
    }"""
    place = browser.evaluate(find, heading)
    browser.press_enter()
    read = """(place) => [...document.querySelectorAll('.sortable tbody tr')]
        .map((row) => row.cells[place].textContent)"""
    return browser.evaluate(read, place)


LOOK = """async () => {
    document.querySelectorAll('details').forEach((details) => { details.open = true; });
    const images = [...document.images];
    images.forEach((image) => { image.loading = 'eager'; });
    await Promise.all(images.map((image) => image.decode()));
    const { scrollWidth, clientWidth } = document.documentElement;
    const { matches } = matchMedia('(prefers-color-scheme: dark)');
    return [window.innerWidth, scrollWidth - clientWidth, matches,
        images.filter((image) => image.naturalWidth > 0).length];
}"""
ATTACK = """async () => {
    const script = document.createElement('script');
    script.textContent = 'window.ran = true';
    document.body.append(script);
    const image = new Image();
    image.src = 'http://127.0.0.1:9/picture.png';
    await image.decode().catch(() => null);
    return [window.ran === true, await fetch('http://127.0.0.1:9/').then(() => 1, () => 0)];
}"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (360, False), (360, True)],
    ids=["desktop", "telephone", "dark telephone"],
)  # fmt: skip
@pytest.mark.parametrize(("name", "pictures"), [("report", 6 + 23 + 3), ("mosaics", 2)])
def test_a_browser_shows_all_pictures_without_complaint_and_runs_no_other_script(
    browser, shown, name, pictures, width, dark
):
    path = shown[0] / f"{name}.html"
    browser.open(path, width=width, dark=dark)
    assert browser.evaluate(LOOK) == [width, 0, dark, pictures]
    assert browser.complaints == []
    assert browser.requests == [path.as_uri()]
    assert browser.evaluate(ATTACK) == [False, 0]
    assert any("Content Security Policy" in text for text in browser.complaints)


@pytest.mark.slow
def test_pressing_a_heading_sorts_numbers_as_numbers_and_leaves_the_unknown_at_the_end(
    browser, shown
):
    folder, rows = shown
    browser.open(folder / "report.html", width=1280)
    ages = [f"{age:.1f}" for age in sorted(row["age"] for row in rows if row["age"] is not None)]
    pads = sorted(row["brain_pad"] for row in rows if row["brain_pad"] is not None)
    assert ages[0] == "9.5"  # the first as a number, the last as a word
    sorting = """() => [...document.querySelectorAll('[aria-sort]')]
        .map((head) => `${head.textContent} ${head.ariaSort}`)"""
    assert press(browser, "Age") == [*ages, "n/a"]
    assert browser.evaluate(sorting) == ["Age ascending"]
    assert press(browser, "Age") == [*ages[::-1], "n/a"]
    assert browser.evaluate(sorting) == ["Age descending"]
    assert press(browser, "PAD") == [f"{pad:+.1f}" for pad in pads] + ["n/a"] * 2
    assert browser.evaluate(sorting) == ["PAD ascending"]


@pytest.mark.slow
def test_of_thousands_later_rows_and_pictures_come_when_they_are_scrolled_to(browser, tmp_path):
    rows = [row(i, 20 + i / 100, 50.0) for i in range(FIRST_ROWS + 150)]
    shown = picture(tmp_path / "one.png")
    pictures = {row["scan"]: shown for row in rows[: FULL_PICTURES + 50]}
    write_report(rows, tmp_path / "report.html", title="Many", pictures=pictures)
    browser.open(tmp_path / "report.html", width=1280)
    seen = """() => [document.querySelectorAll('.sortable tbody tr').length,
        [...document.querySelectorAll('.waits')].filter((image) => image.src).length]"""
    assert browser.evaluate(seen) == [FIRST_ROWS, 0]
    reach = """async (places) => {
        document.querySelector(places).scrollIntoView();
        for (let turn = 0; turn < 5; turn += 1) {
            await new Promise((go) => setTimeout(go, 100));
        }
    }"""
    browser.evaluate(reach, ".sortable tbody tr:last-child")
    assert browser.evaluate(seen)[0] == len(rows)
    browser.evaluate(reach, f"#scan-{FULL_PICTURES + 49} .waits")
    assert browser.evaluate(seen)[1] > 0
    browser.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(seen)[1] == 50
    assert browser.complaints == []

    browser.open(tmp_path / "report.html", width=1280)
    ages = sorted(row["age"] for row in rows)[::-1][:FIRST_ROWS]
    press(browser, "Age")
    assert press(browser, "Age") == [f"{age:.1f}" for age in ages]
