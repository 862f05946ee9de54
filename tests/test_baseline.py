import numpy as np
from sklearn.kernel_ridge import KernelRidge

from utils.people.labels import read_labels
from utils.results import baseline
from utils.scans.cohort import open_cohort
from utils.scans.dataset import ScanDataset
from utils.scans.volumes import InputRule


def test_ridge_is_linear_kernel_ridge_on_voxels(grid_cohort, monkeypatch):
    monkeypatch.setattr("utils.results.ridge.ALPHAS", (1000.0,))
    labels = read_labels(grid_cohort / "labels.csv")
    folders = [grid_cohort / name for name in ("train", "val", "test")]

    report = baseline.main(
        [
            *("--train_folders", *map(str, folders[:2]), "--test_folder", str(folders[2])),
            *("--labels", str(grid_cohort / "labels.csv"), "--intensity", "brain"),
        ]
    )

    input_rule = InputRule(resolution=4)
    voxels, ages = [], []
    for folder in folders:
        scans = open_cohort(folder, labels, input_rule)
        dataset = ScanDataset(scans, input_rule)
        voxels.append(dataset[list(range(len(scans)))]["image"].flatten(1).numpy())
        ages.append([scan.age for scan in scans])
    train_voxels, train_ages = np.concatenate(voxels[:2]), np.concatenate(ages[:2])
    # RidgeCV fits an intercept, kernel ridge does not: both voxels and ages are centred for it.
    mean = train_voxels.mean(axis=0)
    ridge = KernelRidge(alpha=1000.0).fit(train_voxels - mean, train_ages - train_ages.mean())
    predicted = ridge.predict(voxels[2] - mean) + train_ages.mean()
    expected = np.abs(predicted - ages[2]).mean()
    assert abs(report["kernel ridge"]["mae"]["value"] - expected) < 0.05
    constant = np.abs(train_ages.mean() - np.array(ages[2])).mean()
    assert abs(report["mean age"]["mae"]["value"] - constant) < 1e-6
