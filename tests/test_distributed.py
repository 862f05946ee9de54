"""Two processes over gloo on this machine against one with the same global batch."""

import importlib
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, training_flags, write_cohort
from torch import nn

from model.layers import fuse_for_inference
from model.losses import AgeLoss
from model.scaledense import WIDTHS, ScaleDense
from utils import distributed
from utils.cli import run_entry
from utils.distributed import SINGLE, World, joined, own_device, read_launch
from utils.networks.checkpoint import load_checkpoint
from utils.networks.execution import Execution, choose_execution, predict
from utils.people.labels import read_labels
from utils.scans.cache import Cache
from utils.scans.cohort import open_cohort
from utils.scans.dataset import (
    ScanDataset,
    TrainingBatches,
    draw_stratified,
    evaluation_loader,
    training_loader,
)
from utils.scans.volumes import InputRule
from utils.training.engine import (
    average_statistics,
    parallel,
    refresh_statistics,
    synchronised,
    train_one_epoch,
)
from utils.training.sorter import load_shipped_sorter

ANY = InputRule(any_grid=True)
# Name: (scans, one global batch of them; the loss's options).
LOSSES = {
    "soft ranks, all pairs": (5, {}),
    "random pairs": (5, {"pairs": "random"}),
    "trained sorter": (8, {"sorter": 8}),
}


# Few channels: in float64 convolutions take long.
THIN = replace(WIDTHS["compact"], block_channels=(4, 4, 4, 4, 4), pooled_channels=4)


