"""Measures the plain form and ours side by side and prints a table of ratios.

    python -m benchmark --json performance.json

Every form runs in a process of its own, forms take turns, and a ratio is the median over rounds
with its smallest and largest. docs/PERFORMANCE.md says what each row means.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from utils.cli import Switch, new_parser, number, run_entry

CASES = ("ceiling", "inference", "training", "loader", "feeding", "memory")
GPU_BATCHES = [8, 16, 32, 64]
SMALL_COUNTS = (8, 16)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Speed and memory: the authors' approach, stated plainly, against ours.")
    count = number(int, low=1)
    group = parser.add_argument_group("what")
    group.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help=" ")
    group.add_argument(
        "--width", nargs="+", choices=("compact", "released"), default=["compact"], help=" "
    )
    group.add_argument(
        "--batch",
        nargs="+",
        type=count,
        help="scans at a time; unset: 8 16 32 64 on a GPU, else 1 for inference and 4 for training",
    )
    group.add_argument(
        "--cache",
        nargs="+",
        choices=("none", "disk", "device"),
        default=["disk", "device"],
        help="of our loader, each a form of its own",
    )
    group.add_argument("--scans", type=count, default=48, help="files of loader and feeding")
    group.add_argument(
        "--quick",
        action=Switch,
        default=False,
        help="tiny volumes and one round: whether it runs, not how fast",
    )
    group = parser.add_argument_group("how")
    group.add_argument("--repeats", type=count, default=5, help="rounds, in turned order")
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: a GPU when there is one",
    )
    group.add_argument("--threads", type=number(int, low=0), default=0, help="0: torch's choice")
    group.add_argument("--num_workers", type=number(int, low=0), default=2, help="of a loader")
    group.add_argument("--json", metavar="FILE", help="also write all figures of all rounds")
    group.add_argument("--overwrite", action=Switch, default=False, help="replace --json FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> list:
    """Measures, prints and returns the rows."""
    args = build_parser().parse_args(argv)
    from tqdm import tqdm

    from benchmark.cases import with_shares, write_cohort
    from benchmark.measure import alternate, compare, table
    from utils.files import replacing, require_absent

    if args.json and not args.overwrite:
        require_absent(Path(args.json))
    cases, machine = planned(args)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if machine["GPU"] == "none":
        print("no GPU: not measured on one")
    repeats = 1 if args.quick else args.repeats
    rows, record = [], []
    progress = tqdm(total=repeats * sum(len(case.forms) for case in cases), disable=None)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        write_cohort(Path(folder), cases, scans=args.scans)
        for case in cases:

            def run(form: str, case=case) -> dict[str, float]:
                progress.set_description(f"{case.title}, {form}")
                figures = case.run(form, cohort=folder, threads=args.threads)
                progress.update()
                return figures

            rounds, failures = alternate(case.forms, repeats, run)
            found = compare(case.title, case.forms, rounds, failures, case.goals)
            tqdm.write(table(found), file=sys.stderr)  # the whole takes long and may be stopped
            rows += found
            record.append({"case": case.title, "rounds": rounds, "failures": failures})
    progress.close()
    rows = with_shares(rows)
    print(table(rows))
    if args.json:
        content = {
            "machine": machine,
            "flags": vars(args),
            "rows": [asdict(row) for row in rows],
            "measurements": record,
        }
        with replacing(args.json, overwrite=args.overwrite) as path:
            path.write_text(json.dumps(content, indent=1) + "\n")
    return rows


def planned(args: argparse.Namespace) -> tuple[list, dict]:
    """What the flags ask for, and what it runs on."""
    import torch

    from benchmark.cases import SCAN_COUNTS, SMALL_SHAPE, Settings, plan
    from utils.networks.execution import choose_execution

    device = choose_execution(args.device).device
    on_gpu = device.type == "cuda"
    base = Settings(
        device=device.type, num_workers=args.num_workers, steps=10 if on_gpu else 1,
        matrix=8192 if on_gpu else 2048,
    )  # fmt: skip
    batches = {"inference": [1], "training": [4]}
    if on_gpu:
        batches = {"inference": [1, *GPU_BATCHES], "training": GPU_BATCHES}
    if args.batch:
        batches = dict.fromkeys(batches, args.batch)
    if args.quick:
        base = Settings(
            device=device.type, num_workers=args.num_workers, shape=SMALL_SHAPE,
            least_seconds=0.0, least_runs=1, matrix=256,
        )  # fmt: skip
    cases = plan(
        list(args.cases),
        base=base,
        batches=batches,
        widths=args.width,
        caches=args.cache,
        scan_counts=SMALL_COUNTS if args.quick else SCAN_COUNTS,
    )
    machine = {
        "CPU": cpu_name(),
        "threads": args.threads or torch.get_num_threads(),
        "GPU": torch.cuda.get_device_name(device) if on_gpu else "none",
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    return cases, machine


def cpu_name() -> str:
    """The processor as the system calls it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    run_entry(main)
