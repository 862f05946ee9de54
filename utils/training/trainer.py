"""The one training loop of both stages: epochs, validation, checkpoints, early stopping, resuming.

Both stages are `model(image, sex) -> (N, 1)` years and share the loss, see model/tsan.py.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.losses import AgeLoss
from model.scaledense import ScaleDense
from model.tsan import TSAN
from utils.networks import BEST_NAME
from utils.networks.checkpoint import Checkpoint, save_checkpoint, union_of_hashes
from utils.networks.execution import Execution, predict
from utils.people.codebook import FEMALE, MALE
from utils.results.metrics import score, within_bin_spread
from utils.results.plots import age_scatter
from utils.scans.cohort import group_by_site
from utils.scans.dataset import ScanDataset, evaluation_loader, training_loader
from utils.scans.provenance import UNKNOWN, Provenance
from utils.training.augment import Augmentation
from utils.training.engine import (
    average_statistics,
    parallel,
    refresh_statistics,
    synchronised,
    train_one_epoch,
)
from utils.training.optimisation import (
    Optimisation,
    advance,
    build_optimizer,
    build_schedule,
    follow,
)
from utils.training.resume import (
    LAST_NAME,
    PREVIOUS_NAME,
    describe_scans,
    hash_networks,
    load_last_whole,
    require_same_run,
)
from utils.training.runlog import RunLog

FIGURE_EVERY = 5  # epochs between TensorBoard scatter figures
KEPT = ("epoch", "best_mae", "best_epoch", "inputs")  # of a trainer, as they are
COLLAPSED = 0.1  # share of the needed within-bin spread below which stage two adds nothing


@dataclass(frozen=True)
class Training:
    """What a run does, as plain values; its checkpoints keep them.

    Attributes:
        epochs: at most.
        batch_size: scans per step, of all processes together.
        optimisation: how the weights are changed.
        augmentation: how training scans are changed at random.
        ema: decay per step of the running average of weights and statistics that is validated and
            saved; 0 for none.
        stratify: whether batches are made alike in age and sites, see `training_loader`.
        refresh_statistics: whether batch statistics are recomputed before each validation.
        early_stop: epochs without a lower validation MAE after which the run ends; 0 for never.
        seed: of weights, order, augmentation and pairs.
        num_workers: processes that read scans, see `ScanDataset.workers`.
        keep: the epoch whose weights become the run's result: `lowest`, of the lowest validation
            MAE (published), or `last`, which no validation scan has chosen.
    """

    epochs: int
    batch_size: int
    optimisation: Optimisation
    augmentation: Augmentation
    ema: float = 0.0
    stratify: bool = False
    refresh_statistics: bool = True
    early_stop: int = 0
    seed: int = 0
    num_workers: int = 0
    keep: str = "lowest"


@dataclass(frozen=True)
class RunInfo:
    """Where a run writes, and what its checkpoints say beside `Training`.

    Attributes:
        output_dir: made when missing.
        flags: all settings of the run as plain values, which a resumed run must repeat.
        provenance: how its scans were made.
        origins: the networks that it starts from, or that stay in its network.
    """

    output_dir: Path
    flags: dict = field(default_factory=dict)
    provenance: Provenance = UNKNOWN
    origins: Sequence[Checkpoint] = ()


class Trainer:
    """Trains a model in an output folder, from the start or from its last checkpoint.

    Args:
        model: ScaleDense, or TSAN around a frozen first stage.
        loss: the objective.
        datasets: training and validation scans.
        training: what to do.
        execution: device, precision and the processes that train together; the first writes.
        info: where the run writes and where it comes from.
    """

    def __init__(
        self,
        model: ScaleDense | TSAN,
        loss: AgeLoss,
        *,
        datasets: tuple[ScanDataset, ScanDataset],
        training: Training,
        execution: Execution,
        info: RunInfo,
    ):
        self.training, self.execution, self.world = training, execution, execution.world
        self.info, self.output_dir = info, info.output_dir
        self.origins = list(info.origins)  # and the checkpoint that the run is resumed from
        self.train_set, self.val_set = datasets
        # What a resumed run must be made of too.
        self.inputs = {"scans": describe_scans(datasets), "networks": hash_networks(info.flags)}
        self.loss = loss.to(execution.device)
        self.model = self.network = execution.place(model)
        if self.world.size > 1:
            self.model = synchronised(self.model, execution)
            self.network = parallel(self.model, execution)  # what is called; same parameters
        # What is validated and saved as best: the running average, if there is one.
        self.average, self.evaluated = None, self.model
        if training.ema:
            averaging = get_ema_multi_avg_fn(training.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=averaging, use_buffers=True)
            self.evaluated = self.average.module
        self.optimizer = build_optimizer(self.model, training.optimisation)
        self.schedule = build_schedule(self.optimizer, training.optimisation, training.epochs)
        self.epoch, self.best_mae, self.best_epoch = 0, math.inf, 0
        self.log: RunLog | None = None  # of the first process
        self.last_is_good = True  # worth keeping when the next one is written

    def run(self) -> Path:
        """Trains until the last epoch or the early stop; returns the best checkpoint's path.

        Raises:
            ValueError: a loss or prediction that is not finite; what was saved before is good.
        """
        self.world.run_in_first(self._open_log)
        patience = self.training.early_stop or math.inf
        while self.epoch < self.training.epochs and self.epoch - self.best_epoch < patience:
            started, self.epoch = time.perf_counter(), self.epoch + 1
            # Everything drawn in an epoch follows from seed and epoch (and rank) alone, so that a
            # resumed run draws what the uninterrupted one would have.
            torch.manual_seed(self.training.seed * 100_003 + self.epoch)
            rate = self.optimizer.param_groups[0]["lr"]
            losses = self._train_epoch()
            ages = self._evaluate()
            figures = self._validate(ages)
            advance(self.schedule, figures["validation/mae"])
            if self.training.keep == "last" or figures["validation/mae"] < self.best_mae:
                self.best_mae, self.best_epoch = figures["validation/mae"], self.epoch
            trained = {f"train/{name}": value for name, value in losses.items()}
            times = {"lr": rate, "seconds": time.perf_counter() - started}
            self.world.run_in_first(partial(self._write, figures, trained | figures | times, ages))
        self.world.run_in_first(lambda: self.log.close())
        return self.output_dir / BEST_NAME

    def _open_log(self) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.output_dir, epochs_done=self.epoch)
        if self.epoch == 0:  # interrupted amid the files of its first epoch, a run can be resumed
            self._save(LAST_NAME, {}, resumable=True)

    def _write(self, figures: dict, values: dict, ages: dict[str, np.ndarray]) -> None:
        """Leaves the epoch in files: checkpoints, metrics, a picture, and a printed line."""
        if self.best_epoch == self.epoch:
            self._save(BEST_NAME, figures)
        picture = None
        if self.epoch % FIGURE_EVERY == 0 or self.epoch in (1, self.training.epochs):
            predicted = {"validation": ages["predicted_age"]}
            picture = age_scatter(self._true_ages(), predicted, title=f"epoch {self.epoch}")
        self.log.write(self.epoch, values, picture)
        keep_as = self.output_dir / PREVIOUS_NAME if self.last_is_good else None
        self._save(LAST_NAME, values, resumable=True, keep_as=keep_as)
        self.last_is_good = True
        tqdm.write(self._line(values))

    def resume(self) -> Checkpoint:
        """Continues from the last checkpoint of the output folder, or from the one before it.

        Returns:
            That checkpoint.

        Raises:
            FileNotFoundError: there is none.
            ValueError: none is whole; or it is of another run, see `require_same_run`, or of scans
                made in another way.
        """
        checkpoint, self.last_is_good = load_last_whole(self.output_dir)
        require_same_run(
            checkpoint,
            flags=self.info.flags,
            inputs=self.inputs,
            provenance=self.info.provenance,
            model=self.model,
        )
        state = checkpoint.resume
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_mae = state["best_mae"]
        follow(self.schedule, self.epoch)
        self.origins.append(checkpoint)
        return checkpoint

    def _training_loader(self) -> DataLoader:
        return training_loader(
            self.train_set,
            batch_size=self.training.batch_size,
            full_batches=self.loss.sorter is not None,
            stratify=self.training.stratify,
            num_workers=self.training.num_workers,
            world=self.world,
        )

    def _train_epoch(self) -> dict[str, float]:
        try:
            return train_one_epoch(
                self.network,
                self.loss,
                self._training_loader(),
                self.optimizer,
                self.execution,
                augment=self.training.augmentation,
                average=self.average,
            )
        except ValueError as error:
            raise ValueError(f"epoch {self.epoch}: {error}") from error

    def _evaluate(self) -> dict[str, np.ndarray]:
        """The ages of the validation scans, with batch statistics that fit the weights."""
        if self.training.refresh_statistics:
            refresh_statistics(self.evaluated, self._training_loader(), self.execution)
        else:
            average_statistics(self.evaluated, self.execution)
        loader = evaluation_loader(
            self.val_set,
            batch_size=self.training.batch_size,
            num_workers=self.training.num_workers,
            world=self.world,
        )
        return predict(self.evaluated, loader, self.execution, title="validating")

    def _true_ages(self) -> np.ndarray:
        return np.array([scan.age for scan in self.val_set.scans])

    def _validate(self, ages: dict[str, np.ndarray]) -> dict[str, float]:
        """The epoch's validation figures by name; for stage two with stage one's beside them."""
        age = self._true_ages()
        figures = score(age, ages["predicted_age"])
        if not np.isfinite(figures["mae"]):
            raise ValueError(
                f"epoch {self.epoch}: predictions of validation scans are not finite; the "
                "checkpoints written so far are good; a smaller --lr may help"
            )
        names = ("mae", "pearson", "mean_brain_pad")
        values = {f"validation/{name}": float(figures[name]) for name in names}
        sites = group_by_site(self.val_set.scans)
        for site, places in sites.items() if len(sites) > 1 else ():
            error = np.abs(ages["predicted_age"] - age)[places]
            values[f"validation/mae_site_{site}"] = float(error.mean())
        if "rounded_age" in ages:
            rounded = ages["rounded_age"]
            residual = ages["predicted_age"] - rounded
            values["validation/stage_one_mae"] = float(np.abs(ages["stage_one_age"] - age).mean())
            values["validation/within_bin_spread"] = within_bin_spread(residual, rounded)
            values["validation/within_bin_spread_needed"] = within_bin_spread(
                age - rounded, rounded
            )
        # An undefined correlation or spread (two scans, all alike) has no place in JSON.
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _line(self, values: dict[str, float]) -> str:
        """The epoch as one printed line, with a warning where stage two has collapsed."""
        text = (
            f"epoch {self.epoch:3d}/{self.training.epochs}  loss {values['train/total']:8.2f}  "
            f"validation MAE {values['validation/mae']:6.2f}  "
            f"PAD {values['validation/mean_brain_pad']:+6.2f}  "
            f"lr {values['lr']:.1e}  {values['seconds']:5.1f} s"
        )
        if "validation/stage_one_mae" in values:
            text += f"  (stage one {values['validation/stage_one_mae']:.2f})"
        spread = values.get("validation/within_bin_spread", math.inf)
        if spread < COLLAPSED * values.get("validation/within_bin_spread_needed", 0.0):
            text += (
                f"\n  warning: the second stage gives nearly one age to each rounded age "
                f"(spread {spread:.2f} years, needed "
                f"{values['validation/within_bin_spread_needed']:.2f})"
            )
        return text + ("  best" if self.best_epoch == self.epoch else "")

    def _save(
        self,
        name: str,
        values: dict[str, float],
        *,
        resumable: bool = False,
        keep_as: Path | None = None,
    ) -> None:
        """Writes a checkpoint of the network as it is validated.

        Args:
            name: of the file.
            values: figures of the epoch.
            resumable: whether the state that a run goes on from is in it.
            keep_as: see `save_checkpoint`.
        """
        scans = self.train_set.scans
        ages = [scan.age for scan in scans]
        summary = {
            "epoch": self.epoch,
            "validation": values,
            "training": asdict(self.training),
            "scans": {"train": len(scans), "validation": len(self.val_set)},
            "training_sexes": {
                name: sum(scan.sex == sex for scan in scans)
                for name, sex in (("female", FEMALE), ("male", MALE))
            },
            "mean_training_age": float(np.mean(ages)),
            "training_ages": [float(min(ages)), float(max(ages))],
            "flags": self.info.flags,
            "training_hashes": union_of_hashes(self.origins, self.train_set.content_hashes),
        }
        state = None
        if resumable:
            parts = ("model", "optimizer", "schedule") + ("average",) * (self.average is not None)
            state = {part: getattr(self, part).state_dict() for part in parts}
            state |= {key: getattr(self, key) for key in KEPT}
        rule, provenance = self.train_set.input_rule, self.info.provenance
        checkpoint = Checkpoint(self.evaluated, rule, provenance, summary, state)
        save_checkpoint(checkpoint, self.output_dir / name, keep_as=keep_as)
