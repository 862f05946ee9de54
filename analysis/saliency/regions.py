"""Coarse anatomical regions of the MNI152 2 mm grid, made from the shipped template by rules.

No atlas is needed or downloaded. Tissue comes from the intensities of the template of the
preprocessing (utils/scans/template_files), place from planes and ellipsoids in MNI152 mm. The
tissue maps that nilearn ships lie in the space of ICBM 2009a, 2 mm from FSL's on average and 8 mm
at most, as wide as a ventricle; it ships no atlas of volumes. So neither is used.

How coarse it is: lobes are cut by planes that follow the central and lateral sulci within about a
centimetre, so gyri beside a border may fall to the neighbour; cingulate cortex and insula belong to
the lobes around them; the brain stem is a box; the deep grey matter is an ellipsoid with the
internal capsule in it; cortex is as thick as an average of many brains looks, and its sulci are too
narrow to be told from it in most places. Good for "which part of the brain", not for a gyrus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import nibabel
import numpy as np
from scipy import ndimage

from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

# Template intensities (0 to 255) of the valleys between CSF, grey and white matter.
GREY_FROM, WHITE_FROM = 140, 212
DEEP = 12  # mm from the surface of the brain: sulci are nearer, ventricles are not
RIM = 1  # voxels around the ventricles: those of the old are wider than the template's
LOBES = ("frontal", "parietal", "temporal", "occipital")
TISSUES = ("grey", "white", "csf")
STRUCTURES = ("ventricles", "deep grey", "medial temporal", "cerebellum", "brain stem")
OUTSIDE = "outside the brain"


@dataclass(frozen=True)
class Regions:
    """A parcellation of the grid.

    Attributes:
        labels: (91, 109, 91) int16 in LAS order; a place in `names`, 0 outside the brain.
        names: such as `left frontal grey`, `right ventricles`; the first is OUTSIDE.
    """

    labels: np.ndarray
    names: tuple[str, ...]


def grid_coordinates() -> np.ndarray:
    """(3, 91, 109, 91) MNI152 mm of each voxel of the grid: x to the right, y forward, z up."""
    voxels = np.indices(GRID_SHAPE).reshape(3, -1)
    return nibabel.affines.apply_affine(GRID_AFFINE, voxels.T).T.reshape(3, *GRID_SHAPE)


@cache
def coarse_regions() -> Regions:
    """The parcellation; every voxel of the template's brain is in exactly one region.

    Where rules overlap, the first of STRUCTURES wins, and lobes get the rest. The plane x = 0
    counts as left.
    """
    template = load_template()
    brain, mask = template.brain, template.mask
    coordinates = grid_coordinates()
    structures = dict(zip(STRUCTURES, _structures(brain, mask, coordinates), strict=True))
    tissue = np.digitize(brain, (GREY_FROM, WHITE_FROM))  # 0 csf, 1 grey, 2 white
    parts = dict(structures)
    for lobe, inside in zip(LOBES, _lobes(coordinates), strict=True):
        for name in TISSUES:
            parts[f"{lobe} {name}"] = inside & (tissue == ("csf", "grey", "white").index(name))
    labels, names = np.zeros(GRID_SHAPE, np.int16), [OUTSIDE]
    right = coordinates[0] > 0
    for name, inside in parts.items():
        for side, half in (("left", ~right), ("right", right)):
            labels[mask & inside & half & (labels == 0)] = len(names)
            names.append(f"{side} {name}")
    labels.setflags(write=False)
    return Regions(labels, tuple(names))


def _structures(
    brain: np.ndarray, mask: np.ndarray, coordinates: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Where each of STRUCTURES is, (91, 109, 91) bool; they may overlap."""
    x, y, z = coordinates
    side = np.abs(x)
    fluid = mask & (brain < GREY_FROM)
    ventricles = ndimage.binary_dilation(_ventricles(fluid, mask, coordinates), iterations=RIM)
    deep_grey = ((side - 17) / 16) ** 2 + ((y + 5) / 28) ** 2 + ((z - 5) / 14) ** 2 < 1
    medial_temporal = (side > 13) & (side < 37) & (y > -36) & (y < 4) & (z > -34) & (z < -7)
    # The tentorium falls from the midline to the sides and to the back.
    tent = -6 - 0.5 * np.maximum(side - 8, 0) - 0.4 * np.maximum(-62 - y, 0)
    cerebellum = (y < -36) & (z < tent)
    # Midbrain and pons, then the medulla, which lies further back.
    upper = (side < 18) & (y > -38) & (z > -42) & (z < -5)
    brain_stem = (y < -10) & (upper | (side < 12) & (y > -54) & (z <= -42))
    return (
        ventricles,
        deep_grey,
        medial_temporal & ~brain_stem,
        cerebellum & ~brain_stem,
        brain_stem,
    )


