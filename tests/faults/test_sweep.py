"""Item 2, exhaustively: a save that is cut before any of its file operations."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Tally = Callable[[str, str, bool], None]


def test_a_save_may_end_before_any_file_operation(tmp_path: Path, tally: Tally) -> None:
    script = Path(__file__).with_name("sweep.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["operations"] >= 30, found
    for number in range(found["operations"]):
        tally("2", "kill -9 before each file operation of a save", number >= len(found["wrong"]))
    assert not found["wrong"]
