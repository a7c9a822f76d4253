"""Diagnostic tasks: their samples mean what their labels say, and are a function of a seed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metaformer.study.arms import build_arms
from metaformer.study.diagnostics import DIAGNOSTICS, MARK, diagnose, planned_diagnostics

SIDE = 32


def samples(name: str, demand: int, count: int = 200, seed: int = 0) -> tuple[Tensor, list[int]]:
    images, labels = DIAGNOSTICS[name].make(count, SIDE, demand, torch.Generator().manual_seed(seed))
    return images, labels.tolist()


@pytest.mark.parametrize(("name", "demand"), list(planned_diagnostics(SIDE)))
def test_samples_are_a_function_of_the_seed(name: str, demand: int) -> None:
    images, labels = samples(name, demand)
    again, other = samples(name, demand), samples(name, demand, seed=1)
    assert torch.equal(images, again[0]) and labels == again[1] and not torch.equal(images, other[0])
    assert images.shape == (200, 3, SIDE, SIDE) and images.isfinite().all()
    counts = torch.bincount(torch.tensor(labels), minlength=DIAGNOSTICS[name].classes(demand))
    assert len(counts) == DIAGNOSTICS[name].classes(demand)
    assert counts.min() > 0.6 * 200 / len(counts), "no class is rare"


def test_patterns_are_equal_where_the_label_says_so() -> None:
    images, labels = samples("same_at_distance", 16)
    for image, label in zip(images, labels, strict=True):
        pairs = [
            torch.equal(image[:, y : y + MARK, x : x + MARK], image[:, y : y + MARK, x + 16 : x + 16 + MARK])
            for y in range(SIDE - MARK + 1)
            for x in range(SIDE - MARK - 15)
        ]
        assert any(pairs) == bool(label)


def test_dots_are_as_many_as_the_label_says() -> None:
    images, labels = samples("counting", 8)
    for image, label in zip(images, labels, strict=True):
        assert int((image == 1).sum()) == 3 * (MARK - 1) ** 2 * (label + 1)


def test_marks_lie_on_one_path_where_the_label_says_so() -> None:
    """A path is followed from its mark, column by column, to the nearest row."""
    images, labels = samples("connected", 16)
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
    arm = build_arms(plan, 3)[0]
    few = diagnose(plan, arm, "counting", 4, 0, torch.device("cpu"), steps=2)
    assert few.chance == 25 and few.accuracy is not None and (few.arm, few.task) == ("pooling", "counting")
    assert few == diagnose(plan, arm, "counting", 4, 0, torch.device("cpu"), steps=2)


@pytest.mark.slow
def test_counting_is_learned(make_plan: Callable[..., Any]) -> None:
    plan = make_plan()
    found = diagnose(plan, build_arms(plan, 3)[0], "counting", 4, 0, torch.device("cpu"))
    assert found.accuracy is not None and found.accuracy > 50
