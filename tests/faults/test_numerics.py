"""Item 13: NaN and infinity never reach the weights, and the error says where they came from."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from faults.case import Case
from faults.run import NewRun, Run, Tally

# Where it arises, the value, and a part of the message.
VALUES = [
    ("input", "nan", "input"),
    ("gradient", "inf", "gradient"),
    ("loss", "inf", "loss"),
    ("activation", "nan", "norm2"),
    ("input", "-inf", "input"),
    ("gradient", "nan", "gradient"),
    ("loss", "nan", "loss"),
    ("activation", "inf", "norm2"),
]


def all_finite(run: Run) -> bool:
    """Whether all tensors in the checkpoints of a run are finite."""
    files = [
        file for folder in (run.checkpoints, run.path / "best") for file in folder.rglob("*.safetensors")
    ]
    return bool(files) and all(_finite(file) for file in files)


def _finite(file: Path) -> bool:
    return all(not t.is_floating_point() or bool(t.isfinite().all()) for t in load_file(file).values())


@pytest.mark.every_task(0, 4)
@pytest.mark.often(1, len(VALUES))
def test_a_nonfinite_step_is_not_taken(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    """Weights, buffers, optimizer and EMA do not change; the message names step, images and location."""
    where, value, word = VALUES[attempt]
    step = 9
    run = new_run()
    end = run.go(fault={"kind": "poison", "where": where, "value": value, "steps": [step]}, fork=True)
    (record,) = run.faults()
    unchanged = record["before"] == record["after"]
    files = record["files"][1:2] if where == "input" else record["files"]  # one image of the batch
    reported = (
        end.status == 1
        and f"step {step}" in end.error
        and word in end.error
        and all(file in end.error for file in files)
    )
    saved = run.steps[-1] == step and all_finite(run)
    run.finish()
    same = run.equals(reference)
    ok = unchanged and reported and saved and same
    tally("13", f"{case.task}: not finite: {where}", ok, (end, record, run.steps, same))


@pytest.mark.often(0, 3)
def test_up_to_three_nonfinite_steps_are_skipped_on_request(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    """The run continues after them, and stops at a fourth in a row."""
    where = ("loss", "gradient", "input")[attempt]
    run = new_run("three", runtime={"on_nonfinite": "skip"})
    three = run.go(fault={"kind": "poison", "where": where, "steps": [5, 6, 7, 11]}, fork=True)
    unchanged = [record["before"] == record["after"] for record in run.faults()]
    skipped = three.status == 0 and unchanged == [True] * 4 and all_finite(run)
    four = new_run("four", runtime={"on_nonfinite": "skip"})
    end = four.go(fault={"kind": "poison", "where": where, "steps": [5, 6, 7, 8]}, fork=True)
    stopped = end.status == 1 and "4 such steps in a row" in end.error and all_finite(four)
    tally("13", f"{case.task}: not finite three times: skipped", skipped, (three, run.faults()))
    tally("13", f"{case.task}: not finite four times: stopped", stopped, end)
