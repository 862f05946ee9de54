import pytest
import torch
from torch import nn

from model.layers import fuse_for_inference
from model.scaledense import WIDTHS, ScaleDense
from model.tsan import SecondStage

SMALL = {"released": (44, 44, 46), "compact": (32, 36, 33)}


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize(
    ("width", "unused_heads", "first", "second"),
    # The authors' figures include the head that is not in use.
    [("released", (545, 801), 102_378_307, 102_379_411), ("compact", (0, 0), 1_521_777, 1_522_625)],
)
def test_parameter_counts_are_those_of_the_published_descriptions(
    width, unused_heads, first, second
):
    with torch.device("meta"):
        assert parameters(ScaleDense(width)) + unused_heads[0] == first
        assert parameters(SecondStage(width)) + unused_heads[1] == second


def test_compact_blocks_read_all_earlier_scales_and_the_image():
    backbone = ScaleDense("compact").encoder.backbone.eval()
    seen = []
    for block in backbone.blocks:
        block.register_forward_hook(
            lambda _, inputs, output: seen.append((inputs[0].shape[1:], output.shape[1:]))
        )
    image = torch.randn(1, 1, 91, 109, 91)
    with torch.inference_mode():
        backbone(image)
    assert [tuple(shape) for shape, _ in seen] == [
        (1, 91, 109, 91),
        (9, 45, 54, 45),
        (25, 22, 27, 22),
        (57, 11, 13, 11),
        (121, 5, 6, 5),
    ]
    assert tuple(seen[-1][1]) == (128, 2, 3, 2)


def test_released_stem_and_channels_are_as_published():
    with torch.device("meta"):
        backbone = ScaleDense("released").encoder.backbone
        assert backbone.stem(torch.empty(1, 1, 91, 109, 91)).shape == (1, 8, 81, 99, 81)
        assert backbone(torch.empty(2, 1, 91, 109, 91)).shape == (2, 1944)


@pytest.mark.parametrize("width", WIDTHS)
def test_activations_between_fully_connected_layers(width):
    with torch.device("meta"):
        first, second = ScaleDense(width), SecondStage(width)
    names = [[type(layer).__name__ for layer in branch] for branch in (
        first.encoder.image_branch, first.encoder.sex_branch, first.head, second.age_branch
    )]  # fmt: skip
    if width != "released":  # an ELU after every layer but the last
        assert names == [
            ["Linear", "ELU"],
            ["Linear", "ELU", "Linear", "ELU"],
            ["Linear", "ELU", "Linear"],
            ["Linear", "ELU", "Linear", "ELU"],
        ]
    else:
        assert names == [
            ["Linear", "ELU"],
            ["Linear", "Linear", "ELU"],
            ["Linear", "Linear"],
            ["Linear", "ReLU", "Linear", "ReLU"],
        ]


@pytest.mark.parametrize("shape", [(32, 32, 32), (45, 54, 45), (33, 40, 37)])
@pytest.mark.parametrize("use_sex", [True, False])
def test_compact_network_takes_volumes_of_any_size(shape, use_sex):
    network = ScaleDense("compact", use_sex=use_sex).eval()
    assert network(torch.randn(2, 1, *shape), torch.tensor([0, 1])).shape == (2, 1)


def test_sex_changes_the_age_only_where_it_is_an_input():
    image = torch.randn(1, 1, 32, 32, 32).expand(2, -1, -1, -1, -1)
    sex = torch.tensor([0, 1])
    with_sex = ScaleDense(use_sex=True).eval()(image, sex)
    without = ScaleDense(use_sex=False).eval()(image, sex)
    assert with_sex[0] != with_sex[1]
    assert without[0] == without[1]


def test_training_networks_have_no_closing_relu_that_could_be_dead():
    # A closing ReLU has no gradient where the age before it is negative.
    image, sex = torch.randn(2, 1, 32, 32, 32), torch.tensor([0, 1])
    for final_relu, dead in ((True, True), (False, False)):
        network = ScaleDense(final_relu=final_relu)
        nn.init.constant_(network.head[-1].bias, -1000.0)
        age = network(image, sex)
        age.sum().backward()
        assert (network.head[-1].weight.grad.abs().sum() == 0) == dead
        assert (age == 0).all() == dead
    assert not ScaleDense().final_relu


def test_untrained_ages_start_near_the_mean_age():
    network = ScaleDense(mean_age=57.0)
    age = network(torch.randn(4, 1, 32, 32, 32), torch.tensor([0, 1, 0, 1]))
    assert (age - 57).abs().max() < 20
    assert network.head[-1].bias.item() == 57


def test_ages_are_float32_under_bfloat16_autocast():
    # Between 64 and 128 bfloat16 has steps of half a year.
    network = ScaleDense(mean_age=70.123).eval()
    image, sex = torch.randn(3, 1, 32, 32, 32), torch.tensor([0, 1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        age = network(image, sex)
        residual = SecondStage()(image, sex, torch.full((3, 1), 70.0))
    assert age.dtype == residual.dtype == torch.float32
    assert not torch.equal(age, age.bfloat16().float())
    # Convolutions in bfloat16 differ between processors, by up to 1.5 years here.
    torch.testing.assert_close(age, network(image, sex), atol=3.0, rtol=0)


@pytest.mark.parametrize("width", [pytest.param("released", marks=pytest.mark.slow), "compact"])
def test_fused_network_equals_the_plain_one(width):
    network = ScaleDense(width, mean_age=50)
    image, sex = torch.randn(2, 1, *SMALL[width]), torch.tensor([0, 1])
    network(image, sex)  # moves the running statistics away from 0 and 1
    network.eval()
    with torch.inference_mode():
        expected = network(image, sex)
        fused = fuse_for_inference(network)(image, sex)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-4)


def test_unknown_width_is_refused():
    with pytest.raises(ValueError, match=r"released, compact expected, got 'wide'"):
        ScaleDense("wide")


@pytest.mark.parametrize(("width", "side"), [("compact", 32), ("released", 42)])
def test_a_volume_too_small_for_five_halvings_is_refused_and_the_least_is_taken(width, side):
    with torch.device("meta"):
        backbone = ScaleDense(width).encoder.backbone
        assert backbone(torch.empty(2, 1, side, side, side)).shape[0] == 2
        with pytest.raises(ValueError, match=rf"{side} voxels a side or more .* 50x{side - 1}x50"):
            backbone(torch.empty(2, 1, 50, side - 1, 50))
