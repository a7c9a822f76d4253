from pathlib import Path

import pytest

from metaformer.engine.checkpoint import write_checkpoint
from metaformer.engine.run_dir import RunDir, find_checkpoint
from metaformer.errors import OutputError, WeightsError


def test_a_new_run_makes_its_directory(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "new")
    assert run.open(None, print) is None
    run.write_config({"a": 1})
    assert run.config.read_text() == '{\n "a": 1\n}\n'
    with pytest.raises(OutputError, match="holds a run already"):
        run.open(None, print)


def test_auto_begins_where_there_is_no_checkpoint_yet(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_config({})
    assert run.open("auto", print) is None


def test_auto_does_not_begin_anew_over_a_run_whose_checkpoints_are_all_damaged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    step = write_checkpoint(run.checkpoints / "step_3", {}, {"step": 3})
    (step / "manifest.json").write_text("{")
    told: list[str] = []
    with pytest.raises(WeightsError, match="no checkpoint is whole"):
        run.open("auto", told.append)
    assert len(told) == 1 and "step_3" in told[0]


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.write_text("")  # root may list any folder, so that a file stands for a locked one
    with pytest.raises(OutputError, match="checkpoints: is no folder that may be read and written"):
        run.open("auto", print)


def test_a_named_checkpoint_is_taken_or_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    step = write_checkpoint(run.checkpoints / "step_3", {}, {"step": 3})
    saved = run.open(str(step), print)
    assert saved is not None and saved.state["step"] == 3
    with pytest.raises(WeightsError, match="step_4"):
        run.open(str(run.checkpoints / "step_4"), print)


def test_a_best_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_checkpoint(run.best, {}, {"step": 1}).rename(tmp_path / ".old-best")
    run.open("auto", print)
    assert (run.best / "state.json").is_file()


def test_a_run_stands_for_its_best_else_its_newest_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert find_checkpoint(tmp_path) == tmp_path
    for step in (9, 10):
        write_checkpoint(run.checkpoints / f"step_{step}", {}, {"step": step})
    assert find_checkpoint(tmp_path).name == "step_10"
    write_checkpoint(run.best, {}, {"step": 9})
    assert find_checkpoint(tmp_path) == run.best
