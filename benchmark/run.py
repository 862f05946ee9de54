"""Runs the cases that the flags ask for, prints their table and writes all figures."""

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from benchmark.cases import SCAN_COUNTS, SMALL_SHAPE, Case, plan, write_cohort
from benchmark.compare import Figures, Measured, OutOfTime, Row, compare, table, with_shares
from benchmark.measure import Settings
from utils.files import replacing, require_absent
from utils.networks.execution import choose_execution

GPU_BATCHES = [8, 16, 32, 64]
SMALL_COUNTS = (8, 16)
Plan = tuple[Case, Measured]  # and what is known of it so far


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
    end = time.monotonic() + args.budget if args.budget else math.inf
    content = {"machine": machine, "flags": vars(args)}
    progress = tqdm(total=repeats * sum(len(case.forms) for case in cases), disable=None)
    plans = [(case, Measured()) for case in cases]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, progress:
        write_cohort(Path(folder), cases, scans=args.scans)
        # A round of every case before the next: whenever a run is stopped, most rows are known.
        for number, (case, measured) in product(range(repeats), plans):

            def run_form(form: str, case: Case = case) -> Figures:
                progress.set_description(f"{case.title}, {form}")
                left = end - time.monotonic()
                figures = case.run(form, cohort=folder, threads=args.threads, timeout=left)
                progress.update()
                return figures

            try:
                measured.add_round(case.forms, number, run_form)
            except OutOfTime:
                break
            if number == 0:
                tqdm.write(table(rows_of([(case, measured)])), file=sys.stderr)
            write_rows(args, content, plans)
    name_missing(plans, f"not measured: --budget {args.budget:g} was used up")
    rows = write_rows(args, content, plans)
    print(table(rows))
    return rows


def name_missing(plans: Sequence[Plan], reason: str) -> None:
    """Says why cases without any figure have none."""
    for _, measured in plans:
        if not measured.rounds and not measured.failures:
            measured.failures = {"": reason}


def rows_of(plans: Sequence[Plan]) -> list[Row]:
    """The rows of cases, from what was measured so far."""
    rows = []
    for case, measured in plans:
        if reason := measured.failures.get(""):  # of the whole case
            rows.append(Row(case.title, "", failure=reason))
        elif measured.rounds:
            figures = (measured.rounds, measured.failures, case.goals)
            rows += compare(case.title, case.forms, *figures)
    return with_shares(rows)


def write_rows(args: argparse.Namespace, content: dict, plans: Sequence[Plan]) -> list[Row]:
    """The rows so far, which also replace those in the file of `--json`."""
    rows = rows_of(plans)
    if args.json:
        measurements = [{"case": case.title} | asdict(measured) for case, measured in plans]
        text = content | {"rows": [asdict(row) for row in rows], "measurements": measurements}
        with replacing(args.json, overwrite=True) as path:
            path.write_text(json.dumps(text, indent=1) + "\n")
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
