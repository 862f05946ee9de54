"""Rebuilds the weights and inputs behind tests/golden/authors_network_outputs.json.

Every tensor comes from numpy's RandomState, seeded by its key in the authors' format and a seed.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
STATE_DICT_KEYS = json.loads((GOLDEN / "authors_state_dict_keys.json").read_text())
OUTPUTS = json.loads((GOLDEN / "authors_network_outputs.json").read_text())


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


def images(case: dict) -> Tensor:
    generator = np.random.RandomState(1000 + case["seed"])
    shape = (len(case["sex"]), 1, *case["shape"])
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))
