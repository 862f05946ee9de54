import pytest
import torch
from torch.nn import functional

from model.scaledense import ScaleDense
from model.tsan import TSAN, SecondStage, discretize_age


@pytest.mark.parametrize(
    ("age", "step", "rounded"),
    [(0.0, 5, 0), (2.4, 5, 0), (2.5, 5, 5), (7.5, 5, 10), (72.4, 5, 70), (-2.5, 5, 0),
     (64.9, 10, 60), (65.0, 10, 70), (33.4, 1, 33), (33.0, 2, 34)],
)  # fmt: skip
def test_ages_are_rounded_to_the_nearest_step_halves_upward(age, step, rounded):
    assert discretize_age(torch.tensor([[age]]), step).item() == rounded


def test_rounding_has_no_gradient_and_refuses_a_step_that_is_not_positive():
    age = torch.tensor([[41.0]], requires_grad=True)
    assert not discretize_age(age).requires_grad
    with pytest.raises(ValueError, match="positive number of years expected, got 0"):
        discretize_age(age, 0)


def cascade(**options) -> TSAN:
    return TSAN(ScaleDense(mean_age=50), SecondStage(), **options)


def batch(scans: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(scans, 1, 32, 32, 32), torch.arange(scans) % 2


def test_cascade_age_is_the_rounded_first_age_plus_the_residual():
    model = cascade().eval()
    image, sex = batch()
    stages = model.predict(image, sex)
    rough = model.first_stage(image, sex)
    residual = model.second_stage(image, sex, discretize_age(rough))
    assert torch.equal(stages["stage_one_age"], rough)
    assert torch.equal(stages["rounded_age"], discretize_age(rough))
    assert torch.equal(model(image, sex), discretize_age(rough) + residual)
    assert model(image, sex).shape == (3, 1)


def test_first_stage_is_untouched_by_second_stage_training():
    model = cascade(rough_age_noise=3.0)
    before = {name: value.clone() for name, value in model.first_stage.state_dict().items()}
    second = {name: value.clone() for name, value in model.second_stage.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    image, sex = batch()
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        model(image, sex).square().mean().backward()
        optimizer.step()
    after = model.first_stage.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not model.first_stage.training
    changed = model.second_stage.state_dict()
    assert not all(torch.equal(changed[name], second[name]) for name in second)


def test_residual_error_equals_age_error_so_both_stages_share_one_loss():
    model = cascade().eval()
    image, sex = batch()
    age = torch.tensor([[30.0], [60.0], [80.0]])
    stages = model.predict(image, sex)
    residual = stages["predicted_age"] - stages["rounded_age"]
    torch.testing.assert_close(
        functional.mse_loss(stages["predicted_age"], age),
        functional.mse_loss(residual, age - stages["rounded_age"]),
    )


def test_rough_age_noise_acts_in_training_alone():
    model = cascade(rough_age_noise=10.0)
    image, sex = batch(6)
    rounded = model.eval().predict(image, sex)["rounded_age"]
    assert torch.equal(rounded, model.predict(image, sex)["rounded_age"])
    model.train()
    noisy = torch.cat([model.predict(image, sex)["rounded_age"] for _ in range(3)])
    assert noisy.std() > 5
    assert torch.equal(noisy % 5, torch.zeros_like(noisy))


@pytest.mark.parametrize(
    ("width", "size"), [pytest.param("released", 44, marks=pytest.mark.slow), ("compact", 32)]
)
def test_second_stage_starts_at_the_first_stages_age_whatever_the_rounded_age(width, size):
    first, second = ScaleDense(width, mean_age=50).eval(), SecondStage(width).eval()
    first.head[-1].weight.data[0, 3] = 0  # the hidden unit that is given up
    second.start_from(first)
    image, sex = torch.randn(3, 1, size, size, size), torch.tensor([0, 1, 1])
    theirs = first.encoder.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in second.encoder.state_dict().items())
    with torch.inference_mode():
        expected = first(image, sex)
        for rounded in (0.0, 35.0, 90.0):
            rounded_age = torch.full((3, 1), rounded)
            age = rounded_age + second(image, sex, rounded_age)
            torch.testing.assert_close(age, expected, rtol=1e-4, atol=1e-3)


def test_second_stage_starts_only_from_a_network_of_its_kind():
    first = ScaleDense()
    with pytest.raises(ValueError, match=r"use_sex False cannot start from a network"):
        SecondStage(use_sex=False).start_from(first)
    with torch.device("meta"):
        wide = SecondStage("released")
    with pytest.raises(ValueError, match="width released, use_sex True cannot start from"):
        wide.start_from(first)


def test_second_stage_starts_at_a_weighted_mean_of_another_network_and_the_rounded_age():
    other, second = ScaleDense(mean_age=50, age_spread=10).eval(), SecondStage().eval()
    other.head[-1].weight.data[0, 3] = 0  # the hidden unit that is given up
    second.start_from(other, rough_share=0.3)
    image, sex = batch()
    with torch.inference_mode():
        rounded_age = torch.tensor([[20.0], [50.0], [85.0]])
        expected = 0.7 * other(image, sex) + 0.3 * rounded_age
        age = rounded_age + second(image, sex, rounded_age)
    torch.testing.assert_close(age, expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="at least 0 and below 1 expected, got 1"):
        second.start_from(other, rough_share=1)
