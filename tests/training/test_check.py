from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaformer.config import DataConfig, OptimConfig, TrainConfig
from metaformer.errors import ConfigError
from metaformer.serialize import from_dict
from metaformer.tasks import TASKS
from metaformer.training.check import check_config

UNMIXED = {"mixup": 0.0, "cutmix": 0.0, "erase": 0.0}


def plain(task: str, section: str | None = None, field: str = "", value: Any = None) -> dict[str, Any]:
    """A valid configuration of a task, with one field changed."""
    values: dict[str, Any] = {"task": task, "data": {"root": "somewhere"}}
    if TASKS[task].unused:
        values["augment"] = dict(UNMIXED)
    if section is not None:
        values[section] = {**values.get(section, {}), field: value}
    return values


@pytest.mark.parametrize(
    ("batch", "accumulate", "world", "remedy"),
    [
        (1, 1, 1, "data.batch_size 2"),
        (4, 4, 1, "optim.accumulate 2"),
        (4, 2, 2, "optim.accumulate 1"),
        (4, 1, 4, "data.batch_size 8"),
    ],
)
def test_upernet_needs_two_images_in_each_pass(batch: int, accumulate: int, world: int, remedy: str) -> None:
    values = plain("segment", "segment", "head", "upernet")
    values["data"]["batch_size"], values["optim"] = batch, {"accumulate": accumulate}
    values["runtime"] = {"device": "cpu"}
    with pytest.raises(ConfigError, match=f"batch norm over its 1×1 map needs two: set {remedy}$"):
        check_config(from_dict(TrainConfig, values), world)
    name, _, number = remedy.rpartition(" ")
    section, _, field = name.partition(".")
    values[section][field] = int(number)
    check_config(from_dict(TrainConfig, values), world)
    values["data"]["batch_size"], values["optim"] = batch, {"accumulate": accumulate}
    check_config(from_dict(TrainConfig, {**values, "segment": {"head": "semantic_fpn"}}), world)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: TrainConfig(data={"root": "x"}), "data: a mapping, where TrainConfig takes a DataConfig; "),  # type: ignore[arg-type]
        (lambda: TrainConfig(data=None), "data: None must be a mapping"),  # type: ignore[arg-type]
        (lambda: TrainConfig(model="poolformer_s12"), "model: 'poolformer_s12' must be"),  # type: ignore[arg-type]
        (lambda: TrainConfig(seed="1"), "seed: '1' must be an integer"),  # type: ignore[arg-type]
        (lambda: TrainConfig(task="clasify"), "did you mean classify"),  # type: ignore[arg-type]
        (lambda: DataConfig(batch_size="8"), "batch_size: '8' must be an integer"),  # type: ignore[arg-type]
        (lambda: DataConfig(root=Path("x")), "root: .* must be a string"),  # type: ignore[arg-type]
        (lambda: OptimConfig(lr=True), "lr: True must be a finite number"),
        (lambda: OptimConfig(lr=float("inf")), "lr: inf must be a finite number"),
        (lambda: check_config({"data": {}}), "a dict is no TrainConfig"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_refused_where_they_are_given(build: Callable[[], object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build()


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_are_valid(task: str) -> None:
    check_config(from_dict(TrainConfig, plain(task)))


@pytest.mark.parametrize(
    ("task", "field", "value", "reason"),
    [
        ("classify", "data.batch_size", 0, "an integer of at least 1"),
        ("classify", "data.eval_batch_size", 0, ""),
        ("classify", "data.workers", -1, "at least 0"),
        ("classify", "data.repeated_aug", 0, ""),
        ("classify", "data.root", "", ""),
        ("classify", "optim.accumulate", 0, ""),
        ("classify", "optim.accumulate", 3, "multiple of 3"),
        ("classify", "optim.lr", 0.0, "above 0"),
        ("classify", "optim.lr", float("nan"), ""),
        ("classify", "optim.clip", -1.0, ""),
        ("classify", "optim.betas", [0.9, 1.0], "at least 0 and below 1"),
        ("classify", "optim.layer_decay", 1.5, "above 0 and at most 1"),
        ("classify", "schedule.epochs", 0, ""),
        ("classify", "schedule.steps", 0, ""),
        ("classify", "schedule.power", 0.0, ""),
        ("classify", "schedule.gamma", 0.0, ""),
        ("classify", "schedule.milestones", [8, "x"], ""),
        ("classify", "evaluate.every_steps", -1, ""),
        ("classify", "schedule.min_lr", 1.0, "above optim.lr"),
        ("classify", "ema.decay", 1.0, ""),
        ("classify", "evaluate.crop", 0.0, ""),
        ("classify", "runtime.keep", 0, ""),
        ("classify", "runtime.threads", 0, ""),
        ("classify", "augment.aug_splits", 3, "augment.mixup"),
        ("classify", "loss.name", "jsd", "augment.aug_splits"),
        ("classify", "loss.distill", "hard", "loss.teacher"),
        ("classify", "model.drop_path_rate", 1.0, ""),
        ("classify", "segment.head_dim", 7, "no option of"),
        ("segment", "segment.fpn_dim", 0, ""),
        ("segment", "segment.stride", 0, ""),
        ("segment", "segment.resize", [0, 512], ""),
        ("segment", "segment.scale", [2.0, 0.5], ""),
        ("segment", "segment.dropout", 1.0, ""),
        ("segment", "segment.cat_max_ratio", 0.0, ""),
        ("segment", "segment.ohem", 1.5, ""),
        ("segment", "segment.dice", -1.0, ""),
        ("segment", "segment.scales", [], ""),
        ("segment", "segment.scales", ["a"], ""),
        ("segment", "segment.class_weights", [-1.0], ""),
        ("segment", "augment.mixup", 0.5, "no option of"),
        ("segment", "augment.aug_splits", 3, "no option of"),
        ("segment", "detect.scales", [2.0], "no option of"),
        ("segment", "evaluate.class_subset", "names.txt", "no option of"),
        ("detect", "detect.fpn_dim", 0, ""),
        ("detect", "detect.long_side", 0, ""),
        ("detect", "detect.short_sides", [], ""),
        ("detect", "detect.short_sides", [480, 0.5], "integer"),
        ("detect", "detect.jitter", [2.0, 0.1], ""),
        ("detect", "detect.score_threshold", 1.5, ""),
        ("detect", "detect.nms_threshold", -0.1, ""),
        ("detect", "detect.anchor_scale", 0.0, ""),
        ("detect", "detect.scales", [], ""),
        ("detect", "augment.cutmix", 0.5, "no option of"),
        ("detect", "loss.smoothing", 0.2, "no option of"),
        ("detect", "evaluate.crops", 5, "no option of"),
        ("detect", "model.head_dropout", 0.1, "no option of"),
    ],
)  # fmt: skip
def test_each_invalid_field_is_named(task: str, field: str, value: Any, reason: str) -> None:
    section, name = field.split(".")
    with pytest.raises(ConfigError, match=f"{field}.*{reason}"):
        check_config(from_dict(TrainConfig, plain(task, section, name, value)))


@pytest.mark.parametrize("seed", [2**63, -(10**30)])
def test_a_seed_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed: {seed}"):
        check_config(from_dict(TrainConfig, {**plain("classify"), "seed": seed}))


def test_the_batch_is_divided_among_the_ranks() -> None:
    config = from_dict(TrainConfig, {"data": {"root": "x", "batch_size": 8}, "optim": {"accumulate": 2}})
    check_config(config, world_size=4)
    with pytest.raises(ConfigError, match=r"data.batch_size.* 3 device"):
        check_config(config, world_size=3)
