r"""Interrupts training of both stages in every way, resumes it, and compares with whole runs.

    python -m tests.audit.interruptions --kills 20 --seed 0

Takes about 13 minutes on two cores. Each stage is trained once uninterrupted on generated volumes.
Then runs of the same flags are killed (SIGKILL) at random moments and resumed until they end, asked
to end (SIGTERM), left with a damaged last checkpoint, with no room for files, or without their
data. Resumed, each must end with the same bits in all weights, the same metrics.jsonl except for
times, and one TensorBoard point per epoch. Runs are forked from a process that has imported
everything, so that kills hit training.
"""

import argparse
import json
import os
import random
import resource
import runpy
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import nibabel
import numpy as np

from utils.cli import Switch, new_parser, number, run_entry
from utils.networks import BEST_NAME
from utils.scans.volumes import GRID_AFFINE

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (32, 36, 32)  # voxels
SIZES = {"train": 8, "val": 4}
STAGES = ("first", "second")
MAX_TRIALS = 4  # of each interruption other than kill -9
PATIENCE = 300.0  # seconds that a run may take


@dataclass(frozen=True)
class Row:
    """What one kind of interruption did to a stage."""

    stage: str
    interruption: str
    interruptions: int
    as_uninterrupted: str  # runs that ended as the whole one did, of how many
    message: str = ""  # the last line that an interrupted run printed


@dataclass(frozen=True)
class Run:
    """A training in a folder of its own; the same flags start and resume it."""

    stage: str
    folder: Path
    cohort: Path
    epochs: int
    first_stage: Path | None = None

    def flags(self) -> list[str]:
        """The flags of the training script."""
        own = ["--first_stage_net", str(self.first_stage)] if self.first_stage else ["--any_grid"]
        return [
            *("--train_folder", str(self.cohort / "train"), "--val_folder"),
            *(str(self.cohort / "val"), "--labels", str(self.cohort / "labels.csv")),
            *("--output_dir", str(self.folder), "--epochs", str(self.epochs), "--batch_size", "4"),
            *("--device", "cpu", "--threads", "1", "--lr", "1e-3", "--resume"),
            *own,
        ]

    @property
    def log(self) -> Path:
        """What the last process of the run printed."""
        return self.folder.with_suffix(".log")

    def start(self, *, file_bytes: int | None = None) -> int:
        """Starts or resumes it in a process of its own; no file may grow beyond `file_bytes`."""
        script = ROOT / f"train_{self.stage}_stage.py"
        sys.stdout.flush()
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            sys.argv = [str(script), *self.flags()]
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(code)

    def finish(self) -> str:
        """Resumes it to its end; returns what it printed.

        Raises:
            ValueError: its exit code is not 0.
        """
        code = ended(self.start(), PATIENCE)
        if code != 0:
            raise ValueError(f"{self.folder}: ended with {code}: {self.log.read_text()[-2000:]}")
        return self.log.read_text()


def ended(process: int, seconds: float) -> int | None:
    """The exit code of a process within so many seconds; -9 where killed; None: it still runs."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(process, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def interrupt(process: int, seconds: float, number: signal.Signals) -> int:
    """Sends a signal after so many seconds, unless the process ends before; its exit code."""
    code = ended(process, seconds)
    if code is None:
        os.kill(process, number)
        code = ended(process, PATIENCE)
    return code


def write_cohort(folder: Path, rng: np.random.Generator) -> None:
    """Bright balls with a dark middle that grows with age, and their sheet."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    rows = []
    for name, count in SIZES.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            age = round(float(rng.uniform(20, 90)), 1)
            volume = 100 + 5 * rng.standard_normal(SHAPE)
            volume[radius < 0.1 + age / 200] *= 0.3
            volume[radius > 0.8] = 0
            file = f"{name}-{index}.nii.gz"
            image = nibabel.Nifti1Image(volume.astype(np.float32), GRID_AFFINE)
            nibabel.save(image, folder / name / file)
            rows.append(f"{file},{age},{index % 2}\n")
    (folder / "labels.csv").write_text("".join(rows))


