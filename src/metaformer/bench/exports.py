"""Forms of a network side by side: PyTorch, optimized, and exported files, each timed in its own process.

In one process the threads of other programs and PyTorch's contend for the cores, and small networks become
several times slower.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from metaformer.bench.timing import SAMPLE_SECONDS, Machine, Timing, agreed_ratio, measure, ratios
from metaformer.deploy.optimize import optimize
from metaformer.errors import ConfigError, MetaFormerError
from metaformer.process import keep_freed_memory
from metaformer.registry import import_files
from metaformer.report.readable import Readable

if TYPE_CHECKING:
    from metaformer.tasks.base import LoadedModel

WORKER = (sys.executable, "-m", "metaformer.bench.exports")
BATCHES: Final = (1, 8)
"""Images at once that are timed."""
SIDE: Final = 224
"""Height and width of the images where the network takes any."""
TORCH, OPTIMIZED, BFLOAT16 = "torch", "optimized", "bfloat16"
NETWORKS: Final[Mapping[str, tuple[bool, torch.dtype]]] = {
    TORCH: (False, torch.float32),
    OPTIMIZED: (True, torch.float32),
    BFLOAT16: (True, torch.bfloat16),
}
"""Forms of the network itself: whether it is optimized, and its type."""
FILES: Final = {(".onnx", "float32"): "ONNX", (".xml", "float32"): "OpenVINO", (".xml", "int8"): "int8"}
"""Forms in files that are made where they are not given, by suffix and type."""
Step = Callable[[str], object]


@dataclass(frozen=True, repr=False)
class Speed(Readable):
    """Times of several forms in alternating rounds."""

    machine: Machine
    timings: Mapping[str, Mapping[int, Timing]]
    """By form and batch size."""

    def text(self) -> str:
        """A table of milliseconds per image in the fastest round, and of the last form's relative speed."""
        *others, last = self.timings
        lines = [self.conditions(), "batch" + "".join(f"{form:>10}" for form in self.timings)]
        lines[-1] += f"  {last} is, in the median of rounds"
        for batch, timing in self.timings[last].items():
            row = "".join(f"{self.milliseconds(form, batch):>10.2f}" for form in self.timings)
            speeds = (_relative_speed(timing, form, self.timings[form][batch]) for form in others)
            lines.append(f"{batch:<5}{row}  {', '.join(speeds)}")
        return "\n".join(lines)

    def conditions(self) -> str:
        """The machine, and what the figures are."""
        return f"{self.machine.device}, {self.machine.threads} threads; milliseconds an image, fastest round"

    def milliseconds(self, form: str, batch: int) -> float:
        """Those of an image in the fastest round."""
        return self.timings[form][batch].minimum * 1000 / batch

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: seconds per batch, round by round."""
        batches = next(iter(self.timings.values()))
        rows = {
            str(batch): {form: timings[batch].seconds for form, timings in self.timings.items()}
            for batch in batches
        }
        return {"machine": asdict(self.machine), "seconds": rows}


def _relative_speed(last: Timing, form: str, other: Timing) -> str:
    ratio = agreed_ratio(last, other)
    if ratio is not None:
        return f"{ratio:.2f} × {form}"
    rounds = ratios(last, other)
    return f"no ratio to {form}: rounds disagree, {min(rounds):.2f} to {max(rounds):.2f}, on a busy machine"


def measure_forms(
    source: str | Path,
    forms: Mapping[str, str | Path | None],
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = 10,
    size: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    file: str | Path | Sequence[str | Path] = (),
) -> Speed:
    """Time forms of a network on the CPU, on random images, with PyTorch's number of threads in this process.

    Args:
        source: the network, with `checkpoint` and `class_names` as `load_model` takes them.
        forms: their names: those of `NETWORKS`, or any with an exported file.
        batches: batch sizes.
        rounds: measurements of each.
        size: height and width of the images; the network's own by default.
        checkpoint: weights for a model name.
        class_names: class names, or a file of them.
        file: Python file, or files, that register the network's own mixers.

    Raises:
        MetaFormerError: a network could not be loaded or run; all workers have ended.
    """
    machine = Machine.here(
        torch.device("cpu")
    )  # compiles the C++ kernels, if need be, before the workers start
    names = class_names if class_names is None or isinstance(class_names, str | Path) else list(class_names)
    network = {"source": source, "checkpoint": checkpoint, "class_names": names, "file": file}
    order = {**network, "shape": (3, *(size or _usual_size(forms))), "threads": machine.threads}
    with ExitStack() as stack:
        workers = [stack.enter_context(started(form)) for form in forms]
        for worker in workers:
            worker.request({**order, "form": worker.form, "exported": forms[worker.form]})
        rows = {batch: _alternate(workers, batch, rounds) for batch in batches}
    return Speed(
        machine,
        {form: {batch: row[i] for batch, row in rows.items()} for i, form in enumerate(forms)},
    )


def _usual_size(forms: Mapping[str, str | Path | None]) -> tuple[int, int]:
    """Height and width that all forms take."""
    from metaformer.inference.exported import load_exported
    from metaformer.inference.model import input_size

    for file in forms.values():
        if file is None:
            continue
        exported = load_exported(file)
        card: Any = exported.model.card
        size = card.image_size or input_size(exported.preprocess)
        if size is not None:
            return tuple(size)
    return SIDE, SIDE


@dataclass(frozen=True)
class Worker:
    """A form of a network in a process of its own, which sleeps between requests."""

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
        prepared = _load(order)
        print("{}", file=replies)
        for line in sys.stdin:
            batch = json.loads(line)["batch"]
            # as long as a measurement: our threads wake up, while those of the worker before fall asleep
            warmup = warmups.get(batch, 3)
            images = torch.randn(batch, *order["shape"])
            (timing,) = measure(*prepared(images), rounds=1, warmup=warmup)
            warmups[batch] = math.ceil(SAMPLE_SECONDS / timing.minimum)
            print(json.dumps({"seconds": timing.minimum}), file=replies)
    except MetaFormerError as error:
        print(json.dumps({"error": str(error)}), file=replies)
        return 1
    return 0


def _load(order: Mapping[str, Any]) -> Callable[[Tensor], tuple[list[Any], list[Tensor]]]:
    """A function that gives for normalized images what is timed, and its input, as `measure` takes them."""
    file = order.get("file") or ()
    import_files([file] if isinstance(file, str) else file)
    if order["exported"]:
        from metaformer.inference.exported import load_exported

        exported = load_exported(order["exported"])
        return lambda images: ([_prepared(exported, images)], [images])
    from metaformer.inference.model import load_model

    optimized, dtype = NETWORKS[order["form"]]
    model = load_model(order["source"], order.get("checkpoint"), class_names=order.get("class_names"))
    model = model.to(torch.device("cpu"), "none")
    if optimized:
        model = replace(model, model=optimize(model.model, dtype=dtype))
    return lambda images: ([model.forward], [images.to(dtype, memory_format=torch.channels_last)])


class _Seen:
    """What a graph is given."""

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.inputs = runtime, dict[str, Any]()

    def run(self, inputs: dict[str, Any]) -> Any:
        self.inputs = inputs
        return self.runtime.run(inputs)


def _prepared(exported: "LoadedModel", images: Tensor) -> Callable[[Tensor], object]:
    """The graph of a file on inputs that are ready, as a program without PyTorch has them."""
    network: Any = exported.model
    if network.card.input == "uint8":
        images = images * 64 + 128
    if network.card.batch not in (None, len(images)):
        return lambda _: exported.forward(images)
    runtime, seen = network.runtime, _Seen(network.runtime)
    network.runtime = seen
    exported.forward(images)
    network.runtime = runtime
    return lambda _: runtime.run(seen.inputs)


@dataclass(frozen=True, repr=False)
class ExportsReport(Readable):
    """Forms of a network: size, speed, and the task's metric."""

    name: str
    speed: Speed
    bytes: Mapping[str, int]
    """Size of each form's weights, of a file with the graph."""
    metric: str | None
    """Name of the task's metric; None where it was left out."""
    metrics: Mapping[str, float]

    def text(self) -> str:
        """A table with a row for each form."""
        batches = next(iter(self.speed.timings.values()))
        head = [self.name, "MB", *(f"ms, {batch} at once" for batch in batches)]
        rows = [head if self.metric is None else [*head, self.metric]]
        for form in self.speed.timings:
            row = [form, f"{self.bytes[form] / 1e6:.2f}"]
            row += [f"{self.speed.milliseconds(form, batch):.2f}" for batch in batches]
            rows.append(row if self.metric is None else [*row, f"{self.metrics[form]:.4f}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join([*lines, "", self.speed.conditions()])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {"name": self.name, "bytes": dict(self.bytes), "metric": self.metric}
        return {**values, "metrics": dict(self.metrics), **self.speed.to_dict()}


def bench_exports(
    source: str | Path,
    data: str | Path | None = None,
    *,
    files: Sequence[str | Path] = (),
    checkpoint: str | Path | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    split: str | None = None,
    size: int | None = None,
    images: int = 300,
    rounds: int = 10,
    batch_size: int = 32,
    workers: int = 0,
    metric: bool = True,
    file: str | Path | Sequence[str | Path] = (),
    on_step: Step = lambda step: None,
) -> ExportsReport:
    """Compare a network in PyTorch, optimized, as ONNX, as OpenVINO's and in int8: size, speed, metric.

    PyTorch's forms are timed as `evaluate` runs them, files on inputs that are ready: those of segmenters
    also resize and choose classes, which PyTorch's forms leave to their caller.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        data: data set directory; the run's own by default.
        files: exported files of this network; a form of which none is given is made in a temporary folder.
        checkpoint: weights for a model name; the published ones by default.
        class_names: class names, or a file with one a line, where nothing else gives them.
        split: split to evaluate on; the run's own, or `val`, by default.
        size: height and width of the images that are timed (default: the network's own, or 224).
        images: number of calibration images of int8.
        rounds: measurements of each form.
        batch_size: batch size of the evaluation; one for tasks whose images have different sizes.
        workers: processes that read images.
        metric: evaluate each form on the data.
        file: Python file, or files, that register the network's own mixers; they have been run here.
        on_step: called with a line of text before each step.

    Raises:
        ConfigError: `rounds` below 1, or a file of another task or network.
        MetaFormerError: a form could not be made, loaded, evaluated or run.
    """
    from metaformer.deploy.export.write import export
    from metaformer.deploy.int8.quantize import quantize
    from metaformer.deploy.int8.report import weight_bytes
    from metaformer.inference.evaluate import SplitEvaluation
    from metaformer.inference.exported import INT8, exported_files, load_exported
    from metaformer.inference.model import load_model

    if rounds < 1:
        raise ConfigError(f"rounds: {rounds} must be at least 1")
    weights: dict[str, Any] = {"checkpoint": checkpoint, "class_names": class_names}
    model = load_model(source, **weights).to(torch.device("cpu"), "none")
    validation = SplitEvaluation(data, split, batch_size, workers)
    metrics, name = dict[str, float](), None
    if metric:
        with validation.opened(model):
            pass  # missing data are an error before the work begins
    own: dict[str, Any] = {"split": split, "batch_size": batch_size, "workers": workers}
    forms: dict[str, str | Path | None] = {TORCH: None, OPTIMIZED: None, **_named_files(model, files)}
    loaded = {TORCH: model, OPTIMIZED: replace(model, model=optimize(model.model))}
    with tempfile.TemporaryDirectory(prefix="metaformer-bench-") as folder:
        for (suffix, dtype), form in FILES.items():
            if form in forms:
                continue
            on_step(f"making the {form} form")
            forms[form] = made = Path(folder, f"{dtype}-{suffix[1:]}{suffix}")
            if dtype == INT8:
                quantize(source, data, made, images=images, **weights, **own)
            else:
                export(source, made, **weights)
        for form, path in forms.items():
            if path is not None:
                found = load_exported(path)
                loaded[form] = replace(found, config=model.config, held_out=model.held_out)
            if metric:
                on_step(f"evaluating the {form} form")
                name, metrics[form] = next(iter(validation.run(loaded[form]).metrics.items()))
        sizes = {
            form: weight_bytes(model.model)
            if path is None
            else sum(one.stat().st_size for one in exported_files(Path(path)))
            for form, path in forms.items()
        }
        loaded.clear()
        on_step("timing")
        shape = None if size is None else (size, size)
        speed = measure_forms(source, forms, rounds=rounds, size=shape, file=file, **weights)
    return ExportsReport(model.name, speed, sizes, name, metrics)


def _named_files(model: "LoadedModel", files: Sequence[str | Path]) -> dict[str, str | Path]:
    """Exported files by the names of their forms; a second one of a form goes by its own name.

    Raises:
        ConfigError: a file of another task, network or number of classes.
    """
    from metaformer.inference.exported import is_exported, load_exported

    named: dict[str, str | Path] = {}
    for file in files:
        if not is_exported(file):
            raise ConfigError(f"{file}: is no exported file: its name ends in .onnx or .xml")
        found = load_exported(file)
        network: Any = found.model
        if (found.task, found.num_classes) != (model.task, model.num_classes):
            raise ConfigError(
                f"{file}: for {found.spec.title} with {found.num_classes} classes; {model.name} is for "
                f"{model.spec.title} with {model.num_classes}"
            )
        form = FILES.get((Path(file).suffix.lower(), network.card.dtype), Path(file).name)
        named[Path(file).name if form in named else form] = file
    return named


if __name__ == "__main__":
    sys.exit(main())
