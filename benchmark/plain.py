"""The authors' approach, stated plainly and not optimised: what the benchmark compares with.

The network of the first stage in both widths, its training step and its loader, written from the
published method (Cheng et al., IEEE TMI 2021) and from what is known about the released code:
contiguous float32 volumes, every asymmetric convolution as four convolutions, each with its own
batch normalisation, and nothing fused; Adam with AMSGrad; a loader that decodes, searches the label
sheet and normalises in float64 for every item of every epoch. Nothing here imports the product, so
that tests can compare the product with it. Parameters have the product's names: a state dict of one
loads into the other.
"""

import csv
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

KERNELS = ((3, 3, 3), (1, 1, 3), (3, 1, 1), (1, 3, 1))
BLOCK_CHANNELS = {"released": (16, 48, 144, 432, 1296), "compact": (8, 16, 32, 64, 128)}


class PlainAsymmetric(nn.Module):
    """Four convolutions, four normalisations, their sum."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.branches = nn.ModuleList()
        for kernel in KERNELS:
            padding = tuple(size // 2 for size in kernel)
            conv = nn.Conv3d(in_channels, out_channels, kernel, padding=padding, bias=False)
            self.branches.append(nn.Sequential(conv, nn.BatchNorm3d(out_channels)))

    def forward(self, volume: Tensor) -> Tensor:
        """(N, in, D, H, W) -> (N, out, D, H, W)."""
        first, second, third, fourth = self.branches
        return first(volume) + second(volume) + third(volume) + fourth(volume)


def plain_unit(in_channels: int, out_channels: int) -> nn.Sequential:
    """Asymmetric convolution, normalisation, ELU: (N, in, D, H, W) -> (N, out, D, H, W)."""
    layers = OrderedDict(
        convolution=PlainAsymmetric(in_channels, out_channels),
        norm=nn.BatchNorm3d(out_channels),
        activation=nn.ELU(),
    )
    return nn.Sequential(layers)


class PlainExcite(nn.Module):
    """Squeeze-and-excitation with a sixteenth of the channels, at least one."""

    def __init__(self, channels: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.squeeze = nn.Linear(channels, max(1, channels // 16))
        self.expand = nn.Linear(max(1, channels // 16), channels)

    def forward(self, volume: Tensor) -> Tensor:
        """(N, C, D, H, W) -> the same shape."""
        pooled = self.pool(volume).flatten(1)  # (N, C)
        factor = torch.sigmoid(self.expand(torch.relu(self.squeeze(pooled))))
        return volume * factor.view(*factor.shape, 1, 1, 1)


def plain_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two units, squeeze-and-excitation, max-pool: halves each side of the volume."""
    layers = OrderedDict(
        unit1=plain_unit(in_channels, out_channels),
        unit2=plain_unit(out_channels, out_channels),
        excite=PlainExcite(out_channels),
        pool=nn.MaxPool3d(2),
    )
    return nn.Sequential(layers)


class PlainBackbone(nn.Module):
    """Five blocks; the pooled input of each is put in front of its output."""

    def __init__(self, width: str):
        super().__init__()
        self.stem, channels = nn.Sequential(), 1
        if width == "released":
            stem = nn.Conv3d(1, 8, kernel_size=7, dilation=2, padding=1)
            self.stem, channels = nn.Sequential(stem, nn.ELU()), 8
        self.blocks = nn.ModuleList()
        for new_channels in BLOCK_CHANNELS[width]:
            self.blocks.append(plain_block(channels, new_channels))
            channels += new_channels
        self.pool, self.global_pool = nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1)
        self.last_alone = width == "compact"  # the paper's figure pools the last scale alone
        self.pooled_channels = new_channels if self.last_alone else channels

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, D, H, W) -> (N, 1944) released, (N, 128) compact."""
        volume = self.stem(image)
        for index, block in enumerate(self.blocks, start=1):
            new = block(volume)
            if self.last_alone and index == len(self.blocks):
                volume = new
            else:
                volume = torch.cat([self.pool(volume), new], dim=1)
        return self.global_pool(volume).flatten(1)


class PlainEncoder(nn.Module):
    """The image branch and the sex branch, side by side."""

    def __init__(self, width: str):
        super().__init__()
        self.backbone = PlainBackbone(width)
        pooled = self.backbone.pooled_channels
        self.image_branch = nn.Sequential(nn.Linear(pooled, 32), nn.ELU())
        between = [nn.ELU()] if width == "compact" else []
        self.sex_branch = nn.Sequential(nn.Linear(2, 16), *between, nn.Linear(16, 8), nn.ELU())

    def forward(self, image: Tensor, sex: Tensor) -> Tensor:
        """(N, 1, D, H, W) and (N,) sexes -> (N, 40)."""
        image_features = self.image_branch(self.backbone(image))
        one_hot = torch.nn.functional.one_hot(sex, 2).to(image_features.dtype)
        return torch.cat([image_features, self.sex_branch(one_hot)], dim=1)


class PlainNetwork(nn.Module):
    """The first stage with sex, without the closing ReLU, which can be dead from the start."""

    def __init__(self, width: str):
        super().__init__()
        self.encoder = PlainEncoder(width)
        between = [nn.ELU()] if width == "compact" else []
        self.head = nn.Sequential(nn.Linear(40, 16), *between, nn.Linear(16, 1))

    def forward(self, image: Tensor, sex: Tensor) -> Tensor:
        """(N, 1, D, H, W) and (N,) sexes, 0 female or 1 male -> (N, 1) years."""
        return self.head(self.encoder(image, sex))


def plain_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """The published optimiser of stage one."""
    return torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=5e-4, amsgrad=True)


def plain_step(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
) -> float:
    """One training step in float32; returns the loss, which the authors log at every step."""
    device = next(network.parameters()).device
    image, sex, age = (batch[name].to(device) for name in ("image", "sex", "age"))
    total = loss(network(image, sex), age)["total"]
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return total.item()


@torch.no_grad()
def plain_predict(network: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
    """The (N,) ages of a batch."""
    device = next(network.parameters()).device
    return network(batch["image"].to(device), batch["sex"].to(device))[:, 0].cpu().numpy()


def plain_normalise(volume: np.ndarray) -> np.ndarray:
    """Z-scores by mean and SD over voxels > 0; the others become x - mean/SD. float64."""
    brain = volume[volume > 0]
    mean, deviation = brain.mean(), brain.std()
    return np.where(volume > 0, (volume - mean) / deviation, volume - mean / deviation)


class PlainDataset(Dataset):
    """A folder of scans that are decoded, searched in the sheet and normalised at every access."""

    def __init__(self, folder: Path, sheet: Path):
        self.folder, self.names = folder, sorted(path.name for path in folder.iterdir())
        with sheet.open(newline="") as file:
            self.rows = list(csv.reader(file))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The scan at `index` in the order of names: image (1, D, H, W), sex (), age (1,)."""
        name = self.names[index]
        volume = nibabel.load(self.folder / name).get_fdata()
        for row in self.rows:
            row_name, row_age, row_sex = str(row[0]), float(row[1]), int(row[2])
            if row_name == name:
                age, sex = row_age, row_sex
        image = torch.from_numpy(plain_normalise(volume)).float()[None]
        return {"image": image, "sex": torch.tensor(sex), "age": torch.tensor([age])}


def plain_loader(dataset: PlainDataset, *, batch_size: int, num_workers: int) -> DataLoader:
    """Shuffled batches."""
    workers = {"num_workers": num_workers, "pin_memory": torch.cuda.is_available()}
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, **workers)
