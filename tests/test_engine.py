import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_cohort
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import train_first_stage
from model.layers import fuse_for_inference
from model.losses import AgeLoss
from model.scaledense import WIDTHS, ScaleDense
from model.tsan import TSAN, SecondStage
from utils.networks import execution
from utils.networks.execution import (
    Execution,
    Views,
    choose_execution,
    compile_network,
    predict,
    require_right_convolutions,
    settle_precision,
)
from utils.people.labels import read_labels
from utils.scans.cache import Cache
from utils.scans.cohort import open_cohort
from utils.scans.dataset import ScanDataset, evaluation_loader, training_loader
from utils.scans.volumes import InputRule
from utils.training import engine
from utils.training.augment import Augmentation
from utils.training.engine import Step, refresh_statistics, train_one_epoch
from utils.training.optimisation import Optimisation, build_optimizer

ANY = InputRule(any_grid=True)
CPU = Execution(torch.device("cpu"))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    labels = read_labels(write_cohort(folder, {"all": 7}))
    return ScanDataset(
        open_cohort(folder / "all", labels, ANY), ANY, Cache("device", dtype="float32")
    )


def predict_ages(model, dataset, batch_size):
    return predict(model, evaluation_loader(dataset, batch_size=batch_size), CPU)["predicted_age"]


def test_every_scan_is_predicted_once_in_order_whatever_the_batch_size(scans):
    model = CPU.place(ScaleDense(mean_age=50))
    whole = predict_ages(model, scans, 7)
    assert whole.shape == (7,)
    assert len(set(whole.tolist())) == 7
    for batch_size in (1, 4):
        np.testing.assert_allclose(predict_ages(model, scans, batch_size), whole, rtol=1e-4)
    one_by_one = [model(scans[[i]]["image"], scans[[i]]["sex"]).item() for i in range(7)]
    np.testing.assert_allclose(whole, one_by_one, rtol=1e-4)


def test_unknown_sex_gets_the_mean_of_both(scans):
    model = CPU.place(ScaleDense(mean_age=50))
    unknown = open_cohort(scans.scans[0].path.parent, None, ANY)
    predicted = predict_ages(model, ScanDataset(unknown, ANY), 4)
    image = scans[list(range(7))]["image"]
    with torch.inference_mode():
        both = [model(image, torch.full((7,), sex)) for sex in (0, 1)]
    assert not torch.allclose(*both)
    np.testing.assert_allclose(predicted, ((both[0] + both[1]) / 2)[:, 0], rtol=1e-4)


def one_epoch(model, loader, execution=CPU, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 1e-30))
    loss = AgeLoss(rank_weight=0)
    return train_one_epoch(
        model, loss, loader, optimizer, execution, augment=Augmentation(), **options
    )


class Constant(nn.Module):
    """Answers one trainable age."""

    def __init__(self, age):
        super().__init__()
        self.age = nn.Parameter(torch.tensor(age))

    def forward(self, image, sex):
        return self.age.expand(len(image), 1)


def test_losses_are_averaged_over_scans_not_over_batches(scans):
    ages = np.array([scan.age for scan in scans.scans])
    losses = one_epoch(Constant(50.0), training_loader(scans, batch_size=4, full_batches=False))
    assert losses["mse"] == pytest.approx(((50 - ages) ** 2).mean(), rel=1e-5)


