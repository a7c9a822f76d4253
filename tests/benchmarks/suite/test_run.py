"""The suite from rows to files, on invented times."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite import run
from benchmarks.suite.profile import Profile
from benchmarks.suite.result import Outcome, RowResult
from benchmarks.suite.rows import Row
from benchmarks.suite.run import SuiteConfig, choose, run_suite
from metaformer.bench.timing import Machine, Timing
from metaformer.errors import ConfigError, OutputError, UnknownName


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of rows in the order of measurement; ours takes 1 s, everything else 2."""
    names: list[str] = []

    def run_row(row: Row, order: Any, log: Path, report: Callable[[Any], None]) -> RowResult:
        names.append(row.name)
        report({"prepared": "ours eager", "seconds": 1})
        outcomes = (
            Outcome(
                n,
                Timing((1.0 if "ours" in n else 2.0,) * 3, 1),
                pixels=1,
                profile=Profile(0.5, 0.3, 0.2, 1.0) if n == "ours eager" else None,
            )
            for n in row.contenders
        )
        return RowResult(row, tuple(outcomes), Machine("cpu: abacus", 2, "2.15", "3.13", "plain PyTorch"))

    monkeypatch.setattr(run, "run_row", run_row)
    return names


def test_rows_by_pattern_and_device() -> None:
    everything = choose(SuiteConfig(device="cpu"))
    assert all(row.device == "cpu" for row in everything)
    some = choose(SuiteConfig(device="cpu", rows="*-training-*"))
    assert 0 < len(some) < len(everything) and all(row.mode == "training" for row in some)
    assert len(choose(SuiteConfig(device="cpu", grid=True, rows="caformer"))) == 12
    with pytest.raises(UnknownName, match="resnet"):
        choose(SuiteConfig(device="cpu", rows="resnet"))


@pytest.mark.parametrize("field", ["rounds", "threads", "limit"])
def test_numbers_below_one_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        SuiteConfig(**{field: 0})


def test_files_agree(measured: list[str], tmp_path: Path) -> None:
    lines: list[str] = []
    config = SuiteConfig(device="cpu", rows="cpu-poolformer_s12-inference-fp32", rounds=3)
    report = run_suite(config, tmp_path / "out", log=lines.append)
    assert measured == [row.name for row in choose(config)] and len(measured) == 3
    values = json.loads((tmp_path / "out" / "suite.json").read_text())
    page = (tmp_path / "out" / "suite.md").read_text()
    assert (tmp_path / "out" / "suite.png").stat().st_size > 1000
    assert page == report.text() and report.table() in page
    for claim in values["claims"]:
        (line,) = (
            line
            for line in page.splitlines()
            if line.startswith(f"| {claim['row']} | {claim['claim']['title']} |")
        )
        assert f"| {claim['minima']:.3f} | {claim['median']:.3f} [" in line and claim["verdict"] in line
    assert len(values["claims"]) == sum(len(row.claims) for row in choose(config))
    assert any("row 2 of 3" in line and "to go" in line for line in lines)
    assert any("ready after 1 s" in line for line in lines) and "2.000 by minima" in "".join(lines)
    assert any("ours eager: products 50%, passes over memory 30%" in line for line in lines)
    assert values["rows"][0]["contenders"][0]["profile"]["products"] == 0.5 and "Profiles of our best" in page


def test_a_directory_that_cannot_be_written_to(measured: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        run_suite(SuiteConfig(device="cpu"), tmp_path / "file")
    assert not measured
