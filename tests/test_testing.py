"""test.py from flags to files."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import brain, linked_cohort, write_scan, write_sidecars
from golden_networks import narrow_state_dict

import test
from model.authors import from_authors
from model.tsan import TSAN
from utils.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from utils.scans.provenance import Provenance
from utils.scans.volumes import GRID_SHAPE, z_score

RESULTS = {
    "predictions.tsv", "predictions.json", "metrics.json", "predictions.npz", "scatter.png",
}  # fmt: skip


def rows(folder) -> list[dict]:
    with (folder / "predictions.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def run(cohort, checkpoint, folder, *flags, labels=True):
    sheet = ["--labels", str(cohort / "labels.csv")] if labels else []
    return test.main(
        [
            *("--test_folder", str(cohort / "test"), "--output_dir", str(folder)),
            *("--model_name", str(checkpoint), "--device", "cpu", "--num_workers", "0"),
            *(*sheet, *flags),
        ]
    )


@pytest.fixture(scope="module")
def tested(cohort, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tested")
    report = run(cohort, trained["second"], folder, "--batch_size", "4")
    return folder, report


def test_all_results_are_written(tested):
    folder, _ = tested
    assert {path.name for path in folder.iterdir()} == RESULTS
    assert (folder / "scatter.png").read_bytes().startswith(b"\x89PNG")


def test_table_has_every_scan_once_in_file_order_with_its_own_figures(tested, cohort):
    folder, _ = tested
    table = rows(folder)
    columns = [
        "participant_id",
        "sex",
        "age",
        "stage_one_age",
        "predicted_age",
        "brain_pad",
        "model",
    ]
    assert list(table[0]) == columns
    assert list(json.loads((folder / "predictions.json").read_text())) == columns
    assert [row["participant_id"] for row in table] == [f"test-{i}" for i in range(1, 8)]
    labels = dict(
        line.split(".nii.gz,") for line in (cohort / "labels.csv").read_text().splitlines()
    )
    for row in table:
        age, sex = labels[row["participant_id"]].split(",")
        assert float(row["age"]) == float(age)
        assert row["sex"] == "FM"[int(sex)]
        pad = float(row["predicted_age"]) - float(row["age"])
        assert float(row["brain_pad"]) == pytest.approx(pad, abs=0.011)


def test_figures_cover_all_groups_and_both_stages_beside_the_mean_age(tested):
    folder, report = tested
    assert json.loads((folder / "metrics.json").read_text()) == report
    table = rows(folder)
    age = np.array([float(row["age"]) for row in table])
    for predictor, column in (("predicted_age", "predicted_age"), ("stage_one_age",) * 2):
        overall = report[predictor]["overall"]
        error = np.abs(np.array([float(row[column]) for row in table]) - age).mean()
        assert overall["mae"]["value"] == pytest.approx(error, abs=0.01)
        assert overall["mae"]["low"] <= overall["mae"]["value"] <= overall["mae"]["high"]
        assert overall["n"] == 7
        assert report[predictor]["sex F"]["n"] + report[predictor]["sex M"]["n"] == 7
        assert sum(v["n"] for k, v in report[predictor].items() if k.startswith("age ")) == 7
    assert "mean_training_age" in report
    difference = report["mae_stage_two_minus_stage_one"]["value"]
    both = [report[name]["overall"]["mae"]["value"] for name in ("predicted_age", "stage_one_age")]
    assert difference == pytest.approx(both[0] - both[1])


def test_arrays_are_those_of_the_authors(tested):
    arrays = np.load(tested[0] / "predictions.npz")
    table = rows(tested[0])
    assert set(arrays) == {"target", "prediction", "ID"}
    assert arrays["ID"].tolist() == [f"{row['participant_id']}.nii.gz" for row in table]
    np.testing.assert_allclose(arrays["target"], [float(row["age"]) for row in table])
    predicted = [float(row["predicted_age"]) for row in table]
    np.testing.assert_allclose(arrays["prediction"], predicted, atol=0.006)


def test_fused_and_plain_networks_and_any_batch_size_give_one_table(
    tested, cohort, trained, tmp_path
):
    run(cohort, trained["second"], tmp_path, "--batch_size", "1", "--no-fuse")
    for one, other in zip(rows(tmp_path), rows(tested[0]), strict=True):
        assert one["participant_id"] == other["participant_id"]
        for column in ("stage_one_age", "predicted_age"):
            assert float(one[column]) == pytest.approx(float(other[column]), abs=0.02)


def test_without_labels_ages_are_predicted_all_the_same(cohort, trained, tmp_path, capsys):
    report = run(cohort, trained["first"], tmp_path, labels=False)
    assert (report["scans"], report["scans_with_age"]) == (7, 0)
    assert "predicted_age" not in report
    assert {path.name for path in tmp_path.iterdir()} == RESULTS - {"scatter.png"}
    for row in rows(tmp_path):
        assert row["age"] == row["sex"] == row["brain_pad"] == "n/a"
        assert float(row["predicted_age"]) == float(row["stage_one_age"])
    assert np.isnan(np.load(tmp_path / "predictions.npz")["target"]).all()
    assert "7 scans of unknown sex get the mean" in capsys.readouterr().out


def test_scans_made_in_another_way_than_the_training_scans_are_warned_of_once(
    cohort, trained, tmp_path, capsys
):
    loaded = load_checkpoint(trained["first"])
    save_checkpoint(
        Checkpoint(
            loaded.model,
            loaded.input_rule,
            provenance=Provenance("affine", "template", "builtin"),
            summary={},
        ),
        tmp_path / "affine.pt",
    )
    folder = linked_cohort(cohort, tmp_path / "cohort")
    write_sidecars(folder / "test", "deformable")
    run(folder, tmp_path / "affine.pt", tmp_path / "out")
    out = capsys.readouterr().out
    assert "training scans: registration affine, mask template, backend builtin" in out
    assert out.count("warning") == 1
    assert f"warning: 7 scans, the first {folder}/test/test-1.nii.gz, were" in out
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())["preprocessing"]
    assert written["checkpoint"]["registration"] == "affine"
    assert written["scans_that_differ"] == 7
    assert written["differences"] == ["registration deformable, not affine"]


def test_unknown_ages_are_left_out_of_the_figures_alone(cohort, trained, tmp_path):
    sheet = tmp_path / "sheet.csv"
    lines = (cohort / "labels.csv").read_text().splitlines()
    sheet.write_text("\n".join("test-3.nii.gz,89+,1" if "test-3" in s else s for s in lines))
    report = run(cohort, trained["first"], tmp_path / "out", "--labels", str(sheet))
    assert (report["scans"], report["scans_with_age"]) == (7, 6)
    assert rows(tmp_path / "out")[2]["age"] == "n/a"


def test_results_are_overwritten_only_on_request(cohort, trained, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"metrics\.json would be overwritten"):
        run(cohort, trained["first"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    run(cohort, trained["first"], tmp_path, "--overwrite")
    assert json.loads((tmp_path / "metrics.json").read_text())["scans"] == 7


def test_checkpoint_is_found_in_the_output_folder_as_published(cohort, trained, capsys):
    folder = trained["first"].parent
    test.main(
        [
            *("--test_folder", str(cohort / "test"), "--output_dir", f"{folder}/"),
            *("--model_name", trained["first"].name, "--excel_path", str(cohort / "labels.csv")),
            *("--sorter", "old.pth.tar", "--num_workers", "0", "--npz_name", "old.npz"),
        ]
    )
    assert (folder / "old.npz").is_file()
    assert "note: --sorter accepted and unused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plot_name", "plot"], r"--plot_name plot: \.png, \.pdf, \.svg, \.jpg expected"),
        (["--npz_name", "metrics.json"], "five different result files expected"),
    ],
)
def test_unusable_result_names_are_refused_before_any_work(
    cohort, trained, tmp_path, flags, message
):
    with pytest.raises(ValueError, match=message):
        run(cohort, trained["first"], tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_missing_checkpoint_and_scans_are_named(cohort, trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth\.tar: no such checkpoint"):
        run(cohort, "none.pth.tar", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder of scans"):
        run(cohort, trained["first"], tmp_path, "--test_folder", str(tmp_path / "none"))


@pytest.mark.slow
def test_the_authors_files_give_the_authors_ages(narrow_released, tmp_path):
    """Both published files through the published flags, on scans prepared by the authors' rule."""
    volumes = [brain(GRID_SHAPE, age, seed) for seed, age in enumerate((30, 80))]
    for name, volume in zip("ab", volumes, strict=True):
        write_scan(tmp_path / "test" / f"{name}.nii.gz", volume)
    (tmp_path / "sheet.csv").write_text("a.nii.gz,30,0\nb.nii.gz,80,1\n")
    names = {"first_stage": "ScaleDense_best_model.pth.tar", "second_stage": "second.pth.tar"}
    networks = {}
    for stage, name in names.items():
        state_dict = narrow_state_dict(stage, seed=3)
        torch.save({"state_dict": {f"module.{k}": v for k, v in state_dict.items()}},
                   tmp_path / name)  # fmt: skip
        networks[stage] = from_authors(state_dict, use_sex=True)
    flags = [
        *("--test_folder", str(tmp_path / "test"), "--excel_path", str(tmp_path / "sheet.csv")),
        *("--output_dir", f"{tmp_path}/", "--num_workers", "0", "--overwrite"),
    ]
    test.main([*flags, "--model_name", names["first_stage"]])
    first = [float(row["predicted_age"]) for row in rows(tmp_path)]
    cascade_flags = ["--model_name", names["second_stage"], "--first_stage_net"]
    test.main([*flags, *cascade_flags, str(tmp_path / names["first_stage"])])
    second = rows(tmp_path)

    image = torch.from_numpy(np.stack([z_score(v, "authors") for v in volumes])[:, None])
    cascade = TSAN(networks["first_stage"], networks["second_stage"]).eval()
    with torch.inference_mode():
        expected = cascade.predict(image, torch.tensor([0, 1]))
    assert (expected["stage_one_age"] > 1).all()  # the closing ReLU leaves something to compare
    np.testing.assert_allclose(first, expected["stage_one_age"][:, 0], atol=0.011)
    for column in ("stage_one_age", "predicted_age"):
        found = [float(row[column]) for row in second]
        np.testing.assert_allclose(found, expected[column][:, 0], atol=0.011)


