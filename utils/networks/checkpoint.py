"""Checkpoints, ours and the authors' published files, read without running any code in them.

Ours are one dict of plain values and tensors, read with `weights_only=True`. Its keys: format,
stage, options (they rebuild the network), preparation (the InputRule), preprocessing (the
Provenance), summary (how it was trained), state_dict, and in the last checkpoint of a run `resume`
(optimiser and progress). A second-stage checkpoint holds its first stage as well, so one file is
enough to predict.
"""

import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import torch

from model.authors import detect_stage, from_authors, to_authors
from model.scaledense import Backbone, Encoder, ScaleDense
from model.tsan import TSAN, Ensemble, SecondStage
from utils.files import replacing, require_fetched
from utils.networks.execution import Views
from utils.scans.provenance import UNKNOWN, Provenance
from utils.scans.volumes import InputRule

FORMAT = "tsan-brain-age-1"
# What zipfile and torch raise for a damaged file.
DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, LookupError, ValueError,
    OverflowError, OSError,
)  # fmt: skip
AUTHORS_INPUT_RULE = InputRule(resolution=2, intensity="authors")
AUTHORS_PROVENANCE = Provenance("deformable", "template", "fsl")  # as published


class UnreadableCheckpoint(ValueError):
    """A file that is damaged, or no checkpoint at all."""


@dataclass
class Checkpoint:
    """A network as it was saved, with what is needed to use it.

    Attributes:
        model: ScaleDense (stage 1), TSAN (stage 2), or several of one kind, in evaluation mode.
        input_rule: how its scans are read.
        provenance: how its training scans were made.
        summary: how it was trained; empty for the authors' files.
        resume: state of the interrupted run, in last checkpoints only.
        source: the file that it was read from.
    """

    model: ScaleDense | TSAN | Ensemble
    input_rule: InputRule
    provenance: Provenance = UNKNOWN
    summary: dict = field(default_factory=dict)
    resume: dict | None = None
    source: Path | str = ""

    @property
    def stage(self) -> int:
        """1 or 2."""
        return 2 if any(isinstance(module, SecondStage) for module in self.model.modules()) else 1

    @property
    def uses_sex(self) -> bool:
        """Whether any of its stages reads the sex."""
        return any(module.use_sex for module in self.model.modules() if isinstance(module, Encoder))

    @property
    def smallest_side(self) -> int:
        """Voxels that its stages need along each axis of their input."""
        return max(
            module.smallest_side for module in self.model.modules() if isinstance(module, Backbone)
        )

    @property
    def views(self) -> Views:
        """The changes that its training made at random; one view where these are unknown."""
        made = self.summary.get("training", {}).get("augmentation", {})
        return Views(bool(made.get("flip")), int(made.get("shift", 0)))

    @property
    def trained_on(self) -> list[str] | None:
        """Content hashes of all scans that any stage was trained on; None where unknown."""
        return self.summary.get("training_hashes")


def save_checkpoint(checkpoint: Checkpoint, path: Path, *, keep_as: Path | None = None) -> None:
    """Writes a checkpoint of one network; the file that it replaces gets the name `keep_as`.

    Raises:
        OSError: it cannot be written.
    """
    content = {
        "format": FORMAT,
        "stage": checkpoint.stage,
        "options": checkpoint.model.options(),
        "preparation": asdict(checkpoint.input_rule),
        "preprocessing": asdict(checkpoint.provenance),
        "summary": checkpoint.summary,
        "state_dict": OrderedDict(
            (name, value.detach().cpu().contiguous())
            for name, value in checkpoint.model.state_dict().items()
        ),
    }
    if checkpoint.resume is not None:
        content["resume"] = checkpoint.resume
    with replacing(path, overwrite=True, keep_as=keep_as) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch raises it for a write that failed
            reason = str(error).splitlines()[0]
            raise OSError(f"{path}: cannot be written, is the disk full? ({reason})") from error


def load_checkpoint(
    path: str | Path,
    *,
    first_stage_net: str | Path | None = None,
    use_sex: bool | None = None,
    age_step: float = 5.0,
) -> Checkpoint:
    """Loads either stage, ours or the authors'; the file tells stage and width.

    Args:
        path: the file.
        first_stage_net: the first stage for an authors' second stage, which lacks it.
        use_sex: for the authors' files, which do not tell; None means true. Ours must agree.
        age_step: years, for an authors' second stage.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or not the one that the options describe.
    """
    path = Path(path)
    content = _read(path)
    if content.get("format") == FORMAT:
        return _load_ours(path, content, use_sex)
    network, made = _load_authors(path, content, use_sex)
    if isinstance(network, ScaleDense):
        return Checkpoint(network, AUTHORS_INPUT_RULE, made, {}, None, path)
    if first_stage_net is None:
        raise ValueError(
            f"{path}: the authors' second stage holds no first stage: give --first_stage_net FILE"
        )
    first = load_first_stage(first_stage_net, use_sex=use_sex)
    if first.input_rule != AUTHORS_INPUT_RULE:
        raise ValueError(
            f"{path} needs scans prepared as {AUTHORS_INPUT_RULE}, its first stage "
            f"{first_stage_net} as {first.input_rule}: use the authors' first stage with it"
        )
    require_alike(path, made, first)
    network = TSAN(first.model, network, age_step=age_step).eval()
    made = made.filled_from(first.provenance)
    return Checkpoint(network, first.input_rule, made, {}, None, path)


