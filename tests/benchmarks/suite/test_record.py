"""Records: names of kinds of processors, figures, no paths."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.suite.processor import kind
from benchmarks.suite.profile import Profile
from benchmarks.suite.record import RESULTS, write_record
from benchmarks.suite.result import Outcome, RowResult, judge
from benchmarks.suite.rows import Claim, Row
from benchmarks.suite.run import SuiteConfig
from metaformer.bench.timing import Machine, Timing
from metaformer.errors import ConfigError, OutputError

ROW = Row(model="poolformer_n", device="cpu", claims=(Claim("best", ("ours eager",), ("timm eager",), 1.5),))
MACHINE = Machine("cpu: AMD EPYC, 2 cores", 2, "2.15", "3.13", "C++ kernels", "avx2 avx512f", "AVX2")
OUTCOMES = (
    Outcome("ours eager", Timing((0.01, 0.011), 8), profile=Profile(0.5, 0.4, 0.1, 1, ("mlp", "pool"))),
    Outcome("timm eager", Timing((0.02, 0.022), 8)),
    Outcome("timm frozen", failure="CppCompileError: g++ /tmp/cache/x.cpp failed in /home/somebody"),
)


@pytest.mark.parametrize(
    ("device", "instructions", "kept_to", "expected"),
    [
        (
            "cpu: AMD EPYC, 2 cores",
            "avx2 avx512f avx512_bf16",
            "all",
            "amd-epyc-avx512-bf16",
        ),
        ("cpu: AMD EPYC, 2 cores", "avx2 avx512f", "avx2", "amd-epyc-avx2-only"),
        (
            "cpu: Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz, 2 cores",
            "avx2 avx512f avx512_bf16 amx_bf16",
            "all",
            "intel-xeon-platinum-8488c-amx",
        ),
        ("cpu: aarch64", "", "all", "aarch64"),
        ("cuda: NVIDIA H200", "", "all", "nvidia-h200"),
    ],
)
def test_kinds(device: str, instructions: str, kept_to: str, expected: str) -> None:
    assert kind(device, instructions, kept_to) == expected


def test_figures_without_paths(tmp_path: Path) -> None:
    result = RowResult(ROW, OUTCOMES, MACHINE)
    verdicts = [judge(claim, result) for claim in ROW.claims]
    file = write_record([result], verdicts, asdict(SuiteConfig()), tmp_path)
    values = json.loads(file.read_text())
    assert file.name == f"{values['date']}-amd-epyc-avx512.json" and values["kind"] == "amd-epyc-avx512"
    assert values["machine"] == asdict(MACHINE) and values["settings"]["rounds"] == 10
    (row,) = values["rows"]
    assert row["claims"][0]["minima"] == row["claims"][0]["median"] == 2.0
    assert row["claims"][0]["verdict"] == "reached"
    ours, _, broken = row["contenders"]
    assert (ours["minimum_ms"], ours["median_ms"], ours["kernels"]) == (10.0, 10.5, ["mlp", "pool"])
    assert broken["failure"] == "CppCompileError: g++ (path) failed in (path)"
    assert "/" not in file.read_text()


def test_nothing_measured_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="record"):
        write_record([RowResult(ROW, (), failure="killed")], [], asdict(SuiteConfig()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_record([RowResult(ROW, OUTCOMES, MACHINE)], [], asdict(SuiteConfig()), tmp_path / "file")


def test_kept_records_are_what_their_names_say() -> None:
    for file in RESULTS.glob("*.json"):
        values = json.loads(file.read_text())
        assert file.stem == f"{values['date']}-{values['kind']}" and values["rows"]
        assert "/" not in file.read_text()
