"""Optimizer, schedule and averaged weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from metaformer.config import OptimConfig
from metaformer.factory import create_model
from metaformer.training.ema import Ema
from metaformer.training.optim import build_optimizer, layer_scales, parameter_groups, set_learning_rate
from metaformer.training.schedule import Schedule

NAMES = ("adamw", "lamb", "sgd")


def tiny(**fields: object) -> nn.Module:
    return create_model("poolformer_n", num_classes=3, depths=(2, 1, 1, 1), dims=(8, 8, 16, 16), **fields)


def stepped(config: OptimConfig) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = build_optimizer(config, model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_biases_vectors_and_listed_parameters_have_no_weight_decay() -> None:
    model = tiny()
    groups = parameter_groups(model, 0.05)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert decay[name] == (0.0 if parameter.ndim <= 1 or name.endswith("bias") else 0.05), name
    model.no_weight_decay = lambda: {"head.fc.weight"}  # type: ignore[method-assign, assignment]
    named = {n: g["weight_decay"] for g in parameter_groups(model, 0.05) for n in g["names"]}
    assert {name for name in named if named[name] != decay[name]} == {"head.fc.weight"}


def test_frozen_parameters_are_not_optimized() -> None:
    model = tiny(mixers=("identity", "identity", "random", "random"), image_size=(32, 32))
    names = {name for group in parameter_groups(model, 0.0) for name in group["names"]}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}


def test_layer_decay_lowers_the_rate_from_block_to_block() -> None:
    model = tiny()
    scales = layer_scales(model, 0.5)
    assert scales["head.fc.weight"] == 1.0
    order = ["stem.conv.weight", *(f"stages.{i}.mlp" for i in ("0.blocks.0", "0.blocks.1"))]
    first, second, third = (
        next(value for name, value in scales.items() if name.startswith(start.replace(".mlp", "")))
        for start in order
    )
    assert second == 2 * first and third == 2 * second
    last = next(value for name, value in scales.items() if name.startswith("stages.3.blocks.0"))
    assert first < third < last <= 1.0


def test_each_group_has_its_scale_of_the_learning_rate() -> None:
    optimizer = build_optimizer(replace(OptimConfig(), layer_decay=0.5), tiny())
    set_learning_rate(optimizer, 0.8)
    assert {group["lr"] / group["lr_scale"] for group in optimizer.param_groups} == {0.8}
    assert len({group["lr"] for group in optimizer.param_groups}) > 3


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_differ(name: str) -> None:
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.0)  # type: ignore[arg-type]
    ours = stepped(config)
    for other in NAMES:
        theirs = stepped(replace(config, name=other))  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)) == (other == name)


def test_adamw_equals_torch() -> None:
    ours = stepped(OptimConfig(lr=0.01, weight_decay=0.0, betas=(0.8, 0.9), eps=1e-3))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    reference = torch.optim.AdamW(model.parameters(), 0.01, (0.8, 0.9), 1e-3, 0.0)
    for _ in range(3):
        reference.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        reference.step()
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.detach())


def test_weight_decay_shrinks_weights_only() -> None:
    plain, decayed = (stepped(OptimConfig(lr=0.01, weight_decay=decay)) for decay in (0.0, 0.5))
    assert decayed[0].norm() < plain[0].norm()


PLAN = Schedule(lr=1.0, steps=100, warmup_steps=10, warmup_lr=0.1, min_lr=0.01, cooldown_steps=5)


def test_warms_up_linearly() -> None:
    assert PLAN(0) == 0.1
    assert PLAN(5) == pytest.approx(0.55)


def test_cosine_includes_the_warm_up() -> None:
    for step in (10, 50, 99):
        assert PLAN(step) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * step / 100)) / 2)
    assert PLAN(50) == pytest.approx(0.505)


def test_cool_down_has_the_minimum_rate() -> None:
    assert PLAN.total == 105
    assert {PLAN(step) for step in range(100, 105)} == {0.01}
    assert all(PLAN(step) > PLAN(step + 1) for step in range(10, 99))


def test_constant() -> None:
    plan = Schedule(lr=0.5, steps=10, warmup_steps=2, shape="constant")
    assert [plan(step) for step in range(5)] == [0.0, 0.25, 0.5, 0.5, 0.5]


def test_warm_up_shorter_than_a_step_or_longer_than_the_run() -> None:
    assert Schedule(lr=1.0, steps=4, warmup_steps=0.5, shape="constant")(0) == 0.0
    assert Schedule(lr=1.0, steps=4, warmup_steps=8)(3) == pytest.approx(3 / 8)


def test_poly_falls_to_the_end_of_the_run() -> None:
    plan = Schedule(lr=2.0, steps=40, warmup_steps=4, min_lr=0.5, shape="poly", power=0.9)
    for step in (4, 20, 39):
        assert plan(step) == pytest.approx(0.5 + 1.5 * (1 - step / 40) ** 0.9)
    assert plan(40) == 0.5
    assert plan(2) == pytest.approx(1.0)


def test_step_falls_at_its_milestones() -> None:
    plan = Schedule(lr=1.0, steps=12, warmup_steps=2, shape="step", milestones=(8, 11), gamma=0.1)
    assert [plan(step) for step in (0, 1, 2, 7)] == [0.0, 0.5, 1.0, 1.0]
    assert [plan(step) for step in (8, 10, 11)] == pytest.approx([0.1, 0.1, 0.01])


def test_parameters_and_running_statistics_are_averaged_and_integers_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model, 0.75)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    ema.update(model)
    for name, value in ema.model.state_dict().items():
        step = 1 if not value.is_floating_point() else 0.25
        torch.testing.assert_close(value, before[name] + step)


def test_the_average_is_a_separate_model_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train()
    ema = Ema(model, 0.9)
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