def test_second_stage_takes_the_width_of_the_authors_first_stage_by_default(
    narrow_released, tmp_path
):
    from utils.networks.checkpoint import AUTHORS_INPUT_RULE, load_first_stage
    from utils.training.options import parse_second_stage
    from utils.training.run import build_second_stage

    path = tmp_path / "first.pth.tar"
    torch.save({"state_dict": narrow_state_dict("first_stage", seed=1)}, path)
    flags = ["--train_folder", "a", "--val_folder", "b", "--labels", "c", "--output_dir", "d"]
    args = parse_second_stage([*flags, "--first_stage_net", str(path)])
    model, _ = build_second_stage(args, [], AUTHORS_INPUT_RULE, load_first_stage(path))
    assert model.second_stage.encoder.width == "released"


@pytest.mark.slow
def test_second_stage_trains_on_the_authors_first_stage(narrow_released, grid_cohort, tmp_path):
    import train_second_stage
    from utils.networks.checkpoint import AUTHORS_INPUT_RULE, load_checkpoint

    weights = narrow_state_dict("first_stage", seed=1)
    torch.save({"state_dict": weights}, tmp_path / "first.pth.tar")
    best = train_second_stage.main(
        [
            *("--train_folder", str(grid_cohort / "train"), "--valid_folder"),
            *(str(grid_cohort / "val"), "--excel_path", str(grid_cohort / "labels.csv")),
            *("--first_stage_net", str(tmp_path / "first.pth.tar"), "--output_dir"),
            *(str(tmp_path / "out"), "--epochs", "1", "--batch_size", "3", "--rough_share", "0"),
            *("--rough_age_noise", "0", "--width", "compact"),
        ]
    )
    checkpoint = load_checkpoint(best)
    assert checkpoint.input_rule == AUTHORS_INPUT_RULE
    assert checkpoint.model.first_stage.final_relu
    assert checkpoint.model.first_stage.encoder.width == "released"
    assert checkpoint.model.second_stage.encoder.width == "compact"
