"""Rebuilds the weights and inputs behind tests/golden/authors_network_outputs.json.

Every tensor comes from numpy's RandomState, seeded by its key in the authors' format and a seed.
"""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.authors import to_authors
from model.scaledense import WIDTHS, ScaleDense
from model.tsan import SecondStage

GOLDEN = Path(__file__).parent / "golden"
STATE_DICT_KEYS = json.loads((GOLDEN / "authors_state_dict_keys.json").read_text())
OUTPUTS = json.loads((GOLDEN / "authors_network_outputs.json").read_text())
# The layers and keys of the released width in kilobytes, not 400 MB, for what no size changes.
NARROW = replace(WIDTHS["released"], block_channels=(8, 8, 16, 16, 32), pooled_channels=88)


def draw(key: str, shape: list[int], seed: int) -> np.ndarray:
    generator = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    size = int(np.prod(shape))
    return generator.standard_normal(size).astype(np.float32).reshape(shape)


def weight(key: str, shape: list[int], seed: int) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    value = draw(key, shape, seed)
    if key.endswith("running_var"):
        value = np.float32(0.5) + np.abs(value)
    elif key.endswith("running_mean"):
        value = np.float32(0.1) * value
    elif len(shape) >= 2:
        value = value * np.float32(np.sqrt(1 / np.prod(shape[1:])))
    elif key.endswith("weight"):
        value = 1 + np.float32(0.1) * value
    else:
        value = np.float32(0.1) * value
    return torch.from_numpy(value)


def authors_state_dict(stage: str, seed: int) -> dict[str, Tensor]:
    return {key: weight(key, shape, seed) for key, shape in STATE_DICT_KEYS[stage].items()}


def narrow_state_dict(stage: str, seed: int) -> dict[str, Tensor]:
    """Weights of a NARROW network under the authors' keys; it is built where it is `released`."""
    network = {"first_stage": ScaleDense, "second_stage": SecondStage}[stage]
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setitem(WIDTHS, "released", NARROW)
        shapes = {key: list(value.shape) for key, value in to_authors(network("released")).items()}
    return {key: weight(key, shape, seed) for key, shape in shapes.items()}


def images(case: dict) -> Tensor:
    generator = np.random.RandomState(1000 + case["seed"])
    shape = (len(case["sex"]), 1, *case["shape"])
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))
