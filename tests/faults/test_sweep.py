"""Item 2, exhaustively: a process killed before any file operation of saving a checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

from faults.run import Tally


def test_killed_before_each_file_operation_of_a_save(tmp_path: Path, tally: Tally) -> None:
    script = Path(__file__).with_name("sweep.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["operations"] >= 30, found
    for number in range(found["operations"]):
        tally("2", "kill -9 before each file operation of a save", number >= len(found["problems"]))
    assert not found["problems"]
