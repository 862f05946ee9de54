"""Building blocks of ScaleDense: asymmetric convolution, squeeze-and-excitation, dense block.

Source: Cheng et al., IEEE TMI 2021, section III-B and figure 3; the order of operations inside a
block, which the paper does not give, is that of the authors' released networks.
Every tensor is (N, C, D, H, W).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model.branch_norm import BranchNorm

ASYMMETRIC_KERNELS = ((3, 3, 3), (1, 1, 3), (3, 1, 1), (1, 3, 1))


class AsymmetricConv3d(nn.Module):
    """Sum of four bias-free convolutions, each followed by its own batch normalisation.

    The 3x3x3 kernel is strengthened along its three axes by 1x1x3, 3x1x1 and 1x3x1 kernels
    (asymmetric convolution: Ding et al., ICCV 2019, in three dimensions). Keeps D, H and W.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(in_channels, out_channels, kernel, padding="same", bias=False),
                nn.BatchNorm3d(out_channels),
            )
            for kernel in ASYMMETRIC_KERNELS
        )

    def forward(self, volume: Tensor) -> Tensor:
        """(N, in_channels, D, H, W) -> (N, out_channels, D, H, W)."""
        total = self.branches[0](volume)
        for branch in self.branches[1:]:
            total = total + branch(volume)
        return total


class ConvUnit(nn.Module):
    """Asymmetric convolution, batch normalisation, ELU.

    In training on a CPU the normalisations are computed at once, not by calling their modules:
    hooks on these would not run.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = AsymmetricConv3d(in_channels, out_channels)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, volume: Tensor) -> Tensor:
        """(N, in_channels, D, H, W) -> (N, out_channels, D, H, W)."""
        if self._can_normalise_at_once(volume):
            return self._normalise_at_once(volume)
        return functional.elu(self.norm(self.convolution(volume)))

    def _can_normalise_at_once(self, volume: Tensor) -> bool:
        """Whether model/branch_norm.py does the same faster: in training, on a CPU, as measured.

        Statistics over several processes (SyncBatchNorm), reduced precision, and torch.compile,
        which fuses by itself, stay with the modules. So does a single value per channel, of which
        there is no statistic: BatchNorm3d then raises an error.
        """
        return (
            volume.device.type == "cpu"
            and volume.dtype in (torch.float32, torch.float64)
            and volume.numel() > volume.shape[1]
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and isinstance(self.convolution, AsymmetricConv3d)  # not fused
            and all(
                type(norm) is nn.BatchNorm3d and norm.training
                for norm in (self.norm, *(norm for _, norm in self.convolution.branches))
            )
        )

    def _normalise_at_once(self, volume: Tensor) -> Tensor:
        inner, outer = [norm for _, norm in self.convolution.branches], self.norm
        biases = torch.stack([norm.bias for norm in inner])
        output, means, variances, variance = BranchNorm.apply(
            torch.stack([norm.weight for norm in inner]),
            biases,
            outer.weight,
            outer.bias,
            tuple(norm.eps for norm in (*inner, outer)),
            *(conv(volume) for conv, _ in self.convolution.branches),
        )
        # A normalised branch has its bias as its mean, and their sum the sum of the biases.
        means = [*means, biases.detach().sum(dim=0)]
        count = output.numel() // output.shape[1]
        # Running statistics follow as those of BatchNorm3d do, the variance being the unbiased one.
        with torch.no_grad():
            spreads = [*variances, variance]
            for norm, mean, spread in zip((*inner, outer), means, spreads, strict=True):
                norm.num_batches_tracked += 1
                share = norm.momentum
                if share is None:
                    share = 1 / norm.num_batches_tracked.item()
                spread = spread * (count / (count - 1))
                norm.running_mean.lerp_(mean.to(norm.running_mean), share)
                norm.running_var.lerp_(spread.to(norm.running_var), share)
        return output

    def fuse(self) -> None:
        """Replaces the convolutions and all five normalisations by one 3x3x3 convolution.

        Exact algebra on the running statistics, so for evaluation only. Done in float64, so that
        only the rounding of the result differs.
        """
        if isinstance(self.convolution, nn.Conv3d):
            return
        first = self.convolution.branches[0][0]
        scale, bias = _scale_and_shift(self.norm)
        factors = []
        for _, norm in self.convolution.branches:
            branch_scale, branch_shift = _scale_and_shift(norm)
            factors.append((scale * branch_scale)[:, None, None, None, None])
            bias = bias + scale * branch_shift
        fused = FusedConv3d(first.in_channels, first.out_channels, 3, padding=1).to(first.weight)
        fused.bias.data.copy_(bias)
        # Some kernels at a time: those of the released width have 45 million numbers.
        for start in range(0, first.out_channels, 64):
            rows, total = slice(start, start + 64), 0
            for (conv, _), factor in zip(self.convolution.branches, factors, strict=True):
                margins = [(3 - size) // 2 for size in reversed(conv.kernel_size) for _ in range(2)]
                kernels = conv.weight.data[rows].double() * factor[rows]
                total = total + functional.pad(kernels, margins)
            fused.weight.data[rows] = total.to(fused.weight)
        self.convolution, self.norm = fused, nn.Identity()


class FusedConv3d(nn.Conv3d):
    """What a ConvUnit becomes for inference: a convolution that is as fast for a single volume.

    For a batch of one small volume torch leaves oneDNN for its own kernels, which took 4 times as
    long for a network at 4 mm (docs/PERFORMANCE.md). The values are the same within rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, D, H, W) -> (N, out_channels, D, H, W)."""
        if not self._is_lone(input):
            return super().forward(input)
        return torch.mkldnn_convolution(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )

    def _is_lone(self, volume: Tensor) -> bool:
        return (
            len(volume) == 1
            and volume.device.type == "cpu"
            and volume.dtype == self.weight.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
        )


def _scale_and_shift(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """The affine map, (C,) float64 each, that `norm` applies in evaluation mode."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    scale = norm.weight.detach().double() / deviation
    return scale, norm.bias.detach().double() - scale * norm.running_mean.double()


