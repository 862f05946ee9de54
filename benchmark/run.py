"""Runs the cases that the flags ask for, prints their table and writes all figures."""

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmark.cases import SCAN_COUNTS, SMALL_SHAPE, Case, plan, write_cohort
from benchmark.compare import Figures, Row, alternate, compare, table, with_shares
from benchmark.measure import Settings
from utils.files import replacing, require_absent
from utils.networks.execution import choose_execution

GPU_BATCHES = [8, 16, 32, 64]
SMALL_COUNTS = (8, 16)


def run(args: argparse.Namespace) -> list[Row]:
    """Measures, prints and returns the rows.

    Raises:
        FileExistsError: `--json` names a file that exists, without `--overwrite`.
    """
    if args.json and not args.overwrite:
        require_absent(Path(args.json))
    cases, machine = plan_for(args)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if machine["GPU"] == "none":
        print("no GPU: not measured on one")
    repeats = 1 if args.quick else args.repeats
    rows, measurements = [], []
    progress = tqdm(total=repeats * sum(len(case.forms) for case in cases), disable=None)

    def run_form(case: Case, form: str) -> Figures:
        progress.set_description(f"{case.title}, {form}")
        figures = case.run(form, cohort=folder, threads=args.threads)
        progress.update()
        return figures

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, progress:
        write_cohort(Path(folder), cases, scans=args.scans)
        for case in cases:
            rounds, failures = alternate(case.forms, repeats, partial(run_form, case))
            rows += (new := compare(case.title, case.forms, rounds, failures, case.goals))
            tqdm.write(table(new), file=sys.stderr)  # a run takes long and may be stopped
            measurements.append({"case": case.title, "rounds": rounds, "failures": failures})
    rows = with_shares(rows)
    print(table(rows))
    if args.json:
        content = {"machine": machine, "flags": vars(args), "rows": [asdict(row) for row in rows]}
        text = json.dumps(content | {"measurements": measurements}, indent=1)
        with replacing(args.json, overwrite=args.overwrite) as path:
            path.write_text(text + "\n")
    return rows


def plan_for(args: argparse.Namespace) -> tuple[list[Case], dict]:
    """The cases that the flags ask for, and the machine they run on."""
    device = choose_execution(args.device).device
    on_gpu = device.type == "cuda"
    common = {"device": device.type, "num_workers": args.num_workers}
    base = Settings(**common, steps=10 if on_gpu else 1, matrix=8192 if on_gpu else 2048)
    if args.quick:
        base = Settings(**common, shape=SMALL_SHAPE, least_seconds=0.0, least_runs=1, matrix=256)
    batches = {"inference": [1], "training": [4]}
    if on_gpu:
        batches = {"inference": [1, *GPU_BATCHES], "training": GPU_BATCHES}
    if args.batch:
        batches = dict.fromkeys(batches, args.batch)
    counts = SMALL_COUNTS if args.quick else SCAN_COUNTS
    what = {"widths": args.width, "caches": args.cache, "scan_counts": counts}
    machine = {
        "CPU": cpu_name(),
        "threads": args.threads or torch.get_num_threads(),
        "GPU": torch.cuda.get_device_name(device) if on_gpu else "none",
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    return plan(args.cases, base=base, batches=batches, **what), machine


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
