"""Time of an int8 network beside the optimized network that it was made of, each in a process of its own.

In one process OpenVINO's threads and PyTorch's stand in each other's way, and small networks wait for that.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch
from torch import Tensor, nn

from metaformer.bench.timing import SAMPLE_SECONDS, Machine, Timing, measure, ratios
from metaformer.deploy.optimize import optimize
from metaformer.errors import ConfigError, MetaFormerError
from metaformer.inference.int8_model import Int8Network
from metaformer.inference.model import load_model
from metaformer.process import keep_freed_memory
from metaformer.registry import import_file

FORMS = ("float32", "bfloat16", "int8")
CHILD = (sys.executable, "-m", "metaformer.bench.int8_speed")


@dataclass(frozen=True)
class Int8Speed:
    """Rounds in which float32, bfloat16 (both optimized) and int8 came in turn."""

    machine: Machine
    timings: dict[int, tuple[Timing, ...]]
    """By images at once, one for each of `FORMS`."""

    def text(self) -> str:
        """Make a table: milliseconds an image in the quickest round, and how many times as fast int8 is."""
        lines = [
            f"{self.machine.device}, {self.machine.threads} threads; milliseconds an image, quickest round"
        ]
        lines.append(
            "batch" + "".join(f"{form:>10}" for form in FORMS) + "  int8 is, in the median of rounds"
        )
        for batch, row in self.timings.items():
            figures = "".join(f"{timing.minimum * 1000 / batch:>10.2f}" for timing in row)
            *others, small = row
            times = (
                f"{median(ratios(small, other)):.2f} × {form}"
                for form, other in zip(FORMS, others, strict=False)
            )
            lines.append(f"{batch:<5}{figures}  {', '.join(times)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: seconds a batch, round by round."""
        rows = {
            str(batch): {form: timing.seconds for form, timing in zip(FORMS, row, strict=True)}
            for batch, row in self.timings.items()
        }
        return {"machine": asdict(self.machine), "seconds": rows}


def measure_int8(
    source: str | Path,
    small: str | Path,
    batches: Sequence[int],
    rounds: int,
    *,
    checkpoint: str | Path | None = None,
    class_names: str | Path | None = None,
    file: str | Path | None = None,
) -> Int8Speed:
    """Time both on the CPU with as many threads as PyTorch has here, on random images of the int8 one's size.

    Args:
        source: a classifier, with `checkpoint` and `class_names` as `load_model` takes them.
        small: directory of the same in int8.
        batches: images at once.
        rounds: measurements of each.
        checkpoint: weights for a model name.
        class_names: file of class names.
        file: Python file that registers the classifier's own mixers.

    Raises:
        ConfigError: `small` is not in int8.
        MetaFormerError: a network could not be made ready or run; the other processes have ended too.
    """
    network = load_model(small).model
    if not isinstance(network, Int8Network):
        raise ConfigError(f"{small}: is not in int8")
    machine = Machine.here(torch.device("cpu"))  # it compiles the C++ kernels, if need be, before all begin
    original = {"source": source, "checkpoint": checkpoint, "class_names": class_names, "file": file}
    order = {"shape": (network.in_chans, *network.image_size), "threads": machine.threads}
    with ExitStack() as stack:
        contenders = [stack.enter_context(started(form)) for form in FORMS]
        for contender in contenders:
            its = {"source": small} if contender.form == "int8" else original
            contender.ask({**order, **its, "form": contender.form})
        return Int8Speed(machine, {batch: _in_turn(contenders, batch, rounds) for batch in batches})


@dataclass(frozen=True)
class Contender:
    """A form of the network in a process of its own, which waits for a line when it is not its turn."""

    form: str
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    """What it prints."""

    def ask(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line and wait for the answer.

        Raises:
            MetaFormerError: it could not do it, or has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and its status says why
            self.process.stdin.write(json.dumps(values, default=str).encode() + b"\n")
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._end()}
        if "error" in answer:
            raise MetaFormerError(f"speed of {self.form}: {answer['error']}")
        return answer

    def _end(self) -> str:
        """Why the process is no more."""
        status = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        what = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"its process {what}; {last[:300]}"


@contextmanager
def started(form: str) -> Iterator[Contender]:
    """A contender's process, ended with the block; it ends by itself when this process does."""
    # Threads wait for each other as in any program that imports torch, not as our command line has them wait:
    # they spin for some milliseconds, which small networks gain from, then sleep. Intel's and LLVM's OpenMP
    # would spin for 200, all through the next one's turn.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["KMP_BLOCKTIME"] = "10"
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(CHILD, bufsize=0, stdin=pipe, stdout=pipe, stderr=log, env=environment) as process,
    ):
        try:
            yield Contender(form, process, log)
        finally:
            process.kill()


def _in_turn(contenders: Sequence[Contender], batch: int, rounds: int) -> tuple[Timing, ...]:
    """Round after round, the order alternating; one runs while the others wait."""
    seconds: dict[str, list[float]] = {contender.form: [] for contender in contenders}
    for turn in range(rounds + 1):
        for contender in contenders if turn % 2 else reversed(contenders):
            seconds[contender.form].append(contender.ask({"batch": batch})["seconds"])
    return tuple(Timing(tuple(times[1:]), batch) for times in seconds.values())  # the first was to compile


def serve() -> int:
    """Answer on standard output, line by line: to the order when ready, then to a batch with its seconds."""
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes where errors go
    warmups: dict[int, int] = {}
    try:
        order = json.loads(sys.stdin.readline())
        torch.set_num_threads(order["threads"])
        network = _network(order)
        print("{}", file=answers)
        for line in sys.stdin:
            batch = json.loads(line)["batch"]
            # As long as a measurement: it wakes our threads, while those of the contender before fall asleep.
            warmup = warmups.get(batch, 3)
            (timing,) = measure([network], [_images(order, batch)], rounds=1, warmup=warmup)
            warmups[batch] = math.ceil(SAMPLE_SECONDS / timing.minimum)
            print(json.dumps({"seconds": timing.minimum}), file=answers)
    except MetaFormerError as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return 1
    return 0


def _network(order: Mapping[str, Any]) -> nn.Module:
    if order.get("file"):
        import_file(order["file"])
    network = load_model(order["source"], order.get("checkpoint"), class_names=order.get("class_names")).model
    return network if order["form"] == "int8" else optimize(network, dtype=getattr(torch, order["form"]))


def _images(order: Mapping[str, Any], batch: int) -> Tensor:
    images = torch.randn(batch, *order["shape"])
    if order["form"] == "int8":
        return images
    return images.to(getattr(torch, order["form"]), memory_format=torch.channels_last)


if __name__ == "__main__":
    sys.exit(serve())
