"""The normalisations of an asymmetric convolution in training, in few passes over memory.

A unit of the network (model/layers.py) normalises four branches, sums them, and normalises the sum:

    y = ELU(BN(sum over b of BN_b(z_b)))

As BatchNorm3d modules that is five normalisations of whole volumes, which cost a CPU as much as the
convolutions. Each is an affine map per channel once its statistics are known, and what it adds to a
branch vanishes in the outer one. So, with

    a_b = weight_b / sqrt(var(z_b) + eps),   s = sum over b of a_b z_b,
    g = weight / sqrt(var(s) + eps),         y = ELU(g (s - mean(s)) + bias),

one weighted sum and one affine map are left; the backward pass is the derivative of these formulas.
The same values as the five modules up to rounding: tests/test_branch_norm.py; how much faster:
docs/PERFORMANCE.md.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROW = 128  # numbers that a kernel takes at once; a row of 8 channels would be slow
BLOCK = 4096  # rows summed in the volume's own precision, which loses digits over long sums


class BranchNorm(Function):
    """ELU of the normalised sum of normalised branches, with the statistics of the batch.

    `apply(weights, biases, weight, bias, eps, *branches)` returns y (N, C, D, H, W), and without
    gradient the branches' means and population variances, (B, C) each, and the variance of their
    sum, (C,), all three in float64.

    Args of `apply`:
        weights: (B, C), of the branches' normalisations.
        biases: (B, C), theirs; their gradient is zero, as the outer normalisation removes them.
        weight: (C,), of the outer normalisation.
        bias: (C,), its.
        eps: B + 1 floats, of the branches' normalisations and the outer one.
        branches: B tensors z_b, (N, C, D, H, W) each.
    """

    @staticmethod
    def forward(ctx, weights, biases, weight, bias, eps, *branches):
        """See the class."""
        rows = [_Rows(branch) for branch in branches]
        means, variances = (torch.stack(v) for v in zip(*(r.moments() for r in rows), strict=True))
        spreads = (variances + variances.new_tensor(eps[:-1])[:, None]).sqrt()
        factors = weights.double() / spreads  # (B, C) float64
        total = rows[0].values * rows[0].repeat(factors[0])
        for factor, row in zip(factors[1:], rows[1:], strict=True):
            total.addcmul_(row.values, row.repeat(factor))
        total = rows[0].volume(total)
        row = _Rows(total)
        mean, variance = row.moments()
        spread = (variance + eps[-1]).sqrt()
        factor = weight.double() / spread
        shift = row.repeat(bias.double() - factor * mean)
        output = row.volume(functional.elu_(torch.addcmul(shift, row.values, row.repeat(factor))))
        ctx.save_for_backward(
            weights, weight, means, spreads, mean, spread, total, output, *branches
        )
        ctx.mark_non_differentiable(means, variances, variance)
        return output, means, variances, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        """Gradients of `weights`, `biases` (zero), `weight`, `bias`, and of each branch."""
        weights, weight, means, spreads, mean, spread, total, output, *branches = ctx.saved_tensors
        # Through ELU, from its result: 1 where that is positive, else exp(x) = result + 1.
        slope = torch.ops.aten.elu_backward(gradient, 1.0, 1.0, 1.0, True, output)
        slope, weight_gradient, bias_gradient = _through_norm(slope, total, weight, mean, spread)
        # The sum of `slope` is zero from here on: that is why the branches' biases have no effect.
        through = [
            _through_norm(slope, branch, *values)
            for branch, *values in zip(branches, weights, means, spreads, strict=True)
        ]
        return (
            torch.stack([weights_gradient for _, weights_gradient, _ in through]),
            torch.zeros_like(weights),
            weight_gradient,
            bias_gradient,
            None,
            *(branch_gradient for branch_gradient, _, _ in through),
        )


def _through_norm(
    slope: Tensor, volume: Tensor, weight: Tensor, mean: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward through weight * (volume - mean) / spread + bias, the statistics included.

    Args:
        slope: (N, C, D, H, W), gradient of what comes out.
        volume: the same shape, what went in.
        weight: (C,).
        mean: (C,) float64, of `volume`.
        spread: (C,) float64, square root of its variance + eps.

    Returns:
        Gradients of volume (N, C, D, H, W), weight (C,) and bias (C,).
    """
    row, slope = _Rows(volume), _Rows(slope).values
    count = volume.numel() // volume.shape[1]
    along, level = row.products(slope, mean, spread)  # sums of slope * normalised, and of slope
    factor = weight.double() / spread
    linear = -factor * along / (count * spread)
    constant = -factor * level / count - linear * mean
    gradient = torch.addcmul(row.repeat(constant), row.values, row.repeat(linear))
    gradient.addcmul_(slope, row.repeat(factor))
    return row.volume(gradient), along.to(weight.dtype), level.to(weight.dtype)


class _Rows:
    """A volume as a matrix (rows, columns): some voxels a row, each with all its channels.

    Column j belongs to channel j % C. Rows of 8 or 16 numbers would leave the vector units of a
    processor half empty; how many voxels fit a row depends on their count. A view where the volume
    is stored channels last, else a copy.
    """

    def __init__(self, volume: Tensor):
        channels = volume.shape[1]
        last = volume.movedim(1, -1).contiguous()
        voxels = last.numel() // channels
        self.together = 1
        while voxels % (2 * self.together) == 0 and 2 * self.together * channels <= ROW:
            self.together *= 2
        self.shape = last.shape
        self.values = last.reshape(-1, self.together * channels)

    def volume(self, values: Tensor) -> Tensor:
        """A matrix of this shape as (N, C, D, H, W), stored channels last."""
        return values.reshape(self.shape).movedim(-1, 1)

    def repeat(self, values: Tensor) -> Tensor:
        """(C,) to (columns,) in the type of the volume."""
        return values.to(self.values.dtype).repeat(self.together)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and population variance of each channel, (C,) float64."""
        blocks = self.values.split(BLOCK)
        found = [torch.batch_norm_update_stats(block, None, None, 0.0) for block in blocks]
        means, variances = (self._by_channel(values) for values in zip(*found, strict=True))
        share = self._by_channel([torch.full_like(found[0][0], len(block)) for block in blocks])
        share = share / share.sum(dim=0)
        mean = (share * means).sum(dim=0)
        return mean, (share * (variances + (means - mean).square())).sum(dim=0)

    def products(self, slope: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over voxels of slope * (volume - mean) / spread, and of slope; (C,) float64."""
        mean, scale = self.repeat(mean), self.repeat(1 / spread)
        found = [
            torch.ops.aten.native_batch_norm_backward(
                *blocks, scale, None, None, mean, scale, True, 0.0, [False, True, True]
            )[1:]
            for blocks in zip(slope.split(BLOCK), self.values.split(BLOCK), strict=True)
        ]
        along, level = (self._by_channel(values) for values in zip(*found, strict=True))
        return along.sum(dim=0), level.sum(dim=0)

    def _by_channel(self, columns: Sequence[Tensor]) -> Tensor:
        """Figures of blocks, (columns,) each, to (blocks * together, C) float64."""
        channels = self.shape[-1]
        return torch.stack(list(columns)).double().reshape(-1, channels)