def test_the_running_average_follows_each_step(scans):
    model = Constant(50.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    passed = []
    model.register_forward_hook(lambda module, *_: passed.append(module.age.item()))
    one_epoch(model, batches_of(scans), lr=0.1, average=average)
    first, second, last = *passed[1:], model.age.item()
    expected = 0.9 * (0.9 * first + 0.1 * second) + 0.1 * last
    assert len({first, second, last}) == 3
    assert average.module.age.item() == pytest.approx(expected)


def test_a_loss_that_is_not_finite_stops_naming_step_and_subjects(scans):
    loader = training_loader(scans, batch_size=4, full_batches=False)
    with pytest.raises(ValueError, match=r"not finite at step 1 .*all-\d, all-\d, all-\d, all-\d"):
        one_epoch(Constant(float("nan")), loader)


def test_bfloat16_ages_stay_close_and_are_float32(scans):
    model = CPU.place(ScaleDense(mean_age=50))
    reduced = Execution(torch.device("cpu"), bfloat16=True)
    ages = predict(model, evaluation_loader(scans, batch_size=7), reduced)["predicted_age"]
    assert ages.dtype == np.float32
    assert not np.array_equal(ages, predict_ages(model, scans, 7))
    np.testing.assert_allclose(ages, predict_ages(model, scans, 7), rtol=0.05)


def test_the_cpu_runs_in_float32_and_a_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_execution() == CPU
    assert choose_execution("cpu", "bfloat16").bfloat16
    with pytest.raises(ValueError, match="sees no GPU; give --device cpu"):
        choose_execution("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_and_cpu_predict_the_same_ages(scans):
    model = ScaleDense(mean_age=50)
    expected = predict_ages(CPU.place(model), scans, 7)
    gpu = choose_execution("cuda", "float32")
    found = predict(gpu.place(model), evaluation_loader(scans, batch_size=7), gpu)
    np.testing.assert_allclose(found["predicted_age"], expected, atol=0.05)


def test_refreshed_statistics_are_those_of_the_current_weights_and_spare_a_frozen_stage(scans):
    model = CPU.place(TSAN(ScaleDense(mean_age=50), SecondStage()))
    first = {name: value.clone() for name, value in model.first_stage.state_dict().items()}
    refresh_statistics(model, training_loader(scans, batch_size=7, full_batches=True), CPU)

    image = scans[list(range(7))]["image"]
    block = model.second_stage.encoder.backbone.blocks[0]
    expected = block.unit1.convolution.branches[0][0](image)
    norm = block.unit1.convolution.branches[0][1]
    torch.testing.assert_close(norm.running_mean, expected.mean((0, 2, 3, 4)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(norm.running_var, expected.var((0, 2, 3, 4)), rtol=1e-3, atol=1e-5)
    assert norm.momentum == 0.1
    after = model.first_stage.state_dict()
    assert all(torch.equal(after[name], first[name]) for name in first)


def batches_of(scans) -> list[dict]:
    return [scans[[index, index + 1]] for index in range(0, 6, 2)]


class Patient(Execution):
    """The CPU, treated as a GPU is."""

    steps_unseen = 2


def test_the_device_is_made_to_wait_only_every_so_many_steps(scans, monkeypatch):
    looks = []
    monkeypatch.setattr(engine, "_require_finite", lambda steps, *_: looks.append(len(steps)))
    one_epoch(Constant(50.0), batches_of(scans), Patient(torch.device("cpu")))
    assert looks == [2, 1]


def test_the_first_of_several_unseen_steps_that_is_not_finite_is_named(scans):
    losses = [torch.tensor(value) for value in (1.0, float("inf"), float("nan"))]
    steps = [
        Step(number, torch.tensor([number]), {"total": loss})
        for number, loss in enumerate(losses, start=1)
    ]
    loader = training_loader(scans, batch_size=4, full_batches=False)
    name = scans.scans[2].subject_id
    with pytest.raises(
        ValueError, match=rf"not finite at step 2 \(total inf\); its scans: {name};"
    ):
        engine._require_finite(steps, loader, CPU.world)
    engine._require_finite(steps[:1], loader, CPU.world)


class Rounded(nn.Module):
    """Predicts 50 years, and under bfloat16 autocast so many more."""

    def __init__(self, difference):
        super().__init__()
        self.difference = difference

    def predict(self, image, sex):
        more = self.difference if torch.is_autocast_enabled("cpu") else 0.0
        return {"predicted_age": torch.full((len(image), 1), 50.0 + more)}


@pytest.mark.parametrize(
    ("difference", "insist", "bfloat16", "said"),
    [
        (0.09, False, True, "bfloat16: ages of 7 scans within 0.090 years of float32\n"),
        (0.11, False, False, "0.1 expected: predicting in float32"),
        (0.11, True, True, "warning: bfloat16: ages of 7 scans within 0.110 years"),
    ],
)
def test_bfloat16_is_trusted_where_ages_agree(scans, capsys, difference, insist, bfloat16, said):
    reduced = Execution(torch.device("cpu"), bfloat16=True)
    settled = settle_precision(Rounded(difference), scans, reduced, batch_size=4, insist=insist)
    assert settled.bfloat16 == bfloat16
    assert said in capsys.readouterr().out
    # float32 needs no check.
    assert settle_precision(None, None, CPU, batch_size=1, insist=False) is CPU
    assert capsys.readouterr().out == ""


def test_where_nothing_can_be_compiled_the_network_runs_as_it_is(scans, capsys, monkeypatch):
    def fail(function):
        raise RuntimeError("no working C++ compiler found\nmore lines")

    monkeypatch.setattr(torch, "compile", fail)
    model = CPU.place(ScaleDense(mean_age=50))
    expected = predict_ages(model, scans, 7)
    assert not compile_network(model, CPU)
    assert "--compile" in (said := capsys.readouterr().out)
    assert "no working C++ compiler found); going on without" in said
    np.testing.assert_array_equal(predict_ages(model, scans, 7), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_gives_the_same_ages_and_checkpoint_names(scans, monkeypatch):
    # One block of five, which are alike: each is compiled by itself, for seconds.
    one = replace(WIDTHS["compact"], block_channels=(8,), pooled_channels=8)
    monkeypatch.setitem(WIDTHS, "compact", one)
    # Vector instructions are read from /proc/cpuinfo, not tried out by a program each.
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)
    model = CPU.place(fuse_for_inference(ScaleDense(mean_age=50)))
    names = list(model.state_dict())
    expected = predict_ages(model, scans, 7)
    assert compile_network(model, CPU)
    np.testing.assert_allclose(predict_ages(model, scans, 7), expected, rtol=1e-5)
    assert list(model.state_dict()) == names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_does_not_wait_for_the_gpu(scans):
    gpu = choose_execution("cuda")
    model = gpu.place(ScaleDense(mean_age=50))
    optimizer = build_optimizer(model, Optimisation("adamw", 1e-3, 0.01, "constant"))
    batches = batches_of(scans)
    batches = [{name: value.pin_memory() for name, value in each.items()} for each in batches]

    def epoch(mode):
        steps = itertools.count(1)

        def augment(image):
            step = next(steps)
            if step == 2:  # from here to the last step, which looks at the losses
                torch.cuda.set_sync_debug_mode(mode)
            if step == len(batches):
                torch.cuda.set_sync_debug_mode("default")
            return Augmentation(flip=True, noise=0.1)(image)

        train_one_epoch(model, AgeLoss(), batches, optimizer, gpu, augment=augment)

    epoch("default")  # what is set up once may wait
    epoch("error")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compile", "--recompute_activations"], "give one of them"),
        (["--cache_dir", "run"], "run: decoded scans are kept there"),
        (["--fold", "1"], "--folds and --fold: give both"),
    ],
)
def test_a_run_that_cannot_be_is_refused_at_once(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    needed = ["--train_folder", "a", "--val_folder", "b", "--labels", "c", "--output_dir", "run"]
    with pytest.raises(ValueError, match=message):
        train_first_stage.main([*needed, *flags])


def test_a_mirrored_prediction_is_the_mean_of_both_views(scans):
    model = CPU.place(ScaleDense(mean_age=50)).eval()
    loader = evaluation_loader(scans, batch_size=3)
    both = predict(model, loader, CPU, views=Views(mirror=True))["predicted_age"]
    batch = scans[list(range(len(scans)))]
    image = CPU.images(batch)
    with torch.inference_mode():
        plain, flipped = (model(view, batch["sex"]) for view in (image, image.flip(2)))
    np.testing.assert_allclose(both, ((plain + flipped) / 2)[:, 0], rtol=1e-5)
    assert not torch.allclose(plain, flipped)


def test_moved_copies_of_a_scan_are_balanced_and_keep_its_size_and_edges():
    image = torch.zeros(1, 1, 8, 9, 10)
    image[0, 0, 3, 4, 5] = 1
    image[0, 0, 0, 0, 0] = 7  # an edge, which is repeated where it moves inwards
    copies = list(Views(shift=2)(image))
    places = torch.stack([(copy == 1).nonzero()[0, 2:] for copy in copies])
    assert all(copy.shape == image.shape for copy in copies)
    assert {tuple((at - torch.tensor([3, 4, 5])).tolist()) for at in places} == {
        (2, 2, 2), (2, -2, -2), (-2, 2, -2), (-2, -2, 2),
    }  # fmt: skip
    assert torch.equal(places.float().mean(0), torch.tensor([3.0, 4.0, 5.0]))
    assert (copies[0][0, 0, :3, :3, :3] == 7).all()
    both = list(Views(mirror=True, shift=2)(image))
    assert len(both) == 8
    assert torch.equal(both[1], both[0].flip(2))
    assert [torch.equal(view, image) for view in Views()(image)] == [True]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_convolution_that_the_device_computes_wrongly_stops_the_program(bfloat16, monkeypatch):
    device = Execution(torch.device("cpu"), bfloat16)
    require_right_convolutions(device)  # it is right here
    right = execution._convolve

    def wrong(image, weight, where):
        found = right(image, weight, where)
        if where is device:
            found["gradient"][3] *= 0.5  # of one of 16 channels
        return found

    monkeypatch.setattr(execution, "_convolve", wrong)
    kind = "bfloat16" if bfloat16 else "float32"
    with pytest.raises(ValueError, match=rf"3-D convolution in {kind} is off by 0\.1"):
        require_right_convolutions(device)


def test_a_gpu_is_looked_at_before_it_is_used(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(execution, "require_right_convolutions", asked.append)
    found = choose_execution("cuda:0", "bfloat16")
    assert asked == [found]
    choose_execution("cpu")
    assert asked == [found]
