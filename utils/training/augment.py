"""Random changes to whole training batches, on the device, drawn from torch's generator.

Not in the paper, which trains without any.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CURVE_PIECES = 6
FIELD_KNOTS = (3, 4, 3)  # along D, H, W


@dataclass(frozen=True)
class Augmentation:
    """How far training scans may be changed; the zeros change nothing.

    The first four move a brain. The others are what scanners differ in; but for `blur`, they leave
    the background as it is. Brightness counts in the unit of the network's input, see `InputRule`.

    Attributes:
        flip: whether half of the scans are mirrored left to right.
        shift: largest shift along each axis, voxels of the network's input; in `AUGMENTATIONS` mm.
        rotation: largest turn about each axis, degrees.
        scale: largest relative change of size along each axis.
        contrast: SD of the logarithms of the slopes of a random rising curve, which each scan's
            brightness follows from its darkest to its brightest voxel.
        field: SD of a smooth field that is added, as what is left of a coil's.
        blur: largest share, along each axis, of a mean over three voxels: thicker slices.
        noise: largest SD of noise on each voxel.
    """

    flip: bool = False
    shift: int = 0
    rotation: float = 0.0
    scale: float = 0.0
    contrast: float = 0.0
    field: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __call__(self, image: Tensor) -> Tensor:
        """(N, 1, D, H, W) -> the same shape; D runs from left to right."""
        scans = len(image)
        if self.flip:
            mirrored = torch.rand(scans, device=image.device) < 0.5
            image = torch.where(mirrored[:, None, None, None, None], image.flip(2), image)
        if self.contrast or self.field or self.blur or self.noise:
            image = self._rescan(image)
        if self.rotation or self.scale:
            image = self._turn(image)
        if self.shift:
            image = self._shift(image)
        return image

    def _rescan(self, image: Tensor) -> Tensor:
        """What another scanner might have made of each scan."""
        background = image[:, :, :1, :1, :1]  # a corner: no brain reaches it
        inside = image != background
        changed = image
        if self.contrast:
            changed = self._curve(changed)
        if self.field:
            knots = torch.randn(len(image), 1, *FIELD_KNOTS, device=image.device)
            changed = changed + self.field * functional.interpolate(
                knots, size=image.shape[2:], mode="trilinear", align_corners=True
            )
        changed = torch.where(inside, changed, background)
        if self.blur:
            for axis in range(3):
                window = [3 if other == axis else 1 for other in range(3)]
                padding = [size // 2 for size in window]
                mean = functional.avg_pool3d(
                    changed, window, stride=1, padding=padding, count_include_pad=False
                )
                changed = changed.lerp(mean, self.blur * _one_a_scan(image))
        if self.noise:
            noise = self.noise * _one_a_scan(image) * torch.randn_like(image)
            changed = torch.where(inside, changed + noise, changed)
        return changed

    def _curve(self, image: Tensor) -> Tensor:
        darkest, brightest = image.amin((2, 3, 4), True), image.amax((2, 3, 4), True)
        slopes = self.contrast * torch.randn(len(image), CURVE_PIECES, device=image.device)
        heights = functional.pad(slopes.exp().cumsum(1), (1, 0))
        heights = heights / heights[:, -1:]
        spread = (brightest - darkest).clamp(min=torch.finfo(image.dtype).tiny)
        places = (image - darkest) / spread * CURVE_PIECES
        below = places.floor().clamp(max=CURVE_PIECES - 1)
        lower = below.flatten(1).long()
        start, end = heights.gather(1, lower), heights.gather(1, lower + 1)
        share = (places - below).flatten(1)
        return darkest + spread * torch.lerp(start, end, share).view_as(image)

    def _shift(self, image: Tensor) -> Tensor:
        # The edge is repeated: background is not zero under the authors' intensity rule.
        padded = functional.pad(image, [self.shift] * 6, mode="replicate")
        starts = torch.randint(2 * self.shift + 1, (len(image), 3)).tolist()
        depth, height, width = image.shape[2:]
        return torch.stack(
            [
                scan[:, x : x + depth, y : y + height, z : z + width]
                for scan, (x, y, z) in zip(padded, starts, strict=True)
            ]
        )

    def _turn(self, image: Tensor) -> Tensor:
        """Rotates and scales each scan about the middle of its volume; edges are repeated."""
        device, scans = image.device, len(image)
        angles = math.radians(self.rotation) * (2 * torch.rand(scans, 3, device=device) - 1)
        sizes = 1 + self.scale * (2 * torch.rand(scans, 3, device=device) - 1)
        matrix = rotations(angles) * sizes[:, None, :]  # in voxels, along D, H, W
        # grid_sample counts axes backwards, and each from -1 to 1, whatever its length.
        half = torch.tensor(image.shape[2:], device=device) / 2
        matrix = (matrix * half / half[:, None]).flip(1, 2)
        theta = torch.cat([matrix, matrix.new_zeros(scans, 3, 1)], dim=2)
        grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
        turned = functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
        return turned.contiguous(memory_format=torch.channels_last_3d)


# `--augment NAME`: what was measured of each stands in docs/LOG.md.
AUGMENTATIONS = {
    "none": Augmentation(),
    "light": Augmentation(flip=True, shift=8),
    "strong": Augmentation(
        flip=True, shift=8, rotation=5, scale=0.05, contrast=0.5, field=0.1, blur=1.0, noise=0.1
    ),
}


def _one_a_scan(image: Tensor) -> Tensor:
    """(N, 1, 1, 1, 1) uniform from 0 to 1."""
    return torch.rand(len(image), 1, 1, 1, 1, device=image.device)


def rotations(angles: Tensor) -> Tensor:
    """(N, 3) radians about the three axes, one after another -> (N, 3, 3) rotation matrices."""
    total = torch.eye(3, device=angles.device).expand(len(angles), 3, 3)
    for axis in range(3):
        first, second = (other for other in range(3) if other != axis)
        turn = torch.eye(3, device=angles.device).repeat(len(angles), 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, first, first], turn[:, second, second] = cosine, cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        total = total @ turn
    return total
