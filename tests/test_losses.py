import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from model.losses import AgeLoss, pair_loss, sodeep_ranks, soft_ranks
from model.sorter import Sorter
from utils.training.sorter import load_shipped_sorter


def scipy_ranks(values: torch.Tensor) -> np.ndarray:
    """1/N for the largest, 1 for the smallest, ties averaged."""
    return rankdata(-values.numpy()) / len(values)


def test_soft_ranks_approach_scipys_when_ages_are_far_apart():
    ages = torch.randperm(20).double() * 50
    np.testing.assert_allclose(soft_ranks(ages, tau=1.0).numpy(), scipy_ranks(ages), atol=1e-9)


def test_soft_ranks_average_ties_exactly():
    ages = torch.tensor([20.0, 400.0, 20.0, 400.0, 400.0])
    np.testing.assert_allclose(soft_ranks(ages, tau=1.0).numpy(), scipy_ranks(ages), atol=1e-6)


def test_soft_ranks_follow_a_permutation_of_the_ages():
    ages, order = torch.rand(9) * 70 + 20, torch.randperm(9)
    torch.testing.assert_close(soft_ranks(ages)[order], soft_ranks(ages[order]))


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_every_scan_has_a_rank_gradient_at_batch_32(tau):
    ages = torch.linspace(18, 95, 32)[torch.randperm(32)]
    slopes = torch.func.jacrev(lambda values: soft_ranks(values, tau))(ages).diagonal()
    assert (slopes < -1e-3).all()


def test_pair_loss_is_the_mean_over_all_explicit_pairs():
    predicted, age = torch.rand(7).double() * 90, torch.rand(7).double() * 90
    between = (predicted[:, None] - predicted) - (age[:, None] - age)  # of all pairs
    assert pair_loss(predicted - age).item() == pytest.approx(between.square().mean().item())


def test_random_pairs_have_the_same_expected_value():
    error = torch.randn(32) * 6
    drawn = torch.stack([pair_loss(error, pairs="random") for _ in range(4000)])
    assert drawn.mean().item() == pytest.approx(pair_loss(error).item(), rel=0.05)
    assert drawn.std() > 0


def test_published_weights_weigh_the_spread_of_errors_21_times_their_mean():
    age = torch.rand(16, 1) * 70 + 20
    error = torch.randn(16, 1)
    terms = AgeLoss(rank_weight=10, pair_weight=1)(age + error, age)
    without_ranks = terms["total"] - 10 * terms["rank"]
    expected = error.mean() ** 2 + 21 * error.var(correction=0)
    torch.testing.assert_close(without_ranks, expected, rtol=1e-4, atol=1e-4)


def test_total_is_the_weighted_sum_of_the_named_terms():
    predicted, age = torch.rand(8, 1) * 70, torch.rand(8, 1) * 70
    terms = AgeLoss(rank_weight=3, pair_weight=0.5)(predicted, age)
    assert set(terms) == {"total", "mse", "rank", "pair"}
    expected = terms["mse"] + 3 * (terms["rank"] + 0.5 * terms["pair"])
    torch.testing.assert_close(terms["total"], expected)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"rank_weight": 0}, {"total", "mse"}),
        ({"loss": "mae", "rank_weight": 0}, {"total", "mae"}),
        ({"pair_weight": 0}, {"total", "mse", "rank"}),
        ({"aux_loss": "mae"}, {"total", "mse", "aux_mae"}),
        ({"loss": "mae", "aux_loss": "mse"}, {"total", "mae", "aux_mse"}),
    ],
)
def test_terms_that_weigh_nothing_are_left_out(options, names):
    assert set(AgeLoss(**options)(torch.ones(4, 1), torch.ones(4, 1))) == names


def test_perfect_ages_far_apart_cost_nothing():
    age = torch.tensor([[20.0], [90.0], [55.0]])
    terms = AgeLoss(tau=1.0)(age.clone(), age)
    assert all(value.item() == pytest.approx(0, abs=1e-6) for value in terms.values())


def test_equal_true_ages_ask_for_equal_ranks():
    age = torch.tensor([[50.0], [50.0], [90.0]])
    tied = AgeLoss(rank_weight=1, pair_weight=0, tau=0.1)
    split = tied(torch.tensor([[49.0], [51.0], [90.0]]), age)["rank"]
    together = tied(torch.tensor([[51.0], [51.0], [90.0]]), age)["rank"]
    assert together < 1e-6 < split


@pytest.mark.parametrize("sodeep", [True, False])
def test_gradients_reach_predictions_never_the_sorter(sodeep):
    sorter = load_shipped_sorter(8) if sodeep else None
    loss = AgeLoss(sorter=sorter)
    predicted = (torch.rand(8, 1) * 70 + 20).requires_grad_()
    loss(predicted, torch.rand(8, 1) * 70 + 20)["total"].backward()
    assert (predicted.grad != 0).all()
    assert not list(loss.parameters()) or all(p.grad is None for p in loss.parameters())
    assert not any(p.requires_grad for p in loss.parameters())


def test_sorter_stays_in_train_mode_for_cudnn():
    loss = AgeLoss(sorter=Sorter("lstm", 8))
    assert loss.eval().sorter.training


def test_sorter_ranks_ages_only_because_they_are_standardised():
    sorter = load_shipped_sorter(32)
    ages = torch.rand(32) * 70 + 20
    expected = scipy_ranks(ages)
    with torch.inference_mode():
        standardised, raw = sodeep_ranks(ages, sorter), sorter(ages[None])[0]
    assert np.corrcoef(standardised.numpy(), expected)[0, 1] > 0.98
    assert np.corrcoef(raw.numpy(), expected)[0, 1] < 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "huber"}, "loss: one of mse, mae expected, got 'huber'"),
        ({"aux_loss": "rank"}, "aux_loss: one of ranking, mse, mae expected"),
        ({"pairs": "some"}, "pairs: one of all, random expected"),
        ({"rank_weight": -1}, "weights below 0"),
        ({"tau": 0}, "positive number of years expected, got 0"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AgeLoss(**options)(torch.ones(3), torch.ones(3))
