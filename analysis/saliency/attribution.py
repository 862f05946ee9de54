"""How much each voxel of a scan moves the age that a network gives: SmoothGrad and occlusion.

Sources: Smilkov et al. 2017, arXiv 1706.03825 (SmoothGrad); Zeiler and Fergus 2014,
doi 10.1007/978-3-319-10590-1_53 (occlusion); Adebayo et al. 2018, arXiv 1810.03292 (a map that
does not change when the weights are drawn anew shows the scan, not what the network has learnt).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.layers import initialise


def predict_ages(model: nn.Module, image: Tensor, sex: int | None) -> Tensor:
    """The (N,) ages, in years, of (N, 1, D, H, W) views of one person.

    Where the sex is unknown (None), the mean of the ages as either sex, as in prediction.
    """
    sexes = (0, 1) if sex is None else (sex,)
    ages = [
        model(image, torch.full((len(image),), each, device=image.device))[:, 0] for each in sexes
    ]
    return torch.stack(ages).mean(dim=0)


def mask_brain(image: Tensor) -> Tensor:
    """Where the brain is, bool: what differs from the corner voxel, which is background.

    Of a z-scored scan this holds for both rules of what the background becomes.
    """
    return image != image[..., :1, :1, :1]


@dataclass(frozen=True)
class SmoothGrad:
    """Mean gradient of the age over noisy copies of a scan.

    Only the brain gets noise: in the published form everything does, but no network here has ever
    seen anything but a constant around the brain.

    In a cascade the rounding of the rough age stops the gradient: the map shows what moves the
    second stage's residual, the rounded age kept (that of each noisy copy). Of the first stage
    alone, give its own checkpoint; occlusion sees the whole cascade.

    Attributes:
        copies: noisy copies.
        noise: their SD, in SD of the scan's brain intensities.
        times_input: False: the mean of the gradient's absolute value, years per SD of intensity of
            a voxel, never negative. True: the mean gradient times the scan's z-score, in years: to
            first order what the voxel adds to the age of a brain of its mean intensity there.
        batch_size: copies at a time.
        seed: of the noise.
    """

    copies: int = 16
    noise: float = 0.5
    times_input: bool = False
    batch_size: int = 8
    seed: int = 0

    @property
    def signed(self) -> bool:
        """Whether the sign of the maps means anything."""
        return self.times_input

    @property
    def unit(self) -> str:
        """The unit of the maps."""
        return "years" if self.times_input else "years per SD"

    def __call__(self, model: nn.Module, image: Tensor, sex: int | None) -> Tensor:
        """The map of one scan.

        Args:
            model: `model(image, sex) -> (N, 1)` years, in evaluation mode.
            image: (1, 1, D, H, W) z-scores, on the model's device.
            sex: 0 female, 1 male, None unknown.

        Returns:
            (D, H, W), in `unit`.
        """
        # Drawn on the CPU and copy by copy: the same on every device and for every batch size.
        generator = torch.Generator().manual_seed(self.seed)
        brain, total = mask_brain(image), torch.zeros_like(image[0, 0])
        for copies in _sizes(self.copies, self.batch_size):
            noise = [torch.randn(image.shape[1:], generator=generator) for _ in range(copies)]
            noisy = image + self.noise * torch.stack(noise).to(image) * brain
            noisy.requires_grad_()
            (gradient,) = torch.autograd.grad(predict_ages(model, noisy, sex).sum(), noisy)
            gradient = gradient[:, 0]  # (copies, D, H, W)
            total += (gradient if self.times_input else gradient.abs()).sum(dim=0)
        return total / self.copies * (image[0, 0] if self.times_input else 1)


@dataclass(frozen=True)
class Occlusion:
    """Years that the age changes by when a cube of the brain gets the brain's mean intensity.

    Each voxel gets the mean over all cubes that hold it: positive where hiding it makes the brain
    look older. Nothing outside the brain is changed. Cubes without brain are not tried, their
    effect being 0. The whole cascade is seen, rounding included: there, effects may come in steps.

    Attributes:
        side: of the cube, voxels.
        stride: between cubes, voxels, at most `side`.
        batch_size: cubes at a time.

    Raises:
        ValueError: cubes that leave voxels out.
    """

    side: int
    stride: int
    batch_size: int = 8
    signed, unit = True, "years"

    def __post_init__(self):
        if not 1 <= self.stride <= self.side:
            raise ValueError(
                f"stride: from 1 to the cube's side of {self.side} voxels expected, "
                f"got {self.stride}"
            )

    @torch.inference_mode()
    def __call__(self, model: nn.Module, image: Tensor, sex: int | None) -> Tensor:
        """The map of one scan, (D, H, W) years; arguments as in SmoothGrad."""
        brain = mask_brain(image)[0, 0]
        total, covered = torch.zeros_like(image[0, 0]), torch.zeros_like(image[0, 0])
        tried = []
        for cube in cubes(brain.shape, self.side, self.stride):
            covered[cube] += 1
            if brain[cube].any():
                tried.append(cube)
        age = predict_ages(model, image, sex)
        for start in range(0, len(tried), self.batch_size):
            batch = tried[start : start + self.batch_size]
            hidden = image.repeat(len(batch), 1, 1, 1, 1)
            for copy, cube in zip(hidden[:, 0], batch, strict=True):
                copy[cube].masked_fill_(brain[cube], 0.0)  # z-score 0: the brain's mean
            for cube, change in zip(batch, predict_ages(model, hidden, sex) - age, strict=True):
                total[cube] += change
        return total / covered


def cubes(shape: Sequence[int], side: int, stride: int) -> Iterator[tuple[slice, ...]]:
    """Cubes every `stride` voxels that cover a volume; the last of a row ends with it."""
    sides = [min(side, size) for size in shape]
    starts = [
        sorted({*range(0, size - own, stride), size - own})
        for size, own in zip(shape, sides, strict=True)
    ]
    for corner in itertools.product(*starts):
        yield tuple(slice(at, at + own) for at, own in zip(corner, sides, strict=True))


def with_random_weights(model: nn.Module, *, seed: int) -> nn.Module:
    """A copy whose layers, normalisations included, are all drawn anew: it has learnt nothing.

    Args:
        model: any network or ensemble, on the CPU and not fused yet.
        seed: of the new weights; torch's global generator stays as it is.
    """
    copy = deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in copy.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        initialise(copy)
    return copy.eval()


def _sizes(count: int, largest: int) -> Iterator[int]:
    """The sizes of batches of at most `largest` that make up `count`."""
    for batch in range(math.ceil(count / largest)):
        yield min(largest, count - batch * largest)
