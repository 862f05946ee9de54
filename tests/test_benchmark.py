"""The benchmark's arithmetic and that it runs; never how fast anything is."""

import contextlib
import io
import json
import mmap
import re
import sys

import pytest
import torch

from benchmark import cases as benchmark_cases
from benchmark.__main__ import CASES, build_parser, main
from benchmark.cases import MEASURES, SMALL_SHAPE, network_case, plan
from benchmark.compare import (
    Measured,
    MeasurementFailed,
    OutOfTime,
    Row,
    better,
    compare,
    in_own_process,
    table,
    with_shares,
)
from benchmark.loading import write_scans
from benchmark.measure import PLAIN, Meter, Settings, private_memory, resident_memory
from benchmark.networks import network_flops
from benchmark.run import plan_for
from utils.scans.volumes import GRID_SHAPE

CPU = torch.device("cpu")
QUICK = Settings(shape=SMALL_SHAPE, least_seconds=0.0, least_runs=1, matrix=64, num_workers=0)


def test_forms_take_turns_and_the_order_is_turned_every_other_round():
    order = []

    def run(form: str) -> dict[str, float]:
        order.append(form)
        return {"s": 1.0}

    measured = Measured()
    for number in range(3):
        measured.add_round(["a", "b", "c"], number, run)

    assert "".join(order) == "abccbaabc"
    assert [set(figures) for figures in measured.rounds] == [{"a", "b", "c"}] * 3
    assert not measured.failures


def test_a_form_that_fails_is_named_and_not_tried_again():
    order = []

    def run(form: str) -> dict[str, float]:
        order.append(form)
        if form == "b":
            raise MeasurementFailed("out of memory")
        return {"s": 1.0}

    measured = Measured()
    for number in range(3):
        measured.add_round(["a", "b"], number, run)
    rows = compare("case", ["a", "b"], measured.rounds, measured.failures, {})

    assert order.count("b") == 1
    assert measured.failures == {"b": "out of memory"}
    assert [row.failure for row in rows] == ["out of memory"]
    assert "out of memory" in table(rows)


def test_what_a_round_had_measured_when_the_time_was_used_up_is_kept():
    measured, answers = Measured(), iter([1.0, 2.0, 3.0])

    def run(form: str) -> dict[str, float]:
        for seconds in answers:
            return {"s": seconds}
        raise OutOfTime

    measured.add_round(["a", "b"], 0, run)
    with pytest.raises(OutOfTime):
        measured.add_round(["a", "b"], 1, run)
    assert measured.rounds == [{"a": {"s": 1.0}, "b": {"s": 2.0}}, {"b": {"s": 3.0}}]
    with pytest.raises(OutOfTime):
        measured.add_round(["a", "b"], 2, run)
    assert len(measured.rounds) == 2
    assert not measured.failures


def test_a_budget_ends_the_run_with_every_row_named_and_the_file_written(tmp_path, monkeypatch):
    """The clock of the test: each process takes 10 seconds of 25."""
    now = [0.0]
    monkeypatch.setattr("benchmark.run.time.monotonic", lambda: now[0])

    def ten_seconds(module: str, request: dict, *, threads: int, timeout: float) -> dict:
        if timeout < 10:
            raise OutOfTime
        now[0] += 10
        assert json.loads(file.read_text())["rows"] if file.exists() else now[0] <= 20
        return {"TFLOP/s": 2.0, "s/step": 1.0}

    file = tmp_path / "p.json"
    monkeypatch.setattr(benchmark_cases, "in_own_process", ten_seconds)
    flags = ["--quick", "--device", "cpu", "--cases", "training", "ceiling", "inference"]
    rows = main([*flags, "--budget", "25", "--json", str(file)])
    found = {row.case: row.failure for row in rows}
    assert [case for case, failure in found.items() if not failure] == [
        "ceiling, matrix product",
    ]
    missing = [case for case, failure in found.items() if "--budget 25" in failure]
    assert sorted(missing) == ["inference, compact, batch 1", "training, compact, batch 4"]
    assert len(json.loads(file.read_text())["rows"]) == len(rows)


