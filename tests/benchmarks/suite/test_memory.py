"""Peak memory of a step, against arithmetic by hand."""

import pytest
import torch
from torch import nn

from benchmarks.suite.memory import peak
from metaformer.bench.timing import TrainingStep

WIDE = 1 << 20


def network() -> nn.Module:
    """Keeps one wide map (B, WIDE) for the backward pass, and has another in flight."""
    return nn.Sequential(nn.Flatten(), nn.Linear(1, WIDE, bias=False), nn.Sigmoid(), nn.AdaptiveAvgPool1d(4))


def test_the_widest_moment_is_found() -> None:
    step, images = TrainingStep(network()), torch.ones(4, 1, 1, 1)
    step(images)
    maps = peak(step, images) / (4 * WIDE * 4)
    assert 1.9 < maps < 4, "the product and its sigmoid at least, and not every map that ever was"


@pytest.mark.slow
def test_buffers_of_compiled_code_are_seen() -> None:
    step, images = TrainingStep(torch.compile(network())), torch.ones(4, 1, 1, 1)  # type: ignore[arg-type]
    step(images)
    assert peak(step, images) > 4 * WIDE * 4