def logged_steps(folder: Path) -> list[int]:
    """The epochs of the learning rate's curve as TensorBoard shows it: restarts hide later ones."""
    from tensorboardX.proto.event_pb2 import Event

    steps = []
    for path in sorted(folder.glob("events.*")):
        content, start = path.read_bytes(), 0
        while start + 12 <= len(content):
            (size,) = struct.unpack_from("<Q", content, start)
            if start + 16 + size > len(content):
                break  # killed while writing
            event = Event.FromString(content[start + 12 : start + 12 + size])
            start += 16 + size
            if event.HasField("session_log"):
                steps = [step for step in steps if step < event.step]
            steps += [event.step for value in event.summary.value if value.tag == "lr"]
    return steps


def differences(run: Run, whole: Run) -> list[str]:
    """How the files that a run left differ from those of the whole run."""
    import torch

    from utils.training.resume import LAST_NAME

    found = []
    for name in (BEST_NAME, LAST_NAME):
        ours, theirs = (
            torch.load(one.folder / name, weights_only=True)["state_dict"] for one in (run, whole)
        )
        if ours.keys() != theirs.keys() or any(
            not torch.equal(value, theirs[key]) for key, value in ours.items()
        ):
            found.append(f"other weights in {name}")
    lines = [
        [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in (one.folder / "metrics.jsonl").read_text().splitlines()
        ]
        for one in (run, whole)
    ]
    if lines[0] != lines[1]:
        found.append("another metrics.jsonl")
    if logged_steps(run.folder / "tensorboard") != list(range(1, run.epochs + 1)):
        found.append("other TensorBoard points")
    return found


def killed(whole: Run, seconds: float, kills: int, rng: random.Random) -> Row:
    """Kills runs at moments spread evenly over the time that the whole one took."""
    done, faults = 0, []
    trial = 0
    while done < kills:
        run, trial = replace(whole, folder=whole.folder.with_name(f"killed{trial}")), trial + 1
        while done < kills:
            code = interrupt(run.start(), rng.uniform(0, seconds), signal.SIGKILL)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                raise ValueError(f"{run.folder}: ended with {code}: {run.log.read_text()[-2000:]}")
            done += 1
        if code != 0:
            run.finish()
        faults.append(differences(run, whole))
    return row(whole, "kill -9 at random moments", kills, faults)


def terminated(whole: Run, seconds: float, trials: int, rng: random.Random) -> Row:
    """Sends SIGTERM, as schedulers do, during the last two thirds of a run."""
    faults, told, sent = [], "", 0
    for trial in range(trials):
        run = replace(whole, folder=whole.folder.with_name(f"terminated{trial}"))
        moment = rng.uniform(seconds / 3, seconds)
        code = interrupt(run.start(), moment, signal.SIGTERM)
        if code != 0:
            sent, told = sent + 1, message(run)
            run.finish()
        fault = [f"exit code {code}"] if code not in (0, 143) else []
        faults.append(fault + differences(run, whole))
    return row(whole, "SIGTERM, exit code 143", sent, faults, told)


def damaged(whole: Run, kind: str, trials: int, rng: random.Random) -> Row:
    """Damages the last checkpoint of finished runs, which must go on from the epoch before."""
    from utils.training.resume import LAST_NAME

    faults, told = [], ""
    for trial in range(trials):
        run = replace(whole, folder=whole.folder.with_name(f"damaged-{kind[:4]}-{trial}"))
        shutil.copytree(whole.folder, run.folder)
        last = run.folder / LAST_NAME
        content = bytearray(last.read_bytes())
        place = rng.randrange(len(content))
        if kind == "truncated":
            del content[place:]
        else:
            content[place] ^= 1 << rng.randrange(8)
        last.write_bytes(content)
        said = run.finish()
        noted = [
            line for line in said.splitlines() if line.startswith("note: ") and "epoch" in line
        ]
        told = noted[0] if noted else told
        # A flipped bit may lie between the entries, where nothing is read, so no note is needed.
        missing = [] if noted or kind != "truncated" else ["no note about the damage"]
        faults.append(missing + differences(run, whole))
    return row(whole, f"last checkpoint {kind}", trials, faults, told)


def no_room(whole: Run) -> Row:
    """Lets no file grow beyond half a checkpoint (RLIMIT_FSIZE), as on a full disk."""
    run = replace(whole, folder=whole.folder.with_name("no-room"))
    limit = (whole.folder / BEST_NAME).stat().st_size // 2
    code, told = ended(run.start(file_bytes=limit), PATIENCE), message(run)
    run.finish()
    fault = [] if code == 1 else [f"exit code {code}"]
    return row(whole, "no room for a checkpoint", 1, [fault + differences(run, whole)], told)


