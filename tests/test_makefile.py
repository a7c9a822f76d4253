"""The Makefile: what it would run."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_a_demo_that_broke_off_goes_on(tmp_path: Path) -> None:
    """The classifier's report is written while it learns, and says nothing of whether it is done."""
    for name in ("pyproject.toml", "constraints.txt", ".venv/.ready", "data/demo/.complete"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    run = tmp_path / "runs/demo-classify"
    run.mkdir(parents=True)

    def planned() -> str:
        command = ["make", "-n", "-f", str(MAKEFILE), "TASK=segment", "demo-segment"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    (run / "report.html").touch()
    assert "train demo/classify" in planned()
    (run / ".complete").touch()
    assert "train demo/classify" not in planned() and "train demo/segment" in planned()