def load_first_stage(path: str | Path, *, use_sex: bool | None = None) -> Checkpoint:
    """Loads a checkpoint of either origin that must be a first stage; else ValueError."""
    path = Path(path)
    content = _read(path)
    if content.get("format") == FORMAT:
        checkpoint = _load_ours(path, content, use_sex)
    else:
        network, made = _load_authors(path, content, use_sex)
        checkpoint = Checkpoint(network, AUTHORS_INPUT_RULE, made, {}, None, path)
    if checkpoint.stage == 1:
        return checkpoint
    raise ValueError(f"{path}: a second stage; --first_stage_net expects a first-stage checkpoint")


def load_ensemble(paths: Sequence[str | Path], **options) -> Checkpoint:
    """Loads one checkpoint, or several as the mean of their ages; `options` as `load_checkpoint`.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`; or the networks differ in stage, input
            rule or provenance.
    """
    first, *others = (load_checkpoint(path, **options) for path in paths)
    if not others:
        return first
    for other in others:
        if other.stage != first.stage:
            raise ValueError(f"{other.source}: stage {other.stage}, {first.source}: {first.stage}")
        if other.input_rule != first.input_rule:
            raise ValueError(
                f"{other.source}: reads scans as {other.input_rule}, {first.source} as "
                f"{first.input_rule}: networks that read scans alike expected"
            )
        require_alike(other.source, other.provenance, first)
    members = (first, *others)
    summary = _common_summary(members)
    source = f"the mean of {', '.join(str(one.source) for one in members)}"
    model = Ensemble([one.model for one in members]).eval()
    return Checkpoint(model, first.input_rule, first.provenance, summary, None, source)


def _common_summary(members: Sequence[Checkpoint]) -> dict:
    """What the summary of an ensemble says of all its networks."""
    means = [one.summary.get("mean_training_age") for one in members]
    ranges = [one.summary.get("training_ages") for one in members]
    return {
        "mean_training_age": None if None in means else sum(means) / len(means),
        # The ages that all of them were trained on, and the scans that any of them was.
        "training_ages": None
        if None in ranges
        else [max(low for low, _ in ranges), min(high for _, high in ranges)],
        "training_hashes": union_of_hashes(members),
        "card": {Path(one.source).name: one.summary.get("card") for one in members},
        "training": {
            "augmentation": {
                "flip": all(one.views.mirror for one in members),
                "shift": min(one.views.shift for one in members),
            }
        },
        "likeness": None
        if any(one.summary.get("likeness") is None for one in members)
        else [found for one in members for found in one.summary["likeness"]],
    }


def union_of_hashes(checkpoints: Sequence[Checkpoint], own: Sequence[str] = ()) -> list[str] | None:
    """Content hashes of all scans that any of the networks was trained on, and `own`, sorted.

    None where there are none and no checkpoint knows its training scans.
    """
    known = [one.trained_on for one in checkpoints if one.trained_on is not None]
    return sorted({*own, *chain.from_iterable(known)}) if own or known else None


def start_from_checkpoint(
    network: ScaleDense | SecondStage, checkpoint: Checkpoint, input_rule: InputRule
) -> None:
    """Copies the weights of a checkpoint into a network of either stage.

    Raises:
        ValueError: the checkpoint lacks that stage, or its network or input rule differs.
    """
    path, model = checkpoint.source, checkpoint.model
    if isinstance(network, SecondStage):
        if checkpoint.stage == 1:
            raise ValueError(f"{path}: a first stage; --init_from expects a second stage here")
        source = model.second_stage
    else:
        source = model.first_stage if checkpoint.stage == 2 else model
    ours, theirs = network.encoder, source.encoder
    if (ours.width, ours.use_sex) != (theirs.width, theirs.use_sex):
        raise ValueError(
            f"{path}: width {theirs.width}, use_sex {theirs.use_sex}, but --width and --use_sex "
            f"say {ours.width}, {ours.use_sex}"
        )
    if checkpoint.input_rule != input_rule:
        raise ValueError(
            f"{path}: trained on scans prepared as {checkpoint.input_rule}, these would be "
            f"prepared as {input_rule}: give --resolution, --crop and --intensity accordingly"
        )
    network.load_state_dict(source.state_dict())


