from itertools import chain

import pytest
import torch
from conftest import TINY

from utils.scans import volumes
from utils.scans.cohort import open_cohort
from utils.scans.dataset import (
    ScanDataset,
    batch_sizes,
    draw_stratified,
    evaluation_loader,
    open_for_one_pass,
    training_loader,
)
from utils.scans.volumes import InputRule

ANY = InputRule(any_grid=True)


def dataset(seven_scans, **options):
    return ScanDataset(open_cohort(seven_scans, None, ANY), ANY, **options)


def test_seven_scans_in_batches_of_four_come_once_each_in_order(seven_scans):
    batches = list(evaluation_loader(dataset(seven_scans), batch_size=4))
    assert [len(batch["image"]) for batch in batches] == [4, 3]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(7))
    assert batches[0]["image"].shape == (4, 1, *TINY)


@pytest.mark.parametrize(
    ("batch_size", "full_batches", "sizes"),
    [(4, False, [4, 3]), (4, True, [4]), (3, False, [3, 3]), (2, False, [2, 2, 2]), (7, True, [7]),
     (8, False, [7])],
)  # fmt: skip
def test_training_batches_are_never_padded(seven_scans, batch_size, full_batches, sizes):
    # A last scan alone is dropped: it has neither a rank nor batch statistics.
    loader = training_loader(dataset(seven_scans), batch_size=batch_size, full_batches=full_batches)
    batches = [batch["index"].tolist() for batch in loader]
    assert [len(batch) for batch in batches] == sizes
    seen = list(chain.from_iterable(batches))
    assert len(set(seen)) == len(seen)


def test_too_few_scans_for_a_full_batch_is_an_error(seven_scans):
    with pytest.raises(ValueError, match="7 training scans do not fill one batch of 8"):
        training_loader(dataset(seven_scans), batch_size=8, full_batches=True)


def test_dropped_scans_differ_between_epochs(seven_scans):
    loader = training_loader(dataset(seven_scans), batch_size=3, full_batches=True)
    epochs = {
        tuple(sorted(chain.from_iterable(batch["index"].tolist() for batch in loader)))
        for _ in range(6)
    }
    assert len(epochs) > 1


@pytest.mark.parametrize(
    ("scans", "largest", "equal", "sizes"),
    [(7, 4, False, [4, 3]), (164, 16, False, [15] * 10 + [14]), (164, 16, True, [16] * 10),
     (32, 16, True, [16, 16]), (3, 2, False, [2]), (1, 2, False, [1]), (5, 8, False, [5])],
)  # fmt: skip
def test_stratified_batches_are_alike_in_size_and_age(scans, largest, equal, sizes):
    ages = 18 + 75 * torch.rand(scans).square()  # skewed, as cohorts are
    least = min(2, scans)
    assert batch_sizes(scans, largest, least=least, equal=equal, even=True) == sizes
    random_spread = ages.std() / largest**0.5 if scans > 1 else 0
    for _ in range(3):
        drawn = draw_stratified(ages, sizes)
        assert [len(batch) for batch in drawn] == sizes
        seen = list(chain.from_iterable(drawn))
        assert len(set(seen)) == len(seen)
        means = torch.stack([ages[batch].mean() for batch in drawn])
        assert len(sizes) < 5 or means.std() < random_spread / 3


def test_stratified_batches_are_drawn_anew_and_leave_out_and_shorten_any_age():
    ages, sizes = torch.arange(11.0), [3, 3, 2]
    epochs = [draw_stratified(ages, sizes) for _ in range(300)]
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) > 290
    # Nobody is left out more often than others, stands at a place, or is in small batches alone.
    left_out = torch.zeros(11)
    first, small = torch.zeros(11), torch.zeros(11)
    for epoch in epochs:
        seen = set(chain.from_iterable(epoch))
        left_out += torch.tensor([float(scan not in seen) for scan in range(11)])
        first[epoch[0][0]] += 1
        small[epoch[-1]] += 1
    assert (left_out / 300 - 3 / 11).abs().max() < 0.12
    assert (first / 300 - 1 / 11).abs().max() < 0.08
    assert (small / 300 - 2 / 11).abs().max() < 0.11


def test_a_batch_holds_its_scans_in_the_order_asked_for(seven_scans):
    scans = dataset(seven_scans)
    batch = scans[[3, 1, 6]]
    assert batch["image"].shape == (3, 1, *TINY)
    assert batch["age"].shape == (3, 1)
    assert batch["index"].tolist() == [3, 1, 6]
    for place, index in enumerate((3, 1, 6)):
        assert torch.equal(scans[[index]]["image"][0], batch["image"][place])


def test_a_cohort_for_one_reading_is_decoded_once_if_small_and_checked_if_large(
    seven_scans, monkeypatch
):
    scans = open_cohort(seven_scans, None, ANY)
    decoded = []
    decode = volumes.decode
    monkeypatch.setattr(
        volumes, "decode", lambda path, **grid: decoded.append(1) or decode(path, **grid)
    )
    small = open_for_one_pass(scans, ANY)[[0, 6]]
    assert len(decoded) == 7
    monkeypatch.setattr("utils.scans.dataset.MEMORY_FOR_ONE_PASS", 0)
    large = open_for_one_pass(scans, ANY)[[0, 6]]
    assert len(decoded) == 7 + 7 + 2
    assert torch.equal(small["image"], large["image"])