class FrozenNorms(ScaleDense):
    """Its normalisations stay in evaluation mode: scans of a batch do not touch one another."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()
        return self


def one_step(scans: ScanDataset, execution: Execution, options: dict) -> dict:
    """Loss terms, gradients and weights of one SGD step in float64 on all scans at once."""
    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WIDTHS, "compact", THIN)
        model = FrozenNorms(mean_age=50).double()
    options = dict(options)
    if "sorter" in options:
        options["sorter"] = load_shipped_sorter(options["sorter"]).double()
    losses = train_one_epoch(
        parallel(model, execution) if execution.world.size > 1 else model,
        AgeLoss(**options),
        training_loader(scans, batch_size=len(scans), full_batches=True, world=execution.world),
        torch.optim.SGD(model.parameters(), lr=1e-6),
        execution,
        augment=lambda image: image.double(),
    )
    gradients = {name: value.grad for name, value in model.named_parameters()}
    return {"losses": losses, "gradients": gradients, "weights": model.state_dict()}


def steps(folder: Path, world: World) -> dict:
    """One step with each of these losses, by the processes of `world` or by one alone."""
    execution = Execution(torch.device("cpu"), world=world)
    scans = open_cohort(folder / "train", read_labels(folder / "labels.csv"), ANY, need_age=True)
    return {
        name: one_step(ScanDataset(scans[:count], ANY, Cache("device")), execution, options)
        for name, (count, options) in LOSSES.items()
    }


def evaluations(folder: Path, world: World) -> dict:
    """Ages and refreshed statistics, by the processes of `world` or by one alone."""
    execution = Execution(torch.device("cpu"), world=world)
    test = open_cohort(folder / "test", read_labels(folder / "labels.csv"), ANY)
    found = {}
    torch.manual_seed(3)
    model, scans = ScaleDense(mean_age=50), ScanDataset(test, ANY, Cache("device"))
    loader = evaluation_loader(scans, batch_size=4, world=world)
    found["read"] = torch.cat([batch["index"] for batch in loader]).tolist()
    found["ages"] = predict(model, loader, execution)["predicted_age"]
    few = ScanDataset(test[:1], ANY, Cache("device"))
    found["one age"] = predict(model, evaluation_loader(few, batch_size=4, world=world), execution)[
        "predicted_age"
    ]
    refresh_statistics(
        model, training_loader(scans, batch_size=7, full_batches=True, world=world), execution
    )
    found["statistics"] = dict(model.named_buffers())
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_torchrun() -> dict[str, str]:
    return {
        "RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip


def set_variables(rank: int, variables: dict[str, str]) -> None:
    """Tells this process who it is; the rank takes the place of `{rank}`."""
    os.environ |= {key: value.format(rank=rank) for key, value in variables.items()}


def process(rank: int, folder: Path, variables: dict, train: bool) -> None:
    """One of two, as torchrun would start it."""
    torch.set_num_threads(1)
    set_variables(rank, variables)
    with joined("cpu") as world:
        found = steps(folder, world) if train else evaluations(folder, world)
        with world.own_randomness(1, torch.device("cpu")):
            found["own draw"] = torch.rand(3 + rank)[:3]
        found["common draw"] = torch.rand(3)
        found["first"] = world.run_in_first(lambda: rank + 10)
        found["errors"] = [told_by(lambda: world.run_in_all(lambda: fail(rank, 1))),
                           told_by(lambda: world.run_in_first(lambda: fail(rank, 0)))]  # fmt: skip
        torch.save(found, folder / f"found-{rank}.pt")


def fail(rank: int, failing: int) -> None:
    if rank == failing:
        raise FileNotFoundError(f"scan of process {rank}")


def told_by(function) -> str:
    try:
        function()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def found_by_two(folder: Path, *, train: bool) -> list[dict]:
    """What each of two processes found; they are forked, so the fixture `forking` is needed."""
    torch.multiprocessing.start_processes(
        process, (folder, as_torchrun(), train), nprocs=2, start_method="forkserver"
    )
    paths = [folder / f"found-{rank}.pt" for rank in (0, 1)]
    found = [torch.load(path, weights_only=False) for path in paths]
    for path in paths:
        path.unlink()
    return found


@pytest.fixture(scope="module")
def pair(cohort, forking) -> list[dict]:
    return found_by_two(cohort, train=False)


@pytest.fixture(scope="module")
def alone(cohort) -> dict:
    return evaluations(cohort, SINGLE)


@pytest.mark.slow  # torch imports 800 modules more for the first step
def test_two_processes_take_the_step_of_one_with_the_same_global_batch(cohort, forking):
    pair = found_by_two(cohort, train=True)
    for name, expected in steps(cohort, SINGLE).items():
        assert {"mse", "rank", "pair"} <= set(expected["losses"])
        assert all(value.dtype == torch.float64 for value in expected["gradients"].values())
        assert max(value.abs().max() for value in expected["gradients"].values()) > 1
        for found in (one[name] for one in pair):
            assert found["losses"] == pytest.approx(expected["losses"], rel=1e-12)
            for kind in ("gradients", "weights"):
                # Sums in another order: elements near 0 are left from much larger terms.
                torch.testing.assert_close(found[kind], expected[kind], rtol=1e-7, atol=1e-9)


def test_each_scan_is_evaluated_by_one_process_and_all_know_its_age(pair, alone):
    assert [found["read"] for found in pair] == [[0, 1, 2], [3, 4, 5, 6]]
    for found in pair:
        assert found["ages"].shape == (7,)
        np.testing.assert_allclose(found["ages"], alone["ages"], rtol=1e-5)
        np.testing.assert_allclose(found["one age"], alone["one age"], rtol=1e-5)
    np.testing.assert_array_equal(pair[0]["ages"], pair[1]["ages"])


def test_refreshed_statistics_are_alike_in_all_processes_and_near_those_of_one(pair, alone):
    name = "encoder.backbone.blocks.0.unit1.convolution.branches.0.1.running_mean"
    for key, value in pair[0]["statistics"].items():
        assert torch.equal(value, pair[1]["statistics"][key])
    torch.testing.assert_close(
        pair[0]["statistics"][name], alone["statistics"][name], rtol=0.1, atol=0.01
    )


def test_own_draws_differ_and_values_and_errors_of_one_process_reach_all(pair):
    assert not torch.equal(pair[0]["own draw"], pair[1]["own draw"])
    assert torch.equal(pair[0]["common draw"], pair[1]["common draw"])
    for found in pair:
        assert found["first"] == 10
        assert found["errors"] == [
            "FileNotFoundError: scan of process 1", "FileNotFoundError: scan of process 0"
        ]  # fmt: skip


@pytest.mark.parametrize(("count", "size"), [(5, 2), (16, 4), (7, 3), (2, 3), (0, 2)])
def test_shares_are_the_whole_once_in_order_and_even(count, size):
    whole = list(range(count))
    shares = [whole[World(rank, size).share(count)] for rank in range(size)]
    assert list(chain(*shares)) == whole
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def seven(cohort) -> ScanDataset:
    return ScanDataset(open_cohort(cohort / "test", None, ANY), ANY)


@pytest.mark.parametrize(
    ("batch_size", "size", "expected"),
    [(4, 1, [4, 3]), (4, 2, [4, 3]), (4, 3, [4, 3]), (4, 4, [4]), (5, 3, [5]), (3, 2, [3, 3])],
)
def test_the_batches_of_all_processes_are_those_of_one(seven, batch_size, size, expected):
    shares = []
    for rank in range(size):
        torch.manual_seed(5)
        loader = training_loader(
            seven, batch_size=batch_size, full_batches=False, world=World(rank, size)
        )
        assert loader.sampler.global_sizes == expected
        shares.append(list(loader.sampler))
    together = chain(*chain(*zip(*shares, strict=True)))
    torch.manual_seed(5)
    assert list(together) == torch.randperm(7).tolist()[: sum(expected)]
    assert all(share for parts in shares for share in parts)


def test_stratified_batches_of_all_processes_are_those_of_one():
    ages, sizes = torch.linspace(20, 80, 11), [4, 4, 3]
    shares = []
    for rank in range(3):
        torch.manual_seed(5)
        shares.append(list(TrainingBatches(ages, 11, sizes, World(rank, 3))))
    torch.manual_seed(5)
    alone = draw_stratified(ages, sizes)
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone


def test_a_batch_smaller_than_the_world_is_an_error(seven):
    with pytest.raises(ValueError, match="--batch_size 2: shared by all 4 processes, at least 4"):
        training_loader(seven, batch_size=2, full_batches=False, world=World(0, 4))


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
JOB = {"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = JOB | {
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07,09-10]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "world", "address"),
    [
        ({}, SINGLE, ""),
        (TORCHRUN, World(3, 4, 1), "env://"),
        (TORCHRUN | STEP, World(3, 4, 1), "env://"),  # torchrun inside a step
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, SINGLE, ""),
        (JOB, SINGLE, ""),  # python in a batch script or an salloc, without srun
        (JOB | {"SLURM_STEP_NUM_TASKS": "1"}, SINGLE, ""),  # the shell of an interactive step
        (STEP, World(5, 8, 1), "tcp://gpu07:23456"),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0"}, World(5, 8, 0), "tcp://gpu07:23456"),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1"}, World(5, 8, 1), "tcp://gpu07:23456"),
        (STEP | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, World(5, 8, 1), "tcp://a:1"),
        (STEP | {"SLURM_STEP_NODELIST": "n1-ib,n2-ib"}, World(5, 8, 1), "tcp://n1-ib:23456"),
        (STEP | {"SLURM_STEP_NODELIST": "n[1-2]-ib"}, World(5, 8, 1), "tcp://n1-ib:23456"),
    ],
)
def test_a_process_knows_who_it_is_from_torchrun_or_a_slurm_step(variables, world, address):
    assert read_launch(variables) == (world, address)


def test_a_launch_with_missing_variables_is_an_error():
    with pytest.raises(ValueError, match=r"LOCAL_RANK is not set .* start with torchrun"):
        read_launch({"RANK": "0", "WORLD_SIZE": "2"})


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto", 1) == own_device("cuda", 1) == torch.device("cuda", 1)
    assert own_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU, torch sees 2"):
        own_device("auto", 2)
    with pytest.raises(ValueError, match="--device cuda:0: auto, cpu or cuda expected"):
        own_device("cuda:0", 0)


def flags_of_two(cohort: Path, folder: Path, *flags: str) -> list[str]:
    # Random shifts must follow from seed, epoch and rank alone.
    return [*training_flags(cohort, folder), "--any_grid", *flags]


def program(rank: int, name: str, flags: list[str], variables: dict, folder: Path) -> None:
    """The program `name` in a process that was forked; what it says goes to files."""
    for descriptor, stream in ((1, "out"), (2, "err")):
        with (folder / f"{rank}.{stream}").open("w") as file:
            os.dup2(file.fileno(), descriptor)
    set_variables(rank, variables)
    run_entry(lambda: importlib.import_module(name).main(flags))


def started_twice(
    forking, name: str, flags: list[str], variables: dict, folder: Path
) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, outputs and errors of a program started twice, with these variables."""
    folder.mkdir()
    tasks = [
        forking.Process(target=program, args=(rank, name, flags, variables, folder))
        for rank in (0, 1)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(timeout=120)
        task.kill()  # nothing to one that has ended
    said = [[(folder / f"{rank}.{stream}").read_text() for rank in (0, 1)]
            for stream in ("out", "err")]  # fmt: skip
    return [task.exitcode for task in tasks], *said


def as_slurm() -> dict[str, str]:
    return {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "1",
        "SLURM_PROCID": "{rank}", "SLURM_LOCALID": "{rank}", "MASTER_PORT": str(free_port()),
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_write_one_run_and_resume_it_exactly(cohort, forking, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node", "2", str(ROOT / "train_first_stage.py")]
    flags = flags_of_two(cohort, tmp_path / "whole", "--schedule", "constant")
    whole = subprocess.run([*launcher, *flags], capture_output=True, text=True, timeout=120)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("training: 8 scans") == 1
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert len(list((tmp_path / "whole" / "tensorboard").iterdir())) == 1

    flags = flags_of_two(cohort, tmp_path / "halves", "--schedule", "constant")
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume"]):
        said = tmp_path / f"said{len(more)}"
        codes, _, errors = started_twice(
            forking, "train_first_stage", flags + more, as_torchrun(), said
        )
        assert codes == [0, 0], errors
    for name in ("ScaleDense_best_model.pth.tar", "ScaleDense_last_model.pth.tar"):
        states = [load_checkpoint(tmp_path / run / name).model.state_dict()
                  for run in ("whole", "halves")]  # fmt: skip
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_processes_with_one_message(cohort, forking, tmp_path):
    flags = flags_of_two(cohort, tmp_path / "run", "--lr", "1e30")
    codes, _, errors = started_twice(
        forking, "train_first_stage", flags, as_torchrun(), tmp_path / "said"
    )
    assert codes == [1, 1]
    told = "".join(errors)
    assert told.count("error: ") == told.count("the loss is not finite") == 1
    assert len(re.findall(r"train-\d", told)) == 4  # the scans of the whole batch


@pytest.mark.slow
def test_a_missing_label_ends_all_processes_with_one_message(forking, tmp_path):
    sheet = write_cohort(tmp_path, {"train": 3, "val": 2})
    sheet.write_text(sheet.read_text().replace("train-2.nii.gz", "other.nii.gz"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for output, message in (
        ("run", "no row named train-2 in the label sheet"),
        ("full", "is not empty"),
    ):
        flags, said = flags_of_two(tmp_path, tmp_path / output), tmp_path / f"said-{output}"
        codes, _, errors = started_twice(forking, "train_first_stage", flags, as_torchrun(), said)
        assert codes == [1, 1]
        assert "".join(errors).count(message) == 1
        assert "".join(errors).count("error: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_tasks_of_a_slurm_step_train_the_second_stage(cohort, trained, forking, tmp_path):
    flags = [*training_flags(cohort, tmp_path / "run"), "--first_stage_net", str(trained["first"])]
    # By this recipe pairs are drawn at random, and statistics are averaged, not recomputed.
    flags += ["--recipe", "paper", "--width", "compact", "--sorter", "none"]
    codes, told, errors = started_twice(
        forking, "train_second_stage", flags, as_slurm(), tmp_path / "said"
    )
    assert codes == [0, 0], errors
    assert "epoch   2/2" in told[0]
    assert told[1] == ""
    best = load_checkpoint(tmp_path / "run" / "ScaleDense_best_model.pth.tar")
    first = load_checkpoint(trained["first"]).model.state_dict()
    kept = best.model.first_stage.state_dict()
    assert all(torch.equal(kept[key], first[key]) for key in first)


def test_a_single_process_is_left_as_it_is():
    torch.manual_seed(1)
    with SINGLE.own_randomness(1, torch.device("cpu")):
        drawn = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(2))
    average_statistics(ScaleDense(), choose_execution("cpu"))


def test_synchronised_networks_keep_their_keys_and_fuse():
    torch.manual_seed(0)
    model = ScaleDense(mean_age=50).eval()
    keys, image = list(model.state_dict()), torch.randn(2, 1, 32, 36, 32)
    expected = model(image, torch.tensor([0, 1]))
    # A pretended GPU: the layers are exchanged, nothing is moved.
    model = synchronised(model, Execution(torch.device("cuda"), world=World(0, 2)))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert list(model.state_dict()) == keys
    fused = fuse_for_inference(model)
    torch.testing.assert_close(fused(image, torch.tensor([0, 1])), expected, rtol=1e-4, atol=1e-3)


def on_gpu(rank: int, folder: Path, variables: dict) -> None:
    """Statistics of one batch of five that two GPUs share."""
    set_variables(rank, variables)
    with joined("cuda") as world:
        execution = choose_execution("cuda", "float32", world)
        model, image = batch_of_five()
        model = parallel(synchronised(execution.place(model), execution), execution)
        own = image[world.share(5)].to(execution.device)
        model(own, torch.zeros(len(own), dtype=torch.int64, device=own.device)).sum().backward()
        statistics = {key: value.cpu() for key, value in model.module.named_buffers()}
        torch.save(statistics, folder / f"{rank}.pt")


def batch_of_five() -> tuple[ScaleDense, torch.Tensor]:
    torch.manual_seed(0)
    return ScaleDense(mean_age=50).train(), torch.randn(5, 1, 32, 36, 32)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_have_the_batch_statistics_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(on_gpu, (tmp_path, as_torchrun()), nprocs=2)
    model, image = batch_of_five()
    model(image, torch.zeros(5, dtype=torch.int64))
    expected = dict(model.named_buffers())
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_process_that_reports_an_error_is_one(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(distributed, "ERROR_REPORT_SECONDS", 0.0)
    error = ValueError("a")
    assert [distributed.reports_error(error, World(rank, 3), store) for rank in (2, 0, 1)] == [
        True, False, False
    ]  # fmt: skip
    assert distributed.reports_error(ValueError("b"), World(1, 3), store)
    # A collective that broke off is reported only where no process has ended with an error.
    assert not distributed.reports_error(RuntimeError("c"), World(1, 3), store)
    assert distributed.reports_error(RuntimeError("c"), World(1, 3), torch.distributed.HashStore())