def test_what_matters_most_is_measured_first():
    batches = {"inference": [1, 8, 32], "training": [8, 16, 32]}
    cases = plan(CASES, base=QUICK, batches=batches, widths=["compact"], caches=["disk"])
    order = [(case.measure, case.settings.batch) for case in cases if case.measure != "ceiling"]
    assert [case.measure for case in cases[:2]] == ["ceiling", "ceiling"]
    first = [("training", 32), ("training", 8), ("inference", 1), ("inference", 32)]
    assert order[:4] == first
    assert {*order[4:6]} == {("inference", 8), ("training", 16)}


def test_a_form_stands_alone_where_the_reference_failed():
    rows = compare("case", ["a", "b"], [{"b": {"s": 2.0}}], {"a": "out of memory"}, {})
    assert [(row.form, row.value, row.ratio) for row in rows] == [
        ("a", None, None),
        ("b", 2.0, None),
    ]


def test_ratios_are_medians_over_rounds_with_smallest_and_largest():
    seconds = [(4.0, 2.0), (9.0, 3.0), (4.0, 1.0)]
    rounds = [{"plain": {"s/step": a}, "ours": {"s/step": b}} for a, b in seconds]

    (row,) = compare("case", ["plain", "ours"], rounds, {}, {("ours", "s/step"): 2.5})

    assert (row.reference, row.value) == (4.0, 2.0)
    # The median of the ratios 2, 3 and 4, not the ratio of the medians, which is 2.
    assert (row.ratio, row.low, row.high, row.goal) == (3.0, 2.0, 4.0, 2.5)


@pytest.mark.parametrize(
    ("figure", "reference", "value", "expected"),
    [("scans/s", 2.0, 6.0, 3.0), ("s/step", 6.0, 2.0, 3.0), ("peak memory MiB", 100, 200, 0.5)],
)
def test_more_than_one_is_better_for_rates_times_and_memory(figure, reference, value, expected):
    assert better(figure, reference, value) == expected


def test_the_meter_counts_its_runs_and_leaves_warm_up_out():
    runs = []
    meter = Meter(CPU, least_seconds=0.0, least_runs=4)
    seconds = meter.seconds(lambda: runs.append(1), warm_up=2)
    assert len(runs) == 6
    assert seconds >= 0


