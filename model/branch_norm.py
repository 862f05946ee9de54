"""The normalisations of an asymmetric convolution in training, in few passes over memory.

A unit of the network (model/layers.py) normalises four branches, sums them, and normalises the sum:

    y = ELU(BN(sum over b of BN_b(z_b)))

As BatchNorm3d modules that is five normalisations of whole volumes, which cost a CPU as much as the
convolutions. Each is an affine map per channel once its statistics are known, and what it adds to a
branch vanishes in the outer one. So, with

    a_b = weight_b / sqrt(var(z_b) + eps),   s = sum over b of a_b z_b,
    g = weight / sqrt(var(s) + eps),         y = ELU(g (s - mean(s)) + bias),

one weighted sum and one affine map are left; the backward pass is the derivative of these formulas.
The same values as the five modules up to rounding (tests/test_branch_norm.py), faster and with more
digits (docs/PERFORMANCE.md); but since branches are summed before their means are taken off, with
fewer digits where those means are beyond some ten standard deviations.
"""

from collections.abc import Sequence
from functools import partial

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
        total = _weighted_sum(rows, weights.double() / spreads, torch.zeros_like(means[0]))
        mean, variance = total.moments()
        spread = (variance + eps[-1]).sqrt()
        factor = weight.double() / spread
        output = _weighted_sum([total], [factor], bias.double() - factor * mean).volume
        functional.elu_(output)
        ctx.save_for_backward(
            weights, weight, means, spreads, mean, spread, total.volume, output, *branches
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
    row, slope = _Rows(volume), _Rows(slope)
    count = volume.numel() // volume.shape[1]
    along, level = row.products(slope, mean, spread)  # sums of slope * normalised, and of slope
    factor = weight.double() / spread
    linear = -factor * along / (count * spread)
    constant = -factor * level / count - linear * mean
    gradient = _weighted_sum([row, slope], [linear, factor], constant)
    return gradient.volume, along.to(weight.dtype), level.to(weight.dtype)


def _weighted_sum(terms: Sequence["_Rows"], factors: Sequence[Tensor], constant: Tensor) -> "_Rows":
    """The sum of terms, each times a factor a channel, plus a constant a channel.

    Args:
        terms: volumes of one shape.
        factors: (C,) float64 for each of them.
        constant: (C,) float64.
    """
    total = _Rows(torch.empty_like(terms[0].volume))
    for index, out in enumerate(total.parts):
        repeat = partial(_repeat, like=out)
        first = terms[0].parts[index]
        torch.addcmul(repeat(constant), first, repeat(factors[0]), out=out)
        for term, factor in zip(terms[1:], factors[1:], strict=True):
            out.addcmul_(term.parts[index], repeat(factor))
    return total


def _repeat(values: Tensor, *, like: Tensor) -> Tensor:
    """(C,) to the columns of a part, in its type."""
    return values.to(like.dtype).repeat(like.shape[1] // len(values))


class _Rows:
    """A volume and its voxels as matrices: several voxels a row, each with all its channels.

    Column j belongs to channel j % C. Rows of 8 or 16 numbers would leave the vector units of a
    processor half empty. Voxels that do not fill a row are a second matrix, one a row.

    Attributes:
        volume: (N, C, D, H, W), stored channels last; a copy where what is given is not.
        parts: one or two views of it.
    """

    def __init__(self, volume: Tensor):
        last = volume.movedim(1, -1).contiguous()  # a view of channels-last volumes
        channels = last.shape[-1]
        self.volume = last.movedim(-1, 1)
        voxels = last.reshape(-1, channels)
        together = max(1, ROW // channels)
        whole = len(voxels) - len(voxels) % together
        parts = (voxels[:whole].reshape(-1, together * channels), voxels[whole:])
        self.parts = [part for part in parts if len(part)]
        self.channels = channels

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and population variance of each channel, (C,) float64."""
        blocks = [block for part in self.parts for block in part.split(BLOCK)]
        found = [torch.batch_norm_update_stats(block, None, None, 0.0) for block in blocks]
        means, variances = (self._by_channel(values) for values in zip(*found, strict=True))
        share = self._by_channel([torch.full_like(row[0], len(row)) for row in blocks])
        share = share / share.sum(dim=0)
        mean = (share * means).sum(dim=0)
        return mean, (share * (variances + (means - mean).square())).sum(dim=0)

    def products(self, slope: "_Rows", mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over voxels of slope * (volume - mean) / spread, and of slope; (C,) float64."""
        found = []
        for part, slopes in zip(self.parts, slope.parts, strict=True):
            center, scale = _repeat(mean, like=part), _repeat(1 / spread, like=part)
            found += [
                torch.ops.aten.native_batch_norm_backward(
                    *blocks, scale, None, None, center, scale, True, 0.0, [False, True, True]
                )[1:]
                for blocks in zip(slopes.split(BLOCK), part.split(BLOCK), strict=True)
            ]
        along, level = (self._by_channel(values) for values in zip(*found, strict=True))
        return along.sum(dim=0), level.sum(dim=0)

    def _by_channel(self, columns: Sequence[Tensor]) -> Tensor:
        """Figures of blocks, (columns,) each, to (figures of a channel, C) float64."""
        return torch.cat([values.double().reshape(-1, self.channels) for values in columns])
