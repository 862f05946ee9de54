"""Ages of single scans in Python, against test.py's."""

import csv

import numpy as np
import pytest
from conftest import TINY, brain, write_scan

import test
from data_preprocessing.demo.phantom import load_template, make_volume
from utils.networks.checkpoint import load_checkpoint
from utils.networks.execution import choose_execution
from utils.networks.predictor import Predictor, load_pretrained
from utils.scans.volumes import GRID_SHAPE, find_scans


def test_three_lines_give_the_ages_of_test_py(trained, cohort, tmp_path):
    test.main(
        [
            *("--test_folder", str(cohort / "test"), "--labels", str(cohort / "labels.csv")),
            *("--output_dir", str(tmp_path), "--model_name", str(trained["second"])),
            *("--device", "cpu"),
        ]
    )
    with (tmp_path / "predictions.tsv").open() as file:
        rows = {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    predictor = load_pretrained(trained["second"], device="cpu")
    for path in find_scans(cohort / "test"):
        row = rows[path.name.removesuffix(".nii.gz")]
        ages = predictor.predict(path, sex=row["sex"])
        assert ages["predicted_age"] == pytest.approx(float(row["predicted_age"]), abs=0.006)
        assert ages["stage_one_age"] == pytest.approx(float(row["stage_one_age"]), abs=0.006)


def test_an_unknown_sex_is_the_mean_of_both(trained, cohort):
    predictor = Predictor(load_checkpoint(trained["first"]), choose_execution("cpu", "float32"))
    path = find_scans(cohort / "test")[0]
    female, male, unknown = (
        predictor.predict(path, sex=sex)["predicted_age"] for sex in ("female", 1, None)
    )
    assert female != pytest.approx(male, abs=1e-4)
    assert unknown == pytest.approx((female + male) / 2, abs=1e-3)
    with pytest.raises(ValueError, match="sex 'x': F, M or None"):
        predictor.predict(path, sex="x")


def test_the_shipped_networks_take_brains_on_the_grid_alone(tmp_path):
    predictor = load_pretrained(device="cpu")
    rng = np.random.default_rng(0)
    volume, _ = make_volume(load_template(), age=50.0, sex=0, rng=rng)
    path = write_scan(tmp_path / "a.nii.gz", np.asarray(volume, np.float32))
    ages = predictor.predict(path, sex="F")
    assert {"stage_one_age", "predicted_age", "unlikeness"} <= set(ages)
    assert ages["unlikeness"] > 1  # more than the middlemost training scan
    grey = write_scan(tmp_path / "grey.nii.gz", brain(GRID_SHAPE, 50))
    with pytest.raises(ValueError, match="white matter brighter than grey matter expected"):
        predictor.predict(grey)
    off = write_scan(tmp_path / "b.nii.gz", brain(TINY, 50))
    with pytest.raises(ValueError, match=r"b\.nii\.gz: not on the FSL MNI152 2 mm grid"):
        predictor.predict(off)
