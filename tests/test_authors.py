"""Parity with the authors' released networks: figures, keys and shapes (tests/golden/)."""

from functools import lru_cache

import pytest
import torch
from golden_networks import (
    OUTPUTS,
    STATE_DICT_KEYS,
    authors_state_dict,
    images,
    narrow_state_dict,
    weight,
)

from model.authors import detect_stage, from_authors, to_authors
from model.layers import fuse_for_inference
from model.scaledense import ScaleDense
from model.tsan import SecondStage
from utils.networks.checkpoint import export_to_authors, load_checkpoint

SMALL = min(OUTPUTS, key=lambda case: case["shape"])
CASES = [
    pytest.param(case, marks=[] if case is SMALL else pytest.mark.slow, id=str(case["shape"]))
    for case in OUTPUTS
]


@pytest.fixture(scope="module")
def weights():
    """`authors_state_dict`, which draws the last two networks once: each has 400 MB."""
    return lru_cache(maxsize=2)(authors_state_dict)


def quick_weights(stage: str) -> dict[str, torch.Tensor]:
    """Weights of the published size for tests that look at no age; torch draws them faster."""
    torch.manual_seed(0)
    return {
        key: torch.rand(shape) if len(shape) > 1 else weight(key, shape, 1)
        for key, shape in STATE_DICT_KEYS[stage].items()
    }


def close(values: torch.Tensor, listed: list[float]) -> None:
    torch.testing.assert_close(values, torch.tensor(listed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_first_stage_returns_the_authors_ages(weights, case):
    network = from_authors(weights("first_stage", case["seed"]), use_sex=True)
    seen = {}
    for name, part in (("pooled", network.encoder.backbone), ("before_relu", network.head)):
        part.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))

    with torch.inference_mode():
        age = network(images(case), torch.tensor(case["sex"]))[:, 0]

    close(seen["pooled"][:, :8], case["stage1_pooled_first8"])
    close(seen["pooled"].norm(dim=1), case["stage1_pooled_norm"])
    close(seen["before_relu"][:, 0], case["stage1_before_relu"])
    close(age, case["stage1_age"])


@pytest.mark.slow
def test_first_stage_without_sex_returns_the_authors_ages(weights):
    network = from_authors(weights("first_stage", SMALL["seed"]), use_sex=False)

    with torch.inference_mode():
        age = network(images(SMALL), torch.tensor(SMALL["sex"]))[:, 0]

    close(age, SMALL["stage1_nosex_age"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_second_stage_returns_the_authors_residuals_fused_or_not(weights, case):
    network = from_authors(weights("second_stage", case["seed"]), use_sex=True)
    image, sex = images(case), torch.tensor(case["sex"])
    rough_age = torch.tensor(case["rough_age"])[:, None]

    for form in (network, fuse_for_inference(network)):
        with torch.inference_mode():
            residual = form(image, sex, rough_age)[:, 0]
        close(residual, case["stage2_residual"])
        close(residual + rough_age[:, 0], case["stage2_age"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STATE_DICT_KEYS)
@pytest.mark.parametrize("use_sex", [True, False])
def test_every_listed_key_and_shape_is_written_back(stage, use_sex):
    original = quick_weights(stage)

    exported = to_authors(from_authors(original, use_sex=use_sex))

    assert {key: list(value.shape) for key, value in exported.items()} == STATE_DICT_KEYS[stage]
    unused = "end_fc_without_gender" if use_sex else ("end_fc_with_gender", "male_fc")
    for key, value in exported.items():
        if key.startswith(unused):
            assert not value.any()
        else:
            assert torch.equal(value, original[key])


@pytest.mark.slow
def test_a_file_of_the_published_size_is_read_and_written_back(tmp_path):
    original = quick_weights("first_stage")
    torch.save({"state_dict": {f"module.{k}": v for k, v in original.items()}}, tmp_path / "a.tar")

    export_to_authors(load_checkpoint(tmp_path / "a.tar"), tmp_path / "b.tar")

    exported = torch.load(tmp_path / "b.tar", weights_only=True)["state_dict"]
    assert set(exported) == {f"module.{key}" for key in original}
    for key, value in original.items():
        expected = torch.zeros_like(value) if key.startswith("end_fc_without") else value
        assert torch.equal(exported[f"module.{key}"], expected)


@pytest.mark.parametrize("stage", STATE_DICT_KEYS)
def test_narrow_networks_of_other_tests_have_the_keys_of_the_published_ones(stage):
    assert set(narrow_state_dict(stage, seed=1)) == set(STATE_DICT_KEYS[stage])


@pytest.mark.parametrize(("stage", "number"), [("first_stage", 1), ("second_stage", 2)])
def test_stage_is_recognised_with_and_without_the_module_prefix(stage, number):
    keys = STATE_DICT_KEYS[stage]
    assert detect_stage(dict.fromkeys(keys)) == number
    assert detect_stage({f"module.{key}": None for key in keys}) == number
    assert detect_stage(ScaleDense().state_dict()) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("pre.0.bias"), "pre.0.bias is missing"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra is not a part of it"),
        (
            lambda weights: weights.update({"pre.0.bias": torch.zeros(9)}),
            r"pre.0.bias has shape \(9,\), expected \(8,\)",
        ),
    ],
)
def test_other_keys_or_shapes_are_refused_by_name(change, message):
    weights = {key: torch.zeros(shape) for key, shape in STATE_DICT_KEYS["first_stage"].items()}
    change(weights)
    with pytest.raises(ValueError, match=message):
        from_authors(weights, use_sex=True)


def test_compact_networks_are_not_exported():
    with pytest.raises(ValueError, match="released width only"):
        to_authors(SecondStage("compact"))