def _ventricles(fluid: np.ndarray, mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """The fluid of lateral, third and fourth ventricle; the cisterns around are left out."""
    x, y, z = coordinates
    side = np.abs(x)
    spacing = np.abs(np.diag(GRID_AFFINE)[:3])
    deep = fluid & (ndimage.distance_transform_edt(mask, sampling=spacing) > DEEP)
    lateral = deep & (z > -6) & (z < 30) & (y > -62) & (y < 32) & (side < 38)
    pieces, _ = ndimage.label(lateral)
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    third = deep & (side < 5) & (y > -32) & (y < 6) & (z > -14) & (z < 12)
    fourth = deep & (side < 13) & (y > -52) & (y < -34) & (z > -44) & (z < -20)
    return largest | third | fourth


def _lobes(coordinates: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where each of LOBES is; the four fill the grid and do not overlap."""
    x, y, z = coordinates
    side = np.abs(x)
    occipital = y < -66 - 0.3 * z  # from the parieto-occipital sulcus to the preoccipital notch
    lateral_sulcus = -4 - 0.5 * y
    temporal = ~occipital & (y < 22) & (z < lateral_sulcus) & ((side >= 24) | (y < 4) & (z < -8))
    frontal = ~occipital & ~temporal & (y > -0.4 * z)  # before the central sulcus
    return frontal, ~occipital & ~temporal & ~frontal, temporal, occipital


def region_table(
    effect: np.ndarray, magnitude: np.ndarray, regions: Regions, *, signed: bool = True
) -> list[dict]:
    """What each region does to the age, that of the largest mean magnitude first.

    Args:
        effect: (91, 109, 91), mean of the maps of several scans.
        magnitude: the same shape, mean of the maps' absolute values.
        regions: from `coarse_regions`.
        signed: whether the sign of `effect` means anything.

    Returns:
        For each region: region, voxels, mean_absolute_effect and mean_effect (units of the maps;
        the latter n/a where the maps have no sign), sign, share (of the sum of magnitudes over the
        grid), and concentration: share over the region's share of the brain's voxels, 1 where
        effects are no denser than in the whole brain.
    """
    labels, count = regions.labels.ravel(), len(regions.names)
    voxels = np.bincount(labels, minlength=count)
    absolute = np.bincount(labels, magnitude.ravel(), minlength=count)
    sums = np.bincount(labels, effect.ravel(), minlength=count)
    total, inside = absolute.sum() or 1.0, absolute[1:].sum() or 1.0
    rows = [
        {
            "region": name,
            "voxels": int(voxels[index]),
            "mean_absolute_effect": absolute[index] / voxels[index],
            "mean_effect": sums[index] / voxels[index] if signed else "n/a",
            "sign": ("-", "0", "+")[int(np.sign(sums[index])) + 1] if signed else "n/a",
            "share": absolute[index] / total,
            "concentration": absolute[index] / inside / (voxels[index] / voxels[1:].sum())
            if index
            else "n/a",
        }
        for index, name in enumerate(regions.names)
    ]
    return sorted(rows, key=lambda row: -row["mean_absolute_effect"])


def format_regions(rows: Sequence[dict], unit: str, *, most: int = 10) -> str:
    """The first `most` rows as a table to print."""
    lines = [f"{'':24s}{'share':>7s}{'concentration':>15s}  mean |effect| ({unit})"]
    for row in rows[:most]:
        dense = row["concentration"]
        dense = dense if isinstance(dense, str) else f"{dense:.2f}"
        sign = "" if row["sign"] == "n/a" else f" ({row['sign']})"
        lines.append(
            f"{row['region']:24s}{row['share']:7.1%}{dense:>15s}  "
            f"{row['mean_absolute_effect']:.3g}{sign}"
        )
    return "\n".join(lines)
