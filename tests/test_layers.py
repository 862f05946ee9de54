import pytest
import torch
from torch import nn
from torch.nn import functional

from model.layers import (
    AsymmetricConv3d,
    ConvUnit,
    DenseBlock3d,
    FusedConv3d,
    SqueezeExcite3d,
    fuse_for_inference,
    initialise,
)


def unsettle(network: nn.Module) -> nn.Module:
    """Gives every normalisation statistics and weights that are not the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
    return network.eval()


def test_asymmetric_convolution_is_the_sum_of_its_four_normalised_kernels():
    layer = unsettle(AsymmetricConv3d(2, 3)).double()
    volume = torch.randn(1, 2, 5, 6, 7, dtype=torch.float64)

    expected = 0
    for kernel, padding, branch in zip(
        [(3, 3, 3), (1, 1, 3), (3, 1, 1), (1, 3, 1)],
        [(1, 1, 1), (0, 0, 1), (1, 0, 0), (0, 1, 0)],
        layer.branches,
        strict=True,
    ):
        conv, norm = branch
        assert conv.kernel_size == kernel
        assert conv.bias is None
        raw = functional.conv3d(volume, conv.weight, padding=padding)
        centred = raw - norm.running_mean[:, None, None, None]
        scaled = centred / (norm.running_var + norm.eps).sqrt()[:, None, None, None]
        expected = expected + scaled * norm.weight[:, None, None, None]
        expected = expected + norm.bias[:, None, None, None]

    torch.testing.assert_close(layer(volume), expected)


def test_fusing_five_normalisations_into_one_convolution_is_exact():
    unit = unsettle(ConvUnit(4, 6)).double()
    volume = torch.randn(2, 4, 6, 5, 7, dtype=torch.float64)
    expected = unit(volume)

    fused = fuse_for_inference(unit)

    assert [type(module) for module in fused.children()] == [FusedConv3d, nn.Identity]
    torch.testing.assert_close(fused(volume), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fuse_for_inference(fused)(volume), expected)


@pytest.mark.parametrize(("channels", "squeezed"), [(8, 1), (16, 1), (48, 3), (1296, 81)])
def test_squeeze_keeps_at_least_one_channel(channels, squeezed):
    assert SqueezeExcite3d(channels).squeeze.out_features == squeezed


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_a_single_volume_goes_to_the_kernels_of_a_batch_and_gets_the_same_values():
    block = fuse_for_inference(unsettle(DenseBlock3d(1, 8)))
    volumes = torch.randn(2, 1, 16, 18, 16).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        alone = block(volumes[:1])
    assert not [event.name for event in profile.events() if "slow_conv" in event.name]
    torch.testing.assert_close(alone, block(volumes)[:1])  # with gradients: as nn.Conv3d
    torch.testing.assert_close(alone, block.double()(volumes[:1].double()).float())


def test_excitation_scales_whole_channels_by_factors_between_zero_and_one():
    layer = SqueezeExcite3d(8)
    volume = torch.rand(2, 8, 3, 4, 5) + 1
    factors = layer(volume) / volume
    assert ((factors > 0) & (factors < 1)).all()
    torch.testing.assert_close(factors, factors[:, :, :1, :1, :1].expand_as(factors))


def test_dense_block_puts_its_pooled_input_in_front_of_what_is_new():
    block = DenseBlock3d(3, 5).eval()
    volume = torch.randn(2, 3, 9, 8, 7)
    pooled = functional.max_pool3d(volume, 2)

    output = block(volume)

    assert output.shape == (2, 8, 4, 4, 3)
    assert torch.equal(output[:, :3], pooled)
    block.keep_input = False
    assert torch.equal(block(volume), output[:, 3:])


def test_initialisation_is_kaiming_xavier_and_zero_biases():
    network = nn.Sequential(nn.Conv3d(8, 64, 3), nn.Flatten(), nn.Linear(300, 200))
    initialise(network)
    conv, _, linear = network
    assert conv.weight.std().item() == pytest.approx((2 / (8 * 27)) ** 0.5, rel=0.05)
    assert linear.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.05)
    assert not conv.bias.any()
    assert not linear.bias.any()
