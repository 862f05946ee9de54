import json

import numpy as np
import pytest
import torch

import test
from analysis.brain_pad.calibration import read_calibration
from model.scaledense import ScaleDense
from model.tsan import TSAN, SecondStage
from prediction.run import CALIBRATION
from utils.files import hash_file
from utils.networks import share
from utils.networks.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_ensemble,
    save_checkpoint,
    start_from_checkpoint,
)
from utils.networks.predictor import PRETRAINED, SHIPPED, find_checkpoints
from utils.scans.provenance import Provenance
from utils.scans.volumes import InputRule

AFFINE = Provenance("affine", "subject", "builtin")


@pytest.fixture
def checkpoint(tmp_path):
    """A cascade with a state to resume from, as a run leaves it."""
    path = tmp_path / "run.pt"
    torch.manual_seed(1)
    model = TSAN(ScaleDense(mean_age=50), SecondStage())
    save_checkpoint(
        Checkpoint(
            model,
            InputRule(4, crop=True),
            provenance=AFFINE,
            summary={"epoch": 3, "mean_training_age": 47.5, "flags": {"train_folder": "/home/me"}},
            resume={"model": model.state_dict()},
        ),
        path,
    )
    return path


def shipped(checkpoint, output, *flags):
    return share.main(
        ["ship", str(checkpoint), str(output), "--cohort", "C", "--licence", "L", *flags]
    )


def test_a_shipped_network_is_small_and_gives_the_same_ages_to_some_hundredths(
    checkpoint, tmp_path
):
    output = shipped(checkpoint, tmp_path / "give" / "tsan.pt")
    assert output.stat().st_size < 0.51 * checkpoint.stat().st_size
    before, after = load_checkpoint(checkpoint), load_checkpoint(output)
    assert (after.input_rule, after.provenance) == (before.input_rule, AFFINE)
    image, sex = torch.randn(3, 1, 38, 46, 39), torch.tensor([0, 1, 1])
    with torch.inference_mode():
        torch.testing.assert_close(
            after.model(image, sex), before.model(image, sex), atol=0.1, rtol=0
        )
    assert all(value.dtype == torch.float32 for value in after.model.parameters())


def test_the_card_is_in_the_file_and_paths_and_resume_state_are_not(checkpoint, tmp_path):
    metrics = tmp_path / "test.json"
    figure = {"value": 4.0, "low": 3.0, "high": 5.0}
    metrics.write_text(
        json.dumps({"scans": 9, "predicted_age": {"overall": {"n": 9, "mae": figure}}})
    )
    output = shipped(checkpoint, tmp_path / "give" / "tsan.pt", "--metrics", str(metrics))
    content = torch.load(output, weights_only=True)
    assert "resume" not in content
    assert "flags" not in content["summary"]
    card = content["summary"]["card"]
    assert card["cohort"] == "C"
    assert card["licence"] == "L"
    assert card["preprocessing"] == str(AFFINE)
    assert card["metrics"] == {"test": {"predicted_age": {"n": 9, "mae": figure}}}
    assert content["summary"]["mean_training_age"] == 47.5
    sums = (tmp_path / "give" / "SHA256SUMS").read_text()
    assert sums == f"{hash_file(output)}  tsan.pt\n"
    with pytest.raises(FileExistsError, match=r"tsan\.pt"):
        shipped(checkpoint, output)
    shipped(checkpoint, tmp_path / "give" / "another.pt")
    assert len((tmp_path / "give" / "SHA256SUMS").read_text().splitlines()) == 2


def test_a_network_that_the_authors_format_cannot_hold_is_not_exported(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="--width released --intensity authors"):
        share.main(["export", str(checkpoint), str(tmp_path / "out.pth.tar")])


def test_checksums_of_the_networks_kept_here_are_right():
    sums = dict(
        line.split()[::-1] for line in (PRETRAINED / share.CHECKSUMS).read_text().splitlines()
    )
    networks = sorted(PRETRAINED.glob(SHIPPED))
    assert networks
    assert sum(path.stat().st_size for path in networks) < 20e6
    for path in PRETRAINED.glob("*.pt"):
        assert sums[path.name] == hash_file(path), path.name
    assert sums[CALIBRATION.name] == hash_file(CALIBRATION)
    table = hash_file(PRETRAINED.parent / "docs" / "out_of_fold_sites.csv")
    assert read_calibration(CALIBRATION).source["sha256"] == table
    for path in networks:
        card = load_checkpoint(path).summary["card"]
        assert {"cohort", "licence", "metrics", "preprocessing", "commit"} <= set(card)
        assert "OASIS" in card["licence"]


def test_shipped_networks_are_used_where_a_folder_holds_no_result(tmp_path, capsys):
    found = find_checkpoints(tmp_path, None)
    assert found == sorted(PRETRAINED.glob(SHIPPED))
    assert "networks shipped with this program" in capsys.readouterr().out
    (tmp_path / "ScaleDense_best_model.pth.tar").touch()
    assert find_checkpoints(tmp_path, None) == [tmp_path / "ScaleDense_best_model.pth.tar"]
    assert find_checkpoints(tmp_path, ["a.pt"]) == [tmp_path / "a.pt"]


def test_an_ensemble_of_checkpoints_is_tested_as_the_mean_of_them(cohort, trained, tmp_path):
    other = tmp_path / "other.pt"
    loaded = load_checkpoint(trained["second"])
    loaded.model.second_stage.head[-1].bias.data += 4.0
    save_checkpoint(Checkpoint(loaded.model, loaded.input_rule, summary=loaded.summary), other)
    ages = []
    for index, names in enumerate(([trained["second"]], [trained["second"], other])):
        flags = ["--test_folder", str(cohort / "test"), "--output_dir", str(tmp_path / str(index))]
        test.main([*flags, "--device", "cpu", "--model_name", *map(str, names)])
        ages.append(np.load(tmp_path / str(index) / "predictions.npz")["prediction"])
    np.testing.assert_allclose(ages[1], ages[0] + 2, atol=1e-3)
    with pytest.raises(ValueError, match="stage 1"):
        load_ensemble([trained["second"], trained["first"]])


def test_training_starts_from_the_stage_it_trains(checkpoint, tmp_path):
    source = load_checkpoint(checkpoint)
    first, second = ScaleDense(), SecondStage()
    start_from_checkpoint(first, source, source.input_rule)
    start_from_checkpoint(second, source, source.input_rule)
    for ours, theirs in (
        (first, source.model.first_stage),
        (second, source.model.second_stage),
    ):
        expected = theirs.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in ours.state_dict().items())
    with pytest.raises(ValueError, match="trained on scans prepared as"):
        start_from_checkpoint(first, source, InputRule(2))
    with pytest.raises(ValueError, match="use_sex True, but --width and --use_sex say"):
        start_from_checkpoint(ScaleDense(use_sex=False), source, source.input_rule)
    save_checkpoint(Checkpoint(ScaleDense(), source.input_rule, summary={}), tmp_path / "one.pt")
    with pytest.raises(ValueError, match="expects a second stage"):
        start_from_checkpoint(second, load_checkpoint(tmp_path / "one.pt"), source.input_rule)
