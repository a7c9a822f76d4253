"""Evaluate a trained network on a data set."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from metaformer.distributed import join
from metaformer.errors import ConfigError, UnknownName
from metaformer.inference.model import load_model
from metaformer.models.base import PRECISIONS
from metaformer.tasks import TASKS
from metaformer.tasks.base import Evaluation, LoadedModel, TaskSpec
from metaformer.tasks.report import Report


@dataclass(frozen=True)
class SplitEvaluation:
    """A split, and how networks are evaluated on it."""

    data: str | Path | None = None
    """Folder of the data set; None for the run's own."""
    split: str | None = None
    """None for the run's own, or `val`."""
    batch_size: int = 32
    workers: int = 0

    @contextmanager
    def opened(self, model: LoadedModel) -> Iterator[Evaluation]:
        """The task's evaluation of a network.

        Raises:
            ConfigError: no data, or another number of classes than the network has.
            DataError: the data set is not laid out as it should be.
        """
        options = {"batch_size": self.batch_size, "workers": self.workers}
        evaluation = model.spec.evaluation(model, self.data, self.split, **options)
        try:
            yield evaluation
        finally:
            evaluation.close()

    def run(self, model: LoadedModel) -> Report:
        """Evaluate a network; errors as of `opened`."""
        with self.opened(model) as evaluation:
            return evaluation.run(model.forward)


COMMON = ("batch_size", "workers", "progress")
"""Keyword arguments that every task's builder takes; the others are options of the task."""


def evaluate(
    source: str | Path,
    data: str | Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    split: str | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    ema: bool = False,
    raw: bool = False,
    batch_size: int = 128,
    workers: int = 4,
    device: str = "auto",
    amp: Literal["none", "bf16", "fp16"] = "none",
    **options: Any,
) -> Report:
    """Evaluate a run, a checkpoint or a published model on a data set; under torchrun, together.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        data: folder that holds the data set (default: the run's own).
        checkpoint: weights for a model name, in any published format (default: its published ones).
        split: sub-folder or split to evaluate on (default: the run's own, or val).
        class_names: the model's class names, or a file with one a line, where nothing else gives them.
        ema: of raw and averaged weights, take the averaged ones.
        raw: of raw and averaged weights, take the raw ones.
        batch_size: images at once, per device; one for tasks whose images have different sizes.
        workers: processes that read images, per device.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: mixed precision.
        options: options of the task, as `metaformer evaluate --help` lists them, such as `crops`,
            `real_labels` and `class_subset`, or `scales`, `flip`, `sliding_window` and `layout`.

    Returns:
        The task's report, such as `ClassificationReport`.

    Raises:
        ConfigError: a value out of range, an option that the task does not take, classes that do not match.
        DataError: the data set is not laid out as it should be, or an image cannot be read.
        WeightsError: the weights cannot be read or do not fit.
    """
    check_amp(amp)
    world = join(device)
    folders = None if data is None else (data, split or "val")
    model = load_model(source, checkpoint, class_names=class_names, data=folders, ema=ema, raw=raw)
    check_options("evaluation", model, options)
    model = model.to(world.device, amp)
    common: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    evaluation = model.spec.evaluation(model, data, split, **common, **options)
    try:
        return evaluation.run(model.forward)
    finally:
        evaluation.close()


def check_amp(amp: str) -> None:
    """Check the name of a precision.

    Raises:
        ConfigError: it is none of none, bf16, fp16.
    """
    if amp not in PRECISIONS:
        raise ConfigError(f"amp: {amp!r} is none of {', '.join(PRECISIONS)}")


def task_options(field: str) -> dict[str, list[TaskSpec]]:
    """The tasks that take each option in a field of `TaskSpec`, such as `evaluation`.

    Options are keyword-only arguments that not every task has.
    """
    takers: dict[str, list[TaskSpec]] = {}
    for spec in TASKS.values():
        for parameter in inspect.signature(getattr(spec, field)).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in COMMON:
                takers.setdefault(parameter.name, []).append(spec)
    return takers


def check_options(field: str, model: LoadedModel, options: dict[str, Any]) -> None:
    """Refuse options, and choices of them, that the model's task does not take.

    Args:
        field: the field of `TaskSpec` that takes the options, such as `evaluation`.
        model: whose task is asked.
        options: as given.

    Raises:
        ConfigError: an option of other tasks.
        UnknownName: an option of none, or a value that is not among its choices.
    """
    takers, function = task_options(field), getattr(model.spec, field)
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for name, value in options.items():
        tasks = takers.get(name, [])
        if model.spec in tasks:
            kinds = (hints[name], *get_args(hints[name]))  # Literal[…], or Literal[…] | None
            choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
            if choices and value is not None and value not in choices:
                raise UnknownName(name, value, choices)
            continue
        if not tasks:
            raise UnknownName("option", name, [own for own in takers if model.spec in takers[own]])
        titles = " and ".join(spec.title for spec in tasks)
        raise ConfigError(f"{name}: an option of {titles}; {model.name} is for {model.spec.title}")
