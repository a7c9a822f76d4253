"""Item 28: whatever a file holds, reading it ends with one of our errors, soon and in bounded memory."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.conftest import DOOR
from faults.doors import DOORS
from faults.fuzz import LONGEST, ROOM
from faults.run import Tally
from warm import python

SEED = 28
SHORT = ("checkpoint card (detect)", "COCO file", "tar shard")
"""Doors that are tried in the short form of the suite."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.often(int(name in SHORT), 1)) for name in DOORS]
)
def test_a_door(
    name: str, door_seconds: float, tally: Tally, record_property: Callable[[str, object], None]
) -> None:
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [*python(), str(script), name, str(door_seconds), str(SEED)],
        capture_output=True,
        text=True,
        errors="replace",  # OpenVINO quotes what it was given
        timeout=door_seconds + 220,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    counts = (result["tries"], result["ours"], result["accepted"], len(result["others"]))
    record_property(DOOR, [name, *counts, result["seconds"], result["megabytes"]])
    bounded = result["seconds"] <= LONGEST and result["megabytes"] <= ROOM >> 20
    ok = result["tries"] > 0 and not result["others"] and bounded
    again = f"python {script} '{name}' 1 {SEED} NUMBER"
    tally("28", f"changed files: {name}", ok, (again, {**result, "others": result["others"][:5]}))
