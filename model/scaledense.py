"""ScaleDense, the network of both stages, and the first stage itself.

Source: Cheng et al., IEEE TMI 2021, section III-B and figure 3. Two widths:

- `released`: what the authors' code builds (102 million parameters);
- `compact`: what the paper's figure draws (1.5 million parameters).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import DenseBlock3d, initialise

IMAGE_FEATURES, SEX_FEATURES = 32, 8
SMALLEST_SIDE = 32  # voxels; a smaller volume vanishes after five halvings


@dataclass(frozen=True)
class Width:
    """What distinguishes the descriptions of the network."""

    stem: Callable[[], nn.Sequential]  # (N, 1, D, H, W) -> what the blocks read
    smallest_side: int  # voxels along each axis, of which the last block still makes one
    block_channels: tuple[int, ...]  # new channels of each block
    pooled_channels: int  # length of the globally pooled vector
    last_block_keeps_input: bool  # whether the pooled vector includes the earlier scales
    between_layers: type[nn.Module] | None  # of the sex branch and the head; None: nothing
    age_activation: type[nn.Module]  # between the layers of the second stage's age branch


def released_stem() -> nn.Sequential:
    """(N, 1, D, H, W) -> (N, 8, D - 10, H - 10, W - 10)."""
    return nn.Sequential(nn.Conv3d(1, 8, kernel_size=7, dilation=2, padding=1), nn.ELU())


WIDTHS = {
    "released": Width(
        released_stem, SMALLEST_SIDE + 10, (16, 48, 144, 432, 1296), 1944, True, None, nn.ReLU
    ),
    "compact": Width(
        nn.Sequential, SMALLEST_SIDE, (8, 16, 32, 64, 128), 128, False, nn.ELU, nn.ELU
    ),
}


class Backbone(nn.Module):
    """Five dense blocks and global average pooling.

    Any volume of 32 voxels per side or more; 42 in the released width, whose stem takes ten.
    Released, on 91x109x91: stem to 81x99x81, then channels 8, 24, 72, 216, 648, 1944.
    Compact: blocks read 1, 9, 25, 57 and 121 channels, all earlier scales and the image included.
    """

    def __init__(self, width: Width):
        super().__init__()
        self.stem, self.smallest_side = width.stem(), width.smallest_side
        channels = self.stem[0].out_channels if len(self.stem) else 1
        self.blocks = nn.ModuleList()
        for index, new_channels in enumerate(width.block_channels):
            last = index == len(width.block_channels) - 1
            keep_input = not last or width.last_block_keeps_input
            self.blocks.append(DenseBlock3d(channels, new_channels, keep_input=keep_input))
            channels = new_channels + channels * keep_input

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, D, H, W) -> (N, pooled_channels); ValueError for too small a volume."""
        if min(image.shape[2:]) < self.smallest_side:
            raise ValueError(
                f"volumes of {self.smallest_side} voxels a side or more expected, "
                f"found {'x'.join(map(str, image.shape[2:]))}"
            )
        volume = self.stem(image)
        for block in self.blocks:
            volume = block(volume)  # D, H and W halve, rounded down
        return volume.mean(dim=(2, 3, 4))


class Encoder(nn.Module):
    """The image and sex branches that both stages share: a scan and a sex become one vector."""

    def __init__(self, width: str, *, use_sex: bool):
        super().__init__()
        if width not in WIDTHS:
            raise ValueError(f"width: one of {', '.join(WIDTHS)} expected, got {width!r}")
        shape = WIDTHS[width]
        self.width, self.use_sex = width, use_sex
        self.out_features = IMAGE_FEATURES + SEX_FEATURES * use_sex
        self.backbone = Backbone(shape)
        self.image_branch = nn.Sequential(
            nn.Linear(shape.pooled_channels, IMAGE_FEATURES), nn.ELU()
        )
        if use_sex:
            sizes = (2, 16, SEX_FEATURES)
            self.sex_branch = fully_connected(sizes, shape.between_layers, nn.ELU)

    def forward(self, image: Tensor, sex: Tensor) -> Tensor:
        """(N, 1, D, H, W) and (N,) sexes, 0 female or 1 male -> (N, out_features)."""
        pooled = self.backbone(image)
        with full_precision(image):
            features = self.image_branch(pooled.to(self.image_branch[0].weight.dtype))  # (N, 32)
            if self.use_sex:
                one_hot = functional.one_hot(sex, num_classes=2).to(features.dtype)
                features = torch.cat([features, self.sex_branch(one_hot)], dim=1)  # (N, 40)
        return features


class ScaleDense(nn.Module):
    """The first stage: scan and sex to an age in years.

    Args:
        width: `released` or `compact`.
        use_sex: whether the sex is an input; without it `forward` ignores its argument.
        mean_age: start of the output bias, years: the mean training age.
        age_spread: factor on the first weights of the output: the SD of the training ages makes
            the head start at their scale instead of growing to it; 1 as published.
        final_relu: the authors' closing ReLU, needed for their weights only. It was dead at
            initialisation for 8 of 30 seeds, with no gradient ever after: not for training.

    Raises:
        ValueError: unknown width.
    """

    def __init__(
        self,
        width: str = "compact",
        *,
        use_sex: bool = True,
        mean_age: float = 0.0,
        age_spread: float = 1.0,
        final_relu: bool = False,
    ):
        super().__init__()
        self.encoder = Encoder(width, use_sex=use_sex)
        sizes = (self.encoder.out_features, 16, 1)
        self.head = fully_connected(sizes, WIDTHS[width].between_layers, None)
        self.final_relu = final_relu
        initialise(self)
        nn.init.constant_(self.head[-1].bias, mean_age)
        with torch.no_grad():
            self.head[-1].weight.mul_(age_spread)

    def forward(self, image: Tensor, sex: Tensor) -> Tensor:
        """(N, 1, D, H, W) and (N,) sexes, 0 female or 1 male -> (N, 1) ages in years."""
        features = self.encoder(image, sex)
        with full_precision(image):
            age = self.head(features)
        return functional.relu(age) if self.final_relu else age

    def predict(self, image: Tensor, sex: Tensor) -> dict[str, Tensor]:
        """The named (N, 1) ages that an evaluation collects."""
        age = self(image, sex)
        return {"stage_one_age": age, "predicted_age": age}

    def options(self) -> dict:
        """The arguments that rebuild this network, as plain values."""
        encoder = self.encoder
        return {
            "width": encoder.width,
            "use_sex": encoder.use_sex,
            "final_relu": self.final_relu,
        }


def fully_connected(
    sizes: tuple[int, ...],
    between: type[nn.Module] | None,
    last: type[nn.Module] | None,
) -> nn.Sequential:
    """Linear layers of these sizes, with an activation `between` them and `last` after them."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(inputs, outputs))
        activation = last if index == len(sizes) - 2 else between
        if activation is not None:
            layers.append(activation())
    return nn.Sequential(*layers)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Switches autocast off: between 64 and 128, bfloat16 steps are half a year."""
    return torch.autocast(tensor.device.type, enabled=False)
