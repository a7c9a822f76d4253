"""`metaformer study`: from a plan to a report, and errors in one line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.conftest import colors, plan_values

Cli = Callable[..., Any]
__all__ = ["colors"]  # a fixture


def test_a_plan_becomes_a_report_and_its_runs_are_listed(cli: Cli, colors: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "from metaformer.mixers import MIXERS\n"
        '@MIXERS.register("rows_of_a_test")\n'
        "class Rows(nn.AvgPool2d):\n"
        "    def __init__(self, dim, size=3):\n"
        "        super().__init__((1, size), 1, (0, size // 2))\n"
    )
    mixers = {"pooling": "pooling", "rows": "rows_of_a_test(size=5)"}
    changes = {"controls": [], "learning_rates": [0.003], "cost_sizes": [32], "mixers": mixers}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_values(colors, **changes)))
    words = ("study", tmp_path / "plan.yaml", "--out", tmp_path / "out", "--import", tmp_path / "own.py")
    assert "rows_of_a_test" in cli(*words[:-2]).error and "--import" in cli(*words[:-2]).error
    listed = cli(*words, "--dry-run")
    assert listed.status == 0 and "final-rows-seed1" in listed.out.split() and not (tmp_path / "out").exists()
    result = cli(*words)
    assert result.status == 0 and f"report: {tmp_path / 'out' / 'report.html'}" in result.out
    pages = {name: (tmp_path / "out" / name).read_bytes() for name in ("report.html", "report.md")}
    assert b"rows" in pages["report.md"]
    (tmp_path / "out" / "report.html").unlink()
    assert cli("study", "report", tmp_path / "out", *words[-2:]).status == 0
    assert pages == {name: (tmp_path / "out" / name).read_bytes() for name in pages}
    lines = cli("runs", tmp_path / "out").out.splitlines()
    assert lines[0].split()[:6] == ["run", "model", "mixer", "seed", "learning", "rate"]
    row = next(line for line in lines if "final-rows-seed1" in line).split()
    assert row[1:6] == ["poolformer_n", "rows_of_a_test(size=5)", "1", "0.003", "1"] and row[6] == "complete"


def test_a_study_that_is_stopped_says_how_it_goes_on(cli: Cli, colors: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os, signal\n"
        "from torch import nn\n"
        "from metaformer.mixers import MIXERS\n"
        '@MIXERS.register("interrupts_a_test")\n'
        "class Interrupts(nn.Identity):\n"
        "    sent = False\n"
        "    def __init__(self, dim):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        if not self.sent:\n"
        "            Interrupts.sent = True\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        return x\n"
    )
    changes = {"controls": [], "learning_rates": [0.003], "cost_sizes": [32]}
    mixers = {"pooling": "pooling", "ours": "interrupts_a_test"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_values(colors, mixers=mixers, **changes)))
    words = ("study", tmp_path / "plan.yaml", "--out", tmp_path / "out", "--import", tmp_path / "own.py")
    result = cli(*words)
    assert result.status == 130
    assert f"stopped; metaformer {' '.join(map(str, words))} goes on here" in result.err, result


WRONG = {
    "no plan": (["study"], 2, "PLAN.yaml"),
    "no such plan": (["study", "/nowhere/plan.yaml"], 1, "/nowhere/plan.yaml"),
    "hours": (["study", "PLAN", "--hours", "0"], 1, "hours"),
    "option": (["study", "PLAN", "--hour", "1"], 2, "--hour: did you mean --hours"),
    "no study": (["study", "report", "/nowhere"], 1, "/nowhere.*no study"),
}


@pytest.mark.parametrize(("words", "status", "named"), WRONG.values(), ids=WRONG)
def test_errors_are_one_line(words: list[str], status: int, named: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("question: Why?")
    result = cli(*(word.replace("PLAN", str(tmp_path / "plan.yaml")) for word in words))
    assert result.status == status and re.search(named, result.error), result
