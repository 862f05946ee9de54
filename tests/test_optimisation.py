from itertools import pairwise

import pytest
import torch
from torch import nn

from model.scaledense import ScaleDense
from model.tsan import TSAN, SecondStage
from utils.training.optimisation import (
    Optimisation,
    advance,
    build_optimizer,
    build_schedule,
    follow,
    learning_rate,
)


def options(**changes) -> Optimisation:
    values = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 5e-4, "schedule": "constant"}
    return Optimisation(**values | changes)


def test_published_optimisers_are_amsgrad_adam_and_sgd_without_momentum():
    model = nn.Linear(2, 1)
    adam = build_optimizer(model, options(optimizer="adam"))
    sgd = build_optimizer(model, options(optimizer="sgd", lr=1e-5))
    assert type(adam) is torch.optim.Adam
    assert adam.defaults["amsgrad"]
    assert adam.defaults["weight_decay"] == 5e-4
    assert type(sgd) is torch.optim.SGD
    assert sgd.defaults["momentum"] == 0
    assert sgd.defaults["lr"] == 1e-5


def test_frozen_parameters_are_not_optimised():
    model = TSAN(ScaleDense(), SecondStage())
    optimizer = build_optimizer(model, options())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.second_stage.parameters()}


def rates(maes=None, epochs=10, **changes) -> list[float]:
    optimizer = build_optimizer(nn.Linear(1, 1), options(**changes))
    schedule = build_schedule(optimizer, options(**changes), epochs)
    seen = []
    for epoch in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        advance(schedule, maes[epoch] if maes else 1.0)
    return seen


def test_cosine_warms_up_then_falls_to_its_end():
    seen = rates(schedule="cosine", warmup_epochs=2, warmup_share=0.01, min_lr=1e-6, epochs=12)
    assert seen[0] == pytest.approx(1e-5)
    assert seen[1] == pytest.approx((1e-5 + 1e-3) / 2)
    assert seen[2] == pytest.approx(1e-3)
    assert seen[7] == pytest.approx((1e-3 + 1e-6) / 2)
    assert all(one > next_one for one, next_one in pairwise(seen[2:]))


def test_a_resumed_run_of_more_epochs_goes_on_along_its_own_cosine():
    chosen, built = options(schedule="cosine"), []
    for epochs in (4, 8):
        optimizer = build_optimizer(nn.Linear(1, 1), chosen)
        built.append((optimizer, build_schedule(optimizer, chosen, epochs)))
    (short, short_schedule), (long, long_schedule) = built
    for _ in range(4):
        short.step()
        advance(short_schedule, 1.0)
    long.load_state_dict(short.state_dict())
    long_schedule.load_state_dict(short_schedule.state_dict())
    follow(long_schedule, 4)
    assert long.param_groups[0]["lr"] == pytest.approx(learning_rate(4, 8, chosen))
    assert long.param_groups[0]["lr"] > short.param_groups[0]["lr"]


def test_plateau_halves_after_five_epochs_without_improvement():
    maes = [9.0, *[8.0] * 20]
    seen = rates(maes, epochs=20, schedule="plateau")
    assert seen[:8] == [1e-3] * 8
    assert seen[8] == pytest.approx(5e-4)
    assert seen[14] == pytest.approx(2.5e-4)
