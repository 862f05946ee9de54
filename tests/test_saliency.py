"""Maps of networks of which it is known what they look at."""

import csv
import itertools
import json

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from analysis.saliency import __main__ as saliency
from analysis.saliency.attribution import Occlusion, SmoothGrad, predict_ages, with_random_weights
from analysis.saliency.map_picture import PLANES, draw_map, plane
from analysis.saliency.maps import (
    MeanMaps,
    average_maps,
    input_affine,
    rank_correlation,
    save_map,
    to_grid,
)
from analysis.saliency.regions import grid_coordinates
from analysis.saliency.run import MAX_RANDOM_CORRELATION, build_method
from model.scaledense import ScaleDense
from model.tsan import TSAN, SecondStage
from tests.conftest import TINY, write_scan
from utils.networks.checkpoint import Checkpoint, save_checkpoint
from utils.networks.execution import choose_execution
from utils.scans.cohort import open_cohort
from utils.scans.dataset import open_for_one_pass
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, InputRule, decode, reduce_volume

INPUT_RULES = [InputRule(resolution, crop=crop) for resolution in (2, 4) for crop in (False, True)]
PLANTED = (30.0, -40.0, 20.0)  # MNI152 mm: right, back, up
SMALL = (7, 6, 5)


class Weighted(nn.Module):
    """An age that is linear in the voxels."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, image, sex):
        return 40 + (image * self.weight).sum(dim=(2, 3, 4)) + 10 * sex[:, None]


class Bright(nn.Module):
    """An age from the brightest voxels alone; and one that is not linear."""

    def forward(self, image, sex):
        return torch.relu(image - 3).sum(dim=(2, 3, 4)) ** 2 / 100


def image_of(shape, seed: int = 0) -> torch.Tensor:
    """(1, 1, *shape) z-scores with a background of 0 around the brain."""
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    inside = torch.zeros_like(image, dtype=torch.bool)
    inside[:, :, 1:-1, 1:-1, 1:-1] = True
    return torch.where(inside, image, 0.0)


@pytest.fixture
def network() -> ScaleDense:
    return ScaleDense("compact", mean_age=50, age_spread=20).eval()


def test_smoothgrad_of_a_linear_network_is_its_weights():
    weight, image = torch.randn(SMALL), image_of(SMALL)
    model = Weighted(weight)

    found = SmoothGrad(copies=5)(model, image, 0)
    torch.testing.assert_close(found, weight.abs())
    found = SmoothGrad(copies=5, times_input=True)(model, image, 1)
    torch.testing.assert_close(found, weight * image[0, 0])


def test_noise_changes_the_brain_alone_and_comes_from_the_seed():
    seen = []

    class Recorder(Weighted):
        def forward(self, image, sex):
            seen.append(image.detach())
            return super().forward(image, sex)

    image = image_of(SMALL)
    model = Recorder(torch.ones(SMALL))
    for seed in (0, 0, 1):
        SmoothGrad(copies=2, seed=seed)(model, image, 0)

    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0][0], seen[0][1])
    assert (seen[0][(image == 0).expand(2, -1, -1, -1, -1)] == 0).all()


def test_occlusion_is_the_mean_over_all_cubes_that_hold_a_voxel():
    image, side, stride = image_of(SMALL) * 3, 3, 2

    class Curved(nn.Module):
        def forward(self, image, sex):
            return (image**2 * torch.arange(5)).sum(dim=(2, 3, 4)) + image.mean(dim=(2, 3, 4))

    model = Curved()
    changes = {}
    starts = [[0, 2, 4], [0, 2, 3], [0, 2]]
    for corner in itertools.product(*starts):
        hidden = image.clone()
        for place in itertools.product(*(range(at, at + side) for at in corner)):
            hidden[(0, 0, *place)] = 0
        change = (model(hidden, None) - model(image, None)).item()
        for place in itertools.product(*(range(at, at + side) for at in corner)):
            changes.setdefault(place, []).append(change)
    expected = torch.zeros(SMALL)
    for place, values in changes.items():
        expected[place] = sum(values) / len(values)

    found = Occlusion(side, stride)(model, image, 0)
    assert len(changes) == np.prod(SMALL)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_occlusion_leaves_the_background_as_it_is():
    image = torch.where(image_of(SMALL) == 0, -5.0, image_of(SMALL))  # the authors' rule
    weight = torch.ones(SMALL)
    weight[image[0, 0] != -5] = 0  # looks at the background alone
    assert not Occlusion(3, 1)(Weighted(weight), image, 0).any()


def test_the_size_of_batches_changes_nothing(network):
    image = image_of(TINY)
    for alone, together in (
        (SmoothGrad(copies=2, batch_size=1), SmoothGrad(copies=2, batch_size=2)),
        (Occlusion(20, 20, batch_size=1), Occlusion(20, 20, batch_size=3)),
    ):
        one, other = alone(network, image, 0), together(network, image, 0)
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * one.abs().max().item())


def test_an_unknown_sex_means_the_mean_of_both():
    model, image = Weighted(torch.ones(SMALL)), image_of(SMALL)
    ages = [predict_ages(model, image, sex) for sex in (0, 1, None)]
    torch.testing.assert_close(ages[2], (ages[0] + ages[1]) / 2)


def test_gradients_of_a_cascade_are_those_of_its_residual(network):
    model, image = TSAN(network, SecondStage("compact")).eval(), image_of(TINY)
    sex = torch.tensor([1])
    rounded_age = model.predict(image, sex)["rounded_age"]
    leaf = image.clone().requires_grad_()
    model.second_stage(leaf, sex, rounded_age).sum().backward()

    found = SmoothGrad(copies=1, noise=0)(model, image, 1)
    torch.testing.assert_close(found, leaf.grad[0, 0].abs())


def test_occlusion_sees_the_first_stage_of_a_cascade_and_gradients_do_not(network):
    model = TSAN(network, SecondStage("compact"), age_step=0.01).eval()
    nn.init.zeros_(model.second_stage.head[-1].weight)  # no residual
    image = image_of(TINY)
    assert not SmoothGrad(copies=1)(model, image, 0).any()
    cascade, alone = (Occlusion(20, 20)(each, image, 0) for each in (model, network))
    torch.testing.assert_close(cascade, alone, rtol=0, atol=0.011)
    assert alone.abs().max() > 0.1


def test_random_weights_change_the_map_and_leave_the_network_alone(network):
    image, method = image_of(TINY), SmoothGrad(copies=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()

    random, again, other = (with_random_weights(network, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    maps = [method(model, image, 0) for model in (network, random, again, other)]
    assert torch.equal(maps[1], maps[2])
    for one, another in itertools.combinations((maps[0], maps[1], maps[3]), 2):
        assert np.corrcoef(one.flatten(), another.flatten())[0, 1] < 0.9


@pytest.mark.parametrize("input_rule", INPUT_RULES, ids=str)
def test_input_voxels_are_where_their_coordinates_say(input_rule, tmp_path):
    affine = input_affine(input_rule)
    for axis, values in enumerate(grid_coordinates()):
        # A scan whose intensities are coordinates, read as networks read scans.
        scan = write_scan(tmp_path / f"{axis}.nii", (values + 200).astype(np.float32))
        read = reduce_volume(decode(scan), input_rule) - 200
        places = nibabel.affines.apply_affine(affine, np.indices(read.shape).reshape(3, -1).T)
        np.testing.assert_allclose(read.ravel(), places[:, axis], atol=1e-3)
        # And back on the grid, away from the ends of the input.
        back = to_grid(read, input_rule)
        inside = tuple(slice(12, 76) for _ in range(3))
        np.testing.assert_allclose(back[inside], values[inside], atol=1e-3)


@pytest.mark.parametrize("method", ["smoothgrad", "occlusion"])
@pytest.mark.parametrize("input_rule", INPUT_RULES, ids=str)
def test_what_is_planted_at_a_place_is_found_there(method, input_rule, tmp_path):
    coordinates = grid_coordinates()
    distance = np.abs(coordinates - np.reshape(PLANTED, (3, 1, 1, 1)))
    volume = 100 + 5 * np.random.default_rng(0).standard_normal(GRID_SHAPE)
    volume[distance.max(axis=0) > 16] = 0  # around the brain; small, to be quick
    volume[distance.max(axis=0) <= 5] = 300
    # Stored from left to right, unlike the network's input.
    ras = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.astype(np.float32), GRID_AFFINE))
    write_scan(tmp_path / "scans" / "one.nii", ras.get_fdata(dtype=np.float32), ras.affine)
    scans = open_cohort(tmp_path / "scans", None, input_rule)
    flags = ["--checkpoint", "a", "--scan_folder", "b", "--output_dir", "c", "--method", method]
    flags = saliency.build_parser().parse_args([*flags, "--noise", "0.1", "--copies", "2"])
    path = tmp_path / "map.nii.gz"

    average_maps(
        Bright(), open_for_one_pass(scans, input_rule),
        build_method(flags, input_rule.resolution), choose_execution("cpu", "float32"),
        keep=lambda place, effect: save_map(path, effect),
    )  # fmt: skip

    image = nibabel.load(path)
    effect = np.abs(image.get_fdata())
    at = np.argwhere(effect > effect.max() / 2)
    found = nibabel.affines.apply_affine(image.affine, at).mean(axis=0)
    assert np.abs(found - PLANTED).max() <= (2 if method == "smoothgrad" else 4)


def test_left_of_the_picture_is_the_persons_right():
    effect = np.zeros(GRID_SHAPE)
    x, y, z = grid_coordinates()
    effect[(x > 20) & (y > 10) & (z > 30)] = 1
    whole = tuple(slice(0, size) for size in GRID_SHAPE)
    rows, columns = np.nonzero(plane(effect, "z", 44, whole))
    assert columns.max() < GRID_SHAPE[0] / 2  # voxels of the grid run from right to left
    assert rows.min() > GRID_SHAPE[1] / 2  # the front is up
    rows, columns = np.nonzero(plane(effect, "x", 46, whole))
    assert columns.min() > GRID_SHAPE[1] / 2 and rows.min() > GRID_SHAPE[2] / 2
    assert not plane(effect, "x", -46, whole).any()


def test_picture_shows_all_planes_even_of_a_map_without_effect():
    figure = draw_map(np.zeros(GRID_SHAPE), title="$none", unit="years", signed=True)
    assert len(figure.axes) == 1 + sum(map(len, PLANES.values()))  # and the colour bar
    figure.canvas.draw()


def test_rank_correlation_is_that_of_magnitudes_and_unknown_for_a_constant():
    values = np.random.default_rng(0).standard_normal(GRID_SHAPE)
    one = MeanMaps(values, np.abs(values))
    assert rank_correlation(one, MeanMaps(-values, values**2)) == pytest.approx(1)
    nothing = MeanMaps(np.zeros(GRID_SHAPE), np.zeros(GRID_SHAPE))
    assert rank_correlation(one, nothing) is None


@pytest.fixture
def checkpoint(network, tmp_path):
    path = tmp_path / "network.pth.tar"
    save_checkpoint(Checkpoint(network, InputRule(4, crop=True), summary={}), path)
    return path


def flags_for(checkpoint, folder, output_dir) -> list[str]:
    return [
        *("--checkpoint", str(checkpoint), "--scan_folder", str(folder), "--device", "cpu"),
        *("--output_dir", str(output_dir), "--threads", "1"),
    ]


def test_program_writes_maps_on_the_grid_a_table_a_picture_and_the_check(
    checkpoint, grid_cohort, tmp_path, capsys
):
    flags = flags_for(checkpoint, grid_cohort / "test", tmp_path / "out")
    flags += ["--labels", str(grid_cohort / "labels.csv"), "--limit", "2", "--copies", "2"]

    report = saliency.main(flags)

    printed = capsys.readouterr().out
    assert "rank correlation with the maps of random weights" in printed
    high = report["rank_correlation_with_random_weights"] > MAX_RANDOM_CORRELATION
    assert ("warning: above" in printed) == high
    maps = sorted((tmp_path / "out" / "maps").iterdir())
    assert [path.name for path in maps] == ["test-1.nii.gz", "test-2.nii.gz"]
    images = [nibabel.load(path) for path in (*maps, tmp_path / "out" / "mean_map.nii.gz")]
    for image in images:
        assert image.shape == GRID_SHAPE and image.get_data_dtype() == np.float32
        np.testing.assert_array_equal(image.affine, GRID_AFFINE)
        assert image.header["sform_code"] == 4  # MNI152
    one, two, mean = (image.get_fdata() for image in images)
    np.testing.assert_allclose(mean, (one + two) / 2, rtol=1e-5, atol=1e-9)
    with (tmp_path / "out" / "regions.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-4)
    assert {row["sign"] for row in rows} == {"n/a"}
    assert json.loads((tmp_path / "out" / "saliency.json").read_text()) == report
    assert (report["scans"], report["unit"], report["stage"]) == (2, "years per SD", 1)
    assert (tmp_path / "out" / "saliency.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(FileExistsError, match=r"mean_map\.nii\.gz.*test-1\.nii\.gz"):
        saliency.main(flags)


def test_program_occludes_and_replaces_results_when_told_to(checkpoint, grid_cohort, tmp_path):
    flags = flags_for(checkpoint, grid_cohort / "test", tmp_path / "out")
    flags += ["--method", "occlusion", "--cube", "96", "--stride", "96", "--limit", "1"]
    flags += ["--no-random_weights", "--overwrite"]
    old = tmp_path / "out" / "regions.tsv"
    old.parent.mkdir()
    old.write_text("old\n")
    report = saliency.main(flags)
    assert report["unit"] == "years"
    assert report["rank_correlation_with_random_weights"] is None
    assert report["settings"]["side"] == 24
    assert {line.split("\t")[4] for line in old.read_text().splitlines()} <= {"sign", "-", "0", "+"}


def test_wrong_input_is_said_before_any_work(checkpoint, cohort, grid_cohort, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"no \.nii\.gz or \.nii file"):
        saliency.main(flags_for(checkpoint, tmp_path / "empty", out))
    with pytest.raises(ValueError, match="not on the FSL MNI152 2 mm grid"):
        saliency.main(flags_for(checkpoint, cohort / "test", out))
    flags = [*flags_for(checkpoint, grid_cohort / "test", out), "--method"]
    with pytest.raises(SystemExit):
        saliency.main([*flags, "lime"])
    assert "invalid choice: 'lime'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--cube 18: a multiple of 4 mm"):
        saliency.main([*flags, "occlusion", "--cube", "18"])
    with pytest.raises(ValueError, match="--stride 20: at most the --cube of 16 mm"):
        saliency.main([*flags, "occlusion", "--stride", "20"])
    with pytest.raises(ValueError, match="stride: from 1 to the cube's side of 4"):
        Occlusion(4, 5)
    assert not out.exists()
