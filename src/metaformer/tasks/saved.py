"""Networks of checkpoints, with their classes and preprocessing."""

from dataclasses import replace
from typing import Any

from torch import nn

from metaformer.checkpoint.checkpoint import Checkpoint
from metaformer.config import TrainConfig
from metaformer.errors import WeightsError
from metaformer.models.build import on_meta
from metaformer.serialize import Text, decode, errors_at, from_dict, shown
from metaformer.tasks import TASKS
from metaformer.tasks.base import LoadedModel, TaskSpec
from metaformer.weights.saved import STATE, weight_file


def saved_model(saved: Checkpoint, ema: bool | None = None) -> LoadedModel:
    """The network of a checkpoint directory.

    Args:
        saved: the checkpoint.
        ema: take the averaged weights, or the raw ones; None for those that it was evaluated with.

    Raises:
        WeightsError: an unknown task, or weights that are not there or do not fit.
    """
    card, file = saved.state["card"], saved.directory / STATE
    with errors_at(file):
        spec = task_named(card["task"], file)
        config = from_dict(TrainConfig, saved.state["config"], "config")
        if ema:
            weight_file(saved.directory, ema)  # says so where there are no averaged weights
        average = saved.has("ema") and (config.ema.evaluate if ema is None else ema)
        store = "ema" if average else "model"

        def build() -> nn.Module:
            return spec.load(spec, card).model

        if (empty := on_meta(build)) is not None:
            saved.check(empty, store)  # before there is memory for it
        held_out = decode(Text | None, saved.state.get("held_out"), "held_out")
        model = replace(spec.load(spec, card), config=config, held_out=held_out)
    saved.load(model.model, store)
    return model


def task_named(name: Any, where: object) -> TaskSpec:
    """The task that a file names.

    Raises:
        WeightsError: there is none of this name.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise WeightsError(f"{where}: task {shown(name)} is not known to this version")
    return TASKS[name]
