"""What the second stage needs to know of the first before it trains."""

import numpy as np
from torch import nn

from utils.dataset import ScanDataset, evaluation_loader
from utils.engine import Execution, predict


def unseen_error_spread(
    first_stage: nn.Module, train_set: ScanDataset, val_set: ScanDataset, execution: Execution
) -> float:
    """How much the first stage's error on new scans exceeds that on its training scans.

    Returns:
        Years: the SD of independent noise that would make its mean squared error on the training
        scans that on the validation scans; 0 where it is no better on the former.
    """
    model = execution.place(first_stage)
    errors = []
    for dataset in (train_set, val_set):
        loader = evaluation_loader(dataset, batch_size=16, world=execution.world)
        ages = predict(model, loader, execution, title="first stage")["predicted_age"]
        errors.append(np.mean((ages - np.array([scan.age for scan in dataset.scans])) ** 2))
    return float(np.sqrt(max(0.0, errors[1] - errors[0])))
