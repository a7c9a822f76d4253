"""The image, or why there is none."""

import sys
from pathlib import Path

import pytest

from benchmarks.suite.plot import plot
from benchmarks.suite.row import Claim
from benchmarks.suite.verdict import Verdict

VERDICTS = [
    Verdict("row", Claim("faster", (), (), 1.05), 1.2, (1.1, 1.2, 1.3)),
    Verdict("row", Claim("smaller", (), (), 0.5, "memory"), 0.7, (0.7,)),
    Verdict("row", Claim("told", (), ()), 2.0, (2.0, 2.1)),
    Verdict("row", Claim("not measured", (), (), 1.0)),
]


def test_an_image(tmp_path: Path) -> None:
    place = tmp_path / "suite.png"
    assert str(place) in plot(VERDICTS, place)
    assert place.read_bytes().startswith(b"\x89PNG")


def test_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing was compared" in plot(VERDICTS[-1:], tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in plot(VERDICTS, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
