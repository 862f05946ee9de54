"""Ages of a cohort's scans from a checkpoint: what test.py and the analyses share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.layers import fuse_for_inference
from utils.checkpoint import Checkpoint
from utils.cohort import Scan
from utils.dataset import ScanDataset, evaluation_loader, open_for_one_reading
from utils.engine import Execution, compile_network, predict, settle_precision
from utils.options import BEST_NAME

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
SHIPPED = "tsan_oasis1_*.pt"


@dataclass(frozen=True)
class Prediction:
    """How ages are predicted.

    Attributes:
        batch_size: scans at a time.
        num_workers: processes that read scans.
        fuse: whether convolutions are fused with their normalisations: the same ages, faster.
        compile: whether torch.compile translates the network.
        mirror: whether an age is the mean over the scan and its mirror image; None: where the
            network was trained with mirrored scans.
        insist: whether bfloat16 stays where its ages differ from those of float32.
    """

    batch_size: int = 8
    num_workers: int = 0
    fuse: bool = True
    compile: bool = False
    mirror: bool | None = None
    insist: bool = False


def predict_scans(
    checkpoint: Checkpoint, scans: list[Scan], execution: Execution, how: Prediction
) -> dict[str, np.ndarray]:
    """The named ages of all scans in file order, (scans,) years each.

    Raises:
        ValueError: all scans that cannot be read, at once.
    """
    dataset = open_for_one_reading(scans, checkpoint.preparation)
    return predict_dataset(checkpoint, dataset, execution, how)


def predict_dataset(
    checkpoint: Checkpoint, dataset: ScanDataset, execution: Execution, how: Prediction
) -> dict[str, np.ndarray]:
    """As `predict_scans`, of scans that are open already, prepared as the checkpoint says."""
    note_unknown_sexes(checkpoint, dataset.scans)
    model = fuse_for_inference(checkpoint.model) if how.fuse else checkpoint.model
    model = execution.place(model)
    if how.compile:
        compile_network(model, execution)
    execution = settle_precision(
        model, dataset, execution, batch_size=how.batch_size, insist=how.insist
    )
    loader = evaluation_loader(dataset, batch_size=how.batch_size, num_workers=how.num_workers)
    mirror = checkpoint.saw_mirrored if how.mirror is None else how.mirror
    return predict(model, loader, execution, mirror=mirror)


def note_unknown_sexes(checkpoint: Checkpoint, scans: list[Scan]) -> None:
    """Says what becomes of scans of unknown sex, where a network reads the sex."""
    unknown = sum(scan.sex is None for scan in scans)
    if unknown and checkpoint.uses_sex:
        print(f"note: {unknown} scans of unknown sex get the mean of their ages as either sex")


def find_checkpoints(output_dir: Path, names: list[str] | None) -> list[Path]:
    """The checkpoints that `--model_name` means, each in the output folder or at a path.

    Without names it is the folder's own result or, where there is none, the shipped networks.

    Raises:
        FileNotFoundError: no names, no result in the folder, and nothing shipped.
    """
    if names:
        inside = [output_dir / name for name in names]
        return [
            path if path.is_file() or not Path(name).is_file() else Path(name)
            for path, name in zip(inside, names, strict=True)
        ]
    if (output_dir / BEST_NAME).is_file():
        return [output_dir / BEST_NAME]
    shipped = sorted(PRETRAINED.glob(SHIPPED))
    if not shipped:
        raise FileNotFoundError(
            f"{output_dir / BEST_NAME}: no such checkpoint, and no {SHIPPED} in {PRETRAINED}"
        )
    print(f"note: no {BEST_NAME} in {output_dir}: the networks shipped with this program are used")
    return shipped
