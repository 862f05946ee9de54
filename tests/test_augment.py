from dataclasses import replace

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


@pytest.fixture
def brains():
    """Random brightness inside a box of each scan, and 0 around it, in the middle of the range."""
    volume = torch.zeros(64, 1, 10, 12, 9)
    volume[:, :, 2:-2, 2:-2, 2:-2] = torch.randn(64, 1, 6, 8, 5)
    return volume


@pytest.mark.parametrize("background", [0.0, -4.0])
@pytest.mark.parametrize("change", ["contrast", "field", "noise"])
def test_what_scanners_differ_in_leaves_the_background_alone(brains, change, background):
    outside = brains == 0
    brains[outside] = background
    result = changed(brains, **{change: 0.5})
    assert torch.equal(result[outside], brains[outside])
    assert not torch.isclose(result[~outside], brains[~outside]).all()


def test_contrast_is_a_rising_curve_for_each_scan_between_its_darkest_and_brightest(brains):
    result = changed(brains, contrast=0.5)
    curves = []
    for before, after in zip(brains.flatten(1), result.flatten(1), strict=True):
        order = before.argsort()
        steps = after[order][before[order] != 0].diff()
        assert (steps >= 0).all()
        torch.testing.assert_close(after.aminmax(), before.aminmax())
        curves.append((after - before).abs().max().item())
    assert len(set(curves)) == 64
    assert 0.2 < sum(curves) / 64 < 2


def test_a_field_is_smooth_and_as_large_as_said():
    flat = torch.ones(64, 1, 20, 24, 22)
    flat[:, :, 0, 0, 0] = 0  # the corner says what is background
    field = changed(flat, field=0.2) - flat
    assert field.std().item() == pytest.approx(0.2 * 0.7, rel=0.25)  # knots are interpolated
    for axis in (2, 3, 4):
        assert field[:, :, 1:, 1:, 1:].diff(dim=axis).abs().max() < 0.15


def test_blur_takes_detail_away_and_keeps_the_mean():
    detail = torch.randn(64, 1, 12, 12, 12)
    blurred = changed(detail, blur=1.0)
    assert (blurred.std((1, 2, 3, 4)) < detail.std((1, 2, 3, 4))).all()
    assert blurred.std() < 0.7 * detail.std()
    inner = (slice(None), slice(None), *(slice(2, -2),) * 3)
    assert abs(blurred[inner].mean() - detail[inner].mean()) < 0.02
    thick = [blurred.diff(dim=axis).square().mean((1, 2, 3, 4)) for axis in (2, 3, 4)]
    assert len(torch.stack(thick).argmin(0).unique()) == 3  # slices of any direction


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


def test_noise_is_independent_of_the_voxels_and_of_another_strength_in_each_scan(image):
    added = (changed(image, noise=0.3) - image).flatten(1)
    strengths = added.std(1)
    assert strengths.max() < 0.35
    assert strengths.mean().item() == pytest.approx(0.15, rel=0.3)
    assert abs(stats.pearsonr(added.flatten(), image.flatten()).statistic) < 0.03


def test_light_changes_what_the_shipped_networks_were_trained_with_and_strong_everything():
    assert AUGMENTATIONS["none"] == Augmentation()
    assert AUGMENTATIONS["light"] == Augmentation(flip=True, shift=8)  # mm
    assert all(vars(AUGMENTATIONS["strong"]).values())


def test_the_same_seed_draws_the_same_changes(image):
    augment = replace(AUGMENTATIONS["strong"], shift=1)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment(image))
    assert torch.equal(*results)
    assert results[0].shape == image.shape
