"""What both pages share, the report of predicted ages and the page of mosaics."""

import base64
import hashlib
import tracemalloc

import jinja2
import numpy as np
import pytest
from PIL import Image

from analysis.report.page import Origin, write_report
from data_preprocessing.pipeline import mosaic
from data_preprocessing.pipeline.mosaic import PageRow
from tests.page_parser import Page, picture
from tests.test_report import EVIL, YEARS, row
from utils.results.pages import FULL_PICTURES, HALVED_PICTURES, embed, write_page


def write_the_report(path, pictures, *, name="sub-{}", text=""):
    """A report of one row per picture, in this order; it draws no figures."""
    rows = [
        row(i, None, 40.0, participant_id=name.format(i), session_id=text, scan=f"{i}",
            message=text, site=text, model=text, qc_flag=text or "ok", **dict.fromkeys(YEARS))
        for i in range(len(pictures))
    ]  # fmt: skip
    shown = {f"{i}": shown for i, shown in enumerate(pictures)}
    origin = Origin(None, f"card {text}", f"command {text}", {f"version {text}": text})
    write_report(rows, path, title=f"Title {text}", pictures=shown, origin=origin)


def write_the_mosaics(path, pictures, *, name="sub-{}", text=""):
    """A page of mosaics of one row per picture, in this order."""
    rows = [
        PageRow(name.format(i), "flagged", i / 1e4, flags=[text], message=text, picture=shown)
        for i, shown in enumerate(pictures)
    ]
    mosaic.write_page(rows, path, title=f"Title {text}", overwrite=True)


both = pytest.mark.parametrize("write", [write_the_report, write_the_mosaics])


@both
def test_pictures_are_inside_as_they_were_and_the_page_says_which_are_missing_or_broken(
    write, tmp_path
):
    files = [tmp_path / f"{name}.png" for name in ("one", "cut", "text", "missing", "two")]
    for number in (0, 1, 4):
        picture(files[number], seed=number)
    files[1].write_bytes(files[1].read_bytes()[:2000])
    files[2].write_text("no picture")
    write(tmp_path / "page.html", files)
    page = Page(tmp_path / "page.html")
    for file, shown in zip((files[0], files[4]), page.photos(), strict=True):
        with Image.open(file) as original:
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(original))
    assert all(len(image["alt"]) > 10 and image["loading"] == "lazy" for image in page.images)
    assert page.text.count("The picture cannot be shown") == 3
    assert str(files[2]) in page.text
    assert len(page.names) == 5


@both
def test_text_from_outside_stays_text_and_the_own_script_alone_may_run(write, tmp_path):
    name = f'{EVIL}"><img src=x onerror=alert(1)>&amp; \udce9 =cmd() $x^\x00 {{{{ 7 * 7 }}}} {{}}'
    path = picture(tmp_path / "1.png")
    write(tmp_path / "page.html", [path, tmp_path / "<i>.png"], name=name, text=f"</style>{EVIL}")
    page = Page(tmp_path / "page.html")
    expected = name.format(0).replace("\udce9", r"\udce9")
    assert page.names[0].startswith(expected)
    assert expected in page.images[0]["alt"]
    assert page.text.count(f"</style>{EVIL}") >= 5
    assert page.find("title")[0].text == f"Title </style>{EVIL}"
    allowed = [part.split()[1] for part in page.policy.split("; ") if part.startswith("script-src")]
    digests = [hashlib.sha256(script.encode()).digest() for script in page.scripts]
    assert allowed == [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    assert len(allowed) == 1
    assert len(page.images) == 1
    assert page.find("i") == []


@both
def test_the_same_arguments_make_the_same_bytes(write, tmp_path):
    files = [picture(tmp_path / "1.png"), tmp_path / "missing.png"]
    for name in ("one", "two"):
        write(tmp_path / f"{name}.html", files)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@both
def test_hundreds_of_scans_take_little_memory_and_the_first_keep_their_detail(write, tmp_path):
    shown = picture(tmp_path / "1.png", size=(200, 120))
    write(tmp_path / "page.html", [shown])  # what is imported once is not counted
    assert "half size" not in Page(tmp_path / "page.html").text
    tracemalloc.start()
    write(tmp_path / "page.html", [shown] * 400)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20 < (tmp_path / "page.html").stat().st_size / 4
    page = Page(tmp_path / "page.html")
    sizes = [image.size for image in page.photos()]
    assert sizes == [(200, 120)] * FULL_PICTURES + [(100, 60)] * (400 - FULL_PICTURES)
    assert "half size" in page.text
    assert embed(shown, number=HALVED_PICTURES - 1).width == 100
    assert embed(shown, number=HALVED_PICTURES).width == -(-200 // 3)


def test_an_existing_page_is_kept_and_a_failed_one_leaves_nothing(tmp_path):
    template, path = tmp_path / "a.html.jinja", tmp_path / "out" / "page.html"
    template.write_text('{% extends "page.html.jinja" %}{% block body %}{{ text }}{% endblock %}')
    with pytest.raises(jinja2.UndefinedError, match="'text' is undefined"):
        write_page(template, path, title="a")
    assert list(path.parent.iterdir()) == []
    write_page(template, path, title="a", text="first")
    with pytest.raises(FileExistsError, match="overwritten"):
        write_page(template, path, title="a", text="second")
    write_page(template, path, title="a", text="third", overwrite=True)
    assert Page(path).text.strip() == "third"
