"""Random changes to whole training batches, on the device, drawn from torch's generator.

Not in the paper, which trains without; docs/RESULTS.md says what it was measured to give.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """How far a training scan may be changed; the zeros change nothing.

    Attributes:
        flip: whether half of the scans are mirrored left to right.
        shift: largest shift along each axis, voxels of the network's input.
        intensity: SD of a factor on each scan's z-scored intensities.
    """

    flip: bool = False
    shift: int = 0
    intensity: float = 0.0

    def __call__(self, image: Tensor) -> Tensor:
        """(N, 1, D, H, W) -> the same shape; D runs from left to right."""
        scans = len(image)
        if self.flip:
            mirrored = torch.rand(scans, device=image.device) < 0.5
            image = torch.where(mirrored[:, None, None, None, None], image.flip(2), image)
        if self.shift:
            image = self._shift(image)
        if self.intensity:
            factor = 1 + self.intensity * torch.randn(scans, device=image.device)
            image = image * factor[:, None, None, None, None]
        return image

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
