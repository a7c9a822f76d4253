"""The budget solver: networks of equal parameters, arithmetic or time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from metaformer.bench.counts import count
from metaformer.errors import ConfigError, TrainingError
from metaformer.mixers import MIXERS
from metaformer.study.arms import CPU, arm_network, build_arms, check_trains, draft_arms, match_latency
from metaformer.study.budget import (
    Shape,
    latency_ratio,
    match_budget,
    median_interval,
    nearest,
    parameters,
    widths,
)

MakePlan = Callable[..., Any]
Latency = Callable[[Shape], float]
SKELETON = {"model": "poolformer_n", "overrides": {"dims": [32, 64, 128, 256], "depths": [1, 1, 2, 1]}}


def test_widths_are_multiples_in_proportion_and_ascending() -> None:
    found = widths((32, 64, 128), 8)
    assert (32, 64, 128) in found and found == sorted(found)
    assert all(dim % 8 == 0 and dim > 0 for dims in found for dim in dims)
    assert all(abs(b - 2 * a) <= 8 and abs(c - 4 * a) <= 16 for a, b, c in found if a > 8)
    assert {a for a, _, _ in found} == set(range(8, 257, 8))


def test_bisection_finds_the_nearest_and_steps_over_what_cannot_be() -> None:
    shapes = [Shape((n,), (1,)) for n in range(1, 100)]

    def cost(shape: Shape) -> float | None:
        return None if shape.dims[0] % 3 == 0 else shape.dims[0] ** 2

    assert nearest(shapes, cost, 50**2 + 1) == Shape((50,), (1,))
    assert nearest(shapes, cost, 51**2 + 60) == Shape((52,), (1,))
    assert nearest(shapes, cost, 1e9) == Shape((98,), (1,))
    assert nearest(shapes, lambda _: None, 10) is None


def test_depth_is_changed_where_no_width_fits() -> None:
    def cost(shape: Shape) -> float:
        if shape.dims != (8, 8):
            raise ConfigError("only eight channels")
        return float(sum(shape.depths))

    assert match_budget(Shape((8, 8), (1, 4)), cost, 6, 0.02) == Shape((8, 8), (1, 5))
    with pytest.raises(ConfigError, match=r"nearest is dims \(8, 8\), depths \(1, 8\), -10.0%"):
        match_budget(Shape((8, 8), (1, 4)), cost, 10, 0.02)


def test_a_shape_that_fits_stays() -> None:
    start = Shape((30, 60), (1, 2))
    assert match_budget(start, lambda shape: shape.dims[0], 30.5, 0.02) is start


@pytest.mark.parametrize(
    ("match", "names"),
    [
        pytest.param("parameters", [*MIXERS], marks=pytest.mark.slow),
        ("parameters", ["attention", "pooling"]),
        ("macs", ["attention", "pooling"]),
    ],
)
def test_every_mixer_is_matched_within_two_percent(match: str, names: list[str], make_plan: MakePlan) -> None:
    mixers = {name: name for name in names}
    plan = make_plan(skeleton=SKELETON, mixers=mixers, baseline="pooling", budget={"match": match})
    arms = build_arms(plan, 10)
    networks = {arm.name: arm_network(plan, arm, 10) for arm in arms}

    def cost(name: str) -> int:
        network = networks[name]
        return parameters(network) if match == "parameters" else count(network, (32, 32)).macs

    assert arms[0].name == "pooling" and not arms[0].changed and not arms[0].overrides
    for arm in arms:
        assert cost(arm.name) == pytest.approx(cost("pooling"), rel=0.02), arm
        assert arm.relative_cost == pytest.approx(cost(arm.name) / cost("pooling"))
        assert bool(arm.changed) == bool(arm.overrides)
        assert arm.parameters == parameters(networks[arm.name])
    attention = next(arm for arm in arms if arm.name == "attention")
    assert attention.overrides["dims"] < [32, 64, 128, 256] and "dims: (32, 64" in attention.changed[0]


def test_unmatched_networks_are_those_of_the_skeleton(make_plan: MakePlan) -> None:
    plan = make_plan(skeleton=SKELETON, mixers={"a": "pooling", "b": "attention"}, baseline="a")
    pooling, attention, repeat = build_arms(plan, 10)
    assert attention.parameters > 1.1 * pooling.parameters and not attention.changed
    assert repeat.control == "repeat" and repeat.parameters == pooling.parameters


def test_a_budget_that_cannot_be_matched_names_the_mixer(make_plan: MakePlan) -> None:
    plan = make_plan(mixers={"a": "pooling", "b": "attention"}, baseline="a", budget={"tolerance": 1e-6})
    with pytest.raises(ConfigError, match=r"mixers.b: no width or depth comes within 0.0%"):
        build_arms(plan, 3)


class Repeated(torch.nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = x.sin()
        return x


def test_a_latency_is_relative_to_the_baselines() -> None:
    assert latency_ratio(Repeated(40), Repeated(2), 64, CPU, precision=0.5) > 3


def test_a_latency_that_cannot_be_known_so_well_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaformer.study.budget.MOST_ROUNDS", 9)
    with pytest.raises(TrainingError, match=r"budget\.match latency: known to .* after 9 rounds"):
        latency_ratio(Repeated(1), Repeated(1), 2, CPU, precision=0.0)


@pytest.mark.parametrize("count", [9, 18, 90])
def test_the_interval_of_a_median_holds_it_as_often_as_it_says(count: int) -> None:
    random = np.random.default_rng(0)
    draws = random.exponential(size=(2000, count))  # of median log 2
    held = [low <= math.log(2) <= high for low, high in map(median_interval, draws.tolist())]
    assert 0.94 < sum(held) / len(held) < 0.985


def busy(seed: int, deviation: float = 0.0125) -> Latency:
    """Latencies of networks whose time is their width to the power of 1.5, known to ±2.5 %."""
    random = np.random.default_rng(seed)
    return lambda shape: float((shape.dims[0] / 100) ** 1.5 * random.lognormal(0, deviation))


def test_a_wavering_latency_is_matched_within_the_tolerance() -> None:
    for seed in range(20):
        found, measured = match_latency(Shape((160, 320), (1, 1)), busy(seed), 0.1)
        true = (found.dims[0] / 100) ** 1.5
        assert abs(measured - 1) <= 0.1 and abs(true - 1) <= 0.1, seed


def test_a_latency_that_is_another_when_measured_anew_is_refused() -> None:
    times = iter([1.0, 1.3])  # the first by luck
    with pytest.raises(ConfigError, match=r"off by \+30.0% when measured anew"):
        match_latency(Shape((8, 16), (1, 1)), lambda shape: next(times), 0.1)


def test_a_measurement_that_fails_is_no_width_that_cannot_be() -> None:
    def fail(shape: Shape) -> float:
        raise TrainingError("the machine is busy")

    with pytest.raises(TrainingError, match="busy"):
        match_latency(Shape((8, 16), (1, 1)), fail, 0.1)


@pytest.mark.slow
def test_networks_of_a_plan_are_matched_by_measured_latency(make_plan: MakePlan) -> None:
    budget = {"match": "latency", "tolerance": 0.5}  # of a machine that runs other tests, too
    plan = make_plan(mixers={"pooling": "pooling", "wide": "dwconv(kernel=7)"}, budget=budget)
    pooling, wide, repeat = build_arms(plan, 3)
    assert pooling.relative_cost == repeat.relative_cost == 1
    assert wide.relative_cost is not None and abs(wide.relative_cost - 1) <= 0.5
    assert wide.parameters == parameters(arm_network(plan, wide, 3))


def test_controls_that_are_compared_anyway_are_left_out(make_plan: MakePlan) -> None:
    controls = ["repeat", "shuffled_labels", "identity", "random"]
    drafts = draft_arms(make_plan(controls=controls))
    assert [arm.name for arm in drafts] == [
        "pooling",
        "window",
        *(f"control-{control}" for control in controls),
    ]
    assert drafts[-1].mixers == ("identity", "identity", "random", "random")
    drafts = draft_arms(make_plan(controls=controls, mixers={"pooling": "pooling", "none": "identity"}))
    assert "control-identity" not in [arm.name for arm in drafts]


class Unlearnable(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0 * 0


class Broken(Unlearnable):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such thing")


@pytest.mark.parametrize(("kind", "named"), [(Unlearnable, "finite"), (Broken, "KeyError.*no such thing")])
def test_a_mixer_that_cannot_train_is_refused(kind: type[Any], named: str, make_plan: MakePlan) -> None:
    plan = make_plan()
    network = arm_network(plan, draft_arms(plan)[0], 3)
    for stage in network.stages:
        stage.blocks[0].token_mixer = kind(8)
    with pytest.raises(ConfigError, match=f"cannot be trained: .*{named}"):
        check_trains(network, plan, 3)


def test_a_network_of_timm_is_matched_by_its_channels(make_plan: MakePlan) -> None:
    plan = make_plan(skeleton=SKELETON, budget={"match": "macs"}, controls=["external"])
    *_, external = build_arms(plan, 10)
    network = arm_network(plan, external, 10)
    baseline = arm_network(plan, draft_arms(plan)[0], 10)
    assert count(network, (32, 32)).macs == pytest.approx(count(baseline, (32, 32)).macs, rel=0.02)
    assert external.control == "external" and external.mixers == () and network.config.to_dict()["timm"]
    for name, named in (("resnet5O", "resnet50"), ("vgg11", "no ResNet")):
        with pytest.raises(ConfigError, match=f"external.*{name}.*{named}"):
            build_arms(make_plan(controls=["external"], external=name), 10)
