"""The synthetic cohort: what its brains are like, and that nothing but the seed decides them."""

import functools
import hashlib
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xlrd
from joblib import parallel_config
from scipy import ndimage

from data_preprocessing import make_demo_cohort
from data_preprocessing.demo import cohort as demo_cohort
from data_preprocessing.demo import phantom
from data_preprocessing.demo.cohort import draw_people, make_cohort, make_scan, person_generator
from data_preprocessing.demo.phantom import CSF, GREY, WHITE, load_template, make_volume
from utils.files import image_stem
from utils.people.labels import read_labels
from utils.scans.split import PARTS
from utils.scans.volumes import find_scans

SCANS, SEED = 5, 7
SOME_PEOPLE = [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "cohort"
    with parallel_config(backend="threading"):  # started sooner than processes
        make_cohort(folder, scans=SCANS, seed=SEED, jobs=2)
    return folder


def scans_of(cohort):
    return {image_stem(path.name): path for part in PARTS for path in find_scans(cohort / part)}


def file_hashes(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@functools.cache
def brain_at(age, *, person=1, sex=0):
    """Volume of a person, and the units a stored step stands for."""
    rng = person_generator(SEED, person=person)
    return make_volume(load_template(), age=age, sex=sex, rng=rng)


def test_scans_are_on_the_mni_2_mm_grid_in_las_order_and_say_that_they_are_synthetic(cohort):
    for path in scans_of(cohort).values():
        image = nib.load(path)
        assert image.shape == (91, 109, 91)
        expected = [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]
        assert np.array_equal(image.affine, expected)
        assert np.array_equal(image.get_qform(), expected)
        assert image.header["sform_code"] == image.header["qform_code"] == 4  # MNI152
        assert image.header["descrip"].item() == b"synthetic, not a person"


def test_background_is_exactly_zero_and_the_head_has_no_holes(cohort):
    far = ~ndimage.binary_dilation(load_template().mask, iterations=8)
    for path in scans_of(cohort).values():
        voxels = np.asarray(nib.load(path).dataobj)
        head = voxels > 0
        assert voxels.min() == 0
        assert np.all(voxels[far] == 0)
        assert np.array_equal(ndimage.binary_fill_holes(head), head)
        # Litres: brains of adults, with the fluid around them, after registration.
        assert 1.4 < head.sum() * 8e-6 < 2.4


def test_a_scan_depends_on_seed_and_number_and_not_on_what_is_made_beside_it(cohort, tmp_path):
    people = draw_people(SCANS, seed=SEED)
    age, sex = people["demo-0003"]
    again, rng = tmp_path / "again.nii.gz", person_generator(SEED, person=3)
    make_scan(load_template(), path=again, age=age, sex=sex, rng=rng)
    assert again.read_bytes() == scans_of(cohort)["demo-0003"].read_bytes()


def test_the_scans_of_a_seed_are_those_of_earlier_versions():
    volume, units_per_step = brain_at(73.8, person=3)
    assert draw_people(SCANS, seed=SEED)["demo-0003"] == (73.8, 0)
    assert units_per_step == pytest.approx(3.71223594)
    assert volume.sum(dtype=int) == pytest.approx(24_625_778, abs=20)
    assert (volume > 0).sum() == pytest.approx(222_482, abs=3)
    # Another version of numpy or scipy may round a voxel the other way.
    assert volume[45, 54, ::12].tolist() == pytest.approx([0, 0, 117, 114, 121, 45, 52, 0], abs=1)


def test_another_person_has_another_brain(cohort):
    one, other = (nib.load(path).get_fdata() > 0 for path in list(scans_of(cohort).values())[:2])
    assert (one != other).sum() > 5_000


@functools.cache
def near_ventricles():
    """Boolean volume: the lateral ventricles and what lies within 8 mm of them."""
    template = load_template()
    ventricles = phantom._lateral_ventricles(template.tissues[CSF])
    return ndimage.binary_dilation(ventricles, iterations=4)


def dark_share(volume, region):
    """Share of voxels of `region` inside the head that are dark as CSF, noise averaged out."""
    smooth = ndimage.uniform_filter(volume, size=3)
    inside = region & (volume > 0)
    white = np.median(volume[load_template().tissues[WHITE] > 0.95])
    return np.mean(smooth[inside] < 0.5 * white)


@pytest.mark.parametrize("person", SOME_PEOPLE)
def test_the_old_have_wider_ventricles_and_more_fluid_around_a_thinner_cortex(person):
    young, old = (brain_at(age, person=person)[0] for age in (20, 90))
    around, elsewhere = near_ventricles(), load_template().mask & ~near_ventricles()
    assert dark_share(old, around) > 1.5 * dark_share(young, around)
    assert dark_share(old, elsewhere) > 1.5 * dark_share(young, elsewhere)


def contrast(volume):
    """Brightness of white matter over that of grey matter."""
    tissues = load_template().tissues
    white, grey = volume[tissues[WHITE] > 0.95], volume[tissues[GREY] > 0.95]
    # In the old some of the template's grey matter is fluid.
    return np.median(white) / np.median(grey[grey > 0.5 * np.median(white)])


@pytest.mark.parametrize("person", SOME_PEOPLE)
def test_the_old_have_less_contrast_between_grey_and_white_matter(person):
    young, old = (brain_at(age, person=person)[0] for age in (20, 90))
    assert contrast(old) < contrast(young) - 0.05


def test_brightness_differs_between_scans_but_not_with_age(cohort):
    assert brain_at(20)[1] == brain_at(90)[1]
    slopes = {nib.load(path).dataobj.slope for path in scans_of(cohort).values()}
    assert len(slopes) == SCANS


def test_men_have_larger_heads_than_the_same_people_as_women():
    women, men = ((brain_at(20, sex=sex)[0] > 0).sum() for sex in (0, 1))
    assert 1.01 < men / women < 1.1


def test_smooth_fields_have_mean_0_and_sd_1_at_edge_and_centre_and_are_smooth():
    fields = phantom.smooth_fields(np.random.default_rng(0), count=16, width_mm=20.0)
    for plane in (fields[:, 0], fields[:, 45], fields[..., -1]):
        assert abs(plane.mean()) < 0.2
        assert abs(plane.std() - 1) < 0.15
    assert np.abs(np.diff(fields[:, :, 50], axis=1)).max() < 0.5


def test_the_sheet_is_real_biff_without_a_header_row(cohort):
    path = cohort / "Dataset.xls"
    assert path.read_bytes()[:4] == bytes.fromhex("d0cf11e0")
    sheet = xlrd.open_workbook(path).sheet_by_index(0)
    assert (sheet.nrows, sheet.ncols) == (SCANS, 3)
    assert "synthetic" in sheet.name
    for row, (scan, (age, sex)) in enumerate(draw_people(SCANS, seed=SEED).items()):
        assert sheet.row_values(row) == [f"{scan}.nii.gz", age, sex]


def test_every_scan_has_a_row_and_every_row_a_scan(cohort):
    assert read_labels(cohort / "Dataset.xls").rows.keys() == scans_of(cohort).keys()


def test_people_are_18_to_90_years_old_to_one_decimal_and_half_of_them_women():
    people = draw_people(1000, seed=0)
    ages = np.array([age for age, _ in people.values()])
    assert ages.min() >= 18
    assert ages.max() <= 90
    assert abs(ages.mean() - 54) < 3
    assert np.array_equal(ages, ages.round(1))
    assert sum(sex for _, sex in people.values()) == 500
    assert people != draw_people(1000, seed=1)


def test_the_readme_says_synthetic_and_its_command_makes_this_cohort(cohort):
    text = (cohort / "README.txt").read_text()
    assert text.startswith("SYNTHETIC")
    command = next(line for line in text.splitlines() if line.strip().startswith("python -m"))
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "data_preprocessing.make_demo_cohort"]
    args = make_demo_cohort.build_parser().parse_args(words[3:])
    assert (args.scans, args.seed, args.output_dir) == (SCANS, SEED, Path("cohort"))


def test_an_interrupted_cohort_is_not_there_and_can_be_made_again(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(demo_cohort, "write_xls", interrupt)
        broken.setattr(demo_cohort, "make_scan", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            make_cohort(tmp_path / "cohort", scans=5, seed=0, jobs=1)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "Dataset.xls").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        make_demo_cohort.main(["--output_dir", str(tmp_path), "--scans", "5", "--jobs", "1"])
    assert file_hashes(tmp_path) == {"Dataset.xls": hashlib.sha256(b"mine").hexdigest()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to make"),
        (["--picture", "brains.jpg"], "a name ending in .png expected, got brains.jpg"),
        (["--output_dir", "demo", "--scans", "4"], "at least 5"),
        (["--output_dir", "demo", "--seed", "4294967296"], "at most"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        make_demo_cohort.main(flags)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_picture_is_drawn_once_and_not_over_another(tmp_path):
    picture = tmp_path / "brains.png"
    make_demo_cohort.main(["--picture", str(picture)])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(FileExistsError, match=r"brains\.png"):
        make_demo_cohort.main(["--picture", str(picture)])
