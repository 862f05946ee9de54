"""Ages of scans from a checkpoint.

test.py, predict.py and the analyses all predict with `Predictor`. In Python it takes three lines:

    from utils.networks.predictor import load_pretrained
    predictor = load_pretrained()
    predictor.predict("brain_on_the_grid.nii.gz", sex="F")
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.layers import fuse_for_inference
from utils.networks import BEST_NAME
from utils.networks.checkpoint import Checkpoint, load_ensemble
from utils.networks.execution import (
    ONE_VIEW,
    Execution,
    choose_execution,
    compile_network,
    predict,
    settle_precision,
)
from utils.networks.likeness import measure_unlikeness
from utils.people.codebook import SEX_WORDS
from utils.scans.cohort import Scan, describe
from utils.scans.dataset import (
    UNKNOWN_SEX,
    ScanDataset,
    evaluation_loader,
    open_for_one_pass,
)
from utils.scans.provenance import compare_provenance, format_comparison
from utils.scans.volumes import read_scan

PRETRAINED = Path(__file__).resolve().parents[2] / "pretrained"
SHIPPED = "tsan_*.pt"


@dataclass(frozen=True)
class PredictionSettings:
    """How ages are predicted.

    Attributes:
        batch_size: scans at a time.
        num_workers: processes that read scans.
        fuse: whether convolutions are fused with their normalisations: the same ages, faster.
        compile: whether torch.compile translates the network.
        tta: whether an age is the mean over the scan's mirror image and moved copies, as far as
            training mirrored and moved its scans (test-time augmentation).
        insist: whether bfloat16 is used even where its ages differ from those of float32.
    """

    batch_size: int = 8
    num_workers: int = 0
    fuse: bool = True
    compile: bool = False
    tta: bool = True
    insist: bool = False


class Predictor:
    """A checkpoint's network, made ready once, and the ages it gives to scans.

    Args:
        checkpoint: its network is fused in place.
        execution: device and precision.
        settings: see `PredictionSettings`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        execution: Execution,
        settings: PredictionSettings | None = None,
    ):
        settings = settings or PredictionSettings()
        self.checkpoint, self.execution, self.settings = checkpoint, execution, settings
        network = fuse_for_inference(checkpoint.model) if settings.fuse else checkpoint.model
        self.network = execution.place(network)
        if settings.compile:
            compile_network(self.network, execution)
        self.views = checkpoint.views if settings.tta else ONE_VIEW

    def ages(self, scans: list[Scan] | ScanDataset) -> dict[str, np.ndarray]:
        """The named ages of all scans in file order, (scans,) years each.

        Where the network reads the sex, a scan of unknown sex gets the mean of its ages as female
        and as male. Networks that know what their training scans look like (likeness.py) give
        `unlikeness` as well, which is no age.

        Args:
            scans: from `open_cohort`; or a dataset with the checkpoint's input rule.

        Raises:
            ValueError: all scans that cannot be read, at once.
        """
        if not isinstance(scans, ScanDataset):
            scans = open_for_one_pass(scans, self.checkpoint.input_rule)
        size, insist = self.settings.batch_size, self.settings.insist
        execution = settle_precision(
            self.network, scans, self.execution, batch_size=size, insist=insist
        )
        workers = self.settings.num_workers
        loader = evaluation_loader(scans, batch_size=size, num_workers=workers)
        return self._ages(loader, execution)

    def predict(self, path: str | Path, *, sex: str | int | None = None) -> dict[str, float]:
        """The named ages, in years, of one scan that lies on the MNI152 2 mm grid.

        Other scans are refused, and the quality of this one is not judged: predict.py does both.

        Args:
            path: .nii.gz or .nii, a brain preprocessed as the training scans were.
            sex: "F" or "M" (or 0 or 1, or the words); None: the mean of both.

        Raises:
            ValueError: an unknown word for the sex, or not a readable brain on the grid.
        """
        word = None if sex is None else str(sex).lower()
        if word is not None and word not in SEX_WORDS:
            raise ValueError(f"sex {sex!r}: F, M or None expected")
        image, _ = read_scan(Path(path), self.checkpoint.input_rule)
        return self.ages_of_input(image, None if word is None else SEX_WORDS[word])

    def ages_of_input(self, image: np.ndarray, sex: int | None) -> dict[str, float]:
        """The named ages, in years, of one scan that has been read.

        Args:
            image: (D, H, W) float32, from `read_scan` with the checkpoint's input rule.
            sex: 0 female, 1 male, None unknown: the mean of both.
        """
        batch = {
            "image": torch.from_numpy(image)[None, None],
            "sex": torch.tensor([UNKNOWN_SEX if sex is None else sex]),
        }
        ages = self._ages([batch], self.execution)
        return {name: float(years[0]) for name, years in ages.items()}

    def _ages(
        self, batches: Iterable[dict[str, Tensor]], execution: Execution
    ) -> dict[str, np.ndarray]:
        ages = predict(self.network, batches, execution, views=self.views)
        if likenesses := self.checkpoint.summary.get("likeness"):
            mirror = self.checkpoint.views.mirror
            ages["unlikeness"] = measure_unlikeness(
                self.network, likenesses, batches, execution, mirror=mirror
            )
        return ages


