import pytest
import torch

from utils.augment import Augmentation


@pytest.fixture
def image():
    return torch.randn(64, 1, 6, 7, 8)


def test_no_augmentation_changes_nothing(image):
    assert torch.equal(Augmentation()(image), image)


def test_flips_mirror_left_and_right_alone_and_about_half_the_scans(image):
    flipped = Augmentation(flip=True)(image)
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(flipped, image, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, image, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 15 < sum(mirrored) < 49


def test_shifts_move_whole_scans_by_whole_voxels_up_to_the_limit(image):
    volume = torch.zeros(64, 1, 9, 9, 9)
    volume[:, 0, 4, 4, 4] = 1
    moved = Augmentation(shift=2)(volume)
    positions = moved.nonzero()[:, 2:] - 4
    assert len(positions) == 64
    assert positions.abs().max() == 2
    assert len(positions.unique(dim=0)) > 20


def test_shifts_repeat_the_edge_so_that_any_background_stays():
    background = torch.full((4, 1, 5, 5, 5), -1.7)
    assert torch.equal(Augmentation(shift=2)(background), background)


def test_intensity_is_one_factor_a_scan(image):
    factors = Augmentation(intensity=0.1)(image) / image
    per_scan = factors.flatten(1)
    torch.testing.assert_close(per_scan, per_scan[:, :1].expand_as(per_scan))
    assert per_scan[:, 0].std().item() == pytest.approx(0.1, rel=0.4)


def test_the_same_seed_draws_the_same_changes(image):
    augment = Augmentation(flip=True, shift=1, intensity=0.1)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment(image))
    assert torch.equal(*results)
