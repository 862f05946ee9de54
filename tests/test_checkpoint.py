import pytest
import torch
from golden_networks import STATE_DICT_KEYS, narrow_state_dict

from model.scaledense import ScaleDense
from model.tsan import TSAN, SecondStage
from utils.networks import share
from utils.networks.checkpoint import (
    AUTHORS_INPUT_RULE,
    AUTHORS_PROVENANCE,
    Checkpoint,
    export_to_authors,
    load_checkpoint,
    load_first_stage,
    save_checkpoint,
)
from utils.scans.provenance import UNKNOWN, Provenance
from utils.scans.volumes import InputRule

FOUR_MM = InputRule(resolution=4, any_grid=True)


def batch():
    return torch.randn(2, 1, 32, 32, 32), torch.tensor([0, 1])


def saved(path, model, input_rule=FOUR_MM, **summary):
    save_checkpoint(Checkpoint(model, input_rule, summary=summary), path)
    return path


@pytest.mark.parametrize("use_sex", [True, False])
def test_first_stage_comes_back_exactly_with_its_preparation(tmp_path, use_sex):
    model = ScaleDense(use_sex=use_sex, mean_age=44).eval()
    loaded = load_checkpoint(saved(tmp_path / "a.pt", model, epoch=3))
    assert loaded.stage == 1
    assert loaded.uses_sex is use_sex
    assert loaded.input_rule == FOUR_MM
    assert loaded.summary == {"epoch": 3}
    assert torch.equal(loaded.model(*batch_of_seed()), model(*batch_of_seed()))


def test_how_the_training_scans_were_made_comes_back(tmp_path):
    affine = Provenance("affine", "subject", "builtin")
    path, model = tmp_path / "a.pt", ScaleDense()
    save_checkpoint(Checkpoint(model, FOUR_MM, provenance=affine, summary={}), path)
    assert load_checkpoint(path).provenance == affine
    save_checkpoint(Checkpoint(model, FOUR_MM, summary={}), path)
    assert load_checkpoint(path).provenance == UNKNOWN


def batch_of_seed():
    torch.manual_seed(1)
    return batch()


def test_second_stage_file_holds_its_first_stage_and_step(tmp_path):
    model = TSAN(ScaleDense(mean_age=60), SecondStage(use_sex=False), age_step=10).eval()
    loaded = load_checkpoint(saved(tmp_path / "b.pt", model))
    assert loaded.stage == 2
    assert loaded.model.age_step == 10
    expected, found = model.predict(*batch_of_seed()), loaded.model.predict(*batch_of_seed())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def authors_file(path, stage, prefix="module."):
    weights = {f"{prefix}{k}": v for k, v in narrow_state_dict(stage, seed=1).items()}
    content = {"epoch": 7, "arch": "ScaleDense", "state_dict": weights, "optimizer": {}}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def authors_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authors")
    return {stage: authors_file(folder / f"{stage}.pth.tar", stage) for stage in STATE_DICT_KEYS}


@pytest.mark.slow
def test_authors_files_are_recognised_with_their_conventions(narrow_released, authors_files):
    first = load_checkpoint(authors_files["first_stage"], use_sex=False)
    assert (first.stage, first.uses_sex) == (1, False)
    assert first.model.final_relu
    assert first.input_rule == AUTHORS_INPUT_RULE
    assert first.provenance == AUTHORS_PROVENANCE
    assert AUTHORS_INPUT_RULE.intensity == "authors"
    second = load_checkpoint(
        authors_files["second_stage"], first_stage_net=authors_files["first_stage"], age_step=2
    )
    assert (second.stage, second.uses_sex, second.model.age_step) == (2, True, 2)
    assert second.model.first_stage.final_relu
    assert second.provenance == Provenance("deformable", "template", "fsl")


@pytest.mark.slow
def test_authors_second_stage_asks_for_the_right_first_stage(
    narrow_released, authors_files, tmp_path
):
    with pytest.raises(ValueError, match="holds no first stage: give --first_stage_net"):
        load_checkpoint(authors_files["second_stage"])
    ours = saved(tmp_path / "ours.pt", ScaleDense())
    with pytest.raises(ValueError, match="use the authors' first stage with it"):
        load_checkpoint(authors_files["second_stage"], first_stage_net=ours)
    affine = Provenance("affine", "template")
    save_checkpoint(
        Checkpoint(ScaleDense(), AUTHORS_INPUT_RULE, provenance=affine, summary={}), ours
    )
    with pytest.raises(ValueError, match=r"registration deformable, not affine as .*ours\.pt"):
        load_checkpoint(authors_files["second_stage"], first_stage_net=ours)
    with pytest.raises(ValueError, match="expects a first-stage checkpoint"):
        load_first_stage(authors_files["second_stage"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STATE_DICT_KEYS)
def test_export_is_read_back_with_the_same_weights(narrow_released, authors_files, tmp_path, stage):
    original = load_checkpoint(authors_files[stage], first_stage_net=authors_files["first_stage"])
    export_to_authors(original, tmp_path / "out.pth.tar")
    content = torch.load(tmp_path / "out.pth.tar", weights_only=True)
    assert set(content) == {"epoch", "arch", "state_dict", "optimizer", "preprocessing"}
    shapes = {k.removeprefix("module."): list(v.shape) for k, v in content["state_dict"].items()}
    assert shapes == {k: list(v.shape) for k, v in narrow_state_dict(stage, seed=1).items()}
    again = load_checkpoint(tmp_path / "out.pth.tar", first_stage_net=authors_files["first_stage"])
    weights = again.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in original.model.state_dict().items())
    with pytest.raises(FileExistsError, match="would be overwritten"):
        export_to_authors(original, tmp_path / "out.pth.tar")


@pytest.mark.slow
def test_exported_files_say_how_their_own_scans_were_made(narrow_released, tmp_path):
    affine = Provenance("affine", "template", "builtin")
    path, model = tmp_path / "a.pt", ScaleDense("released")
    save_checkpoint(Checkpoint(model, AUTHORS_INPUT_RULE, provenance=affine, summary={}), path)
    share.main(["export", str(path), str(tmp_path / "out.pth.tar")])
    assert load_checkpoint(tmp_path / "out.pth.tar").provenance == affine


def test_networks_of_another_intensity_rule_are_not_exported(tmp_path):
    ours = load_checkpoint(saved(tmp_path / "a.pt", ScaleDense(), InputRule()))
    with pytest.raises(ValueError, match=r"a\.pt: .*--width released --intensity authors"):
        export_to_authors(ours, tmp_path / "out.pth.tar")
    assert not (tmp_path / "out.pth.tar").exists()


def test_contradicting_use_of_the_sex_is_refused(tmp_path):
    path = saved(tmp_path / "a.pt", ScaleDense(use_sex=True))
    with pytest.raises(ValueError, match="trained with use_sex True, but --use_sex says False"):
        load_checkpoint(path, use_sex=False)
