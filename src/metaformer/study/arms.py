"""The networks of a study: the plan's mixers and the controls, fitted to the budget."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from metaformer.config import ModelConfig, TrainConfig
from metaformer.data.dataset import Source
from metaformer.data.folder import ImageFolder
from metaformer.data.loader import Stop
from metaformer.data.shards.parquet import ParquetImages
from metaformer.distributed import World
from metaformer.errors import ConfigError, MetaFormerError, UnknownName
from metaformer.models.build import build_network
from metaformer.serialize import shown
from metaformer.study.budget import (
    Shape,
    count_cost,
    latency_ratio,
    light,
    match_budget,
    parameters,
)
from metaformer.study.plan import Plan
from metaformer.study.results import Arm
from metaformer.tasks import TASKS
from metaformer.tasks.base import BuildTask, Task

Say = Callable[[str], None]
CPU: Final = torch.device("cpu")
EXTERNAL: Final = "timm:"
"""First part of the name that a run gives a network of timm."""


@dataclass(frozen=True)
class ExternalConfig:
    """A ResNet of timm as data."""

    name: str
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as saved in a checkpoint."""
        return {"timm": self.name, **self.options}


def external_network(name: str, classes: int, options: dict[str, Any]) -> Any:
    """A ResNet of timm with random weights; where its channels are changed, those of the stem follow them.

    Raises:
        UnknownName: timm has no such network.
        ConfigError: a network that takes no channels for each stage.
    """
    import timm

    if not timm.is_model(name):
        raise UnknownName("model of timm (external)", name, timm.list_models("resnet*"))
    stem: dict[str, Any] = {}
    if "channels" in options:
        stem = {"stem_type": "deep", "stem_width": max(1, options["channels"][0] // 2)}
    if name not in timm.list_models(module="resnet"):
        raise ConfigError(f"external: {name} is no ResNet of timm: its channels cannot be matched")
    network = timm.create_model(name, num_classes=classes, **stem, **options)
    network.config = ExternalConfig(name, options)
    return network


def draft_arms(plan: Plan) -> list[Arm]:
    """The networks before the budget: the baseline, the other mixers, then the controls.

    A control that is one of the mixers already is left out.
    """
    names = [plan.baseline, *(name for name in plan.mixers if name != plan.baseline)]
    arms = [Arm(name=name, mixers=plan.stage_mixers(name), parameters=0) for name in names]
    compared = {arm.mixers for arm in arms}
    for control in plan.controls:
        mixers = control_mixers(plan, control)
        if control in ("identity", "random") and mixers in compared:
            continue
        arms.append(Arm(name=f"control-{control}", mixers=mixers, control=control, parameters=0))
    return arms


def control_mixers(plan: Plan, control: str) -> tuple[str, ...]:
    """Mixer of each stage of a control; random mixing takes the later half, as in RandFormer."""
    stages = len(plan.stage_mixers(plan.baseline))
    half = stages // 2
    special = {
        "identity": ("identity",) * stages,
        "random": ("identity",) * (stages - half) + ("random",) * half,
        "external": (),
    }
    return special.get(control, plan.stage_mixers(plan.baseline))


def arm_network(plan: Plan, arm: Arm, classes: int, image_size: int | None = None, **changes: Any) -> Any:
    """The network of an arm, its weights random.

    Args:
        plan: of the study.
        arm: which of its networks.
        classes: outputs.
        image_size: that fixed-grid mixers are made for; that of training by default.
        changes: further fields, over those that the budget changed.
    """
    options = {**arm.overrides, **changes}
    if arm.control == "external":
        return external_network(plan.external, classes, options)
    if image_size is not None:
        options["image_size"] = (image_size, image_size)
    return build_network(plan.network(arm.mixers, num_classes=classes, **options))


def arm_task(plan: Plan, arm: Arm) -> BuildTask:
    """What trains an arm: the task of its configuration, with what its control changes."""

    def build(config: TrainConfig, world: World, stop: Stop | None = None) -> Task:
        spec = TASKS[config.task]
        if arm.control == "external":
            stand_in = ModelConfig(plan.skeleton.model, overrides=plan.skeleton.overrides)
            task = spec.build(replace(config, model=stand_in), world, stop)
            torch.manual_seed(config.seed)
            task.model, task.name = arm_network(plan, arm, len(task.classes)), config.model.name
            task.to(world.device)
            return task
        task = spec.build(config, world, stop)
        if arm.control == "shuffled_labels":
            shuffle_labels(task.train.source, config.seed)
        return task

    return build


def shuffle_labels(source: Source, seed: int) -> None:
    """Shuffle which image has which label, as a function of the seed.

    Raises:
        ConfigError: tar shards, which bring their labels with the images.
    """
    if not isinstance(source, ImageFolder | ParquetImages):
        raise ConfigError("labels of tar shards cannot be shuffled: use an image folder or parquet")
    random.Random(seed).shuffle(source.labels)


def build_arms(
    plan: Plan, classes: int, device: torch.device = CPU, say: Say = lambda line: None
) -> list[Arm]:
    """The networks of a study, each tried for a step and fitted to the budget.

    Args:
        plan: of the study.
        classes: outputs of the networks.
        device: where latencies are matched.
        say: gets a line for each of them.

    Raises:
        ConfigError: a network that cannot be trained or matched; the message names it.
    """
    drafts = draft_arms(plan)
    baseline = arm_network(plan, drafts[0], classes)
    matched: dict[tuple[str, ...], Arm] = {}
    arms = []
    for draft in drafts:
        try:
            if draft.mixers not in matched:
                check_trains(arm_network(plan, draft, classes), plan, classes)
                matched[draft.mixers] = _matched(plan, draft, classes, baseline, device)
        except MetaFormerError as error:
            where = f"mixers.{draft.name}" if draft.control is None else f"controls: {draft.control}"
            raise ConfigError(f"{where}: {error}") from error
        arms.append(replace(matched[draft.mixers], name=draft.name, control=draft.control))
        changed = "; ".join(arms[-1].changed) or "as the skeleton has it"
        say(f"{draft.name}: {arms[-1].parameters:,} parameters, {changed}")
    return arms


def check_trains(network: nn.Module, plan: Plan, classes: int) -> None:
    """Take a step without an optimizer: forward pass, loss and gradients of two images of noise.

    Raises:
        ConfigError: it fails, or something is not finite, or no parameter gets a gradient.
    """
    size = plan.config().data.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(2, 3, size, size)
        try:
            logits = network.train()(images)
            F.cross_entropy(logits, torch.arange(2) % classes).backward()
        except MetaFormerError:
            raise
        except Exception as error:  # of a stranger's mixer: it may raise anything
            reason = shown(str(error), quote=False)
            raise ConfigError(f"cannot be trained: {type(error).__name__}: {reason}") from error
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if tuple(logits.shape) != (2, classes) or not logits.isfinite().all():
        raise ConfigError(f"cannot be trained: its logits are not finite numbers (2, {classes})")
    if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
        raise ConfigError("cannot be trained: its gradients are missing or not finite")


def _matched(plan: Plan, draft: Arm, classes: int, baseline: nn.Module, device: torch.device) -> Arm:
    """An arm with the widths and depths that the budget gives it."""
    budget, size = plan.budget, plan.config().data.image_size
    if budget.match == "none" or draft.mixers == plan.stage_mixers(plan.baseline):
        relative = None if budget.match == "none" else 1.0
        network = arm_network(plan, draft, classes)
        return replace(draft, relative_cost=relative, parameters=parameters(network))
    names, start = _start(plan, draft)

    def build(shape: Shape) -> Any:
        changes: dict[str, Any] = dict(zip(names, shape, strict=True))
        return arm_network(plan, draft, classes, **changes)

    def latency(shape: Shape) -> float:
        return latency_ratio(build(shape), baseline, size, device, budget.within / 4)

    def counted(shape: Shape) -> float:
        return count_cost(light(lambda: build(shape)), budget.match, size) / target

    if budget.match == "latency":
        found, relative = match_latency(start, latency, budget.within)
    else:
        target = count_cost(baseline, budget.match, size)
        found = match_budget(start, counted, 1.0, budget.within)
        relative = counted(found)
    pairs = zip(names, start, found, strict=True)
    return replace(
        draft,
        overrides={name: list(after) for name, before, after in pairs if after != before or not draft.mixers},
        changed=found.changes(start),
        relative_cost=relative,
        parameters=parameters(build(found)),
    )


def match_latency(start: Shape, latency: Callable[[Shape], float], tolerance: float) -> tuple[Shape, float]:
    """The shape whose latency is the baseline's, and its latency relative to that, measured anew.

    It is chosen by half the tolerance: the luckiest of many measurements is nearer than the shape is.

    Raises:
        ConfigError: there is none, or the new measurement is not within the tolerance.
    """
    found = match_budget(start, latency, 1.0, tolerance / 2, deeper=0)  # each depth would take minutes
    again = latency(found)
    if abs(again - 1) > tolerance:
        raise ConfigError(
            f"budget.match latency: dims {found.dims} seemed to match the baseline, and are off by "
            f"{again - 1:+.1%} when measured anew: measure on a machine that does nothing else, or raise "
            "budget.tolerance"
        )
    return found, again


def _start(plan: Plan, arm: Arm) -> tuple[tuple[str, str], Shape]:
    """What widths and depths are called in a network's configuration, and theirs before the budget."""
    if arm.control == "external":
        network = external_network(plan.external, 2, {})
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        return ("channels", "layers"), Shape((64, 128, 256, 512), tuple(map(len, stages)))
    skeleton = plan.network(arm.mixers)
    return ("dims", "depths"), Shape(skeleton.dims, skeleton.depths)
