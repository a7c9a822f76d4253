"""Ceilings say how much work they do."""

import pytest
import torch

from benchmarks.suite import ceilings


def test_work_is_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 8})
    monkeypatch.setattr(ceilings, "POSITIONS", {"cpu": (1, 2, 2)})
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 64})
    made = [kind(torch.device("cpu"), torch.float32) for kind in ceilings.CEILINGS.values()]
    assert [ceiling.work for ceiling in made] == [2 * 8**3, 2 * 4 * 512 * 2048, 2 * 64]
    for ceiling in made:
        ceiling(torch.empty(1))
