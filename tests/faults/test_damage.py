"""Item 6: a damaged checkpoint is never loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults.case import Case
from faults.run import NewRun, Run, Tally
from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.errors import WeightsError


def detected(directory: Path, name: str) -> bool:
    """Whether reading fails with an error that names the file."""
    try:
        saved = read_checkpoint(directory)
        for file in directory.glob("*.safetensors"):
            saved.tensors(file.stem)
    except WeightsError as error:
        return name in str(error) or directory.name in str(error)
    return False


def files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file())


def random_offset(file: Path, draw: np.random.RandomState) -> int:
    """A byte anywhere, or near the start or the end of the file."""
    size = file.stat().st_size
    near = int(draw.randint(min(size, 300)))
    return (int(draw.randint(size)), near, size - 1 - near)[draw.randint(3)]


@pytest.fixture
def checkpoint(reference: Run, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    target = tmp_path / reference.last.name
    shutil.copytree(reference.last, target)
    return target


def test_flipped_bits(case: Case, checkpoint: Path, often: Callable[[int, int], int], tally: Tally) -> None:
    draw = np.random.RandomState(0)
    for number in range(often(30, 300)):
        file = files(checkpoint)[number % len(files(checkpoint))]
        at, bit = random_offset(file, draw), 1 << draw.randint(8)
        flip(file, at, bit)
        found = detected(checkpoint, file.name)
        flip(file, at, bit)
        tally("6", f"{case.task}: a checkpoint with one bit flipped", found, (file.name, at, bit))
    read_checkpoint(checkpoint)  # restored


def flip(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ bit]))


def test_truncated_files(
    case: Case, checkpoint: Path, often: Callable[[int, int], int], tally: Tally
) -> None:
    draw = np.random.RandomState(1)
    for number in range(often(30, 300)):
        file = files(checkpoint)[number % len(files(checkpoint))]
        whole = file.read_bytes()
        # the first time, the last byte alone
        size = len(whole) - 1 if number < len(files(checkpoint)) else random_offset(file, draw)
        file.write_bytes(whole[:size])
        found = detected(checkpoint, file.name)
        file.write_bytes(whole)
        tally("6", f"{case.task}: a checkpoint with a file cut short", found, (file.name, size, len(whole)))
    read_checkpoint(checkpoint)


def test_missing_and_foreign_files(case: Case, checkpoint: Path, reference: Run, tally: Tally) -> None:
    for file in files(checkpoint):
        for what, content in (("gone", None), ("empty", b""), ("zeroed", bytes(file.stat().st_size))):
            whole = file.read_bytes()
            file.unlink() if content is None else file.write_bytes(content)
            found = detected(checkpoint, file.name)
            file.write_bytes(whole)
            tally("6", f"{case.task}: a checkpoint with a file {what}", found, file.name)
    other = reference.checkpoints / f"step_{reference.steps[-2]}"
    for file in files(checkpoint):  # as an incomplete copy leaves them
        if file.read_bytes() == (other / file.name).read_bytes():
            continue
        whole = file.read_bytes()
        shutil.copy(other / file.name, file)
        found = detected(checkpoint, file.name)
        file.write_bytes(whole)
        tally("6", f"{case.task}: a checkpoint with a file of another", found, file.name)


@pytest.mark.often(0, 4)
def test_auto_resumes_from_the_newest_valid_checkpoint(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    """The damaged file is named; an explicit path is refused."""
    run = new_run()
    shutil.copytree(reference.path, run.path)
    damaged = files(run.last)[attempt % len(files(run.last))]
    flip(damaged, damaged.stat().st_size // 2, 4)
    explicit = run.go(resume=str(run.last), fork=True)
    refused = explicit.status == 1 and damaged.name in explicit.error and "Traceback" not in explicit.text
    end = run.finish()
    older = reference.steps[-2]
    reported = f"{run.last.name}/{damaged.name}" in end.text and f"step_{older} (step {older})" in end.text
    ok = refused and reported and run.fingerprint() == reference.fingerprint()
    tally("6", f"{case.task}: --resume auto skips a damaged checkpoint", ok, (explicit, end))


@pytest.mark.often(0, 1)
def test_no_valid_checkpoint_is_an_error(case: Case, reference: Run, new_run: NewRun, tally: Tally) -> None:
    """The run does not silently start again."""
    run = new_run()
    shutil.copytree(reference.path, run.path)
    for step in run.steps:
        (run.checkpoints / f"step_{step}" / "manifest.json").unlink()
    end = run.go(fork=True)
    ok = end.status == 1 and "every checkpoint is damaged" in end.error
    tally("6", f"{case.task}: every checkpoint damaged", ok, end)
