"""Rounds and their order."""

import torch
from torch import Tensor, nn

from metaformer.bench.timing import measure


class Told(nn.Module):
    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x: Tensor) -> None:
        self.calls.append(self.name)
        torch.ones(300, 300) @ torch.ones(300, 300)


def test_all_run_in_each_round_in_alternating_order() -> None:
    calls: list[str] = []
    models, turns = [Told("a", calls), Told("b", calls)], []
    began: list[int] = []

    def after(turn: int) -> None:
        turns.append(turn)
        began.append(len(calls))

    timings = measure(models, [torch.zeros(1)] * 2, rounds=2, warmup=0, after_round=after)
    assert turns == [0, 1] and all(len(timing.seconds) == 2 for timing in timings)
    first, second = began[0], began[1]
    assert calls[first - 1] == "b" and calls[first] == "b" and calls[second - 1] == "a"
