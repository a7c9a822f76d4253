"""Rounds and their order."""

import torch
from torch import Tensor, nn

from metaformer.bench.timing import Timing, measure, ratios


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
