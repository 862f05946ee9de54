"""How unlike its training scans a scan looks to a network.

Ages of scans from a scanner that the network does not know are off by years, and look as sure as
any. Its pooled features give them away: those of the training scans lie near the subspace of their
first principal components, and the distance from it is larger for what the network has not learnt
from (the Q statistic of Jackson and Mudholkar 1979, Technometrics 21, 341-349). `unlikeness` is
this distance divided by the median of the training scans.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.scaledense import ScaleDense
from model.tsan import TSAN, Ensemble
from utils.networks.checkpoint import Checkpoint
from utils.networks.execution import Execution, Views, choose_execution
from utils.scans.cohort import Scan, open_cohort
from utils.scans.dataset import open_for_one_pass

COMPONENTS = 32
FEWEST = 2 * COMPONENTS  # training scans
BATCH = 8


@dataclass(frozen=True)
class Likeness:
    """The training scans of one network, as its pooled features show them.

    Attributes:
        mean: (C,) of the features.
        basis: (COMPONENTS, C), their orthonormal principal components.
        scale: median distance of the training scans from the subspace.
    """

    mean: Tensor
    basis: Tensor
    scale: float

    def __call__(self, features: Tensor) -> Tensor:
        """(N, C) -> (N,) unlikeness; 1 is that of the middlemost training scan."""
        away = features - self.mean
        return (away - away @ self.basis.T @ self.basis).norm(dim=1) / self.scale


def learn_likeness(checkpoint: Checkpoint, scans: list[Scan], execution: Execution) -> dict:
    """Looks at the training scans of one network; of a cascade with the eyes of the first stage.

    Args:
        checkpoint: its network goes to the device of `execution`.
        scans: the training scans, and maybe others; told apart by their hashes.
        execution: device and precision.

    Returns:
        The fields of a `Likeness`, for `summary["likeness"]`, which has one for each network.

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
    network = execution.place(checkpoint.model).eval()
    batches = [dataset[places[start : start + BATCH]] for start in range(0, len(places), BATCH)]
    features = [_features(network, batch, execution, checkpoint.views.mirror) for batch in batches]
    features = torch.cat(features).flatten(0, 1)  # each mirror image is a scan of its own
    mean = features.mean(dim=0)
    basis = torch.linalg.svd((features - mean).double(), full_matrices=False).Vh[:COMPONENTS]
    fields = {"mean": mean, "basis": basis.float()}
    return fields | {"scale": Likeness(**fields, scale=1.0)(features).median().item()}


def learn_from_folders(checkpoint: Checkpoint, folders: Sequence[str]) -> dict:
    """As `learn_likeness`, of scans in folders, on the CPU."""
    scans = open_cohort(folders, None, checkpoint.input_rule)
    return learn_likeness(checkpoint, scans, choose_execution("cpu", "float32"))


def measure_unlikeness(
    network: ScaleDense | TSAN | Ensemble,
    likenesses: Sequence[dict],
    batches: Iterable[dict],
    execution: Execution,
    *,
    mirror: bool,
) -> np.ndarray:
    """The unlikeness of every scan, (scans,), the mean over networks and mirror images.

    Scans stay where they are: moved copies, over which ages are averaged, hide what is sought.

    Args:
        network: on the device, in evaluation mode.
        likenesses: fields of one `Likeness` for each of its networks.
        batches: from `evaluation_loader`.
        execution: device and precision.
        mirror: whether mirror images are looked at too, as they were in training.
    """
    members = network.members if isinstance(network, Ensemble) else [network]
    looks = [Likeness(**fields) for fields in likenesses]
    found = []
    for batch in batches:
        views = [_features(member, batch, execution, mirror) for member in members]
        each = [look(view.flatten(0, 1)) for look, view in zip(looks, views, strict=True)]
        found.append(torch.stack(each).mean(dim=0).unflatten(0, views[0].shape[:2]).mean(dim=1))
    return torch.cat(found).numpy()


@torch.inference_mode()
def _features(
    network: ScaleDense | TSAN, batch: dict[str, Tensor], execution: Execution, mirror: bool
) -> Tensor:
    """(N, views, C) pooled features of the first stage, float32 on the CPU."""
    first_stage = network.first_stage if isinstance(network, TSAN) else network
    image = execution.images(batch)
    with execution.autocast():
        views = [first_stage.encoder.backbone(view) for view in Views(mirror)(image)]
    return torch.stack(views, dim=1).float().cpu()
