"""What a run says at its start: network, weights, data, machine."""

from typing import Any

import torch

from metaformer.config import TrainConfig
from metaformer.distributed import World
from metaformer.ops.describe import describe
from metaformer.tasks.base import Task
from metaformer.training.freeze import first_stages

FRESH_SHOWN = 4
"""Parts without loaded weights in a line, at most."""


def describe_run(
    config: TrainConfig, task: Task, steps: int, world: World, resumed: bool = False
) -> list[str]:
    """Lines for the log and the terminal.

    Args:
        config: the run.
        task: its network and data.
        steps: optimizer steps of an epoch.
        world: its devices.
        resumed: it goes on from a checkpoint.
    """
    data = config.data
    val = data.val if data.val_fraction is None else f"held out of {data.train}"
    return [
        _network(task),
        "weights: those of the checkpoint" if resumed else _weights(task),
        *([] if resumed else _frozen_random(config, task)),
        f"training: {_images(task, data.train, task.train.source)}, {steps} steps an epoch",
        f"validation: {_images(task, val, task.evaluation.loader.dataset.source)}",
        _machine(config, world),
    ]


def _network(task: Task) -> str:
    parameters = list(task.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    some = "" if trained == total else f", {trained:,} of them trained"
    return f"network: {task.name}, {total:,} parameters{some}, {len(task.classes)} classes"


def _weights(task: Task) -> str:
    report: Any = getattr(task.model, "load_report", None)
    if report is None:
        return "weights: all random"
    begun = {name.partition(".")[0] for name in report.loaded}
    names = [name.split(".") for name in (*report.fresh, *report.missing)]
    parts = list(dict.fromkeys(".".join(name[: 2 if name[0] in begun else 1]) for name in names))
    more = f" and {len(parts) - FRESH_SHOWN} more" if parts[FRESH_SHOWN:] else ""
    fresh = f"; fresh: {', '.join(parts[:FRESH_SHOWN])}{more}" if parts else ""
    return f"weights: {report.source}, {report.fraction:.1%} of the network's values{fresh}"


def _frozen_random(config: TrainConfig, task: Task) -> list[str]:
    """A warning where frozen stages have random weights, which then never get better."""
    report: Any = getattr(task.model, "load_report", None)
    loaded = set() if report is None else set(report.loaded)
    parts = {module for part in first_stages(task.model, config.model.freeze) for module in part.modules()}
    frozen = (
        f"{path}.{name}"
        for path, module in task.model.named_modules()
        if module in parts
        for name, _ in module.named_parameters(recurse=False)
    )
    if loaded.issuperset(frozen):
        return []
    return [
        f"warning: model.freeze {config.model.freeze} keeps random weights as they are: start from "
        "model.pretrained or model.checkpoint, or leave model.freeze out"
    ]


def _images(task: Task, split: str, source: Any) -> str:
    text = f"{split}, {len(source)} images"
    counts = dict(zip(source.classes, task.count_classes(source), strict=False))
    if not counts:
        return text
    least, most = (choose(counts, key=lambda name: counts[name]) for choose in (min, max))
    total = max(1, sum(counts.values()))
    shown = {name: task.count_format.format(count, 100 * count / total) for name, count in counts.items()}
    if counts[least] == counts[most]:
        return f"{text}, {shown[least]} {task.counted}"
    return f"{text}, {shown[least]} ({least}) to {shown[most]} ({most}) {task.counted}"


def _machine(config: TrainConfig, world: World) -> str:
    device = world.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    threads = torch.get_num_threads()
    processes = f"{world.size} processes, " if world.size > 1 else ""
    amp = {"none": "float32", "bf16": "bfloat16", "fp16": "float16"}[config.runtime.amp]
    used = f"{processes}{threads} thread{'s' * (threads != 1)}, {amp}"
    return f"device: {device}{name}, {used}; operations: {describe(device)}"
