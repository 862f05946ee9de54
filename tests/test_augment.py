import pytest
import torch
from scipy import ndimage, stats

from utils.training.augment import AUGMENTATIONS, Augmentation, rotations


@pytest.fixture
def image():
    return torch.randn(64, 1, 6, 7, 8)


def changed(image: torch.Tensor, **options) -> torch.Tensor:
    return Augmentation(**options)(image)


def test_no_augmentation_changes_nothing(image):
    assert torch.equal(changed(image), image)


def test_flips_mirror_left_and_right_alone_and_about_half_the_scans(image):
    flipped = changed(image, flip=True)
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(flipped, image, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, image, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 15 < sum(mirrored) < 49


def test_shifts_move_whole_scans_by_whole_voxels_up_to_the_limit(image):
    volume = torch.zeros(64, 1, 9, 9, 9)
    volume[:, 0, 4, 4, 4] = 1
    moved = changed(volume, shift=2)
    positions = moved.nonzero()[:, 2:] - 4
    assert len(positions) == 64
    assert positions.abs().max() == 2
    assert len(positions.unique(dim=0)) > 20


def test_shifts_repeat_the_edge_so_that_any_background_stays():
    background = torch.full((4, 1, 5, 5, 5), -1.7)
    assert torch.equal(changed(background, shift=2), background)


def test_intensity_is_one_factor_a_scan(image):
    factors = changed(image, intensity=0.1) / image
    per_scan = factors.flatten(1)
    torch.testing.assert_close(per_scan, per_scan[:, :1].expand_as(per_scan))
    assert per_scan[:, 0].std().item() == pytest.approx(0.1, rel=0.4)


def test_rotations_turn_about_one_axis_each_and_keep_lengths():
    for axis in range(3):
        angles = torch.zeros(1, 3)
        angles[0, axis] = torch.pi / 2
        turn = rotations(angles)[0]
        unit = torch.eye(3)[axis]
        torch.testing.assert_close(turn @ unit, unit)
        torch.testing.assert_close(turn @ turn @ turn @ turn, torch.eye(3), atol=1e-6, rtol=0)
    some = rotations(torch.randn(5, 3))
    torch.testing.assert_close(some @ some.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)


def test_turned_scans_are_those_of_scipy(monkeypatch):
    # A volume of unequal sides, turned and scaled by a known matrix about its middle.
    volume = torch.zeros(1, 1, 12, 16, 20)
    volume[0, 0, 3:8, 5:13, 6:15] = torch.rand(5, 8, 9)
    draws = [torch.tensor([[0.9, 0.2, 0.7]]), torch.tensor([[0.1, 0.8, 0.6]])]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws.pop(0))
    result = Augmentation(rotation=20, scale=0.2)(volume)
    angles = torch.deg2rad(20 * torch.tensor([[0.8, -0.6, 0.4]]))
    matrix = rotations(angles)[0] * torch.tensor([1 - 0.16, 1.12, 1.04])
    middle = (torch.tensor(volume.shape[2:]) - 1) / 2
    expected = ndimage.affine_transform(
        volume[0, 0].numpy(), matrix.numpy(), (middle - matrix @ middle).numpy(), order=1
    )
    torch.testing.assert_close(result[0, 0], torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_noise_is_independent_of_the_voxels_and_as_large_as_said(image):
    added = (changed(image, noise=0.3) - image).flatten()
    assert added.std().item() == pytest.approx(0.3, rel=0.05)
    assert abs(stats.pearsonr(added, image.flatten()).statistic) < 0.03


def test_light_changes_what_the_shipped_networks_were_trained_with_and_strong_everything():
    assert AUGMENTATIONS["none"] == Augmentation()
    assert AUGMENTATIONS["light"] == Augmentation(flip=True, shift=8)  # mm
    assert all(vars(AUGMENTATIONS["strong"]).values())


def test_the_same_seed_draws_the_same_changes(image):
    augment = Augmentation(flip=True, shift=1, intensity=0.1, rotation=5, scale=0.1, noise=0.1)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment(image))
    assert torch.equal(*results)
    assert results[0].shape == image.shape