def load_pretrained(
    paths: Sequence[str | Path] | str | Path | None = None, *, device: str = "auto"
) -> Predictor:
    """Makes a predictor from the networks shipped with this program, or from given ones.

    Args:
        paths: checkpoints of one stage, whose mean is taken; None: the shipped ones.
        device: `auto` is a GPU when there is one.

    Raises:
        FileNotFoundError, ValueError: as `load_ensemble`; or nothing is shipped.
    """
    if paths is None:
        paths = shipped_networks()
    elif isinstance(paths, (str, Path)):
        paths = [paths]
    return Predictor(load_ensemble(paths), choose_execution(device, "float32"))


def shipped_networks() -> list[Path]:
    """The networks in pretrained/, in the order of their names; FileNotFoundError without any."""
    shipped = sorted(PRETRAINED.glob(SHIPPED))
    if not shipped:
        raise FileNotFoundError(f"no {SHIPPED} in {PRETRAINED}")
    return shipped


def note_unknown_sexes(checkpoint: Checkpoint, scans: list[Scan]) -> None:
    """Prints which age scans of unknown sex get, where a network reads the sex."""
    unknown = sum(scan.sex is None for scan in scans)
    if unknown and checkpoint.uses_sex:
        print(f"note: {unknown} scans of unknown sex get the mean of their ages as either sex")


def introduce(checkpoint: Checkpoint, scans: list[Scan], *, role: str) -> dict:
    """Prints which networks predict which scans, `role` in front, and how these were made.

    Returns:
        How the scans were made against how the training scans were, see `compare_provenance`.
    """
    comparison = compare_provenance([scan.path for scan in scans], checkpoint.provenance)
    print(f"stage {checkpoint.stage}, {checkpoint.source}\n{role}: {describe(scans)}")
    print(format_comparison(comparison))
    note_unknown_sexes(checkpoint, scans)
    return comparison


def find_checkpoints(output_dir: Path, names: list[str] | None) -> list[Path]:
    """The checkpoints that `--model_name` names, each in the output folder or at a path.

    Without names: the training result in the folder or, without one, the shipped networks.

    Raises:
        FileNotFoundError: no names, no result in the folder, and nothing shipped.
    """
    if names:
        inside = [output_dir / name for name in names]
        return [
            path if path.is_file() or not Path(name).is_file() else Path(name)
            for path, name in zip(inside, names, strict=True)
        ]
    own = output_dir / BEST_NAME
    if own.is_file():
        return [own]
    try:
        shipped = shipped_networks()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{own}: no such checkpoint, and {error}") from None
    print(f"note: no {BEST_NAME} in {output_dir}: the networks shipped with this program are used")
    return shipped
