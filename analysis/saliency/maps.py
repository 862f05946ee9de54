"""Maps of effects on the MNI152 2 mm grid: from the network's input to the grid, files, means."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage, stats
from torch import nn
from tqdm import tqdm

from analysis.saliency.attribution import Occlusion, SmoothGrad
from model.layers import fuse_for_inference
from utils.files import replacing
from utils.networks.execution import Execution
from utils.scans.dataset import ScanDataset
from utils.scans.template import load_template
from utils.scans.volumes import BRAIN_BOX, GRID_AFFINE, GRID_SHAPE, InputRule


def input_affine(input_rule: InputRule) -> np.ndarray:
    """(4, 4): voxel of the network's input, in LAS order, to MNI152 mm.

    At 4 mm a voxel is the mean of 2x2x2 voxels of the grid, and its centre lies between them: half
    a voxel of the grid past the first of them.
    """
    factor = input_rule.resolution // 2
    first = [start for start, _ in BRAIN_BOX] if input_rule.crop else [0, 0, 0]
    to_grid_voxel = np.diag([factor, factor, factor, 1.0])
    to_grid_voxel[:3, 3] = np.array(first) + (factor - 1) / 2
    return GRID_AFFINE @ to_grid_voxel


def to_grid(effect: np.ndarray, input_rule: InputRule) -> np.ndarray:
    """A map of the network's input, (D, H, W), on the MNI152 2 mm grid, (91, 109, 91) float32.

    Linear between voxels, 0 outside the input. Values are not divided among voxels: where the input
    has 4 mm, each is the effect of 64 mm3.
    """
    to_input = np.linalg.inv(input_affine(input_rule)) @ GRID_AFFINE
    moved = ndimage.affine_transform(
        np.asarray(effect, np.float64), to_input[:3, :3], to_input[:3, 3],
        output_shape=GRID_SHAPE, order=1, mode="grid-constant",
    )  # fmt: skip
    return moved.astype(np.float32)


def save_map(path: Path, effect: np.ndarray, *, overwrite: bool = False) -> None:
    """Writes a map on the grid, (91, 109, 91), as NIfTI float32 in MNI152 space."""
    image = nibabel.Nifti1Image(np.asarray(effect, np.float32), GRID_AFFINE)
    image.set_sform(GRID_AFFINE, code="mni")
    image.set_qform(GRID_AFFINE, code="mni")
    with replacing(path, overwrite=overwrite) as temporary:
        image.to_filename(temporary)


@dataclass(frozen=True)
class MeanMaps:
    """Means over scans on the grid, (91, 109, 91) each: of maps, and of their absolute values."""

    effect: np.ndarray
    magnitude: np.ndarray


def average_maps(
    model: nn.Module,
    dataset: ScanDataset,
    method: SmoothGrad | Occlusion,
    execution: Execution,
    *,
    keep: Callable[[int, np.ndarray], None] = lambda place, effect: None,
) -> MeanMaps:
    """The means over the maps of all scans.

    Args:
        model: a network or several as one; its layers are fused in place.
        dataset: the scans, on the grid; its input_rule says where an input lies on the grid.
        method: kind of map.
        execution: the device.
        keep: called with each scan's place and its map, (91, 109, 91).
    """
    model = execution.place(fuse_for_inference(model))
    effects, magnitudes = np.zeros(GRID_SHAPE), np.zeros(GRID_SHAPE)
    for place, scan in enumerate(tqdm(dataset.scans, "maps", disable=None, leave=False)):
        found = method(model, execution.images(dataset[[place]]), scan.sex)
        effect = to_grid(found.cpu().numpy(), dataset.input_rule)
        keep(place, effect)
        effects += effect
        magnitudes += np.abs(effect)
    return MeanMaps(effects / len(dataset), magnitudes / len(dataset))


def rank_correlation(maps: MeanMaps, others: MeanMaps) -> float | None:
    """Spearman's, of mean magnitudes in the template's brain; None where a map is constant."""
    ours, theirs = (each.magnitude[load_template().mask] for each in (maps, others))
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return None
    return float(stats.spearmanr(ours, theirs).statistic)
