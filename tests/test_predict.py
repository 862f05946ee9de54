"""predict.py from scans to table, records and exit codes, on generated brains."""

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import brain, write_scan
from synthetic_head import make_head, rotation

import predict
import test
from data_preprocessing import builtin
from model.scaledense import ScaleDense
from model.tsan import TSAN, SecondStage
from utils.checkpoint import save_checkpoint
from utils.predictor import Predictor
from utils.sidecars import Preprocessing
from utils.template import load_template
from utils.volumes import GRID_AFFINE, GRID_SHAPE, Preparation, find_scans

ROOT = Path(__file__).parent.parent
engines = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in builtin.ENGINES),
    reason="requirements-preprocessing.txt is not installed",
)


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of both stages for cropped scans at 4 mm, which take little time; not trained."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    first = ScaleDense("compact", mean_age=50.0, age_spread=20.0).eval()
    models = {"first": first, "second": TSAN(first, SecondStage("compact")).eval()}
    for stage, model in models.items():
        save_checkpoint(
            folder / f"{stage}.pt",
            model,
            preparation=Preparation(4, crop=True),
            preprocessing=Preprocessing("affine", "subject"),
            summary={"training_ages": [0.0, 120.0]},
        )
    return {stage: folder / f"{stage}.pt" for stage in models}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Starting a worker takes longer than what it does here."""
    monkeypatch.setattr("prediction.records.jobs_that_fit", lambda asked, scans: 1)


def table_of(folder):
    with (folder / "predictions.tsv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def run(networks, output, *inputs, flags=()):
    network = ("--model_name", str(networks["second"]), "--device", "cpu", "--no-report")
    return predict.main([*map(str, inputs), "--output_dir", str(output), *network, *flags])


@pytest.fixture
def scans(grid_cohort, tmp_path):
    """A folder of three scans on the grid, and its label sheet."""
    folder = tmp_path / "scans"
    shutil.copytree(grid_cohort / "test", folder)
    shutil.copy(grid_cohort / "labels.csv", tmp_path / "labels.csv")
    return folder


def test_ages_are_those_of_test_py_and_every_scan_has_a_row_and_a_record(networks, scans, tmp_path):
    labels = str(tmp_path / "labels.csv")
    assert run(networks, tmp_path / "out", scans, flags=("--labels", labels, "--csv")) == 0
    test.main(
        [
            *("--test_folder", str(scans), "--labels", labels, "--device", "cpu"),
            *("--output_dir", str(tmp_path / "test"), "--model_name", str(networks["second"])),
        ]
    )
    with (tmp_path / "test" / "predictions.csv").open() as file:
        expected = list(csv.DictReader(file))
    rows = table_of(tmp_path / "out")
    assert [row["participant_id"] for row in rows] == [row["participant_id"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["status"] == "ok"
        assert row["sex"] == other["sex"]
        for name in ("age", "stage_one_age", "predicted_age", "brain_pad"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=0.011), name
        record = tmp_path / "out" / "scans" / f"{row['participant_id']}_brainage.json"
        found = json.loads(record.read_text())
        assert found["ages"]["predicted_age"] == pytest.approx(
            float(row["predicted_age"]), abs=0.006
        )
        assert (tmp_path / "out" / found["picture"]).is_file()
    assert (tmp_path / "out" / "predictions.csv").is_file()


def test_a_bad_scan_costs_its_own_row_alone_and_is_done_again_when_mended(
    networks, scans, tmp_path, monkeypatch
):
    first, second, third = find_scans(scans)
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    assert run(networks, tmp_path / "out", scans) == 3
    rows = table_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert str(second) in rows[1]["message"]
    assert rows[1]["predicted_age"] == rows[1]["qc_flag"] == "n/a"

    second.write_bytes(whole)
    asked = []
    original = Predictor.predict

    def noted(self, path, **options):
        asked.append(path)
        return original(self, path, **options)

    monkeypatch.setattr(Predictor, "predict", noted)
    assert run(networks, tmp_path / "out", scans) == 0
    assert asked == [second]
    again = table_of(tmp_path / "out")
    assert [row["status"] for row in again] == ["ok"] * 3
    assert [again[0], again[2]] == [rows[0], rows[2]]
    assert run(networks, tmp_path / "out", scans) == 0
    assert asked == [second]
    # Without a sheet the sex is unknown, which the rows say.
    assert all("sex unknown" in row["message"] for row in again)
    assert {first, third} == set(map(Path, (again[0]["scan"], again[2]["scan"])))


def test_another_sex_is_predicted_anew_and_another_age_is_not(
    networks, scans, tmp_path, monkeypatch
):
    sheet = tmp_path / "mine.csv"
    names = [path.name for path in find_scans(scans)]

    def labelled(*lines):
        sheet.write_text(
            "\n".join(f"{name},{line}" for name, line in zip(names, lines, strict=True))
        )
        return ("--labels", str(sheet))

    run(networks, tmp_path / "out", scans, flags=labelled("50,0", "60,1", "70,0"))
    asked = []
    original = Predictor.predict
    monkeypatch.setattr(
        Predictor,
        "predict",
        lambda self, path, **options: asked.append(path) or original(self, path, **options),
    )
    run(networks, tmp_path / "out", scans, flags=labelled("50,1", "61,1", "70,0"))
    assert [path.name for path in asked] == names[:1]
    assert [row["age"] for row in table_of(tmp_path / "out")] == ["50", "61", "70"]


def test_results_of_other_scans_or_networks_are_not_replaced(networks, scans, tmp_path):
    run(networks, tmp_path / "out", scans)
    before = (tmp_path / "out" / "predictions.tsv").read_bytes()
    other = write_scan(tmp_path / "more" / "x.nii.gz", brain(GRID_SHAPE, 40))
    with pytest.raises(FileExistsError, match=r"3 rows of scans that are not in this call"):
        run(networks, tmp_path / "out", other)
    with pytest.raises(ValueError, match=r"of another prediction .*model"):
        run({"second": networks["first"]}, tmp_path / "out", scans)
    changed = find_scans(scans)[0]
    write_scan(changed, brain(GRID_SHAPE, 30, 9))
    with pytest.raises(ValueError, match=r"of another prediction .*source_sha256"):
        run(networks, tmp_path / "out", scans)
    assert (tmp_path / "out" / "predictions.tsv").read_bytes() == before
    assert run({"second": networks["first"]}, tmp_path / "out", scans, flags=("--overwrite",)) == 0
    assert table_of(tmp_path / "out")[0]["model"].startswith("first ")


def test_a_damaged_record_is_named(networks, scans, tmp_path):
    run(networks, tmp_path / "out", scans)
    record = next((tmp_path / "out" / "scans").glob("*_brainage.json"))
    record.write_text("{")
    with pytest.raises(ValueError, match=rf"{record.name}: not a record of a prediction"):
        run(networks, tmp_path / "out", scans)


def test_a_bids_dataset_brings_its_participants_and_gets_derivatives(
    networks, grid_cohort, tmp_path
):
    scan = find_scans(grid_cohort / "test")[0]
    data = tmp_path / "bids"
    for name in ("sub-01/ses-1/anat/sub-01_ses-1_T1w", "sub-01/ses-2/anat/sub-01_ses-2_T1w",
                 "sub-02/anat/sub-02_T1w", "sub-03/anat/sub-03_T1w"):  # fmt: skip
        target = data / f"{name}.nii.gz"
        target.parent.mkdir(parents=True)
        shutil.copy(scan, target)
    (data / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    (data / "participants.tsv").write_text(
        "participant_id\tage\tsex\tsite\nsub-01\t61,5\tfemale\tA\nsub-02\t89+\tM\tB\nsub-03\tn/a\tn/a\tA\n"
    )
    output = tmp_path / "derivatives"
    assert run(networks, output, data) == 0
    rows = table_of(output)
    assert [(row["participant_id"], row["session_id"]) for row in rows] == [
        ("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", "n/a"), ("sub-03", "n/a"),
    ]  # fmt: skip
    assert [row["age"] for row in rows] == ["61.50", "61.50", "n/a", "n/a"]
    assert [row["sex"] for row in rows] == ["F", "F", "M", "n/a"]
    assert [row["site"] for row in rows] == ["A", "A", "B", "A"]
    assert rows[2]["brain_pad"] == "n/a"
    name = "sub-01_ses-2_space-MNI152NLin6Asym_res-2_desc-brain_T1w_brainage.json"
    assert (output / "sub-01" / "ses-2" / "anat" / name).is_file()
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    some = tmp_path / "some"
    assert run(networks, some, data, flags=("--participant_label", "02", "sub-03")) == 0
    assert [row["participant_id"] for row in table_of(some)] == ["sub-02", "sub-03"]


def test_a_twin_of_the_grid_in_other_axis_order_gets_the_same_age(networks, scans, tmp_path):
    (path, *_) = find_scans(scans)
    twin = nibabel.as_closest_canonical(nibabel.load(path))
    assert not np.allclose(twin.affine, GRID_AFFINE)
    (tmp_path / "twin").mkdir()
    nibabel.save(twin, tmp_path / "twin" / "twin.nii.gz")
    assert run(networks, tmp_path / "out", path, tmp_path / "twin") == 0
    ours, theirs = table_of(tmp_path / "out")
    assert ours["predicted_age"] == theirs["predicted_age"]
    assert ours["qc_flag"] == theirs["qc_flag"]


def test_exit_codes_of_a_run_that_fails_and_of_wrong_usage(tmp_path):
    def code(*flags):
        done = subprocess.run(
            [sys.executable, str(ROOT / "predict.py"), *flags],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    status, said = code("nowhere", "--output_dir", "out")
    assert (status, said.count("\n")) == (1, 1)
    assert "error: nowhere: no such file or folder" in said
    assert code("--output_dir", "out")[0] == 2
    assert code("a", "--output_dir", "out", "--contents", "foot")[0] == 2
    assert not (tmp_path / "out").exists()


def test_ages_beyond_those_of_the_training_are_flagged():
    from prediction.records import flag_of_age

    trained = [20.0, 80.0]
    assert not flag_of_age({"age": 80.0, "predicted_age": 95.0}, trained)
    assert (
        "age 81, trained on 20 to 80"
        in flag_of_age({"age": 81.0, "predicted_age": 70.0}, trained)["outside_training_ages"]
    )
    assert (
        "predicted age 12"
        in flag_of_age({"age": None, "predicted_age": 12.0}, trained)["outside_training_ages"]
    )
    assert not flag_of_age({"age": None, "predicted_age": None}, trained)
    assert not flag_of_age({"age": 99.0, "predicted_age": 12.0}, None)


def test_the_report_has_every_scan_with_its_picture_and_its_saliency(networks, scans, tmp_path):
    output = tmp_path / "out"
    flags = ("--report", "--saliency", "--labels", str(tmp_path / "labels.csv"))
    assert run(networks, output, scans, flags=flags) == 0
    page = (output / "report.html").read_text(encoding="utf-8")
    for row in table_of(output):
        assert row["participant_id"] in page
        assert (output / "scans" / f"{row['participant_id']}_saliency.png").is_file()
    assert page.count("data:image/png;base64,") >= 6
    assert "predict.py" in page


@pytest.mark.slow
@engines
def test_heads_brains_and_scans_on_the_grid_go_together(networks, tmp_path):
    make_head().to_filename(tmp_path / "head.nii.gz")
    make_head(stripped=True, placed=rotation(15, 0)).to_filename(tmp_path / "brain.nii.gz")
    template = load_template().brain
    write_scan(tmp_path / "ready.nii.gz", template + 5 * (template > 0))
    output = tmp_path / "out"
    inputs = [tmp_path / f"{name}.nii.gz" for name in ("head", "brain", "ready")]
    assert run(networks, output, *inputs) == 0
    rows = {row["participant_id"]: row for row in table_of(output)}
    records = {
        name: json.loads((output / "scans" / f"{name}_brainage.json").read_text()) for name in rows
    }
    assert {name: record["contents"] for name, record in records.items()} == {
        "brain": "brain", "head": "head", "ready": "grid",
    }  # fmt: skip
    assert {row["qc_flag"] for row in rows.values()} == {"ok"}
    ages = [float(row["predicted_age"]) for row in rows.values()]
    assert np.ptp(ages) < 3  # one brain, in three forms
    made = json.loads((output / "scans" / "head.json").read_text())
    assert made["recipe"] | {"contents": "auto"} == {
        "backend": "builtin", "registration": "affine", "mask": "subject", "contents": "auto",
    }  # fmt: skip
    assert not (output / "scans" / "ready.nii.gz").exists()
