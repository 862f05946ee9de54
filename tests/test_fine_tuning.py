"""Fine-tuning from a trained network on a small cohort of another scanner (README, "Fine-tune")."""

import json

import numpy as np
import pytest
from conftest import TINY, brain, write_scan

import train_first_stage
from utils.options import BEST_NAME

BIASED_BY = 12  # years by which brains of the other scanner look older


def write_shifted(folder, sizes: dict[str, int], *, shift: float, noise: float, seed: int):
    """A cohort whose brains look `shift` years older than they are, under more noise."""
    generator = np.random.default_rng(seed)
    rows = []
    for name, count in sizes.items():
        for index in range(count):
            age = round(float(generator.uniform(20, 80)), 1)
            volume = brain(TINY, age + shift, 1000 * seed + len(rows))
            grain = 1 + noise * generator.standard_normal(TINY)
            stem = f"{name}-{index + 1}"
            write_scan(
                folder / name / f"{stem}.nii.gz", (volume * grain.clip(0.2)).astype(np.float32)
            )
            rows.append(f"{stem}.nii.gz,{age},{index % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def train(cohort, output, *flags) -> list[float | None]:
    """Validation MAE of each epoch, None where it was not validated."""
    train_first_stage.main(
        [
            *("--train_folder", str(cohort / "train"), "--val_folder", str(cohort / "val")),
            *("--labels", str(cohort / "labels.csv"), "--output_dir", str(output)),
            *("--any_grid", "--device", "cpu", "--batch_size", "8", "--ema", "0", *flags),
        ]
    )
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("validation/mae") for line in lines]


@pytest.mark.slow
def test_a_small_shifted_cohort_gains_from_a_network_trained_on_a_larger_one(tmp_path):
    large = write_shifted(tmp_path / "large", {"train": 40, "val": 2}, shift=0, noise=0, seed=1)
    small = write_shifted(
        tmp_path / "small", {"train": 8, "val": 8}, shift=BIASED_BY, noise=0.1, seed=2
    )
    train(large, tmp_path / "base", "--epochs", "6", "--keep", "last", "--validate_every", "6")
    base = str(tmp_path / "base" / BEST_NAME)
    scratch = train(small, tmp_path / "scratch", "--epochs", "3")
    tuned = train(small, tmp_path / "tuned", "--epochs", "3", "--lr", "3e-4", "--init_from", base)
    # Of no use as it is: one epoch of nearly no learning shows its age for other brains.
    as_it_is = train(
        small, tmp_path / "as_it_is", "--epochs", "1", "--lr", "1e-8", "--warmup_lr", "1e-8",
        "--init_from", base,
    )  # fmt: skip
    assert tuned[-1] < 0.7 * scratch[-1]
    assert tuned[-1] < 0.7 * as_it_is[-1]
