"""Run directories."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaformer.checkpoint.checkpoint import STATE, write_checkpoint
from metaformer.checkpoint.manifest import write_directory
from metaformer.checkpoint.run_dir import RunDir
from metaformer.checkpoint.runs import RunStatus, find_runs
from metaformer.cli import main
from metaformer.errors import OutputError, WeightsError
from metaformer.training.train import train
from metaformer.weights.saved import find_checkpoint
from toys import tiny_config
from warm import python


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
        other = subprocess.run([*python(), "-c", script, run.path], capture_output=True, text=True)
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


@pytest.fixture(scope="module")
def finished(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps, with all its checkpoints; not to be changed."""
    config = tiny_config("classify", pets, runtime={"save_every": 2})
    return train(config, tmp_path_factory.mktemp("runs") / "one").run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "runs/one")


def only(folder: Path, **options: bool) -> RunStatus:
    (status,) = find_runs(folder, **options)
    return status


def test_a_finished_run(run: Path) -> None:
    status = only(run.parent)
    assert (status.path, status.model, status.state) == (str(run), "poolformer_n", "complete")
    assert (status.step, status.total, status.metric, status.resume, status.notes) == (8, 8, "top1", None, ())
    evaluations = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(line["top1"] for line in evaluations if line["kind"] == "eval")
    assert status.best == best
    assert status == only(run) == only(run.parent.parent, contents=True)


def test_a_stopped_run_is_resumed_by_its_command(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/step_8")
    status = only(run)
    assert (status.state, status.step, status.total) == ("stopped", 6, 8)
    assert status.resume is not None
    command = shlex.split(status.resume)
    assert command[:2] == ["metaformer", "train"]
    assert main(command[1:]) == 0
    assert only(run).state == "complete"


def test_the_command_that_started_a_run_is_listed(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/step_8")
    RunDir(run).write_command("torchrun -m metaformer train demo/classify --resume auto")
    assert only(run).resume == "torchrun -m metaformer train demo/classify --resume auto"


def test_damage_is_noted_and_skipped_as_in_resuming(run: Path) -> None:
    weights = run / "checkpoints/step_8/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    status = only(run)
    assert (status.state, status.step) == ("stopped", 6)
    (note,) = status.notes
    assert str(weights) in note and "damaged" in note
    for step in (2, 4, 6):
        (run / f"checkpoints/step_{step}/manifest.json").unlink()
    status = only(run)
    assert status.state == "damaged" and status.resume is None and len(status.notes) == 4


def test_flipped_bits_are_found_when_the_contents_are_read(run: Path) -> None:
    weights = run / "best/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert only(run).notes == ()
    (note,) = only(run, contents=True).notes
    assert str(weights) in note and "sha256" in note


RUNNING = """
import sys, time
from pathlib import Path
from metaformer.checkpoint.run_dir import RunDir
with RunDir(Path(sys.argv[1])).writing():
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_run_that_is_being_written(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/step_8")
    command = [sys.executable, "-c", RUNNING, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        status = only(run)
        process.kill()
    # by its log, not its checkpoints
    assert (status.state, status.step, status.resume) == ("running", 8, None)
    assert only(run).state == "stopped"


def test_before_its_first_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "best")
    status = only(run)
    assert (status.state, status.step, status.total, status.best) == ("stopped", 0, None, None)


def test_the_one_last_written_to_comes_first_and_other_folders_are_none(run: Path) -> None:
    old = run.parent / "deep/er/old"
    shutil.copytree(run, old)
    for file in [*old.rglob("*"), old]:
        os.utime(file, (0, 0))
    hub = run.parent / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    (run.parent / ".hidden").mkdir()
    shutil.copytree(run, run.parent / ".hidden/run")
    assert [status.path for status in find_runs(run.parent)] == [str(run), str(old)]
    with pytest.raises(OutputError, match="no such folder"):
        find_runs(run / "none")


def test_a_run_of_another_version_is_not_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(directory: Path) -> None:
        (directory / STATE).write_text('{"format": 1}')

    write_directory(run / "checkpoints/step_8", write)
    status = only(run)
    assert status.state == "other version" and status.resume is None
    assert "step_8" in status.notes[0] and "format 1" in status.notes[0]
    assert main(["runs", str(run)]) == 0
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (90, "2 min"), (7200, "2 h"), (86400 * 3, "3 d"), (-5, "0 s")]
)
def test_age(run: Path, seconds: float, text: str) -> None:
    for file in (run / "config.json", run / "metrics.jsonl", run / "checkpoints/step_8"):
        os.utime(file, (time.time() - seconds,) * 2)
    assert only(run).age == text


def test_the_command_line_lists_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, run.parent / "two")
    shutil.rmtree(run.parent / "two/checkpoints/step_8")
    assert main(["runs", str(run.parent)]) == 0
    text = capsys.readouterr().out
    assert f"{run}  " in text and "complete  8/8" in text and "stopped   6/8" in text and "top1" in text
    assert f"to resume {run.parent / 'two'}:\n  metaformer train" in text
    assert main(["runs", str(run.parent), "--json"]) == 0
    assert {one["state"] for one in json.loads(capsys.readouterr().out)} == {"complete", "stopped"}
    for step in (2, 4, 6, 8):
        (run / f"checkpoints/step_{step}/state.json").write_text("{")
    assert main(["runs", str(run), "--verify"]) == 1
    assert "damaged: " in capsys.readouterr().out
    (run.parent / "none").mkdir()
    assert main(["runs", str(run.parent / "none")]) == 0
    assert capsys.readouterr().out.startswith("no runs in ")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"[" * 100_000),
        ("config.json", b'{"model": [1]}'),
        ("command.txt", b"\xff\xfe"),
        ("checkpoints/step_\xc2\xb2/state.json", b"{}"),
    ],
)
def test_one_strange_folder_does_not_hide_the_others(run: Path, file: str, content: bytes) -> None:
    strange = run.parent / "strange"
    shutil.copytree(run, strange)
    (strange / file).parent.mkdir(exist_ok=True)
    (strange / file).write_bytes(content)
    found = {Path(status.path).name: status for status in find_runs(run.parent)}
    assert found.keys() == {"one", "strange"} and found["one"].state == "complete"
