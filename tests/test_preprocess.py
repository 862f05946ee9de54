"""One scan and thousands, through the fastest backend: scans in MNI152 space of other voxels."""

import csv
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_series import write_series
from joblib.externals.loky import get_reusable_executor

from data_preprocessing import preprocess
from data_preprocessing.pipeline import resample
from data_preprocessing.pipeline.inputs import Source
from data_preprocessing.pipeline.one_scan import Request, prepare
from model.scaledense import ScaleDense
from utils.networks.checkpoint import Checkpoint, save_checkpoint
from utils.scans.provenance import Provenance, read_sidecar
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, InputRule, decode, find_scans

pytestmark = pytest.mark.slow


def brain(seed=0):
    """The template with a face of its own, in RAS order, as TemplateFlow stores it."""
    rng = np.random.default_rng(seed)
    template = load_template()
    noisy = np.where(template.mask, template.brain + rng.normal(20, 5, GRID_SHAPE), 0)
    image = nibabel.Nifti1Image(noisy.clip(0).astype(np.float32), GRID_AFFINE)
    return nibabel.as_closest_canonical(image)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """raw/ with three scans, the third of them no scan, and grid/ after a first call."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "raw").mkdir()
    for seed, name in enumerate(("anna", "bob")):
        brain(seed).to_filename(folder / "raw" / f"{name}.nii.gz")
    (folder / "raw" / "carl.nii.gz").write_bytes(b"not a scan")
    assert run(folder / "raw") == preprocess.SOME_FAILED
    return folder


@pytest.fixture
def raw(made_once, tmp_path):
    """The folder of scans, without results yet."""
    return shutil.copytree(made_once / "raw", tmp_path / "raw")


@pytest.fixture
def done(made_once, tmp_path):
    """The folder of scans, with the results of a first call beside it in grid/."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "raw"


def run(raw, *flags):
    """Exit code of the program on `raw`, into `grid` beside it."""
    known = ("--output_dir", str(raw.parent / "grid"), "--jobs", "1")
    recipe = ("--backend", "resample", "--registration", "affine")
    return preprocess.main([str(raw), *known, *recipe, *flags])


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def state(folder):
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.iterdir()
        if path.name.endswith((".nii.gz", ".json", ".png"))
    }


