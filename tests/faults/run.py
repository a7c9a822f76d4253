"""A training run and the processes that work on it."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.case import EPOCH, Case
from metaformer.checkpoint.checkpoint import Checkpoint
from warm import start

HERE = Path(__file__).parent
SCRIPT = HERE / "inject.py"
TIMEOUT = 90.0
"""Seconds after which a process that should have ended fails the test."""
Tally = Callable[..., None]
"""`tally(item, what, survived, details)` counts and asserts; `item` is a number of docs/reliability.md."""
NewRun = Callable[..., "Run"]


@dataclass
class Exit:
    """How a process ended."""

    status: int
    text: str
    """Output on stdout and stderr."""
    seconds: float
    """From the start, or from `Process.restart_clock` if that was called."""

    @property
    def error(self) -> str:
        """The command line's error message."""
        lines = [line for line in self.text.splitlines() if "metaformer: error:" in line]
        return lines[-1] if lines else ""


class Process:
    """A training process in a process group of its own."""

    def __init__(
        self, command: list[str], environment: dict[str, str], run: "Run", output: Path, fork: bool = False
    ) -> None:
        self.run, self.output, self.started = run, output, time.monotonic()
        with output.open("wb") as stream:
            self.process = start(command, environment, stream, fork)

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def restart_clock(self) -> None:
        """Count `Exit.seconds` from now."""
        self.started = time.monotonic()

    def wait_until(self, happened: Callable[[], object], what: str) -> None:
        """Wait for a condition.

        Raises:
            AssertionError: the process ended first, or it takes too long.
        """
        limit = time.monotonic() + TIMEOUT
        while not happened():
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before {what}:\n{self.text}")
            if time.monotonic() > limit:
                self.destroy()
                raise AssertionError(f"no {what} within {TIMEOUT} s:\n{self.text}")
            time.sleep(0.005)

    def wait_until_fault(self) -> None:
        """Wait for the injected fault, and count seconds from then."""
        self.wait_until(self.run.faults, "fault")
        self.restart_clock()

    def wait_until_step(self, step: int) -> None:
        """Wait until the run has done this many steps, in any process."""
        self.wait_until(lambda: self.run.steps_done >= step, f"step {step}")

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process or its group, and count seconds from then."""
        self.restart_clock()
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self, timeout: float = TIMEOUT) -> Exit:
        """Wait for the end."""
        try:
            status = self.process.wait(timeout=timeout)
        except (subprocess.TimeoutExpired, TimeoutError):
            text = self.text
            self.destroy()
            raise AssertionError(f"still running after {timeout} s:\n{text}") from None
        return Exit(status, self.text, time.monotonic() - self.started)

    def destroy(self) -> None:
        """Kill it with all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid in self.run.processes():  # torchrun's are in groups of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Run:
    """A run directory with its configuration, and a log of the samples of each step.

    Args:
        case: the task.
        images: the data set.
        folder: where run, configuration and logs are written.
        epochs: length of the run.
        sections: fields of the configuration to change.
    """

    def __init__(self, case: Case, images: Path, folder: Path, epochs: int, **sections: Any) -> None:
        self.case, self.images, self.folder, self.sections = case, images, folder, sections
        self.epochs, self.total = epochs, epochs * EPOCH
        self.path = folder / "run"
        self.started: list[Process] = []

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint directory, complete or not."""
        return sorted(int(path.name[5:]) for path in self.checkpoints.glob("step_*"))

    @property
    def last(self) -> Path:
        """Newest checkpoint directory."""
        return self.checkpoints / f"step_{self.steps[-1]}"

    @property
    def steps_done(self) -> int:
        """Steps done so far, in any process."""
        return max((line["step"] + 1 for line in self.sample_log()), default=0)

    def command(self, resume: str | None = "auto", **sections: Any) -> list[str]:
        """The command line, with `inject.py` for `metaformer`."""
        settings = self.case.settings(self.images, {"schedule": {"epochs": self.epochs}})
        for changes in (self.sections, sections):
            for name, fields in changes.items():
                settings[name] = {**settings.get(name, {}), **fields}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"config-{len(self.started)}.json"
        file.write_text(json.dumps(settings))
        args = [str(SCRIPT), "train", self.case.recipe, str(file), "--out", str(self.path)]
        return args + (["--resume", resume] if resume is not None else [])

    def start(
        self,
        *,
        resume: str | None = "auto",
        fault: dict[str, Any] | None = None,
        launcher: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        fork: bool = False,
        **sections: Any,
    ) -> Process:
        """Start a process.

        Args:
            resume: value of `--resume`.
            fault: the fault to inject, see `inject.py`.
            launcher: command instead of `python`.
            environment: additional variables.
            fork: fork it, or its launcher, from a process that has imported the library.
            sections: fields of the configuration to change.
        """
        own = {
            "OMP_NUM_THREADS": "1",
            "MF_SAMPLES": str(self.folder / "samples"),
            "MF_FAULT": json.dumps(fault or {}),
            "MF_FAULTS": str(self.folder / "faults"),
        }
        command = [*(launcher or (sys.executable,)), *self.command(resume, **sections)]
        output = self.folder / f"output-{len(self.started)}.txt"
        process = Process(command, {**os.environ, **own, **(environment or {})}, self, output, fork)
        self.started.append(process)
        return process

    def go(self, timeout: float = TIMEOUT, **options: Any) -> Exit:
        """Start a process and wait for its end."""
        return self.start(**options).wait(timeout)

    def finish(self, ranks: int = 1, **options: Any) -> Exit:
        """Resume the run and complete it; several ranks need no launcher."""
        options.setdefault("fork", bool(self.started) and not options.get("launcher"))
        processes = [self.start(environment=variables, **options) for variables in _rank_variables(ranks)]
        exits = [process.wait() for process in processes]
        for exit in exits:
            assert exit.status == 0, exit.text
        return exits[0]

    def equals(self, other: "Run", ranks: int = 1) -> bool:
        """Same bits of weights, optimizer, EMA and state, and the same samples in every step."""
        same = self.fingerprint() == other.fingerprint() and not self.leftovers()
        return same and all(self.samples(rank) == other.samples(rank) for rank in range(ranks))

    def clean_up(self) -> None:
        """Kill all processes."""
        for process in self.started:
            process.destroy()

    def processes(self, training: bool = False) -> list[int]:
        """IDs of the run's processes; optionally without launchers and data workers."""
        mine = f"MF_SAMPLES={self.folder / 'samples'}\0".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may have ended meanwhile; a zombie has no environment
                args = (entry / "cmdline").read_bytes().split(b"\0")
                trains = str(SCRIPT).encode() in args[1:2] or args[1:3] == [b"-u", str(SCRIPT).encode()]
                if mine in (entry / "environ").read_bytes() + b"\0" and (trains or not training):
                    found.append(int(entry.name))
        return found

    def sample_log(self, rank: int = 0) -> list[dict[str, Any]]:
        """Samples of each step of a rank, with the steps that were repeated."""
        file = Path(f"{self.folder / 'samples'}.{rank}")
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a killed process may truncate one

    def samples(self, rank: int = 0) -> dict[int, set[str]]:
        """The different batches that each step was done with: one, if resuming is exact."""
        batches: dict[int, set[str]] = {}
        for line in self.sample_log(rank):
            batches.setdefault(line["step"], set()).add(json.dumps([line["indices"], line["pixels"]]))
        return batches

    def faults(self) -> list[dict[str, Any]]:
        """Records of the injected faults."""
        file = self.folder / "faults"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def leftovers(self) -> list[str]:
        """Temporary files and directories, which a finished run does not leave."""
        hidden = [path for path in self.path.rglob(".*") if path.name.startswith((".tmp", ".old"))]
        return [str(path.relative_to(self.path)) for path in hidden]

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of all files of the last and of the best checkpoint."""
        return {
            **{f"last/{name}": digest for name, digest in fingerprint(self.last).items()},
            **{f"best/{name}": digest for name, digest in fingerprint(self.path / "best").items()},
        }


def fingerprint(directory: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint; of the state, without the number of workers.

    Sharded tensors are compared as they are read: which rank writes which shard is left to chance.
    """
    found: dict[str, str] = {}
    for file in sorted(path for path in directory.iterdir() if path.is_file()):
        if file.name == "manifest.json":
            continue
        content = file.read_bytes()
        if file.name == "state.json":
            state = json.loads(content)
            state["config"]["data"].pop("workers")
            content = json.dumps(state, sort_keys=True).encode()
        found[file.name] = hashlib.sha256(content).hexdigest()
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        whole = hashlib.sha256()
        for name, tensor in sorted(Checkpoint(directory, {}).tensors(folder.name).items()):
            whole.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        found[folder.name] = whole.hexdigest()
    return found


def _rank_variables(ranks: int) -> list[dict[str, str]]:
    """Environment variables of each rank, as torchrun sets them."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def torchrun(ranks: int = 2, *options: str) -> tuple[str, ...]:
    """Launcher for this many processes on this machine."""
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return (*start, "--nproc-per-node", str(ranks), *options)
