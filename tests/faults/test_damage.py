"""Item 6: a checkpoint that is not what was written is never taken for one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults.case import Case
from faults.run import Run
from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.errors import WeightsError

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]


def detected(directory: Path, name: str) -> bool:
    """Tell whether reading fails with an error that names the file."""
    try:
        saved = read_checkpoint(directory)
        for file in directory.glob("*.safetensors"):
            saved.tensors(file.stem)
    except WeightsError as error:
        return name in str(error) or directory.name in str(error)
    return False


def files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file())


def place(file: Path, draw: np.random.RandomState) -> int:
    """A byte: by chance anywhere, or among the first or last, where headers and ends are."""
    size = file.stat().st_size
    near = int(draw.randint(min(size, 300)))
    return (int(draw.randint(size)), near, size - 1 - near)[draw.randint(3)]


@pytest.fixture
def victim(straight: Run, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    target = tmp_path / straight.last.name
    shutil.copytree(straight.last, target)
    return target


def test_bits_that_flipped(case: Case, victim: Path, often: Callable[[int, int], int], tally: Tally) -> None:
    draw = np.random.RandomState(0)
    missed = []
    for number in range(often(30, 300)):
        file = files(victim)[number % len(files(victim))]
        at, bit = place(file, draw), 1 << draw.randint(8)
        flip(file, at, bit)
        found = detected(victim, file.name)
        flip(file, at, bit)
        tally("6", f"{case.task}: a checkpoint with one bit flipped", found)
        if not found:
            missed.append((file.name, at, bit))
    assert not missed
    read_checkpoint(victim)  # whole again


def flip(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ bit]))


def test_files_that_were_cut(
    case: Case, victim: Path, often: Callable[[int, int], int], tally: Tally
) -> None:
    draw = np.random.RandomState(1)
    missed = []
    for number in range(often(30, 300)):
        file = files(victim)[number % len(files(victim))]
        whole = file.read_bytes()
        # the first time by its last byte alone
        size = len(whole) - 1 if number < len(files(victim)) else place(file, draw)
        file.write_bytes(whole[:size])
        found = detected(victim, file.name)
        file.write_bytes(whole)
        tally("6", f"{case.task}: a checkpoint with a file cut short", found)
        if not found:
            missed.append((file.name, size, len(whole)))
    assert not missed
    read_checkpoint(victim)


def test_files_that_are_gone_or_others(case: Case, victim: Path, straight: Run, tally: Tally) -> None:
    missed = []
    for file in files(victim):
        for what, content in (("gone", None), ("empty", b""), ("zeroed", bytes(file.stat().st_size))):
            whole = file.read_bytes()
            file.unlink() if content is None else file.write_bytes(content)
            found = detected(victim, file.name)
            file.write_bytes(whole)
            tally("6", f"{case.task}: a checkpoint with a file {what}", found)
            missed += [] if found else [(file.name, what)]
    other = straight.checkpoints / f"step_{straight.steps[-2]}"
    for file in files(victim):  # as a careless copy leaves them
        if file.read_bytes() == (other / file.name).read_bytes():
            continue
        whole = file.read_bytes()
        shutil.copy(other / file.name, file)
        found = detected(victim, file.name)
        file.write_bytes(whole)
        tally("6", f"{case.task}: a checkpoint with a file of another", found)
        missed += [] if found else [(file.name, "of another")]
    assert not missed


@pytest.mark.often(0, 4)
def test_auto_takes_the_newest_that_is_whole(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    """It names the file that is not; a path that was given is taken or refused."""
    run = new_run()
    shutil.copytree(straight.path, run.path)
    broken = files(run.last)[attempt % len(files(run.last))]
    flip(broken, broken.stat().st_size // 2, 4)
    named = run.go(resume=str(run.last), warm=True)
    refused = named.status == 1 and broken.name in named.error and "Traceback" not in named.text
    end = run.finish()
    older = straight.steps[-2]
    told = f"{run.last.name}/{broken.name}" in end.text and f"step_{older} (step {older})" in end.text
    well = refused and told and run.fingerprint() == straight.fingerprint()
    tally("6", f"{case.task}: --resume auto passes over a damaged checkpoint", well)
    assert well, str((named, end))


@pytest.mark.often(0, 1)
def test_nothing_whole_is_an_error(case: Case, straight: Run, new_run: NewRun, tally: Tally) -> None:
    """Not a silent beginning from the first step."""
    run = new_run()
    shutil.copytree(straight.path, run.path)
    for step in run.steps:
        (run.checkpoints / f"step_{step}" / "manifest.json").unlink()
    end = run.go(warm=True)
    well = end.status == 1 and "no checkpoint is whole" in end.error
    tally("6", f"{case.task}: no checkpoint is whole", well)
    assert well, str(end)
