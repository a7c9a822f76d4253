"""Kill a process before each file operation of saving a checkpoint, and check what is left.

Run by test_kill.py in another process, which forks one child per operation. Prints a JSON line.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from metaformer.checkpoint.checkpoint import newest, prune, read_checkpoint, step_directory, write_checkpoint
from metaformer.checkpoint.run_dir import RunDir

OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.chmod")


def save(run: RunDir, step: int) -> None:
    """What the loop does after a step with a new best evaluation."""
    tensors = {"weight": torch.full((64, 64), float(step)), "bias": torch.full((64,), -float(step))}
    write_checkpoint(run.best, {"model": tensors}, {"step": step})
    write_checkpoint(
        step_directory(run.checkpoints, step), {"model": tensors, "optimizer": tensors}, {"step": step}
    )
    prune(run.checkpoints, 2)


class KillSwitch:
    """Kills this process before its `at`-th file operation below a folder, or only counts them."""

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.count = str(folder), at, 0
        sys.addaudithook(self)
        fsync = os.fsync
        os.fsync = lambda handle: (self("fsync", (self.folder,)), fsync(handle))[1]  # type: ignore[assignment]

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an operation on files of the run."""
        inside = event == "fsync" or (
            event in OPERATIONS
            and (
                any(self.folder in os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, Path)))
                or event in ("os.remove", "os.rmdir")  # in rmtree, names are relative to a handle
            )
        )
        if not inside:
            return
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def child(run: RunDir, at: int | None, count: Path | None = None) -> int:
    """Save step 6 in a child process that is killed at an operation; returns its status."""
    pid = os.fork()
    if pid == 0:
        switch = KillSwitch(run.path, at)
        save(run, 6)
        if count is not None:
            switch.folder = "-"
            count.write_text(str(switch.count))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def problem_after(run: RunDir) -> str:
    """Resume as a new process would, and save once more; returns what is wrong, or nothing."""
    warnings: list[str] = []
    saved = run.open("auto", warnings.append)
    if warnings:
        return f"a valid checkpoint was skipped: {warnings}"
    if saved is None or saved.state["step"] not in (4, 6):
        return f"resumed from {saved and saved.state['step']}"
    for directory, group in ((saved.directory, "optimizer"), (run.best, "model")):
        loaded = read_checkpoint(directory)
        if not bool((loaded.tensors(group)["weight"] == loaded.state["step"]).all()):
            return f"{directory.name} mixes two steps"
    if read_checkpoint(run.best).state["step"] not in (4, 6):
        return "best is neither the old one nor the new"
    save(run, 8)
    again = newest(run.checkpoints, warnings.append)
    if again is None or again.state["step"] != 8 or warnings:
        return f"the next save failed: {warnings}"
    left = [path.name for path in run.path.rglob(".*") if path.name not in (".lock",)]
    return f"left {left}" if left else ""


def main(folder: Path) -> None:
    """Try each operation."""
    torch.set_num_threads(1)
    template = RunDir(folder / "template")
    template.path.mkdir(parents=True)
    for step in (2, 4):
        save(template, step)
    counted = folder / "count"
    shutil.copytree(template.path, folder / "counting")
    assert child(RunDir(folder / "counting"), None, counted) == 0
    operations = int(counted.read_text())
    problems: list[str] = []
    for at in range(1, operations + 1):
        run = RunDir(folder / "it")
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(template.path, run.path)
        status = child(run, at)
        problem = "was not killed" if status != -signal.SIGKILL else problem_after(run)
        if problem:
            problems.append(f"operation {at} of {operations}: {problem}")
    print(json.dumps({"operations": operations, "problems": problems}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
