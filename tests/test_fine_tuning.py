"""Fine-tuning the shipped networks on a small cohort of another scanner (docs/train.md)."""

import json

import numpy as np
import pytest
from conftest import write_scan

import train_first_stage
from data_preprocessing.demo.cohort import person_generator
from data_preprocessing.demo.phantom import load_template, make_volume
from utils.networks.predictor import shipped_networks

AGES = {"train": np.linspace(20, 85, 8), "val": np.linspace(23, 82, 6)}


@pytest.fixture(scope="module")
def other_scanner(tmp_path_factory):
    """Generated brains with darker grey matter and more noise than any other cohort here."""
    folder, template = tmp_path_factory.mktemp("other_scanner"), load_template()
    noise, rows = np.random.default_rng(0), []
    for name, ages in AGES.items():
        for index, age in enumerate(ages):
            rng = person_generator(2, person=len(rows))
            volume, _ = make_volume(template, age=float(age), sex=index % 2, rng=rng)
            volume = np.asarray(volume, np.float32)
            brain = volume > 0
            grain = 1 + 0.08 * noise.standard_normal(volume.shape)
            changed = np.where(brain, (volume / volume.max()) ** 1.7 * grain + 0.01, 0)
            path = folder / name / f"{name}{index}.nii.gz"
            write_scan(path, changed.clip(0).astype(np.float32))
            rows.append(f"{name}{index}.nii.gz,{age},{index % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def validation_mae(cohort, output, *flags: str) -> float:
    """Of the last epoch, years."""
    train_first_stage.main(
        [
            *("--train_folder", str(cohort / "train"), "--val_folder", str(cohort / "val")),
            *("--labels", str(cohort / "labels.csv"), "--output_dir", str(output)),
            *("--cache_dir", str(cohort / "cache"), "--recipe", "quickstart", "--crop"),
            *("--device", "cpu", "--batch_size", "4", "--epochs", "2", *flags),
        ]
    )
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["validation/mae"]


@pytest.mark.slow
def test_a_small_cohort_of_another_scanner_gains_from_a_shipped_network(other_scanner, tmp_path):
    shipped = ("--init_from", str(shipped_networks()[0]))
    scratch = validation_mae(other_scanner, tmp_path / "scratch")
    tuned = validation_mae(other_scanner, tmp_path / "tuned", "--lr", "1e-3", *shipped)
    still = ("--lr", "1e-9", "--epochs", "1")
    untuned = validation_mae(other_scanner, tmp_path / "untuned", *still, *shipped)
    assert tuned < 0.9 * scratch
    assert tuned < 0.8 * untuned
