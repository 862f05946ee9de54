"""The plain form is an independent reference: ages, losses, gradients and statistics are ours."""

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY, brain, write_cohort
from golden_networks import NARROW
from torch import nn

from benchmark.networks import PUBLISHED
from benchmark.plain import (
    BLOCK_CHANNELS,
    PlainDataset,
    PlainNetwork,
    plain_loader,
    plain_normalise,
    plain_optimizer,
    plain_predict,
    plain_step,
)
from model.layers import fuse_for_inference
from model.losses import AgeLoss
from model.scaledense import ScaleDense
from utils.networks.execution import Execution, predict
from utils.people.labels import read_labels
from utils.scans.cohort import open_cohort
from utils.scans.dataset import ScanDataset
from utils.scans.volumes import InputRule
from utils.training.engine import train_one_epoch
from utils.training.optimisation import build_optimizer

CPU = Execution(torch.device("cpu"))
# The stem of the released width takes ten voxels off each side.
EACH_WIDTH = pytest.mark.parametrize(
    ("width", "shape"), [("compact", TINY), ("released", (42,) * 3)]
)


@pytest.fixture
def narrow(narrow_released, monkeypatch):
    """Both networks of the released width with few channels."""
    monkeypatch.setitem(BLOCK_CHANNELS, "released", NARROW.block_channels)


def batch_of(count: int, shape=TINY, dtype=torch.float32) -> dict[str, torch.Tensor]:
    return {
        "image": torch.randn(count, 1, *shape, dtype=dtype),
        "sex": torch.arange(count) % 2,
        "age": torch.linspace(30, 70, count, dtype=dtype)[:, None],
        "index": torch.arange(count),
    }


def twins(width: str, dtype=torch.float32) -> tuple[ScaleDense, PlainNetwork]:
    """Ours and the plain network with the same weights, normalisations away from the identity."""
    ours = ScaleDense(width, mean_age=50.0)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    plain = PlainNetwork(width)
    plain.load_state_dict(ours.state_dict())
    return ours.to(dtype), plain.to(dtype)


def test_the_plain_released_network_has_the_layers_of_ours():
    with torch.device("meta"):
        ours, plain = (net("released").state_dict() for net in (ScaleDense, PlainNetwork))
    assert {key: value.shape for key, value in plain.items()} == {
        key: value.shape for key, value in ours.items()
    }


@EACH_WIDTH
def test_plain_network_gives_our_ages_fused_or_not(width, shape, narrow):
    ours, plain = twins(width)
    batch = batch_of(2, shape)
    expected = plain_predict(plain.eval(), batch)

    whole = predict(CPU.place(ours), [batch], CPU)["predicted_age"]
    fused = predict(CPU.place(fuse_for_inference(ours)), [batch], CPU)["predicted_age"]

    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-3)


@EACH_WIDTH
def test_training_gives_the_plain_loss_gradients_and_statistics(width, shape, narrow):
    ours, plain = (network.encoder.backbone.train() for network in twins(width, torch.float64))
    image = torch.randn(2, 1, *shape, dtype=torch.float64)

    outputs = [network(image) for network in (ours, plain)]
    target = torch.randn_like(outputs[0])
    losses = [(output - target).square().mean() for output in outputs]
    for loss in losses:
        loss.backward()

    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)
    require_equal_gradients(ours, plain, rtol=1e-6, atol=1e-9)
    require_equal_statistics(ours, plain, rtol=1e-9, atol=1e-9)


def require_equal_gradients(ours: nn.Module, plain: nn.Module, **tolerance: float) -> None:
    expected = dict(plain.named_parameters())
    for name, value in ours.named_parameters():
        torch.testing.assert_close(
            value.grad, expected[name].grad, **tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def require_equal_statistics(ours: nn.Module, plain: nn.Module, **tolerance: float) -> None:
    expected = dict(plain.named_buffers())
    for name, value in ours.named_buffers():
        torch.testing.assert_close(
            value, expected[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.slow
def test_steps_of_our_loop_give_the_plain_losses_and_weights():
    ours, plain = twins("compact", torch.float64)
    batches = [batch_of(2, dtype=torch.float64) for _ in range(2)]
    loss, losses = AgeLoss(), []
    plain.train()
    optimizer = plain_optimizer(plain)
    expected = [plain_step(plain, loss, optimizer, batch) for batch in batches]
    loss.register_forward_hook(lambda *given: losses.append(given[-1]["total"].item()))

    train_one_epoch(
        CPU.place(ours),
        loss,
        batches,
        build_optimizer(ours, PUBLISHED),
        CPU,
        augment=lambda image: image,
    )

    assert losses == pytest.approx(expected, rel=1e-6)
    require_equal_gradients(ours, plain, rtol=1e-4, atol=1e-6)
    require_equal_statistics(ours, plain, rtol=1e-6, atol=1e-8)


def test_float32_loss_of_our_loop_is_the_plain_one_within_rounding():
    ours, plain = twins("compact")
    batch, loss = batch_of(4), AgeLoss()
    expected = plain_step(plain.train(), loss, plain_optimizer(plain), batch)

    losses = train_one_epoch(
        CPU.place(ours),
        loss,
        [batch],
        build_optimizer(ours, PUBLISHED),
        CPU,
        augment=lambda image: image,
    )

    assert losses["total"] == pytest.approx(expected, rel=1e-4)


def test_plain_loader_reads_the_values_and_labels_that_ours_reads(tmp_path):
    sheet = write_cohort(tmp_path, {"train": 3})
    input_rule = InputRule(intensity="authors", any_grid=True)
    ours = ScanDataset(open_cohort(tmp_path / "train", read_labels(sheet), input_rule), input_rule)

    plain = PlainDataset(tmp_path / "train", sheet)

    assert len(plain) == len(ours) == 3
    for index in range(3):
        expected = plain[index]
        found = {name: values[0] for name, values in ours[[index]].items()}
        torch.testing.assert_close(found["image"], expected["image"], rtol=1e-5, atol=1e-5)
        assert found["sex"] == expected["sex"]
        torch.testing.assert_close(found["age"], expected["age"])
    images = [batch["image"] for batch in plain_loader(plain, batch_size=2, num_workers=0)]
    assert [len(image) for image in images] == [2, 1]


def test_plain_normalisation_is_the_published_rule_in_float64(tmp_path):
    volume = brain(TINY, 50)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    values = plain_normalise(nibabel.load(tmp_path / "a.nii.gz").get_fdata())

    inside = volume > 0
    assert values.dtype == np.float64
    assert values[inside].mean() == pytest.approx(0, abs=1e-9)
    assert values[inside].std() == pytest.approx(1)
    assert values[~inside] == pytest.approx(-volume[inside].mean() / volume[inside].std(), rel=1e-4)
