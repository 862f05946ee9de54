"""The mosaic of a scan and the page of all scans."""

import io

import numpy as np
import pytest
from PIL import Image

from data_preprocessing.pipeline.mosaic import PageRow, draw_mosaic, mosaic_figure, write_page
from tests.conftest import brain
from tests.page_parser import Page
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

VOLUME = brain(GRID_SHAPE, 40)
MASK = VOLUME > 0


def place(x: float, y: float, z: float) -> tuple[int, ...]:
    """The voxel of a place in RAS mm."""
    return tuple(np.linalg.solve(GRID_AFFINE, (x, y, z, 1))[:3].round().astype(int))


def marked(x: float, y: float, z: float) -> np.ndarray:
    """A grey brain with a bright spot at a place in RAS mm."""
    volume = np.where(MASK, 50, 0).astype(np.float32)
    at = place(x, y, z)
    volume[tuple(slice(voxel - 3, voxel + 4) for voxel in at)] = 1000
    return volume


def letters(volume: np.ndarray) -> tuple[np.ndarray, list]:
    """The image of a mosaic and its labels as (text, column, row)."""
    axes = mosaic_figure(volume, MASK, title="").axes[0]
    return axes.images[0].get_array(), [(t.get_text(), *t.get_position()) for t in axes.texts]


@pytest.mark.parametrize(
    ("x", "y", "z", "near"),
    [
        pytest.param(-40, 0, 10, "L", id="left, axial"),
        pytest.param(40, 0, 10, "R", id="right, axial"),
        pytest.param(-40, -8, 0, "L", id="left, coronal"),
        pytest.param(40, -8, 0, "R", id="right, coronal"),
        pytest.param(24, 50, 0, "A", id="front, sagittal"),
        pytest.param(24, -70, 0, "P", id="back, sagittal"),
    ],
)
def test_a_bright_spot_is_next_to_the_letter_of_its_side(x, y, z, near):
    image, labels = letters(marked(x, y, z))
    plane = "x +24 R" if near in "AP" else "z +10" if z else "y -8"
    ((_, middle, bottom),) = [label for label in labels if label[0] == plane]
    rows, columns = np.nonzero(image > 500)
    here = (abs(columns - middle) < 50) & (rows > bottom) & (rows < bottom + 100)
    spot = columns[here].mean()
    beside = [
        (abs(column - middle), text)
        for text, column, row in labels
        if len(text) == 1 and 0 < row - bottom < 60 and (column < middle) == (spot < middle)
    ]
    assert min(beside)[1] == near


def test_a_sagittal_plane_is_named_for_the_hemisphere_that_it_shows():
    image, labels = letters(marked(-46, 0, 0))
    (left,) = [column for text, column, _ in labels if text == "x -46 L"]
    (right,) = [column for text, column, _ in labels if text == "x +46 R"]
    bottom = next(row for text, _, row in labels if text == "x -46 L")
    sagittal = image[int(bottom) : int(bottom) + 70]
    assert (sagittal[:, int(left) - 40 : int(left) + 40] > 500).any()
    assert not (sagittal[:, int(right) - 40 : int(right) + 40] > 500).any()


def test_the_picture_says_the_convention_and_that_a_scan_is_flagged():
    *_, title, legend = mosaic_figure(VOLUME, MASK, title="sub-1", flagged=True).axes[0].texts
    assert title.get_text() == "▲ FLAGGED  sub-1"
    assert "radiological: the person's right is on the left" in legend.get_text()


def test_the_outline_is_where_the_mask_is(tmp_path):
    draw_mosaic(VOLUME, MASK, tmp_path / "with.png", title="")
    draw_mosaic(VOLUME, np.zeros_like(MASK), tmp_path / "without.png", title="")
    colours = []
    for name in ("with", "without"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        colours.append(int((pixels[..., 2] - pixels[..., 0] > 60).sum()))
    assert colours[0] > 1000
    assert colours[1] == 0


def test_a_picture_is_small_and_its_bytes_do_not_change(tmp_path):
    for name in ("one", "two"):
        draw_mosaic(VOLUME, MASK, tmp_path / f"{name}.png", title="sub-1\ncorrelation 0.83")
    content = (tmp_path / "one.png").read_bytes()
    assert content == (tmp_path / "two.png").read_bytes()
    assert len(content) < 150_000
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.width < 1000


@pytest.mark.parametrize("name", ["$x^", "a" * 500, "sub-\udce9", "", r"\alpha_$_{"])
@pytest.mark.parametrize("volume", [VOLUME, VOLUME * 0, VOLUME * 0 + 1], ids=["", "empty", "flat"])
def test_any_name_and_a_scan_with_nothing_to_see_can_be_drawn(name, volume, tmp_path):
    draw_mosaic(volume, MASK, tmp_path / "scan.png", title=f"{name}\ncorrelation 0.83")
    assert (tmp_path / "scan.png").stat().st_size > 0


def test_another_grid_and_an_existing_picture_are_refused(tmp_path):
    path = tmp_path / "scan.png"
    with pytest.raises(ValueError, match=r"scan.png: volume of shape \(91, 109, 91\) expected"):
        draw_mosaic(VOLUME[:-1], MASK, path, title="")
    draw_mosaic(VOLUME, MASK, path, title="")
    with pytest.raises(FileExistsError, match="overwritten"):
        draw_mosaic(VOLUME, MASK, path, title="")
    draw_mosaic(VOLUME, MASK, path, title="", overwrite=True)


def test_the_page_shows_the_worst_first(tmp_path):
    rows = [
        PageRow("good", "done", 0.91),
        PageRow("worse", "flagged", 0.65, flags=["correlation below 0.7"]),
        PageRow("unknown", "done"),
        PageRow("broken", "failed", message="not a readable NIfTI file"),
        PageRow("poor", "done", 0.72),
        PageRow("worst", "flagged", 0.61, flags=["correlation below 0.7"]),
        PageRow("not a number", "flagged", float("nan")),
    ]
    write_page(rows, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.names == [
        "broken", "not a number", "worst", "worse", "unknown", "poor", "good",
    ]  # fmt: skip
    assert page.states == ["failed"] + ["flagged"] * 3 + ["done"] * 3
    assert page.anchors == ["failed", "flagged", "done"]


def test_the_page_says_everything_about_a_scan_in_words(tmp_path):
    row = PageRow("sub-1", "flagged", 0.6543, 0.9121, ["dim", "tilted"], "retried", None, 14.2)
    write_page([row, PageRow("sub-2", "done", 0.9)], tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    for words in ("0.654", "0.912", "14 s", "dim", "tilted", "retried", "sub-1",
                  "▲ flagged", "0 failed", "1 flagged", "1 done"):  # fmt: skip
        assert words in text


def test_an_empty_list_makes_a_page_and_an_unknown_status_is_refused(tmp_path):
    write_page([], tmp_path / "page.html")
    assert Page(tmp_path / "page.html").names == []
    with pytest.raises(ValueError, match="sub-1: status 'ok', one of failed, flagged, done"):
        PageRow("sub-1", "ok")
