"""Diagnostic tasks: their samples mean what their labels say, and are a function of a seed."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from metaformer.study.arms import build_arms
from metaformer.study.diagnostics import COLORS, DIAGNOSTICS, MARK, Trial, diagnose, planned_trials
from metaformer.study.plan import SMALLEST_SIDE
from metaformer.study.results import DiagnosticTask

SIDE = 32
DEMANDS = [(name, demand) for name, task in DIAGNOSTICS.items() for demand in task.demands(SIDE)]


def samples(name: DiagnosticTask, demand: int, count: int = 200, seed: int = 0) -> tuple[Tensor, list[int]]:
    images, labels = DIAGNOSTICS[name].make(count, SIDE, demand, torch.Generator().manual_seed(seed))
    return images, labels.tolist()


def test_the_tasks_are_those_that_a_plan_may_name() -> None:
    assert tuple(DIAGNOSTICS) == get_args(DiagnosticTask)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_the_smallest_images_hold_every_demand(name: DiagnosticTask) -> None:
    for demand in DIAGNOSTICS[name].demands(SMALLEST_SIDE):
        generator = torch.Generator().manual_seed(0)
        images, _ = DIAGNOSTICS[name].make(50, SMALLEST_SIDE, demand, generator)
        assert images.shape == (50, 3, SMALLEST_SIDE, SMALLEST_SIDE)


@pytest.mark.parametrize(("name", "demand"), DEMANDS)
def test_samples_are_a_function_of_the_seed(name: DiagnosticTask, demand: int) -> None:
    images, labels = samples(name, demand)
    again, other = samples(name, demand), samples(name, demand, seed=1)
    assert torch.equal(images, again[0]) and labels == again[1] and not torch.equal(images, other[0])
    assert images.shape == (200, 3, SIDE, SIDE) and images.isfinite().all()
    counts = torch.bincount(torch.tensor(labels), minlength=DIAGNOSTICS[name].classes(demand))
    assert len(counts) == DIAGNOSTICS[name].classes(demand)
    assert counts.min() > 0.6 * 200 / len(counts), "no class is rare"


def test_patterns_are_equal_where_the_label_says_so() -> None:
    images, labels = samples("same_different", 16)
    for image, label in zip(images, labels, strict=True):
        pairs = [
            torch.equal(image[:, y : y + MARK, x : x + MARK], image[:, y : y + MARK, x + 16 : x + 16 + MARK])
            for y in range(SIDE - MARK + 1)
            for x in range(SIDE - MARK - 15)
        ]
        assert any(pairs) == bool(label)


@pytest.mark.parametrize("demand", DIAGNOSTICS["pointer"].demands(SIDE))
def test_the_mark_points_to_the_color_of_the_label(demand: int) -> None:
    """The eye is the pixel of value 4, the hand that of value 2; the color lies that way."""
    images, labels = samples("pointer", demand)
    for image, label in zip(images, labels, strict=True):
        eye, hand = ((image == value).all(0).nonzero() for value in (4, 2))
        assert len(eye) == len(hand) == 1
        around = [image[:, y, x].tolist() for y, x in _cross(eye[0], demand)]
        assert sorted(around) == sorted(map(list, COLORS)), "each color once: what is there says nothing"
        y, x = (eye[0] + demand * (hand[0] - eye[0])).tolist()
        assert image[:, y, x].tolist() == list(COLORS[label])


def _cross(center: Tensor, distance: int) -> list[list[int]]:
    """Positions at a distance from a center along rows and columns."""
    steps = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
    found: list[list[int]] = (center + distance * steps).tolist()
    return found


def test_dots_are_as_many_as_the_label_says() -> None:
    images, labels = samples("counting", 8)
    for image, label in zip(images, labels, strict=True):
        assert int((image == 1).sum()) == 3 * (MARK - 1) ** 2 * (label + 1)


def test_marks_lie_on_one_path_where_the_label_says_so() -> None:
    """A path is followed from its mark, column by column, to the nearest row."""
    images, labels = samples("connectivity", 16)
    for image, label in zip(images, labels, strict=True):
        bright = image[2] == 1
        columns = bright.any(0).nonzero().flatten().tolist()
        row = int((image[0, :, columns[0]] == 4).nonzero())
        for column in columns[1:]:
            rows = bright[:, column].nonzero().flatten()
            distance = (rows - row).abs()
            distance = torch.minimum(distance, SIDE - distance)  # paths go on at the opposite edge
            row = int(rows[distance.argmin()])
        assert (image[1, row, columns[-1]] == 4) == bool(label)


def test_a_network_is_trained_and_tested(make_plan: Callable[..., Any]) -> None:
    plan = make_plan()
    trial = Trial(build_arms(plan, 3)[0], "counting", 4, 0)
    few = diagnose(plan, trial, torch.device("cpu"), steps=2)
    assert few.chance == 25 and few.accuracy is not None and (few.arm, few.task) == ("pooling", "counting")
    assert few == diagnose(plan, trial, torch.device("cpu"), steps=2)


def test_every_network_is_tried_on_every_demand_of_the_planned_tasks(make_plan: Callable[..., Any]) -> None:
    plan = make_plan(diagnostics=["pointer", "size_transfer"])
    arms = build_arms(plan, 3)[:2]
    names = [trial.name for trial in planned_trials(plan, arms, (0, 1))]
    assert names[:3] == [
        "pooling-pointer-4-seed0",
        "pooling-pointer-12-seed0",
        "pooling-size_transfer-4-seed0",
    ]
    assert len(set(names)) == len(names) == 2 * 2 * 3


@pytest.mark.slow
def test_counting_is_learned(make_plan: Callable[..., Any]) -> None:
    plan = make_plan()
    found = diagnose(plan, Trial(build_arms(plan, 3)[0], "counting", 4, 0), torch.device("cpu"))
    assert found.accuracy is not None and found.accuracy > 50