def without_data(whole: Run, seconds: float) -> Row:
    """Moves the training scans away from an interrupted run, and back."""
    run = replace(whole, folder=whole.folder.with_name("no-data"))
    interrupt(run.start(), seconds / 2, signal.SIGKILL)
    (run.cohort / "train").rename(run.cohort / "away")
    code, told = ended(run.start(), PATIENCE), message(run)
    (run.cohort / "away").rename(run.cohort / "train")
    run.finish()
    fault = [] if code == 1 else [f"exit code {code}"]
    return row(
        whole, "training scans gone at resumption", 1, [fault + differences(run, whole)], told
    )


def message(run: Run) -> str:
    """The last line that the run printed, without the folders of this measurement."""
    text = run.log.read_text()
    if "Traceback" in text:
        return "a traceback"
    lines = text.strip().splitlines() or [""]
    return lines[-1].replace(f"{run.folder.parent}/", "").replace(f"{run.cohort}/", "")


def row(whole: Run, kind: str, count: int, faults: list[list[str]], told: str = "") -> Row:
    """The row of several runs of one kind, of which some may have faults."""
    told = told.replace(f"{whole.folder.parent}/", "")
    good = sum(not fault for fault in faults)
    words = sorted({word for fault in faults for word in fault})
    return Row(whole.stage, kind, count, "; ".join([f"{good} of {len(faults)}", *words]), told)


def measure(
    folder: Path, *, kills: int, epochs: int, seed: int, stages: Sequence[str] = STAGES
) -> Iterator[Row]:
    """Yields one row for each kind of interruption of each stage; the second needs the first."""
    # Forked runs need not import these again; the optimizer's first step imports the second.
    import torch._dynamo  # noqa: F401

    import utils.training.run  # noqa: F401

    rng = random.Random(seed)
    cohort = folder / "cohort"
    write_cohort(cohort, np.random.default_rng(seed))
    first_stage, trials = None, min(kills, MAX_TRIALS)
    for stage in stages:
        whole = Run(stage, folder / stage / "whole", cohort, epochs, first_stage)
        whole.folder.parent.mkdir()
        start = time.perf_counter()
        whole.finish()
        seconds = time.perf_counter() - start
        yield Row(stage, "none", 0, "", f"{epochs} epochs in {seconds:.1f} s")
        yield killed(whole, seconds, kills, rng)
        yield terminated(whole, seconds, trials, rng)
        yield damaged(whole, "truncated", trials, rng)
        yield damaged(whole, "with a flipped bit", trials, rng)
        yield no_room(whole)
        yield without_data(whole, seconds)
        first_stage = whole.folder / BEST_NAME


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table for a document."""
    lines = [
        "| stage | interruption | times | runs that ended as the whole one | message |",
        "| --- | --- | --: | --- | --- |",
    ]
    lines += [
        f"| {' | '.join(str(cell).replace('|', '/') for cell in astuple(row))} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Interrupts and resumes training, and compares with uninterrupted runs.")
    parser.add_argument(
        "--kills", type=number(int, low=1), default=20, help="SIGKILLs of each stage"
    )
    parser.add_argument(
        "--first_alone", action=Switch, default=False, help="leave the second stage out"
    )
    parser.add_argument("--epochs", type=number(int, low=2), default=3, help="of each run")
    parser.add_argument("--seed", type=number(int, low=0), default=0, help="of scans and moments")
    return parser


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measures, prints and returns the rows.

    Raises:
        ValueError: a run could not be resumed, or ended otherwise than the whole one.
    """
    args = build_parser().parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="interruptions-") as folder:
        print(markdown([]), end="")
        stages = STAGES[:1] if args.first_alone else STAGES
        how = {"kills": args.kills, "epochs": args.epochs, "seed": args.seed, "stages": stages}
        for row in measure(Path(folder), **how):
            rows.append(row)
            print(markdown([row]).splitlines()[-1], flush=True)
    if any(";" in row.as_uninterrupted or row.message == "a traceback" for row in rows):
        raise ValueError("some runs did not end as the uninterrupted ones, see the table")
    return rows


if __name__ == "__main__":
    run_entry(main)
