"""The harness: time and memory of one form in its own process, and forms side by side.

Forms alternate (A B, B A, A B, ...), each time in a fresh process, so that neither the machine's
mood nor the memory of one form reaches the figures of another. Nothing here knows what is measured.
"""

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
MOST_RUNS = 50  # timed in one process
Figures = dict[str, float]


class Meter:
    """Seconds and peak memory of what runs in this process.

    Args:
        device: where the work is done; a GPU's own memory is measured there.
        least_seconds: how long a run is repeated at least.
        least_runs: how often at least.
    """

    def __init__(self, device: torch.device, *, least_seconds: float, least_runs: int):
        self.device, self.least_seconds, self.least_runs = device, least_seconds, least_runs
        self.before = 0.0

    def start(self) -> None:
        """From here on memory is counted: call it when the inputs are made."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            # Forgets the peak of the imports; where it is not allowed that peak stays counted.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        self.before = self._memory(peak=False)

    def seconds(self, run: Callable[[], object], *, warm_up: int = 1) -> float:
        """The median seconds of `run` after `warm_up` runs that are not counted."""
        for _ in range(warm_up):
            run()
        seconds: list[float] = []
        while len(seconds) < self.least_runs or (
            sum(seconds) < self.least_seconds and len(seconds) < MOST_RUNS
        ):
            self._wait()
            started = time.perf_counter()
            run()
            self._wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def memory(self) -> Figures:
        """MiB at the highest since `start`: in all, and beyond what there was at `start`."""
        peak = self._memory(peak=True)
        return {"peak memory MiB": peak, "peak above start MiB": peak - self.before}

    def _wait(self) -> None:
        if self.device.type == "cuda":  # its work runs on after the call has returned
            torch.cuda.synchronize(self.device)

    def _memory(self, *, peak: bool) -> float:
        if self.device.type == "cuda":
            used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return used(self.device) / MIB
        return resident_memory(peak=peak)


def resident_memory(*, peak: bool) -> float:
    """MiB of this process now, or at its highest.

    Not getrusage where there is /proc: Linux hands a parent's peak down to the processes it starts.
    """
    with suppress(FileNotFoundError):
        return _kib("/proc/self/status", "VmHWM" if peak else "VmRSS") / 1024
    # Elsewhere only the peak is known, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def private_memory() -> float:
    """MiB that this process and its workers hold now, shared pages counted once.

    Without pages of files, which the system takes back when it needs them: a memory map of a
    cache is not counted.
    """
    try:
        return _tree_kib(os.getpid()) / 1024
    except FileNotFoundError:  # no /proc
        return resident_memory(peak=False)


def _tree_kib(process: int) -> float:
    total = _kib(f"/proc/{process}/smaps_rollup", "Pss_Anon", "Pss_Shmem")
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            total += _tree_kib(int(child))
    return total


def _kib(file: str, *names: str) -> float:
    """The sum of these `Name: 12 kB` lines."""
    lines = Path(file).read_text().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.split(":")[0] in names)


@dataclass(frozen=True)
class Row:
    """One figure of one form beside that of the reference, over all rounds.

    Attributes:
        case: what was measured.
        form: what was measured against the reference.
        figure: name and unit; a rate ends in `/s`.
        reference: median of the reference.
        value: median of the form.
        ratio: median over rounds of how many times better the form is: of rates value/reference,
            of times and memory reference/value.
        low: smallest ratio of a round.
        high: largest.
        goal: least ratio wanted, None where none is set.
        failure: why the form has no figures, such as `out of memory`.
    """

    case: str
    form: str
    figure: str
    reference: float | None
    value: float | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    goal: float | None = None
    failure: str = ""


class MeasurementFailed(Exception):
    """A form that cannot be measured here, though others can."""


def alternate(
    forms: Sequence[str], rounds: int, run: Callable[[str], Figures]
) -> tuple[list[dict[str, Figures]], dict[str, str]]:
    """Runs every form once a round, in turned order every other round.

    Returns:
        The figures by form of each round; and why forms failed, which are then left out.
    """
    results: list[dict[str, Figures]] = []
    failures: dict[str, str] = {}
    for number in range(rounds):
        figures = {}
        for form in forms if number % 2 == 0 else reversed(forms):
            if form in failures:
                continue
            try:
                figures[form] = run(form)
            except MeasurementFailed as error:
                failures[form] = str(error)
        results.append(figures)
    return results, failures


def compare(
    case: str,
    forms: Sequence[str],
    rounds: list[dict[str, Figures]],
    failures: dict[str, str],
    goals: dict[tuple[str, str], float],
) -> list[Row]:
    """Rows of every form but the first, the reference, over the rounds that have both.

    Where the reference has no figures, the form's own stand alone.

    Args:
        case: its title.
        forms: the reference, then the others.
        rounds: from `alternate`.
        failures: from `alternate`.
        goals: least ratios wanted, by form and figure.
    """
    reference, *others = forms
    rows = [
        Row(case, form, "", None, None, failure=failures[form])
        for form in forms
        if form in failures
    ]
    for form in others or [reference]:
        both = [figures for figures in rounds if form in figures and reference in figures]
        own = [figures[form] for figures in rounds if form in figures]
        for figure in own[0] if own else ():
            value = statistics.median(figures[figure] for figures in own)
            if not both or form == reference:
                rows.append(Row(case, form, figure, None, value))
                continue
            ratios = [better(figure, each[reference][figure], each[form][figure]) for each in both]
            middle = statistics.median(each[reference][figure] for each in both)
            rows.append(
                Row(
                    case,
                    form,
                    figure,
                    middle,
                    value,
                    statistics.median(ratios),
                    min(ratios),
                    max(ratios),
                    goals.get((form, figure)),
                )
            )
    return rows


def better(figure: str, reference: float, value: float) -> float:
    """How many times better `value` is; more than 1 is better than the reference."""
    more, less = (value, reference) if figure.endswith("/s") else (reference, value)
    return more / less if less > 0 else float("nan")


def in_own_process(module: str, request: dict, *, threads: int = 0) -> Figures:
    """Runs `python -m MODULE` with `request` as JSON on its input; its last line is the answer.

    Args:
        module: prints one line of JSON, `{"figures": {...}}` or `{"failure": "..."}`.
        request: plain values.
        threads: of OpenMP; 0 leaves the choice to it.

    Raises:
        MeasurementFailed: the answer is a failure.
        ValueError: no answer; with the end of what it said.
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    )
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode != 0:
        raise ValueError(
            f"python -m {module} ended with {done.returncode} for {json.dumps(request)}:\n"
            + done.stderr[-2000:]
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    if "failure" in answer:
        raise MeasurementFailed(answer["failure"])
    return answer["figures"]


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text; a case and a form are named once."""
    lines = [("case", "form", "figure", "reference", "value", "ratio", "spread", "goal")]
    last = ("", "")
    for row in rows:
        here = (row.case, row.form)
        names = (row.case if row.case != last[0] else "", row.form if here != last else "")
        last = here
        if row.failure:
            lines.append((*names, row.failure, "", "", "", "", ""))
            continue
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        spread = "" if row.ratio is None else f"{row.low:.2f}-{row.high:.2f}"
        goal = "" if row.goal is None else f">= {row.goal:g}"
        numbers = (_number(row.reference), _number(row.value))
        lines.append((*names, row.figure, *numbers, ratio, spread, goal))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        "  ".join(
            cell.ljust(width) if at < 3 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return "\n".join(aligned)


def _number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