def require_alike(source: object, made: Provenance, first_stage: Checkpoint) -> None:
    """Raises ValueError where scans of `source` and the first stage's were made differently."""
    differences = made.differences(first_stage.provenance)
    if differences:
        raise ValueError(
            f"{source}: {'; '.join(differences)} as the training scans of "
            f"{first_stage.source}: networks used together need scans made in one way"
        )


def export_to_authors(checkpoint: Checkpoint, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes the trained stage in the authors' format, loadable by their code strictly.

    A cascade's second stage is written; its first stage is exported from its own checkpoint.

    Raises:
        ValueError: not of the released width, or trained on scans prepared by another rule.
        FileExistsError: `path` exists and `overwrite` is false.
    """
    if checkpoint.input_rule != AUTHORS_INPUT_RULE:
        raise ValueError(
            f"{checkpoint.source}: trained on scans prepared as {checkpoint.input_rule}, but the "
            f"authors' format means {AUTHORS_INPUT_RULE}: other ages would come out; train the "
            "first stage with --width released --intensity authors to export it"
        )
    stage = checkpoint.model.second_stage if checkpoint.stage == 2 else checkpoint.model
    weights = {f"module.{key}": value.cpu() for key, value in to_authors(stage).items()}
    epoch = int(checkpoint.summary.get("epoch", 0))
    content = {"epoch": epoch, "arch": "ScaleDense", "state_dict": weights, "optimizer": {}}
    content["preprocessing"] = asdict(checkpoint.provenance)  # their code ignores it
    with replacing(path, overwrite=overwrite) as temporary:
        torch.save(content, temporary)


def _read(path: Path) -> dict:
    require_fetched(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        # torch writes a CRC-32 of every entry and never compares it. Files of torch before 1.6, as
        # the authors' may be, are no archives and have none.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if bad := archive.testzip():
                    raise zipfile.BadZipFile(f"wrong checksum of {bad}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnreadableCheckpoint(
            f"{path}: refused, it holds something other than tensors and plain values, or is not "
            f"a checkpoint ({str(error).splitlines()[0]})"
        ) from error
    except DAMAGED as error:
        raise UnreadableCheckpoint(
            f"{path}: not a readable checkpoint, or a damaged one ({error})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a dict expected in a checkpoint, found {type(content).__name__}")
    return content


def _load_authors(
    path: Path, content: dict, use_sex: bool | None
) -> tuple[ScaleDense | SecondStage, Provenance]:
    """The network of a file in the authors' format, and how its training scans were made."""
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or detect_stage(weights) is None:
        raise ValueError(
            f"{path}: neither a TSAN checkpoint nor one of the authors' released networks; "
            f"found the entries {', '.join(map(str, list(content)[:8]))}"
        )
    try:
        network = from_authors(weights, use_sex=use_sex is not False)
        # Files that we exported say how their scans were made, the authors' own do not.
        return network, Provenance(**content.get("preprocessing", asdict(AUTHORS_PROVENANCE)))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _load_ours(path: Path, content: dict, use_sex: bool | None) -> Checkpoint:
    try:
        options, summary = content["options"], content["summary"]
        if "second_stage" in options:
            first, second = ScaleDense(**options["first_stage"]), options["second_stage"]
            model = TSAN(first, SecondStage(**second), age_step=options["age_step"])
        else:
            model = ScaleDense(**options)
        model.load_state_dict(content["state_dict"])
        input_rule = InputRule(**content["preparation"])
        provenance = Provenance(**content["preprocessing"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: its network cannot be rebuilt ({error})") from error
    broken = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(
            f"{path}: {len(broken)} of its weights are NaN or infinite, such as {broken[0]}; take "
            "the checkpoint of an earlier epoch, or train again"
        )
    stored = (model.second_stage if isinstance(model, TSAN) else model).encoder.use_sex
    if use_sex is not None and use_sex != stored:
        raise ValueError(f"{path}: trained with use_sex {stored}, but --use_sex says {use_sex}")
    hashes = summary.get("training_hashes") if isinstance(summary, dict) else 0
    if hashes is not None and not (
        isinstance(hashes, list) and all(isinstance(one, str) for one in hashes)
    ):
        raise ValueError(
            f"{path}: its summary of the training cannot be read: a dict expected, and in it a "
            "list of hashes as training_hashes"
        )
    resume = content.get("resume")
    return Checkpoint(model.eval(), input_rule, provenance, summary, resume, path)
