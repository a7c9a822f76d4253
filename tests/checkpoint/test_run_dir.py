import subprocess
import sys
from pathlib import Path

import pytest

from metaformer.checkpoint.checkpoint import write_checkpoint
from metaformer.checkpoint.run_dir import RunDir, find_checkpoint
from metaformer.errors import OutputError, WeightsError


def test_a_new_run_creates_its_directory(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "new")
    assert run.open(None, print) is None
    run.write_config({"a": 1})
    assert run.config.read_text() == '{\n "a": 1\n}\n'
    run.check("auto")
    with pytest.raises(OutputError, match="holds a run already"):
        run.check(None)


def test_a_check_creates_nothing(tmp_path: Path) -> None:
    RunDir(tmp_path / "runs" / "new").check(None)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is no folder"):
        RunDir(tmp_path / "file" / "new").check(None)


def test_only_one_process_writes_a_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert not run.running
    with run.writing():
        assert run.running
        with pytest.raises(OutputError, match="another process is writing it"), run.writing(patience=0):
            pass
        script = (
            "import sys; from metaformer.checkpoint.run_dir import RunDir; from pathlib import Path\n"
            "with RunDir(Path(sys.argv[1])).writing(patience=0.5): pass"
        )
        other = subprocess.run([sys.executable, "-c", script, run.path], capture_output=True, text=True)
        assert other.returncode != 0 and "another process is writing it" in other.stderr
    assert not run.running
    (run.path / ".tmp-0123").touch()  # of a process that was killed
    with run.writing():
        assert [file.name for file in run.path.iterdir()] == [".lock"]


def test_the_resuming_command_is_saved(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.command is None
    run.write_command("metaformer train finetune --resume auto")
    assert run.command == "metaformer train finetune --resume auto"


def test_auto_starts_where_there_is_no_checkpoint_yet(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_config({})
    assert run.open("auto", print) is None


def test_auto_does_not_start_over_a_run_whose_checkpoints_are_all_damaged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    step = write_checkpoint(run.checkpoints / "step_3", {}, {"step": 3})
    (step / "manifest.json").write_text("{")
    lines: list[str] = []
    with pytest.raises(WeightsError, match="checkpoints: every checkpoint is damaged"):
        run.open("auto", lines.append)
    assert len(lines) == 1 and "step_3" in lines[0]


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.write_text("")  # root may list any folder, so that a file stands for a locked one
    with pytest.raises(OutputError, match="checkpoints: is no folder that may be read and written"):
        run.check("auto")


def test_a_named_checkpoint_is_taken_or_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    step = write_checkpoint(run.checkpoints / "step_3", {}, {"step": 3})
    saved = run.open(str(step), print)
    assert saved is not None and saved.state["step"] == 3
    with pytest.raises(WeightsError, match="step_4"):
        run.open(str(run.checkpoints / "step_4"), print)


def test_a_best_that_was_being_replaced_is_restored(tmp_path: Path) -> None:
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