def test_peak_memory_sees_what_was_held_only_for_a_while():
    meter = Meter(CPU, least_seconds=0.0, least_runs=1)
    meter.start()
    # Fresh from the system: what tests before have freed may be kept by the allocator.
    with mmap.mmap(-1, 64 * 2**20) as held:
        held[:: mmap.PAGESIZE] = b"x" * (len(held) // mmap.PAGESIZE)
    figures = meter.memory()
    assert figures["peak above start MiB"] > 50
    assert figures["peak memory MiB"] > figures["peak above start MiB"]
    assert resident_memory(peak=True) >= resident_memory(peak=False) > 0
    assert private_memory() > 0


def test_a_share_of_the_ceiling_uses_the_ceiling_of_its_precision():
    rows = with_shares(
        [
            Row("ceiling, matrix product", "float32", "TFLOP/s", None, 2.0),
            Row("ceiling, matrix product", "bfloat16", "TFLOP/s", None, 10.0),
            Row("training", "ours bfloat16", "TFLOP/s", 0.5, 1.0),
        ]
    )
    assert [(r.reference, r.value) for r in rows if r.figure == "% of ceiling"] == [(25.0, 10.0)]


def test_operations_are_those_of_the_fused_network_and_thrice_in_training():
    forward = network_flops("compact", GRID_SHAPE, training=False)
    # By hand: 2 x 27 x voxels x channels in x channels out, over the ten units.
    shapes = [(91, 109, 91), (45, 54, 45), (22, 27, 22), (11, 13, 11), (5, 6, 5)]
    by_hand, channels = 0, 1
    for (depth, height, width), out in zip(shapes, (8, 16, 32, 64, 128), strict=True):
        by_hand += 54 * depth * height * width * (channels * out + out * out)
        channels += out
    assert forward == pytest.approx(by_hand, rel=0.01)
    # The backward pass is two more, less the first gradient to an image that needs none.
    assert 2.9 < network_flops("compact", GRID_SHAPE, training=True) / forward <= 3


def test_every_case_has_a_measure_and_every_form_a_way_to_run():
    assert set(CASES) == set(MEASURES)
    for device in ("cpu", "cuda"):
        for name in ("inference", "training"):
            case = network_case(name, Settings(device=device, batch=32))
            assert case.forms[0] == PLAIN
            assert {form for form, _ in case.goals} <= set(case.forms)


def test_a_gpu_is_measured_at_batches_of_8_to_64_with_its_goals_at_32():
    cases = plan(
        ["training"],
        base=Settings(device="cuda"),
        batches={"inference": [], "training": [8, 16, 32, 64]},
        widths=["released"],
        caches=["disk"],
    )
    goals = {case.settings.batch: bool(case.goals) for case in cases}
    assert goals == {8: False, 16: False, 32: True, 64: False}


def test_without_a_gpu_the_plan_is_for_the_cpu():
    args = build_parser().parse_args(
        ["--device", "cpu", "--quick", "--width", "compact", "released"]
    )
    cases, machine = plan_for(args)
    assert machine["GPU"] == "none"
    assert {case.settings.device for case in cases} == {"cpu"}
    assert {case.settings.width for case in cases} == {"compact", "released"}


def test_repeated_scans_are_links_to_a_few(tmp_path):
    write_scans(tmp_path / "scans", 20, (8, 8, 8))
    files = list((tmp_path / "scans").iterdir())
    assert len(files) == 20
    assert len({file.stat().st_ino for file in files}) == 8


def test_an_answer_is_figures_a_failure_or_an_error_with_what_the_process_said(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    module = tmp_path / "stand_in.py"
    module.write_text("import sys; print('noise'); print(sys.stdin.read())")
    assert in_own_process("stand_in", {"figures": {"s": 2.0}}) == {"s": 2.0}
    with pytest.raises(MeasurementFailed, match="out of memory"):
        in_own_process("stand_in", {"failure": "out of memory"})
    module.write_text("raise SystemExit('no form called theirs')")
    with pytest.raises(ValueError, match=r"ended with 1 for(.|\n)*no form called theirs"):
        in_own_process("stand_in", {})


@pytest.mark.slow
def test_a_form_is_measured_in_a_process_of_its_own():
    request = {"measure": "ceiling", "form": "float32", "settings": vars(QUICK)}
    assert in_own_process("benchmark.cases", request, threads=1)["TFLOP/s"] > 0


@pytest.mark.slow
def test_the_whole_benchmark_runs_and_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    def in_this_process(module: str, request: dict, **_) -> dict[str, float]:
        """What `python -m benchmark.cases` answers, without its start of seconds."""
        output = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(output):
            patch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
            benchmark_cases.main()
        return json.loads(output.getvalue())["figures"]

    monkeypatch.setattr(benchmark_cases, "in_own_process", in_this_process)
    file = tmp_path / "performance.json"
    flags = ["--quick", "--device", "cpu", "--batch", "2", "--scans", "2", "--num_workers", "0"]

    rows = main([*flags, "--cache", "disk", "--json", str(file)])

    printed = capsys.readouterr().out
    assert "no GPU: not measured on one" in printed
    assert "nan" not in printed
    for name in ("inference", "training", "loader", "memory of reading", "ceiling"):
        assert re.search(rf"^{name}", printed, re.MULTILINE), name
    assert not [row for row in rows if row.failure]
    figures = {row.figure for row in rows if row.form == "ours float32"}
    assert {"scans/s", "s/step", "TFLOP/s", "peak memory MiB", "peak above start MiB"} < figures
    content = json.loads(file.read_text())
    assert len(content["rows"]) == len(rows)
    assert content["machine"]["torch"] == torch.__version__
    with pytest.raises(FileExistsError):
        main([*flags, "--json", str(file)])
