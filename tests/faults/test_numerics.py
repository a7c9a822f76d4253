"""Item 13: a number that is none never reaches the weights, and is told with what it came from."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from faults.case import Case
from faults.run import Run

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]
# Where it arises, which value, and a word that must then be in the message.
PLACES = [
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
    """No checkpoint of the run holds a number that is none."""
    files = [
        file for folder in (run.checkpoints, run.path / "best") for file in folder.rglob("*.safetensors")
    ]
    return bool(files) and all(_finite(file) for file in files)


def _finite(file: Path) -> bool:
    return all(not t.is_floating_point() or bool(t.isfinite().all()) for t in load_file(file).values())


@pytest.mark.every_task(0, 4)
@pytest.mark.often(1, len(PLACES))
def test_a_step_that_is_not_finite_is_refused(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    """Weights, buffers, moments and average stay as they were; the message names step, files and place."""
    where, value, word = PLACES[attempt]
    step = 9
    run = new_run()
    end = run.go(fault={"kind": "poison", "where": where, "value": value, "steps": [step]}, warm=True)
    (mark,) = run.marks()
    untouched = mark["before"] == mark["after"]
    files = mark["files"][1:2] if where == "input" else mark["files"]  # one image is poisoned
    told = (
        end.status == 1
        and f"step {step}" in end.error
        and word in end.error
        and all(file in end.error for file in files)
    )
    kept = run.steps[-1] == step and all_finite(run)
    run.finish()
    same = run.fingerprint() == straight.fingerprint() and run.samples() == straight.samples()
    tally("13", f"{case.task}: not finite: {where}", untouched and told and kept and same)
    assert untouched and told and kept, str((end, mark, run.steps))
    assert same


@pytest.mark.often(0, 3)
def test_up_to_three_refused_steps_are_left_out_on_request(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    """The run goes on after them, and ends by itself at a fourth in a row."""
    where = ("loss", "gradient", "input")[attempt]
    run = new_run("three", runtime={"on_nonfinite": "skip"})
    three = run.go(fault={"kind": "poison", "where": where, "steps": [5, 6, 7, 11]}, warm=True)
    untouched = [mark["before"] == mark["after"] for mark in run.marks()]
    went_on = three.status == 0 and untouched == [True] * 4 and all_finite(run)
    four = new_run("four", runtime={"on_nonfinite": "skip"})
    end = four.go(fault={"kind": "poison", "where": where, "steps": [5, 6, 7, 8]}, warm=True)
    ended = end.status == 1 and "4 such steps in a row" in end.error and all_finite(four)
    tally("13", f"{case.task}: not finite three times: left out", went_on)
    tally("13", f"{case.task}: not finite four times: ended", ended)
    assert went_on, str((three, run.marks()))
    assert ended, str(end)
