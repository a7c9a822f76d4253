"""Fault injection: the command line with one fault and a log of samples, by patching; run by the tests."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from metaformer.cli import main
from metaformer.color import Color
from metaformer.data.folder import ImageFolder
from metaformer.training.trainer import Trainer

Fault = dict[str, Any]


def run(args: list[str]) -> int:
    """Run a command of the command line with the fault that the environment describes."""
    log_samples(os.environ["MF_SAMPLES"])
    prepare(json.loads(os.environ.get("MF_FAULT", "{}")))
    return main(args)


def prepare(fault: Fault) -> None:
    """Prepare a fault: its `kind` with the fields of that kind; `rank` limits it to one process."""
    if fault and fault.get("rank", rank()) == rank() and _is_due(fault):
        KINDS[fault["kind"]](fault)


def log_samples(path: str) -> None:
    """Log the images and pixels of each step."""
    original = Trainer.take_step

    def take_step(self: Trainer, batches: Any, epoch: int) -> Any:
        step = self.step
        indices = [int(index) for batch in batches for index in batch.indices]
        pixels = hashlib.sha256()
        for batch in batches:
            for part in (batch.images, batch.labels):
                pixels.update(part.contiguous().numpy().tobytes())
        figures = original(self, batches, epoch)
        line = {"step": step, "indices": indices, "pixels": pixels.hexdigest()}
        with open(f"{path}.{rank()}", "a") as stream:
            stream.write(json.dumps(line) + "\n")
        return figures

    Trainer.take_step = take_step  # type: ignore[method-assign]


def rank() -> int:
    """Rank of this process."""
    return int(os.environ.get("RANK", "0"))


def record(**values: Any) -> None:
    """Let the test know that the fault happens now."""
    with open(os.environ["MF_FAULTS"], "a") as stream:
        stream.write(json.dumps({"pid": os.getpid(), "rank": rank(), **values}) + "\n")


def _is_due(fault: Fault) -> bool:
    """False for a fault that happens `once` and has happened."""
    return not (fault.get("once") and Path(os.environ["MF_FAULTS"]).exists())


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- points in saving a checkpoint ------------------------------------------------------------------


def _point(fault: Fault) -> None:
    """Kill this process at the `time`-th occurrence of a point in saving a checkpoint."""
    reached, wanted = 0, int(fault.get("time", 1))
    name = fault["point"]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal reached
        if event in EVENTS and POINTS[name](event, *map(_text, arguments[:2])):
            reached += 1
            if reached == wanted:
                record(point=name)
                _die()

    sys.addaudithook(hook)


def _text(argument: object) -> str:
    return os.fsdecode(argument) if isinstance(argument, (str, bytes, os.PathLike)) else ""


EVENTS = ("open", "os.rename", "shutil.rmtree", "os.mkdir", "os.remove", "os.rmdir")
POINTS: dict[str, Callable[[str, str, str], bool]] = {
    "before_write": lambda event, path, _: event == "os.mkdir" and Path(path).name.startswith(".tmp-step_"),
    "before_manifest": lambda event, path, mode: (
        event == "open" and path.endswith("manifest.json") and ".tmp-step_" in path and "w" in mode
    ),
    "before_rename": lambda event, _, to: event == "os.rename" and Path(to).name.startswith("step_"),
    "before_best": lambda event, _, to: event == "os.rename" and Path(to).name == ".old-best",
    "between_renames": lambda event, old, to: (
        event == "os.rename" and Path(to).name == "best" and Path(old).with_name(".old-best").exists()
    ),
    "before_retention": lambda event, old, _: event == "os.rename" and Path(old).name.startswith("step_"),
    "during_retention": lambda event, path, _: (
        event == "shutil.rmtree" and Path(path).name.startswith(".tmp-step_") and Path(path).exists()
    ),
}


# --- workers --------------------------------------------------------------------------------------


def _image(fault: Fault) -> None:
    """Fail while reading one image of a split, after `after` steps."""
    original = ImageFolder.image

    def image(self: ImageFolder, index: int, background: Color | None = None) -> Any:
        matches = self.folder.name == fault.get("split", "train") and fault.get("index", index) == index
        if matches and (get_worker_info() is not None or fault.get("anywhere")) and _started(fault):
            if not fault.get("quiet"):
                record(how=fault["how"], index=index)
            ENDS[fault["how"]](fault)
        return original(self, index, background)

    ImageFolder.image = image  # type: ignore[method-assign]


def _started(fault: Fault) -> bool:
    samples = Path(f"{os.environ['MF_SAMPLES']}.0")
    return not fault.get("after") or (
        samples.exists() and len(samples.read_text().splitlines()) >= fault["after"]
    )


def _raise(fault: Fault) -> None:
    raise RuntimeError("a bug in somebody's transform")


def _eat_memory(fault: Fault) -> None:
    import resource

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**29, mapped + 2**29))
    bytearray(2**30)  # as a large image takes


class _Stopping(dict[Any, Any]):
    """Shared-memory handles of a worker, which is stopped when one is asked for."""

    def pop(self, *key: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().pop(*key)


def _stop_when_asked(fault: Fault) -> None:
    """Stop this worker while it hands over its next batch."""
    from multiprocessing import resource_sharer

    sharer = resource_sharer._resource_sharer  # type: ignore[attr-defined]
    sharer._cache = _Stopping(sharer._cache)


ENDS: dict[str, Callable[[Fault], object]] = {
    "killed": lambda fault: _die(),
    "raises": _raise,
    "exits": lambda fault: os._exit(3),
    "hangs": lambda fault: time.sleep(10**6),
    "stopped": lambda fault: os.kill(os.getpid(), signal.SIGSTOP),
    "stopped late": _stop_when_asked,
    "memory": _eat_memory,
    "slow": lambda fault: time.sleep(fault["seconds"]),
}


# --- steps ----------------------------------------------------------------------------------------


def _step(fault: Fault) -> None:
    """Fail at the start of step `step`."""
    original = Trainer.take_step

    def take_step(self: Trainer, batches: Any, epoch: int) -> Any:
        if self.step == fault["step"] and _is_due(fault):
            record(how=fault["how"], step=self.step)
            STEP_ENDS[fault["how"]](fault)
        return original(self, batches, epoch)

    Trainer.take_step = take_step  # type: ignore[method-assign]


def _fill_disk_of_log(fault: Fault) -> None:
    """Let every further write to metrics.jsonl find the disk full."""
    for fd in Path("/proc/self/fd").iterdir():
        if os.path.realpath(fd).endswith("metrics.jsonl"):
            os.dup2(os.open("/dev/full", os.O_WRONLY), int(fd.name))


STEP_ENDS: dict[str, Callable[[Fault], object]] = {
    "killed": lambda fault: _die(),
    "raises": _raise,
    "exits": lambda fault: os._exit(3),
    "stopped": lambda fault: os.kill(os.getpid(), signal.SIGSTOP),
    "slow": lambda fault: time.sleep(fault["seconds"]),
    "waits": lambda fault: time.sleep(10**6),
    "log full": _fill_disk_of_log,
}


def _poison(fault: Fault) -> None:
    """Put NaN or infinity into `where` (input, loss, gradient, activation) at some `steps`."""
    original = Trainer.take_step

    def take_step(self: Trainer, batches: Any, epoch: int) -> Any:
        if self.step not in fault["steps"]:
            return original(self, batches, epoch)
        before = _digest(self)
        undo = POISONS[fault["where"]](self, batches, float(fault.get("value", "nan")))
        files = self.task.names(batches[0])
        try:
            return original(self, batches, epoch)
        finally:
            undo()
            record(step=self.step, before=before, after=_digest(self), files=files)

    Trainer.take_step = take_step  # type: ignore[method-assign]


def _digest(trainer: Trainer) -> str:
    """Hash of weights, buffers, optimizer and EMA."""
    tensors, _ = trainer.state_dicts()
    whole = hashlib.sha256()
    for group in sorted(tensors):
        for name, tensor in sorted(tensors[group].items()):
            whole.update(name.encode() + tensor.detach().contiguous().cpu().numpy().tobytes())
    return whole.hexdigest()


def _poison_input(trainer: Trainer, batches: Any, value: float) -> Callable[[], object]:
    batches[0].images[1, ..., 3, 5] = value
    return lambda: None


def _poison_loss(trainer: Trainer, batches: Any, value: float) -> Callable[[], object]:
    original = trainer.task.losses

    def losses(*arguments: Any) -> Any:
        return {name: loss * value for name, loss in original(*arguments).items()}

    trainer.task.losses = losses  # type: ignore[method-assign]
    return lambda: vars(trainer.task).pop("losses")


def _poison_gradient(trainer: Trainer, batches: Any, value: float) -> Callable[[], object]:
    parameter = list(trainer.task.model.parameters())[3]
    handle = parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    return handle.remove


def _poison_activation(trainer: Trainer, batches: Any, value: float) -> Callable[[], object]:
    """Output of a layer in the middle of the network."""
    norms = [m for name, m in trainer.task.model.named_modules() if name.endswith("norm2")]
    handle = norms[len(norms) // 2].register_forward_hook(lambda module, _, out: out * value)
    return handle.remove


POISONS: dict[str, Callable[[Trainer, Any, float], Callable[[], object]]] = {
    "input": _poison_input,
    "loss": _poison_loss,
    "gradient": _poison_gradient,
    "activation": _poison_activation,
}


# --- evaluation -----------------------------------------------------------------------------------


def _slow_evaluation(fault: Fault) -> None:
    """Let each batch of an evaluation take `seconds`, after `after` steps."""
    original = Trainer.forward

    def forward(self: Trainer, images: Any, *sizes: Any) -> Any:
        if self.step >= fault.get("after", 0):
            record(how="evaluating", step=self.step)
            time.sleep(fault["seconds"])
        return original(self, images, *sizes)

    Trainer.forward = forward  # type: ignore[method-assign]


KINDS: dict[str, Callable[[Fault], None]] = {
    "point": _point,
    "image": _image,
    "step": _step,
    "poison": _poison,
    "slow_evaluation": _slow_evaluation,
}


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
