"""Speed of an int8 network beside the optimized network that it was quantized from, each in its own process.

In one process OpenVINO's threads and PyTorch's contend for the cores, and small networks become several
times slower.
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
from typing import IO, Any

import torch
from torch import Tensor, nn

from metaformer.bench.timing import SAMPLE_SECONDS, Machine, Timing, agreed_ratio, measure, ratios
from metaformer.deploy.optimize import optimize
from metaformer.errors import ConfigError, MetaFormerError
from metaformer.process import keep_freed_memory
from metaformer.registry import import_files

FORMS = ("float32", "bfloat16", "int8")
WORKER = (sys.executable, "-m", "metaformer.bench.int8_speed")


@dataclass(frozen=True)
class Int8Speed:
    """Times of float32, bfloat16 (both optimized) and int8 in alternating rounds."""

    machine: Machine
    timings: dict[int, tuple[Timing, ...]]
    """By batch size, one for each of `FORMS`."""

    def text(self) -> str:
        """A table of milliseconds per image in the fastest round, and of int8's relative speed."""
        machine = self.machine
        lines = [f"{machine.device}, {machine.threads} threads; milliseconds an image, fastest round"]
        lines.append(
            "batch" + "".join(f"{form:>10}" for form in FORMS) + "  int8 is, in the median of rounds"
        )
        for batch, row in self.timings.items():
            milliseconds = "".join(f"{timing.minimum * 1000 / batch:>10.2f}" for timing in row)
            *others, int8 = row
            speeds = (_relative_speed(int8, form, other) for form, other in zip(FORMS, others, strict=False))
            lines.append(f"{batch:<5}{milliseconds}  {', '.join(speeds)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: seconds per batch, round by round."""
        rows = {
            str(batch): {form: timing.seconds for form, timing in zip(FORMS, row, strict=True)}
            for batch, row in self.timings.items()
        }
        return {"machine": asdict(self.machine), "seconds": rows}


def _relative_speed(int8: Timing, form: str, other: Timing) -> str:
    ratio = agreed_ratio(int8, other)
    if ratio is not None:
        return f"{ratio:.2f} × {form}"
    rounds = ratios(int8, other)
    return f"no ratio to {form}: rounds disagree, {min(rounds):.2f} to {max(rounds):.2f}, on a busy machine"


def measure_int8(
    source: str | Path,
    quantized: str | Path,
    batches: Sequence[int],
    rounds: int,
    *,
    checkpoint: str | Path | None = None,
    class_names: str | Path | None = None,
    file: str | Path | Sequence[str | Path] = (),
) -> Int8Speed:
    """Time both networks on the CPU, on random images, with PyTorch's number of threads in this process.

    Args:
        source: a classifier, with `checkpoint` and `class_names` as `load_model` takes them.
        quantized: directory of its int8 form.
        batches: batch sizes.
        rounds: measurements of each.
        checkpoint: weights for a model name.
        class_names: file of class names.
        file: Python file, or files, that register the classifier's own mixers.

    Raises:
        ConfigError: `quantized` is no int8 network.
        MetaFormerError: a network could not be loaded or run; all workers have ended.
    """
    from metaformer.inference.int8_model import Int8Network
    from metaformer.inference.model import load_model

    network = load_model(quantized).model
    if not isinstance(network, Int8Network):
        raise ConfigError(f"{quantized}: is not in int8")
    machine = Machine.here(
        torch.device("cpu")
    )  # compiles the C++ kernels, if need be, before the workers start
    original = {"source": source, "checkpoint": checkpoint, "class_names": class_names, "file": file}
    order = {"shape": (network.in_chans, *network.image_size), "threads": machine.threads}
    with ExitStack() as stack:
        workers = [stack.enter_context(started(form)) for form in FORMS]
        for worker in workers:
            own = {"source": quantized} if worker.form == "int8" else original
            worker.request({**order, **own, "form": worker.form})
        return Int8Speed(machine, {batch: _alternate(workers, batch, rounds) for batch in batches})


@dataclass(frozen=True)
class Worker:
    """A form of the network in a process of its own, which sleeps between requests."""

    form: str
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    """Its standard error."""

    def request(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line of JSON and wait for one.

        Raises:
            MetaFormerError: the worker failed or has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # the worker has ended, and its status says why
            self.process.stdin.write(json.dumps(values, default=str).encode() + b"\n")
        line = self.process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": self._ending()}
        if "error" in reply:
            raise MetaFormerError(f"speed of {self.form}: {reply['error']}")
        return reply

    def _ending(self) -> str:
        """Why the process ended."""
        status = self.process.wait()
        self.log.seek(0)
        lines = [
            line.strip() for line in self.log.read().decode(errors="replace").split("\n") if line.strip()
        ]
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"its process {how}; {lines[-1][:300] if lines else 'it printed nothing'}"


@contextmanager
def started(form: str) -> Iterator[Worker]:
    """A worker, killed at the end of the block; it ends by itself when this process does."""
    # Threads wait as in any program that imports torch, not as our command line sets it: they spin for some
    # milliseconds, which small networks gain from, then sleep. Intel's and LLVM's OpenMP would spin for 200,
    # all through another worker's turn.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["KMP_BLOCKTIME"] = "10"
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(WORKER, bufsize=0, stdin=pipe, stdout=pipe, stderr=log, env=environment) as process,
    ):
        try:
            yield Worker(form, process, log)
        finally:
            process.kill()


def _alternate(workers: Sequence[Worker], batch: int, rounds: int) -> tuple[Timing, ...]:
    """Run rounds in alternating order; one worker runs while the others sleep."""
    seconds: dict[str, list[float]] = {worker.form: [] for worker in workers}
    for turn in range(rounds + 1):
        for worker in workers if turn % 2 else reversed(workers):
            seconds[worker.form].append(worker.request({"batch": batch})["seconds"])
    return tuple(Timing(tuple(times[1:]), batch) for times in seconds.values())  # the first round compiled


def main() -> int:
    """Run a worker: load a network by the first line of standard input, then time a batch for each line."""
    keep_freed_memory()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to standard error
    warmups: dict[int, int] = {}
    try:
        order = json.loads(sys.stdin.readline())
        torch.set_num_threads(order["threads"])
        network = _load(order)
        print("{}", file=replies)
        for line in sys.stdin:
            batch = json.loads(line)["batch"]
            # as long as a measurement: our threads wake up, while those of the worker before fall asleep
            warmup = warmups.get(batch, 3)
            (timing,) = measure([network], [_images(order, batch)], rounds=1, warmup=warmup)
            warmups[batch] = math.ceil(SAMPLE_SECONDS / timing.minimum)
            print(json.dumps({"seconds": timing.minimum}), file=replies)
    except MetaFormerError as error:
        print(json.dumps({"error": str(error)}), file=replies)
        return 1
    return 0


def _load(order: Mapping[str, Any]) -> nn.Module:
    file = order.get("file") or ()
    import_files([file] if isinstance(file, str) else file)
    from metaformer.inference.model import load_model

    network = load_model(order["source"], order.get("checkpoint"), class_names=order.get("class_names")).model
    return network if order["form"] == "int8" else optimize(network, dtype=getattr(torch, order["form"]))


def _images(order: Mapping[str, Any], batch: int) -> Tensor:
    images = torch.randn(batch, *order["shape"])
    if order["form"] == "int8":
        return images
    return images.to(getattr(torch, order["form"]), memory_format=torch.channels_last)


if __name__ == "__main__":
    sys.exit(main())
