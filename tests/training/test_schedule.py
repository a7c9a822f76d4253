import math

import pytest

from metaformer.training.schedule import Schedule

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
