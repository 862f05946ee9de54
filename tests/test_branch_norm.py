"""The normalisation in few passes equals the five modules: values, gradients, statistics."""

import copy

import pytest
import torch
from torch import nn

from model.branch_norm import BranchNorm
from model.layers import ConvUnit, DenseBlock3d, recompute_activations

SHAPES = [(2, 3, 4, 5, 3), (3, 3, 5, 7, 3), (4, 8, 4, 6, 8), (1, 40, 2, 3, 2)]


def restless(unit: nn.Module) -> nn.Module:
    """Normalisations away from the identity."""
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight, 1, 0.5)
            nn.init.normal_(module.bias)
    return unit


def by_modules(unit: ConvUnit, volume: torch.Tensor) -> torch.Tensor:
    return nn.functional.elu(unit.norm(unit.convolution(volume)))


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in module.named_parameters()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_gradients_and_statistics_are_those_of_the_modules(shape, layout):
    fast = restless(ConvUnit(shape[1], 8)).double().to(memory_format=layout)
    slow = copy.deepcopy(fast)
    volume = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    inputs = [volume.clone(memory_format=layout).requires_grad_() for _ in range(2)]
    outputs = [fast(inputs[0]), by_modules(slow, inputs[1])]
    weights = torch.randn_like(outputs[1])
    for output in outputs:
        (output * weights).sum().backward()

    assert "BranchNorm" in type(outputs[0].grad_fn).__name__
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(fast), gradients(slow), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict(), rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_finite_differences():
    branches = [torch.randn(2, 3, 2, 1, 2, dtype=torch.float64, requires_grad=True)] * 2
    weights = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def output(weights, weight, bias, *branches):
        biases = torch.zeros_like(weights)
        return BranchNorm.apply(weights, biases, weight, bias, (1e-5, 1e-5, 1e-3), *branches)[0]

    assert torch.autograd.gradcheck(output, (weights, weight, bias, *branches))


def test_float32_sums_over_many_voxels_keep_their_digits():
    unit = restless(ConvUnit(1, 8)).to(memory_format=torch.channels_last_3d)
    exact = copy.deepcopy(unit).double()
    volume = 3 + torch.randn(4, 1, 40, 48, 40).contiguous(memory_format=torch.channels_last_3d)
    unit(volume).square().mean().backward()
    exact(volume.double()).square().mean().backward()
    for name, value in gradients(exact).items():
        if not name.endswith("1.bias"):  # these are zero
            found = gradients(unit)[name].double()
            assert (found - value).norm() < 1e-4 * value.norm(), name


def test_cumulative_statistics_are_the_mean_over_batches():
    fast = restless(ConvUnit(2, 8)).double()
    for module in fast.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None
    slow = copy.deepcopy(fast)
    for _ in range(3):
        volume = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
        fast(volume), by_modules(slow, volume)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict(), rtol=1e-11, atol=1e-11)


def test_modules_are_used_where_statistics_are_not_those_of_the_batch_here():
    unit, volume = ConvUnit(2, 8), torch.randn(2, 2, 3, 4, 5)
    frozen = copy.deepcopy(unit).eval()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(unit))
    assert unit._can_normalise_at_once(volume)
    assert not frozen._can_normalise_at_once(volume)
    assert not synchronised._can_normalise_at_once(volume)
    with torch.autocast("cpu", torch.bfloat16):
        assert not unit._can_normalise_at_once(volume)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ConvUnit(2, 8)(torch.randn(1, 2, 1, 1, 1))


def test_recomputing_changes_neither_gradients_nor_statistics():
    kept = restless(DenseBlock3d(3, 8)).double()
    again = copy.deepcopy(kept)
    recompute_activations(again)
    volume = torch.randn(2, 3, 6, 4, 6, dtype=torch.float64)
    for block in (kept, again):
        block(volume.clone().requires_grad_()).square().sum().backward()
    torch.testing.assert_close(gradients(again), gradients(kept), rtol=0, atol=0)
    torch.testing.assert_close(again.state_dict(), kept.state_dict(), rtol=0, atol=0)


def test_recomputing_keeps_less_for_the_backward_pass():
    def kept_bytes(recompute: bool) -> int:
        block = DenseBlock3d(8, 16)
        if recompute:
            recompute_activations(block)
        held = []

        def hold(tensor):
            held.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            block(torch.randn(2, 8, 12, 12, 12, requires_grad=True))
        return sum(held)

    assert kept_bytes(recompute=True) < kept_bytes(recompute=False) / 4