def test_each_scan_gets_grid_record_and_picture_and_an_error_is_a_row(raw, capsys):
    assert run(raw) == preprocess.SOME_FAILED
    grid = raw.parent / "grid"
    assert [path.name for path in find_scans(grid)] == ["anna.nii.gz", "bob.nii.gz"]
    volume = decode(grid / "anna.nii.gz")
    expected = brain(0).get_fdata()[::-1]
    np.testing.assert_allclose(volume, expected, rtol=1e-5)
    assert nibabel.load(grid / "anna.nii.gz").get_data_dtype() == np.float32
    record = json.loads((grid / "anna.json").read_text())
    assert record["format"] == "tsan-preprocessing-1"
    assert record["source"] == str(raw / "anna.nii.gz")
    assert record["recipe"]["registration"] == "affine"
    assert record["template_sha256"] == load_template().sha256
    assert record["qc"]["correlation"] > 0.9
    assert record["seconds"] > 0
    assert (grid / "bob.png").read_bytes().startswith(b"\x89PNG")
    (failure,) = table(grid / "failures.tsv")
    assert failure["name"] == "carl"
    assert str(raw / "carl.nii.gz") in failure["message"]
    page = (grid / "preprocessing.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert all(name in page for name in ("anna", "bob", "carl"))
    assert "2 done, 0 flagged, 1 failed" in capsys.readouterr().out


def test_a_cut_brain_is_incomplete_in_its_record_and_where_the_result_is_judged_again(raw):
    image = brain(0)
    voxels = np.asarray(image.dataobj).copy()
    voxels[:, :, np.nonzero(voxels.any(axis=(0, 1)))[0].max() - 9 :] = 0  # the uppermost 20 mm
    nibabel.Nifti1Image(voxels, image.affine).to_filename(raw / "anna.nii.gz")
    run(raw)
    grid = raw.parent / "grid"
    whole, cut = (read_sidecar(grid / f"{name}.nii.gz")["qc"] for name in ("bob", "anna"))
    assert whole["flags"] == {}
    assert whole["flat_end_mm2"] < 2500 < 8000 < cut["flat_end_mm2"]
    assert "cut by the field of view" in cut["flags"]["incomplete"]
    source = Source("anna", grid / "anna.nii.gz", on_grid=True)
    assert prepare(source, Request(raw.parent)).quality["flags"] == cut["flags"]


def test_what_is_done_is_skipped_and_what_failed_is_tried_again(done):
    grid = done.parent / "grid"
    before = state(grid)
    brain(2).to_filename(done / "carl.nii.gz")
    assert run(done) == 0
    after = state(grid)
    assert {name: after[name] for name in before} == before
    assert "carl.nii.gz" in after
    assert table(grid / "failures.tsv") == []


def test_several_processes_make_what_one_makes(done):
    one = {path.name: path.read_bytes() for path in find_scans(done.parent / "grid")}
    run(done, "--jobs", "2", "--output_dir", str(done.parent / "two"))
    assert {path.name: path.read_bytes() for path in find_scans(done.parent / "two")} == one


def test_shards_together_do_every_scan_once(raw):
    assert run(raw, "--shard", "1/2") == preprocess.SOME_FAILED  # anna, carl
    grid = raw.parent / "grid"
    assert [path.name for path in find_scans(grid)] == ["anna.nii.gz"]
    assert run(raw, "--shard", "2/2") == 0  # bob
    assert len(find_scans(grid)) == 2
    assert len(table(grid / "failures_1_of_2.tsv")) == 1
    assert table(grid / "failures_2_of_2.tsv") == []
    assert (grid / "preprocessing_1_of_2.html").is_file()
    assert run(raw, "--shard", "9/9") == 0  # a share without a scan


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/2"])
def test_shard_beyond_its_count_is_refused(raw, text):
    with pytest.raises(SystemExit):
        run(raw, f"--shard={text}")


def messages(raw):
    return {row["name"]: row["message"] for row in table(raw.parent / "grid" / "failures.tsv")}


def test_output_of_another_recipe_is_neither_mixed_in_nor_replaced_unasked(done):
    before = state(done.parent / "grid")
    run(done, "--mask", "template")
    assert "is not what would be made (mask subject, now template): give" in messages(done)["anna"]
    assert state(done.parent / "grid") == before
    run(done, "--mask", "template", "--overwrite")
    assert set(messages(done)) == {"carl"}
    assert read_sidecar(done.parent / "grid" / "anna.nii.gz")["recipe"]["mask"] == "template"


def test_changed_source_changed_output_and_stranger_are_told_apart(done):
    grid = done.parent / "grid"
    brain(7).to_filename(done / "anna.nii.gz")
    damaged = grid / "bob.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    brain(3).to_filename(grid / "carl.nii.gz")
    run(done)
    said = messages(done)
    assert "source_sha256" in said["anna"]
    assert "changed or damaged" in said["bob"]
    assert "there is no record of it" in said["carl"]


def test_files_of_others_beside_the_results_stay_as_they_are(raw):
    grid = raw.parent / "grid"
    grid.mkdir()
    (grid / "anna.json").write_text('{"EchoTime": 3}')
    (grid / "bob.png").write_bytes(b"a holiday")
    run(raw)
    said = messages(raw)
    assert "anna.json would be overwritten" in said["anna"]
    assert "bob.png would be overwritten" in said["bob"]
    assert (grid / "anna.json").read_text() == '{"EchoTime": 3}'
    assert not list(grid.glob("*.nii.gz"))


def test_damaged_record_is_named_and_replaced_when_asked(done):
    record = done.parent / "grid" / "anna.json"
    record.write_text(record.read_text()[:50])
    run(done)
    assert "anna.json" in messages(done)["anna"]
    run(done, "--overwrite")
    assert set(messages(done)) == {"carl"}
    assert json.loads(record.read_text())["qc"]


def test_other_call_that_was_faster_is_not_replaced(raw, monkeypatch):
    mapped = resample.map_scan

    def slow(image, recipe, *, workspace):
        """While a scan is mapped, another call with another recipe does the same scan."""
        made = mapped(image, recipe, workspace=workspace)
        monkeypatch.setattr(resample, "map_scan", mapped)
        run(raw, "--mask", "template")
        return made

    monkeypatch.setattr(resample, "map_scan", slow)
    run(raw)
    assert "is not what would be made (mask template, now subject): give" in messages(raw)["anna"]
    assert read_sidecar(raw.parent / "grid" / "anna.nii.gz")["recipe"]["mask"] == "template"


def test_scan_that_was_done_under_another_name_is_pointed_out(done, capsys):
    (done / "siteA").mkdir()
    (done / "siteB").mkdir()
    (done / "anna.nii.gz").rename(done / "siteA" / "anna.nii.gz")
    brain(5).to_filename(done / "siteB" / "anna.nii.gz")
    run(done)
    assert "anna.nii.gz and siteA_anna.nii.gz" in capsys.readouterr().err


def test_page_shows_what_earlier_calls_did(done):
    run(done / "bob.nii.gz", "--output_dir", str(done.parent / "grid"))
    page = (done.parent / "grid" / "preprocessing.html").read_text()
    assert page.count("<article") == 2


def test_name_that_is_no_text_costs_nobody_the_reports(raw):
    bad = raw / os.fsdecode(b"bad-\xe9.nii.gz")
    bad.write_bytes(b"not a scan")
    assert run(raw) == preprocess.SOME_FAILED
    assert len(table(raw.parent / "grid" / "failures.tsv")) == 2


def test_unwritable_output_is_found_before_the_work(raw):
    (raw.parent / "grid").write_text("a file")
    with pytest.raises(OSError, match="grid: cannot be written to"):
        run(raw)


@pytest.mark.parametrize("lost", [["anna.nii.gz"], ["anna.nii.gz", "anna.png"]])
def test_what_a_kill_leaves_behind_is_done_again(done, lost):
    grid = done.parent / "grid"
    whole = (grid / "anna.nii.gz").read_bytes()
    for name in lost:  # written in the other order
        (grid / name).unlink()
    run(done)
    assert set(messages(done)) == {"carl"}
    assert (grid / "anna.nii.gz").read_bytes() == whole
    assert (grid / "anna.png").is_file()


@pytest.fixture
def fresh_workers():
    """Worker processes of this test's own, in the environment that it sets."""
    get_reusable_executor().shutdown(wait=True)
    yield
    get_reusable_executor().shutdown(wait=True)


# Loaded by a worker as it starts: the scan of bob kills it, as a lack of memory would.
DEADLY = """
import os
from data_preprocessing.pipeline import resample
known = resample.map_scan
def deadly(image, recipe, *, workspace):
    if image.name == "bob.nii.gz":
        os._exit(9)
    return known(image, recipe, workspace=workspace)
resample.map_scan = deadly
"""


def test_killed_worker_loses_no_row(raw, monkeypatch, fresh_workers):
    (raw.parent / "sitecustomize.py").write_text(DEADLY)
    root = Path(preprocess.__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{raw.parent}{os.pathsep}{root}")
    assert run(raw, "--jobs", "2") == preprocess.SOME_FAILED
    assert set(messages(raw)) == {"bob", "carl"}
    assert "its process was killed twice" in messages(raw)["bob"]
    monkeypatch.delenv("PYTHONPATH")
    get_reusable_executor().shutdown(wait=True)
    run(raw, "--jobs", "2")
    assert set(messages(raw)) == {"carl"}


def test_transforms_do_not_look_like_scans(raw, monkeypatch):
    mapped = resample.map_scan

    def with_transform(image, recipe, *, workspace):
        made = mapped(image, recipe, workspace=workspace)
        made.kept["_warp.nii.gz"] = workspace / "warp.nii.gz"
        made.kept["_warp.nii.gz"].write_bytes(b"a warp")
        return made

    monkeypatch.setattr(resample, "map_scan", with_transform)
    run(raw)
    grid = raw.parent / "grid"
    assert not (grid / "transforms").exists()
    run(raw, "--keep_transform")  # made without it before, so made again
    assert (grid / "transforms" / "anna_warp.nii.gz").read_bytes() == b"a warp"
    assert len(find_scans(grid)) == 2


def test_resample_asks_how_the_scans_were_registered(raw):
    with pytest.raises(ValueError, match="say how these scans were registered"):
        preprocess.main([str(raw), "--output_dir", "x", "--backend", "resample"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ("builtin", "deformable", "template")),
        (["--registration", "affine"], ("builtin", "affine", "subject")),
        (["--registration", "affine", "--mask", "template"], ("builtin", "affine", "template")),
        (["--registration", "affine", "--backend", "fsl"], ("fsl", "affine", "template")),
    ],
)
def test_mask_follows_the_registration_unless_given(flags, expected):
    args = preprocess.build_parser().parse_args(["a.nii", "--output_dir", "b", *flags])
    recipe = preprocess.choose_recipe(args)
    assert (recipe.backend, recipe.registration, recipe.mask) == expected


def test_scans_for_a_checkpoint_are_made_as_its_training_scans_were(tmp_path, capsys):
    made = Provenance("affine", "subject", "builtin")
    save_checkpoint(
        Checkpoint(ScaleDense(), InputRule(), provenance=made, summary={}), tmp_path / "net.pt"
    )

    def choose(*flags):
        given = ["a.nii", "--output_dir", "b", "--like", str(tmp_path / "net.pt"), *flags]
        return preprocess.choose_recipe(preprocess.build_parser().parse_args(given))

    recipe = choose()
    assert (recipe.registration, recipe.mask) == ("affine", "subject")
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="registration deformable, not affine"):
        choose("--registration", "deformable")
    choose("--backend", "resample", "--registration", "affine")
    assert "trained on scans of --backend builtin" in capsys.readouterr().out


@pytest.mark.engines
def test_a_dicom_series_keeps_age_and_sex_and_no_name_and_its_errors_name_its_folder(tmp_path):
    raw = tmp_path / "raw"
    patient = {"PatientAge": "018M", "PatientSex": "F", "PatientBirthDate": "20140102"}
    write_series(brain(), raw / "good", PatientName="Doe^Jane", form="implicit", **patient)
    blank = nibabel.Nifti1Image(np.ones((20, 20, 3), np.float32), np.diag([1.0, 1, 1, 1]))
    write_series(blank, raw / "small", PatientName="Doe^Jane")
    assert run(raw) == preprocess.SOME_FAILED
    grid = raw.parent / "grid"
    text = (grid / "good.json").read_text()
    record = json.loads(text)
    assert (record["age"], record["sex"]) == (1.5, "F")
    assert "Doe" not in text
    assert "20140102" not in text
    (failure,) = table(grid / "failures.tsv")
    assert failure["message"].startswith(f"{raw / 'small'}: voxels of 1x1x1 mm")
    assert "tsan-" not in failure["message"]
