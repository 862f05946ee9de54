"""What is measured: each case with its forms, the first of which is the reference.

`python -m benchmark.cases` reads one request from its input, measures that form and prints its
figures: benchmark/compare.py starts it anew for every measurement. Volumes are on the 91x109x91
grid of 2 mm; `--quick` takes 42x42x42.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from benchmark.compare import Figures, in_own_process
from benchmark.loading import IN_MEMORY, feeding, loader, memory, write_labelled, write_scans
from benchmark.measure import PLAIN, Meter, Settings
from benchmark.networks import ceiling, inference, training

MEASURES: dict[str, Callable[[str, Settings, Meter], Figures]] = {
    "inference": inference,
    "training": training,
    "loader": loader,
    "feeding": feeding,
    "memory": memory,
    "ceiling": ceiling,
}
OURS = ("ours float32", "ours bfloat16")
FORMS = {
    ("inference", "cpu"): (PLAIN, *OURS),
    ("inference", "cuda"): (PLAIN, *OURS, "ours bfloat16 compiled"),
    ("training", "cpu"): (PLAIN, "ours float32", "ours float32 recomputing"),
    ("training", "cuda"): (PLAIN, *OURS, "ours bfloat16 compiled", "ours bfloat16 recomputing"),
}
# Least ratios wanted, by form and figure; those of training on a GPU at a batch of 32.
GOALS = {
    ("inference", "cpu"): {("ours float32", "scans/s"): 2.8, ("ours bfloat16", "scans/s"): 4.0},
    ("training", "cpu"): {("ours float32", "s/step"): 2.5},
    ("training", "cuda"): {
        ("ours bfloat16", "s/step"): 3.0,
        ("ours bfloat16", "peak memory MiB"): 2.0,
    },
}
# What is measured first, by measure and batch size (0: any), should the time not be enough for all.
FIRST = (("ceiling", 0), ("training", 32), ("training", 8), ("inference", 1), ("inference", 32))
SMALL_SHAPE = (42, 42, 42)  # the smallest that the released width, with its stem, can halve 5 times
SCAN_COUNTS = (1000, 3000, 6586)  # the last is the paper's cohort


@dataclass(frozen=True)
class Case:
    """A group of rows of the table.

    Attributes:
        measure: key of MEASURES.
        forms: what is compared; the first is the reference.
        goals: least ratios wanted, by form and figure.
    """

    measure: str
    title: str
    forms: tuple[str, ...]
    settings: Settings
    goals: dict[tuple[str, str], float] = field(default_factory=dict)

    def run(
        self, form: str, *, cohort: str = "", threads: int = 0, timeout: float = math.inf
    ) -> Figures:
        """Measures one form in its own process; `cohort` is the folder of `write_cohort`."""
        with tempfile.TemporaryDirectory(dir=cohort or None) as scratch:
            settings = asdict(replace(self.settings, cohort=cohort, scratch=scratch))
            request = {"measure": self.measure, "form": form, "settings": settings}
            return in_own_process("benchmark.cases", request, threads=threads, timeout=timeout)


def network_case(name: str, settings: Settings) -> Case:
    """Inference or training at one width and batch size, with the goals of docs/PERFORMANCE.md."""
    kind = (name, settings.device)
    goals = GOALS.get(kind, {}) if settings.device == "cpu" or settings.batch == 32 else {}
    title = f"{name}, {settings.width}, batch {settings.batch}"
    return Case(name, title, FORMS[kind], settings, goals)


def loading_cases(
    base: Settings, *, caches: Sequence[str], fed: Settings, scan_counts: tuple[int, ...]
) -> Iterator[Case]:
    """The loader, training fed by it (`fed` has its width and batch), and memory of reading."""
    cached = tuple(f"cache {cache}" for cache in caches)
    keeping = [form for form in cached if "none" not in form]
    goals = {(form, "second epoch scans/s"): 20.0 for form in keeping}
    yield Case("loader", "loader", (PLAIN, *cached), replace(base, batch=8), goals)
    title = f"training fed by the loader, {fed.width}, batch {fed.batch}"
    fed = replace(fed, least_seconds=0.0, least_runs=1)
    # An epoch that takes 5 % longer is 0.95 times as good.
    goals = {(form, "s/epoch"): 0.95 for form in keeping}
    yield Case("feeding", title, (IN_MEMORY, *cached), fed, goals)
    # Without the device, where the whole cohort is kept, so that memory must grow with it.
    for cache in (form for form in cached if "device" not in form):
        forms = tuple(f"{cache}, {count} scans" for count in scan_counts)
        settings = replace(base, batch=8, shape=SMALL_SHAPE)
        yield Case("memory", f"memory of reading, {cache}", forms, settings)


def plan(
    names: Sequence[str],
    *,
    base: Settings,
    batches: dict[str, list[int]],
    widths: Sequence[str],
    caches: Sequence[str],
    scan_counts: tuple[int, ...] = SCAN_COUNTS,
) -> list[Case]:
    """The cases of these names, those of FIRST first.

    Args:
        names: keys of MEASURES.
        base: settings that all share.
        batches: batch sizes of `inference` and `training`.
        widths: of the network.
        caches: of our loader: none, disk or device.
        scan_counts: for `memory`; the first is the reference.
    """
    cases = [
        network_case(name, replace(base, width=width, batch=batch))
        for width in widths
        for name in ("inference", "training")
        for batch in batches[name]
    ]
    fed = replace(base, width=widths[0], batch=next(iter(batches["training"]), 1))
    cases += loading_cases(base, caches=caches, fed=fed, scan_counts=scan_counts)
    cases += [
        Case("ceiling", "ceiling, matrix product", (precision,), base)
        for precision in ("float32", "bfloat16")
    ]
    return sorted((case for case in cases if case.measure in names), key=_place)


def _place(case: Case) -> int:
    """The place of a case in FIRST; behind it for all others, which keep their order."""
    kinds = ((case.measure, case.settings.batch), (case.measure, 0))
    return next((at for at, kind in enumerate(FIRST) if kind in kinds), len(FIRST))


def write_cohort(folder: Path, cases: Sequence[Case], *, scans: int) -> None:
    """Makes the files that the cases read: those of `write_labelled`, and count-N/ for `memory`."""
    shapes = [case.settings.shape for case in cases if case.measure in ("loader", "feeding")]
    if shapes:
        write_labelled(folder, scans, shapes[0])
    counts = {
        (form.removesuffix(" scans").split(", ")[1], case.settings.shape)
        for case in cases
        if case.measure == "memory"
        for form in case.forms
    }
    for count, shape in counts:
        write_scans(folder / f"count-{count}", int(count), shape)


def main() -> None:
    """Measures the form that the request on the input names and prints its figures."""
    request = json.load(sys.stdin)
    settings = Settings(**request["settings"] | {"shape": tuple(request["settings"]["shape"])})
    device, least = torch.device(settings.device), settings.least_seconds
    meter = Meter(device, least_seconds=least, least_runs=settings.least_runs)
    try:
        answer = {"figures": MEASURES[request["measure"]](request["form"], settings, meter)}
    except torch.OutOfMemoryError:
        answer = {"failure": "out of memory"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
