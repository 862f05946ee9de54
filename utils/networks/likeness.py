"""How unlike its training scans a scan looks to a network.

Ages of scans from a scanner that the network does not know are off by years, and look as sure as
any. Its pooled features give them away: those of the training scans lie near the subspace of their
first principal components, and the distance from it is larger for what the network has not learnt
from (the Q statistic of Jackson and Mudholkar 1979, Technometrics 21, 341-349). `unlikeness` is
this distance divided by the median of the training scans.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.scaledense import Backbone, ScaleDense
from model.tsan import TSAN, Ensemble
from utils.networks.checkpoint import Checkpoint
from utils.networks.execution import Execution
from utils.scans.cohort import Scan
from utils.scans.dataset import open_for_one_pass

COMPONENTS = 32
FEWEST = 2 * COMPONENTS  # training scans
BATCH = 8


class Likeness(nn.Module):
    """The training scans of one network, as its pooled features show them.

    Args:
        mean: (C,) of the features.
        basis: (COMPONENTS, C), their orthonormal principal components.
        scale: median distance of the training scans from the subspace.
    """

    def __init__(self, mean: Tensor, basis: Tensor, scale: float):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.scale = scale

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, C) features -> (N,) unlikeness; 1 is that of the middlemost training scan."""
        away = pooled.float() - self.mean
        return (away - away @ self.basis.T @ self.basis).norm(dim=1) / self.scale

    def options(self) -> dict:
        """The arguments that rebuild it, as a checkpoint keeps them."""
        return {"mean": self.mean.cpu(), "basis": self.basis.cpu(), "scale": self.scale}


def learn_likeness(checkpoint: Checkpoint, scans: list[Scan], execution: Execution) -> dict:
    """Looks at the training scans of one network; of a cascade with the eyes of the first stage.

    Args:
        checkpoint: its network goes to the device of `execution`.
        scans: the training scans, and maybe others; told apart by their hashes.
        execution: device and precision.

    Returns:
        The options of a `Likeness`, for `summary["likeness"]`, which has one for each network.

    Raises:
        ValueError: training scans are missing, or fewer than FEWEST.
    """
    dataset = open_for_one_pass(scans, checkpoint.input_rule)
    trained = set(checkpoint.trained_on or ())
    hashes = dataset.content_hashes
    # One of several copies; a hash that is not among the scans is missing.
    places = sorted({name: place for place, name in enumerate(hashes) if name in trained}.values())
    if len(places) < max(len(trained), FEWEST):
        raise ValueError(
            f"{checkpoint.source}: {len(places)} of its {len(trained)} training scans are among "
            f"those given; all of them expected, and at least {FEWEST}"
        )
    found: list[Tensor] = []
    backbone = _backbone(execution.place(checkpoint.model)).eval()
    with torch.inference_mode(), execution.autocast():
        for start in range(0, len(places), BATCH):
            image = execution.images(dataset[places[start : start + BATCH]])
            found += [backbone(view).float().cpu() for view in checkpoint.views(image)]
    features = torch.cat(found)
    mean = features.mean(dim=0)
    basis = torch.linalg.svd((features - mean).double(), full_matrices=False).Vh[:COMPONENTS]
    likeness = Likeness(mean, basis.float(), 1.0)
    likeness.scale = likeness(features).median().item()
    return likeness.options()


class Watched(nn.Module):
    """Networks behind the interface of one, whose ages come with the unlikeness of the scan.

    Args:
        network: of either stage, or an ensemble.
        likenesses: one for each of its networks.
    """

    def __init__(self, network: ScaleDense | TSAN | Ensemble, likenesses: Sequence[Likeness]):
        super().__init__()
        self.network, self.likenesses = network, nn.ModuleList(likenesses)
        self.seen: list[Tensor] = []
        members = network.members if isinstance(network, Ensemble) else [network]
        for member, likeness in zip(members, likenesses, strict=True):
            _backbone(member).register_forward_hook(
                lambda _, __, pooled, likeness=likeness: self.seen.append(likeness(pooled))
            )

    def predict(self, image: Tensor, sex: Tensor) -> dict[str, Tensor]:
        """The named (N, 1) ages of `network`, and `unlikeness`, (N, 1), the mean over networks."""
        self.seen.clear()
        ages = self.network.predict(image, sex)
        return ages | {"unlikeness": torch.stack(self.seen).mean(dim=0)[:, None]}

    def forward(self, image: Tensor, sex: Tensor) -> Tensor:
        """As `predict`; the age alone."""
        return self.predict(image, sex)["predicted_age"]


def _backbone(network: ScaleDense | TSAN) -> Backbone:
    """The part of the first stage whose output is its pooled features."""
    return (network.first_stage if isinstance(network, TSAN) else network).encoder.backbone