class SqueezeExcite3d(nn.Module):
    """Channel attention: global mean, two linear layers, sigmoid (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        # At least one channel: the narrowest blocks would otherwise squeeze to none.
        squeezed = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, squeezed)
        self.expand = nn.Linear(squeezed, channels)

    def forward(self, volume: Tensor) -> Tensor:
        """(N, C, D, H, W) -> the same shape, each channel times a factor in (0, 1)."""
        factor = self.squeeze(volume.mean(dim=(2, 3, 4)))  # (N, C / reduction)
        factor = torch.sigmoid(self.expand(functional.relu(factor)))  # (N, C)
        return volume * factor[:, :, None, None, None]


class DenseBlock3d(nn.Module):
    """Two convolution units, squeeze-and-excitation, max-pool; the pooled input is kept in front.

    Because max-pooling a concatenation is concatenating what was max-pooled, chaining these blocks
    hands each one all earlier scales, pooled to its size: the dense connections of figure 3.
    """

    def __init__(self, in_channels: int, out_channels: int, *, keep_input: bool = True):
        super().__init__()
        self.unit1 = ConvUnit(in_channels, out_channels)
        self.unit2 = ConvUnit(out_channels, out_channels)
        self.excite = SqueezeExcite3d(out_channels)
        self.keep_input = keep_input
        self.recompute = False

    def forward(self, volume: Tensor) -> Tensor:
        """(N, in, D, H, W) -> (N, in + out, D // 2, H // 2, W // 2), or (N, out, ...) alone."""
        if self.recompute and torch.is_grad_enabled():
            new = checkpoint(
                self._new_scale,
                volume,
                use_reentrant=False,
                preserve_rng_state=False,  # nothing here is random
                context_fn=lambda: (nullcontext(), _statistics_at_rest(self)),
            )
        else:
            new = self._new_scale(volume)
        if not self.keep_input:
            return new
        return torch.cat([functional.max_pool3d(volume, 2), new], dim=1)

    def _new_scale(self, volume: Tensor) -> Tensor:
        """(N, in, D, H, W) -> (N, out, D // 2, H // 2, W // 2)."""
        return functional.max_pool3d(self.excite(self.unit2(self.unit1(volume))), 2)


@contextmanager
def _statistics_at_rest(module: nn.Module) -> Iterator[None]:
    """Normalisations compute as before, but their running statistics do not move."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def recompute_activations(network: nn.Module) -> None:
    """Makes every block keep its input alone and compute the rest again in the backward pass.

    Less memory for about a third more computing (Chen et al., arXiv 1604.06174); the same
    gradients and running statistics.
    """
    for module in network.modules():
        if isinstance(module, DenseBlock3d):
            module.recompute = True


def initialise(network: nn.Module) -> None:
    """Kaiming-normal convolutions, Xavier-normal linear layers, zero biases (as published)."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fuse_for_inference(network: nn.Module) -> nn.Module:
    """Fuses every ConvUnit of `network` in place and returns it in evaluation mode."""
    for module in list(network.modules()):
        if isinstance(module, ConvUnit):
            module.fuse()
    return network.eval()
