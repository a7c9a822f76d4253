"""Exports that end early: one line, and nothing left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from disks import largest_file, small_disk
from metaformer.cli import main
from metaformer.deploy.export import write
from metaformer.deploy.export.write import export

SUFFIXES = tuple(write.WRITERS)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_for_temporary_files(
    suffix: str,
    untrained: dict[str, Path],
    temporary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with largest_file(10_000):
        status = main(["export", str(untrained["classify"]), str(tmp_path / "new" / f"net{suffix}")])
    line = capsys.readouterr().err.splitlines()[-1]
    assert status == 1 and line.startswith(f"metaformer: error: {temporary}/metaformer-export-"), line
    assert "cannot write (" in line and line.endswith(": TMPDIR names another folder for temporary files")
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"] and not ours(temporary)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_for_the_file(
    suffix: str,
    untrained: dict[str, Path],
    temporary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which leaves the file that is there."""
    disk, file = tmp_path / "disk", tmp_path / "disk" / f"net{suffix}"
    with small_disk(disk, megabytes=1):
        (disk / "others").write_bytes(bytes(1_040_000))
        file.write_text("before")
        status = main(["export", str(untrained["classify"]), str(file), "--triton", str(disk / "models")])
        line = capsys.readouterr().err.splitlines()[-1]
        assert status == 1 and line.startswith(f"metaformer: error: {disk}/net."), line
        assert line.endswith(": cannot write (No space left on device)"), line
        assert {path.name for path in disk.rglob("*")} == {"others", file.name}
        assert file.read_text() == "before"
    assert not ours(temporary)


def ours(folder: Path) -> list[Path]:
    """Temporary files, without what other packages keep."""
    return list(folder.glob("metaformer-*"))


@pytest.mark.parametrize(
    "step",
    ["loading the network", "tracing its graph", pytest.param("comparing the file", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupt(
    suffix: str, step: str, untrained: dict[str, Path], temporary: Path, tmp_path: Path
) -> None:
    """At the beginning of a step; what was there before stays."""
    file = tmp_path / f"net{suffix}"
    file.write_text("before")

    def interrupt(text: str) -> None:
        if text.startswith(step):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        export(untrained["classify"], file, on_step=interrupt)
    assert file.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "temporary"}
    assert not ours(temporary)


STEPS = ("loading the network", "tracing its graph", "comparing the file")
"""What the command prints, one after the other."""


def started(process: "subprocess.Popen[str]", step: str) -> None:
    """Wait until a command says that a step begins."""
    assert process.stderr is not None
    assert any(line.startswith(f"export: {step}") for line in process.stderr), f"has ended before {step}"


def durations(command: Sequence[str]) -> dict[str, float]:
    """Seconds of each step of a command that nothing interrupts."""
    begun = {}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for step in STEPS:
            started(process, step)
            begun[step] = time.monotonic()
        assert process.stderr is not None
        process.stderr.read()
    assert process.returncode == 0
    ends = [*list(begun.values())[1:], time.monotonic()]
    return {step: end - begin for (step, begin), end in zip(begun.items(), ends, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_interrupts_at_any_moment(
    suffix: str, untrained: dict[str, Path], temporary: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the command, as a step begins and within it."""
    target = tmp_path / f"net{suffix}"
    command = [sys.executable, "-m", "metaformer", "export", str(untrained["classify"]), str(target)]
    seconds = durations(command)
    for file in tmp_path.glob("net.*"):
        file.unlink()
    for step, part in product(STEPS, (0.0, 0.3)):
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            started(process, step)
            time.sleep(part * seconds[step])
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            text = process.stderr.read()
        where = f"{step}, {part:.0%}: {text}"
        assert process.returncode == 130, where
        assert text.splitlines()[-1] == "metaformer: error: interrupted", where
        assert "Traceback" not in text
        assert {path.name for path in tmp_path.iterdir()} == {"temporary"}, where
        assert not ours(temporary), where


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new/net.onnx", "--opset", "9"], "error: --opset is 9"),
        (["new/net.tflite"], "net.tflite: an exported file's name ends in .onnx"),
        (["new/net"], "new/net: an exported file's name ends in .onnx"),
        (["new/net.onnx", "--max-objects", "5"], "error: --max-objects: no option of image classification"),
        (["new/net.onnx", "--probabilities"], "error: --probabilities: no option of image classification"),
        (["new/net.onnx", "--image-size", "64", "32"], "error: --image-size is (64, 32)"),
        (["new/net.onnx", "--sizes", "64", "128"], "--sizes: no option of a .onnx file"),
        (["new/net.pt2", "--opset", "20"], "--opset: no option of a .pt2 file"),
        (["new/net.xml", "--runner", "new/program"], "run.py computes .onnx files"),
        (["file/net.onnx"], "net.onnx: cannot write (File exists)"),
        (["new/net.onnx", "--triton", "file/models"], "config.pbtxt: cannot write (Not a directory)"),
        (["new/net.onnx", "--runner", "file/program"], "run.py: cannot write (Not a directory)"),
        (["/proc/net.onnx"], "/proc/net.onnx: cannot write ("),
    ],
)
def test_refusals_leave_nothing(
    arguments: list[str],
    message: str,
    untrained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["export", str(untrained["classify"]), *arguments]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1], lines
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(
    untrained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(0o500)
    assert main(["export", str(untrained["classify"]), str(tmp_path / "locked" / "net.onnx")]) == 1
    assert "net.onnx: cannot write (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "package"), [("net.onnx", "onnxruntime"), ("net.xml", "openvino"), ("net.onnx", "onnxscript")]
)
def test_a_missing_package(
    name: str,
    package: str,
    untrained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", str(untrained["classify"]), str(tmp_path / "new" / name)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert package in line and "pip install 'metaformer[" in line
    assert not any(tmp_path.iterdir())
