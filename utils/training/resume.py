"""What a run leaves to go on from, and whether flags and files still describe the same run.

Scans, labels and networks are compared by what they hold, so a run goes on after its files have
moved, such as to the scratch folder of another job.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from model.scaledense import ScaleDense
from model.tsan import TSAN
from utils.files import hash_file, require_empty
from utils.networks.checkpoint import Checkpoint, UnreadableCheckpoint, load_checkpoint
from utils.scans.dataset import ScanDataset
from utils.scans.provenance import Provenance

LAST_NAME = "ScaleDense_last_model.pth.tar"
PREVIOUS_NAME = "ScaleDense_previous_model.pth.tar"  # the epoch before, should the last be damaged
# What may differ between a run and its resumption.
FREE_TO_CHANGE = (
    "resume", "epochs", "early_stop", "output_dir", "cache", "cache_dir", "num_workers",
    "device", "precision", "threads", "compile", "recompute_activations",
    "allow_shared_persons", "subject_pattern", "deterministic", "unused",
)  # fmt: skip
# What names the scans and their labels: `describe_scans` has what they hold.
DATA_FLAGS = ("train_folder", "val_folder", "labels", "sex_codes", "site", "folds")
# What names a network: a file, whose hash is compared, or a word.
NETWORK_FLAGS = ("first_stage_net", "init_from", "sorter")
SIDES = ("training", "validation")
SHOWN = 5  # scans that a message names


def describe_scans(datasets: Sequence[ScanDataset]) -> dict[str, list[list]]:
    """Name, content hash, age, sex of each training and validation scan, and site where known."""
    return {
        side: [
            [scan.subject_id, content, scan.age, scan.sex, *([scan.site] if scan.site else [])]
            for scan, content in zip(dataset.scans, dataset.content_hashes, strict=True)
        ]
        for side, dataset in zip(SIDES, datasets, strict=True)
    }


def hash_networks(flags: Mapping) -> dict[str, str]:
    """The SHA-256 of each file that NETWORK_FLAGS name, by flag."""
    given = {name: flags.get(name) for name in NETWORK_FLAGS}
    return {name: hash_file(path) for name, path in given.items() if path and Path(path).is_file()}


def require_same_run(
    checkpoint: Checkpoint,
    *,
    flags: Mapping,
    inputs: Mapping,
    provenance: Provenance,
    model: ScaleDense | TSAN,
) -> None:
    """Refuses to go on from a checkpoint of another run.

    Args:
        checkpoint: of the run to be continued.
        flags: of this run, as plain values.
        inputs: of this run: `scans` from `describe_scans`, `networks` from `hash_networks`.
        provenance: how the scans of this run were made.
        model: the network of this run.

    Raises:
        ValueError: names what differs, but for FREE_TO_CHANGE. Paths count only where the
            checkpoint has no `inputs`, as those written before they were kept.
    """
    before, then = checkpoint.summary.get("flags", {}), checkpoint.resume.get("inputs")
    free, changed = {*FREE_TO_CHANGE}, []
    if then is not None:
        free |= {*DATA_FLAGS, *then["networks"]}
        changed += _input_differences(then, inputs)
    changed += [
        f"--{name} was {before[name]}, is {flags.get(name)}"
        for name in before
        if name not in free and _listed(name, before[name]) != _listed(name, flags.get(name))
    ]
    changed += provenance.differences(checkpoint.provenance)
    if changed or checkpoint.model.options() != model.options():
        raise ValueError(
            f"{checkpoint.source}: of another run than flags and files describe: give the same to "
            f"resume ({'; '.join(changed) or 'another network'})"
        )


def _listed(name: str, value: object) -> object:
    """The value of a flag; folders and sheets, of which there once was one, as a list."""
    return [value] if name in DATA_FLAGS and isinstance(value, str) else value


def _input_differences(before: Mapping, now: Mapping) -> list[str]:
    """How the scans and the networks of a run differ from those of the run so far."""
    found = []
    for side in SIDES:
        found += _scan_differences(side, before["scans"][side], now["scans"][side])
    return found + [
        f"--{name} is another network than it was"
        for name, content in before["networks"].items()
        if now["networks"].get(name) != content
    ]


def _scan_differences(side: str, before: list[list], now: list[list]) -> list[str]:
    """How the scans of one side differ from those of the run so far; their names may differ."""
    if [row[1:] for row in before] == [row[1:] for row in now]:
        return []
    old, new = ({name: values for name, *values in rows} for rows in (before, now))
    found = [f"{name} is missing" for name in old if name not in new]
    found += [f"{name} is new" for name in new if name not in old]
    for name in old.keys() & new.keys():
        pairs = zip_longest(("image", "age", "sex", "site"), old[name], new[name])
        found += [
            f"{name} has another image" if what == "image" else f"{name}: {what} was {a}, is {b}"
            for what, a, b in pairs
            if a != b
        ]
    found = sorted(found) or ["in another order"]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [f"{side} scans: {', '.join(found[:SHOWN] + more)}"]


def load_last_whole(output_dir: Path) -> tuple[Checkpoint, bool]:
    """The checkpoint that a run goes on from, and whether it is the last that was written.

    Raises:
        FileNotFoundError: there is none.
        ValueError: none is whole, or it holds no state to go on from.
    """
    last, previous = output_dir / LAST_NAME, output_dir / PREVIOUS_NAME
    is_last = True
    if not last.exists():  # killed between the two renames of `replacing`
        checkpoint = load_checkpoint(previous)
    else:
        try:
            checkpoint = load_checkpoint(last)
        except UnreadableCheckpoint as error:
            if not previous.is_file():
                raise UnreadableCheckpoint(
                    f"{error}; there is none of an epoch before: train anew in another --output_dir"
                ) from error
            checkpoint, is_last = load_checkpoint(previous), False
            print(f"note: {error}; going on from the epoch before, {previous}")
    if checkpoint.resume is None:
        raise ValueError(f"{checkpoint.source}: holds no state to resume from")
    return checkpoint, is_last


def can_resume(output_dir: Path) -> bool:
    """Whether a run has left a checkpoint to go on from."""
    return any((output_dir / name).is_file() for name in (LAST_NAME, PREVIOUS_NAME))


def require_fresh_folder(output_dir: Path, *, resume: bool) -> None:
    """Refuses to train into a folder that holds something, unless the run is resumed.

    Raises:
        FileExistsError: the folder is not empty and `resume` is false.
        FileNotFoundError: `resume` is true, and the folder holds something else than a run.
    """
    if resume and not can_resume(output_dir):
        # Interrupted at its very start, a run has left nothing but events: it starts anew.
        rest = {path.name for path in output_dir.iterdir()} if output_dir.is_dir() else set()
        if any(name != "tensorboard" and not name.startswith(".part-") for name in rest):
            raise FileNotFoundError(
                f"{output_dir / LAST_NAME}: nothing to resume, leave out --resume"
            )
    if not resume:
        require_empty(output_dir, instead="or --resume to continue the run in it")
