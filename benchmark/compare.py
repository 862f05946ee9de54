"""Forms side by side, each measured in a fresh process.

Forms alternate (A B, B A, A B, ...), so that neither the load of the machine nor the memory of one
form changes the figures of another. A ratio is the median over rounds.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, float]
COLUMNS = ("case", "form", "figure", "reference", "value", "ratio", "spread", "goal")


class MeasurementFailed(Exception):
    """A form that cannot be measured here, though others can."""


class OutOfTime(Exception):
    """The time for all measurements is used up."""


@dataclass(frozen=True)
class Row:
    """One figure of one form beside that of the reference, over all rounds.

    Attributes:
        figure: name and unit; a rate ends in `/s`.
        reference: median of the reference.
        value: median of the form.
        ratio: median over rounds of how many times better the form is, see `better`.
        low: smallest ratio of a round; `high` is the largest.
        goal: least ratio wanted, None where none is set.
        failure: why the form has no figures, such as `out of memory`.
    """

    case: str
    form: str
    figure: str = ""
    reference: float | None = None
    value: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    goal: float | None = None
    failure: str = ""


def in_own_process(
    module: str, request: dict, *, threads: int = 0, timeout: float = math.inf
) -> Figures:
    """Runs `python -m MODULE` with `request` as JSON on its input; its last line is the answer.

    Args:
        module: prints one line of JSON, `{"figures": {...}}` or `{"failure": "..."}`.
        request: plain values.
        threads: of OpenMP; 0 leaves the choice to it.
        timeout: seconds after which the process is killed.

    Raises:
        MeasurementFailed: the answer is a failure.
        OutOfTime: there is no answer in time.
        ValueError: no answer; with the end of what the process printed.
    """
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command, text = [sys.executable, "-m", module], json.dumps(request)
    options = {"capture_output": True, "text": True, "env": environment}
    try:
        done = subprocess.run(
            command, input=text, timeout=None if math.isinf(timeout) else timeout, **options
        )
    except subprocess.TimeoutExpired as error:
        raise OutOfTime from error
    if done.returncode != 0:
        ended = f"python -m {module} ended with {done.returncode} for {text}"
        raise ValueError(f"{ended}:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "failure" in answer:
        raise MeasurementFailed(answer["failure"])
    return answer["figures"]


@dataclass
class Measured:
    """What is known of a case: the figures by form of each round, and why forms failed."""

    rounds: list[dict[str, Figures]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def add_round(self, forms: Sequence[str], number: int, run: Callable[[str], Figures]) -> None:
        """Runs every form once, in the opposite order in every other round; not those that failed.

        Raises:
            OutOfTime: from `run`; what the round had measured is kept.
        """
        figures: dict[str, Figures] = {}
        self.rounds.append(figures)
        for form in forms if number % 2 == 0 else reversed(forms):
            if form in self.failures:
                continue
            try:
                figures[form] = run(form)
            except MeasurementFailed as error:
                self.failures[form] = str(error)
            except OutOfTime:
                if not figures:
                    self.rounds.pop()
                raise


def compare(
    case: str,
    forms: Sequence[str],
    rounds: list[dict[str, Figures]],
    failures: dict[str, str],
    goals: dict[tuple[str, str], float],
) -> list[Row]:
    """Rows of every form but the first, the reference, over the rounds that have both.

    Where the reference has no figures, those of the form stand alone. `rounds` and `failures` are
    those of `Measured`; `goals` are the least ratios wanted, by form and figure.
    """
    reference, *others = forms
    rows = [Row(case, form, failure=failures[form]) for form in forms if form in failures]
    for form in others or [reference]:
        own = [figures[form] for figures in rounds if form in figures]
        pairs = [(each[reference], each[form]) for each in rounds if {form, reference} <= {*each}]
        for figure in own[0] if own else ():
            value = statistics.median(figures[figure] for figures in own)
            if not pairs or not others:
                rows.append(Row(case, form, figure, value=value))
                continue
            ratios = [better(figure, theirs[figure], ours[figure]) for theirs, ours in pairs]
            middle = statistics.median(theirs[figure] for theirs, _ in pairs)
            spread = (statistics.median(ratios), min(ratios), max(ratios))
            rows.append(Row(case, form, figure, middle, value, *spread, goals.get((form, figure))))
    return rows


def better(figure: str, reference: float, value: float) -> float:
    """How many times better `value` is: a rate by value/reference, time and memory inversely."""
    more, less = (value, reference) if figure.endswith("/s") else (reference, value)
    return more / less if less > 0 else float("nan")


def with_shares(rows: Sequence[Row]) -> list[Row]:
    """Adds, below each rate of operations, its share of the measured ceiling in per cent."""
    ceilings = {row.form: row.value for row in rows if row.case.startswith("ceiling")}
    plain = ceilings.get("float32")
    result = []
    for row in rows:
        result.append(row)
        ceiling = ceilings.get("bfloat16" if "bfloat16" in row.form else "float32")
        if row.figure == "TFLOP/s" and not row.case.startswith("ceiling") and ceiling:
            reference = 100 * row.reference / plain if row.reference and plain else None
            share = 100 * row.value / ceiling
            result.append(Row(row.case, row.form, "% of ceiling", reference, share))
    return result


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text; a case and a form are named once."""
    lines = [COLUMNS]
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
        values = (_three_digits(row.reference), _three_digits(row.value))
        lines.append((*names, row.figure, *values, ratio, spread, goal))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'<' if at < 3 else '>'}{width}}}" for at, width in enumerate(widths))
    return "\n".join(form.format(*line).rstrip() for line in lines)


def _three_digits(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
