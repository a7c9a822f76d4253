"""Rounds and their order."""

import pytest
import torch
from torch import Tensor, nn

from metaformer.bench.timing import Timing, agreed_ratio, measure, ratios


class Recorded(nn.Module):
    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x: Tensor) -> None:
        self.calls.append(self.name)
        torch.ones(300, 300) @ torch.ones(300, 300)


def test_all_run_in_each_round_in_alternating_order() -> None:
    calls: list[str] = []
    models, ends = [Recorded("a", calls), Recorded("b", calls)], []

    def after(turn: int) -> None:
        ends.append((turn, len(calls)))

    timings = measure(models, [torch.zeros(1)] * 2, rounds=2, warmup=0, after_round=after)
    (first, middle), (second, end) = ends
    assert (first, second) == (0, 1) and all(len(timing.seconds) == 2 for timing in timings)
    assert calls[middle - 1] == calls[middle] == "b" and calls[end - 1] == "a"


def test_ratios_of_known_times() -> None:
    assert ratios(Timing((1.0, 2.0), 1), Timing((3.0, 2.0), 1)) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "ratio"),
    [
        ((1.0, 1.0, 1.0), (2.0, 2.1, 2.2), 2.1),
        ((1.0, 1.1, 4.0), (2.0, 2.2, 2.4), 2.0),  # one round disturbed
        ((1.0, 5.0, 5.0), (2.0, 2.0, 2.0), None),  # 0.4 by the median, 2 by the fastest
        ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 3.0, 3.0), None),
        ((1.0,), (2.0,), 2.0),
    ],
)
def test_a_ratio_is_given_where_rounds_agree(
    ours: tuple[float, ...], theirs: tuple[float, ...], ratio: float | None
) -> None:
    assert agreed_ratio(Timing(ours, 1), Timing(theirs, 1)) == ratio
