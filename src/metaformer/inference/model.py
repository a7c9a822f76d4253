"""Load a network with its classes and preprocessing: a run, a checkpoint, or a model by name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.checkpoint.manifest import MANIFEST
from metaformer.checkpoint.run_dir import RunDir
from metaformer.data.class_lists import given_names
from metaformer.data.preprocess import Preprocess
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import ConfigError, WeightsError
from metaformer.inference.exported import is_exported, load_exported
from metaformer.models.build import check_pass, kind_of
from metaformer.serialize import errors_at
from metaformer.storage import as_path
from metaformer.tasks import TASKS
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.saved import saved_model, task_named
from metaformer.weights.saved import STATE, find_checkpoint

DEFAULT_TASK = next(iter(TASKS))
"""Task of a checkpoint that names none, such as one of timm."""


def load_model(
    source: str | Path,
    checkpoint: str | Path | None = None,
    *,
    class_names: str | Path | Sequence[str] | None = None,
    data: tuple[str | Path, str] | None = None,
    ema: bool = False,
    raw: bool = False,
) -> LoadedModel:
    """Load a run, a checkpoint directory, or a model by name.

    Args:
        source: a run directory (its best weights), a checkpoint directory, what `save_pretrained` wrote, or a
            model name: its published weights, or those of `checkpoint`.
        checkpoint: a weight file in any published format, for a model name.
        class_names: class names, or a file with one a line, where the source does not know them.
        data: root and split of a data set that gives the number of classes of a classifier by name.
        ema: of raw and averaged weights take the averaged ones; by default those that a run of this library
            was evaluated with, and the raw ones of other files.
        raw: take the raw ones.

    Raises:
        ConfigError: no such run, checkpoint or model.
        WeightsError: the weights cannot be read or do not fit.
        DataError: the file of class names cannot be read, or a name is empty or there twice.
    """
    names, _ = given_names(class_names)
    choice = ema_choice(ema, raw)
    path = as_path(source, "source")
    if is_exported(path):
        if checkpoint is not None or choice is not None:
            raise ConfigError(
                f"{source}: an exported file brings its own weights; leave checkpoint, ema and raw out"
            )
        model = load_exported(path)
    elif path.is_dir():
        if checkpoint is not None:
            raise ConfigError(
                f"checkpoint {checkpoint}: {source} brings its own weights; leave one of them out"
            )
        found = find_checkpoint(path)
        # either file makes it a checkpoint, if perhaps a damaged one
        ours = any((found / name).exists() for name in (MANIFEST, STATE))
        model = saved_model(read_checkpoint(found), choice) if ours else _published(path, choice)
    else:
        model = _named(str(source), checkpoint, len(names) if names else None, data, choice)
    if (size := input_size(model.preprocess)) is not None:
        check_pass(model.model, size)
    if names is None:
        return model
    if len(names) != model.num_classes:
        raise ConfigError(f"class_names: {len(names)} names, but {source} has {model.num_classes} classes")
    if model.classes not in (None, names) and sorted(model.classes or ()) == sorted(names):
        raise ConfigError(f"class_names: those of {source} in another order; leave them out, it knows them")
    return replace(model, classes=names)


def input_size(preprocess: Any) -> tuple[int, int] | None:
    """Height and width of the network's input; None where they are those of the image."""
    if isinstance(preprocess, Preprocess):
        return preprocess.image_size, preprocess.image_size
    if isinstance(preprocess, DensePreprocess) and preprocess.long_side and preprocess.short_side:
        return preprocess.short_side, preprocess.long_side
    return None


def ema_choice(ema: bool, raw: bool) -> bool | None:
    """The weights that two flags choose; None where neither is set.

    Raises:
        ConfigError: both are.
    """
    if ema and raw:
        raise ConfigError("ema and raw exclude each other: choose one")
    return ema if ema or raw else None


def _published(directory: Path, ema: bool | None) -> LoadedModel:
    """The network of a directory as `save_pretrained` writes it."""
    from metaformer.weights.hub import from_pretrained

    if RunDir(directory).started:
        raise WeightsError(f"{directory}: this run has no checkpoint yet")
    config = directory / "config.json"
    if not config.exists():
        raise WeightsError(
            f"{directory}: neither a run, a checkpoint, nor a model that save_pretrained wrote"
        )
    model = from_pretrained(directory, ema=ema)
    with errors_at(config):
        return describe_network(model, directory.name, config)


def describe_network(model: Any, name: str | None = None, where: object = "network") -> LoadedModel:
    """A network of this library with what its `pretrained_cfg` says of it.

    Args:
        model: a classifier, segmenter or detector.
        name: its name; the architecture's by default.
        where: the file that names its task, for errors.

    Raises:
        ConfigError: another module, or a backbone without a head.
    """
    config, cfg = getattr(model, "config", None), getattr(model, "pretrained_cfg", None)
    if config is None or cfg is None:
        raise ConfigError(f"{type(model).__name__}: no classifier, segmenter or detector of this library")
    kind = kind_of(config)
    spec = task_named(cfg.get("task", DEFAULT_TASK) if kind is None else kind.task, where)
    return spec.describe(spec, model, name or str(cfg.get("architecture", type(model).__name__)))


def _named(
    name: str,
    checkpoint: str | Path | None,
    num_classes: int | None,
    data: tuple[str | Path, str] | None,
    ema: bool | None,
) -> LoadedModel:
    """A network by its published name."""
    for spec in TASKS.values():
        model = spec.create(name, checkpoint, num_classes, data, ema) if spec.create else None
        if model is not None:
            return spec.describe(spec, model, name)
    if "/" in name or Path(name).exists():
        hint = ""
        if Path(name).is_file():
            hint = f"; a file of weights goes beside a model's name: MODEL --checkpoint {name}"
        raise ConfigError(f"{name}: neither a run or checkpoint directory nor a model name{hint}")
    from metaformer.factory import create_model

    model = create_model(name)  # raises, with the nearest names
    raise AssertionError(f"{name} is known to create_model and to no task")
