"""A training run, and the processes that are let loose on it."""

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
from faults.warm import Warm
from metaformer.checkpoint.checkpoint import Checkpoint

HERE = Path(__file__).parent
VICTIM = HERE / "victim.py"
PATIENCE = 90.0
"""Seconds after which a process that should have ended is a failure of its own."""


@dataclass
class End:
    """How a process ended."""

    status: int
    text: str
    """What it printed, on both streams."""
    seconds: float
    """From the start, or from `Victim.mark` if that was called."""

    @property
    def error(self) -> str:
        """The line by which the command line tells an error."""
        lines = [line for line in self.text.splitlines() if "metaformer: error:" in line]
        return lines[-1] if lines else ""


class Victim:
    """A process that trains, in a process group of its own."""

    def __init__(
        self, command: list[str], environment: dict[str, str], run: "Run", output: Path, warm: bool = False
    ) -> None:
        self.run, self.output, self.began = run, output, time.monotonic()
        self.process: subprocess.Popen[bytes] | Warm
        if warm:
            output.touch()
            self.process = Warm(command[2:], environment, output)
            return
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def mark(self) -> None:
        """Count seconds from now."""
        self.began = time.monotonic()

    def until(self, happened: Callable[[], object], what: str) -> None:
        """Wait for something that the run does."""
        limit = time.monotonic() + PATIENCE
        while not happened():
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before {what}:\n{self.text}")
            if time.monotonic() > limit:
                self.destroy()
                raise AssertionError(f"no {what} within {PATIENCE} s:\n{self.text}")
            time.sleep(0.005)

    def until_step(self, step: int) -> None:
        """Wait until this many steps of the run are taken, by whichever process."""
        self.until(lambda: self.run.reached >= step, f"step {step}")

    def signal(self, number: int, *, group: bool = False) -> None:
        """Signal the process, or it and all its children."""
        self.mark()
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self, patience: float = PATIENCE) -> End:
        """Wait for the end."""
        try:
            status = self.process.wait(timeout=patience)
        except (subprocess.TimeoutExpired, TimeoutError):
            text = self.text
            self.destroy()
            raise AssertionError(f"still there after {patience} s:\n{text}") from None
        return End(status, self.text, time.monotonic() - self.began)

    def destroy(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid in self.run.processes():  # torchrun's have groups of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Run:
    """A run directory with its configuration, and a log of the samples that each step saw.

    Args:
        case: the task.
        images: what it learns from.
        folder: where run, configuration and logs are put.
        epochs: how long it is.
        sections: fields that differ from the case's.
    """

    def __init__(self, case: Case, images: Path, folder: Path, epochs: int, **sections: Any) -> None:
        self.case, self.images, self.folder, self.sections = case, images, folder, sections
        self.epochs, self.total = epochs, epochs * EPOCH
        self.path = folder / "run"
        self.victims: list[Victim] = []

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint directory, whole or not."""
        return sorted(int(path.name[5:]) for path in self.checkpoints.glob("step_*"))

    @property
    def last(self) -> Path:
        """The newest checkpoint directory."""
        return self.checkpoints / f"step_{self.steps[-1]}"

    @property
    def reached(self) -> int:
        """Steps taken so far, over all processes."""
        return max((line["step"] + 1 for line in self.sample_log()), default=0)

    def command(self, resume: str | None = "auto", **sections: Any) -> list[str]:
        """What a user would type, but for the program that things go wrong in."""
        settings = self.case.settings(self.images, {"schedule": {"epochs": self.epochs}})
        for changes in (self.sections, sections):
            for name, fields in changes.items():
                settings[name] = {**settings.get(name, {}), **fields}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"config-{len(self.victims)}.json"
        file.write_text(json.dumps(settings))
        words = [str(VICTIM), "train", self.case.recipe, str(file), "--out", str(self.path)]
        return words + (["--resume", resume] if resume is not None else [])

    def start(
        self,
        *,
        resume: str | None = "auto",
        fault: dict[str, Any] | None = None,
        launcher: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        warm: bool = False,
        **sections: Any,
    ) -> Victim:
        """Start a process; `fault` is what `harm.arm` is told, `launcher` stands for `python`.

        A `warm` one does not import anything first, which is most of a short run's time.
        """
        own = {
            "OMP_NUM_THREADS": "1",
            "MF_SAMPLES": str(self.folder / "samples"),
            "MF_FAULT": json.dumps(fault or {}),
            "MF_MARK": str(self.folder / "mark"),
        }
        command = [*(launcher or (sys.executable,)), *self.command(resume, **sections)]
        output = self.folder / f"output-{len(self.victims)}.txt"
        victim = Victim(command, {**os.environ, **own, **(environment or {})}, self, output, warm)
        self.victims.append(victim)
        return victim

    def go(self, patience: float = PATIENCE, **how: Any) -> End:
        """Start a process and wait for its end."""
        return self.start(**how).wait(patience)

    def finish(self, ranks: int = 1, **how: Any) -> End:
        """Go on to the end of the run, which must be a good one; more than one process need no launcher."""
        how.setdefault("warm", bool(self.victims) and not how.get("launcher"))
        victims = [self.start(environment=place, **how) for place in _places(ranks)]
        ends = [victim.wait() for victim in victims]
        for end in ends:
            assert end.status == 0, end.text
        return ends[0]

    def clean_up(self) -> None:
        """Leave no process behind."""
        for victim in self.victims:
            victim.destroy()

    def processes(self, kind: str = "") -> list[int]:
        """All that the run's starts left; of the kind `train`, those that train, not what launched them."""
        mine = f"MF_SAMPLES={self.folder / 'samples'}\0".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may have ended meanwhile; a zombie has no environment
                words = (entry / "cmdline").read_bytes().split(b"\0")
                trains = str(VICTIM).encode() in words[1:2] or words[1:3] == [b"-u", str(VICTIM).encode()]
                if mine in (entry / "environ").read_bytes() + b"\0" and (trains or kind != "train"):
                    found.append(int(entry.name))
        return found

    def sample_log(self, rank: int = 0) -> list[dict[str, Any]]:
        """What was trained on, step by step, with the steps that were done again."""
        file = Path(f"{self.folder / 'samples'}.{rank}")
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a killed process may cut one

    def samples(self, rank: int = 0) -> dict[int, set[str]]:
        """For each step the different batches that it was ever taken on: one, if all is well."""
        seen: dict[int, set[str]] = {}
        for line in self.sample_log(rank):
            seen.setdefault(line["step"], set()).add(json.dumps([line["indices"], line["pixels"]]))
        return seen

    def marks(self) -> list[dict[str, Any]]:
        """What the fault noted."""
        file = self.folder / "mark"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def leftovers(self) -> list[str]:
        """Hidden names that a finished run should not leave."""
        hidden = [path for path in self.path.rglob(".*") if path.name.startswith((".tmp", ".old"))]
        return [str(path.relative_to(self.path)) for path in hidden]

    def fingerprint(self) -> dict[str, str]:
        """The sha256 of all files of the last checkpoint and of the best: weights, moments, state."""
        return {
            **{f"last/{name}": digest for name, digest in fingerprint(self.last).items()},
            **{f"best/{name}": digest for name, digest in fingerprint(self.path / "best").items()},
        }


def fingerprint(directory: Path) -> dict[str, str]:
    """The sha256 of each file; a state without what may differ between two equal runs, the workers.

    Of tensors that lie in parts, which process wrote a part of which is left to chance: they are compared as
    they are read.
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


def _places(ranks: int) -> list[dict[str, str]]:
    """What torchrun would put into the environments of so many processes."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def torchrun(ranks: int = 2, *words: str) -> tuple[str, ...]:
    """The words that start so many processes on this machine."""
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return (*start, "--nproc-per-node", str(ranks), *words)
