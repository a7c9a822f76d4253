from typing import Any

import pytest

from metaformer.errors import ConfigError
from metaformer.serialize import from_dict
from metaformer.training.check import check

GOOD: dict[str, Any] = {"data": {"root": "somewhere"}}


def test_the_defaults_are_good() -> None:
    check(from_dict(GOOD))


@pytest.mark.parametrize(
    ("section", "field", "value", "told"),
    [
        ("data", "batch_size", 0, "data.batch_size is 0: it must be a whole number of at least 1"),
        ("data", "eval_batch_size", 0, "data.eval_batch_size is 0"),
        ("data", "workers", -1, "data.workers is -1"),
        ("data", "repeated_aug", 0, "data.repeated_aug is 0"),
        ("data", "root", "", "data.root is empty"),
        ("optim", "accumulate", 0, "optim.accumulate is 0"),
        ("optim", "accumulate", 3, "cannot be shared by 1 device.* 3 accumulation.*multiple of 3"),
        ("optim", "lr", 0.0, "optim.lr is 0.0: it must be above 0"),
        ("optim", "lr", float("nan"), "optim.lr is nan"),
        ("optim", "clip", -1.0, "optim.clip is -1.0"),
        ("optim", "layer_decay", 1.5, "optim.layer_decay is 1.5"),
        ("schedule", "epochs", 0, "schedule.epochs is 0"),
        ("schedule", "steps", 0, "schedule.steps is 0"),
        ("schedule", "power", 0.0, "schedule.power is 0.0"),
        ("schedule", "gamma", 0.0, "schedule.gamma is 0.0"),
        ("schedule", "milestones", [8, "x"], "schedule.milestones is x: it must be a whole number"),
        ("evaluate", "every_steps", -1, "evaluate.every_steps is -1"),
        ("schedule", "min_lr", 1.0, "schedule.min_lr 1.0 is above optim.lr"),
        ("ema", "decay", 1.0, "ema.decay is 1.0"),
        ("evaluate", "crop", 0.0, "evaluate.crop is 0.0"),
        ("runtime", "keep", 0, "runtime.keep is 0"),
        ("runtime", "threads", 0, "runtime.threads is 0"),
        ("augment", "aug_splits", 3, "set augment.mixup and augment.cutmix to 0"),
        ("loss", "name", "jsd", "set augment.aug_splits"),
        ("loss", "distill", "hard", "needs loss.teacher"),
        ("model", "drop_path_rate", 1.0, "model.drop_path_rate is 1.0"),
    ],
)
def test_each_wrong_value_is_named(section: str, field: str, value: Any, told: str) -> None:
    values = {**GOOD, section: {**GOOD.get(section, {}), field: value}}
    with pytest.raises(ConfigError, match=told):
        check(from_dict(values))


@pytest.mark.parametrize("seed", [2**63, -(10**30)])
def test_a_seed_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed is {seed}"):
        check(from_dict({**GOOD, "seed": seed}))


def test_the_world_takes_its_share_of_the_batch() -> None:
    config = from_dict({"data": {"root": "x", "batch_size": 8}, "optim": {"accumulate": 2}})
    check(config, world_size=4)
    with pytest.raises(ConfigError, match="3 device"):
        check(config, world_size=3)


SEGMENT: dict[str, Any] = {
    **GOOD,
    "task": "segment",
    "augment": {"mixup": 0.0, "cutmix": 0.0, "erase": 0.0},
}


@pytest.mark.parametrize(
    ("section", "field", "value", "told"),
    [
        ("segment", "fpn_dim", 0, "segment.fpn_dim is 0"),
        ("segment", "stride", 0, "segment.stride is 0"),
        ("segment", "resize", [0, 512], "segment.resize is 0"),
        ("segment", "scale", [2.0, 0.5], "segment.scale is .*a smaller and a larger"),
        ("segment", "dropout", 1.0, "segment.dropout is 1.0"),
        ("segment", "cat_max_ratio", 0.0, "segment.cat_max_ratio is 0.0"),
        ("segment", "ohem", 1.5, "segment.ohem is 1.5"),
        ("segment", "dice", -1.0, "segment.dice is -1.0"),
        ("segment", "scales", [], "segment.scales is empty"),
        ("segment", "scales", ["a"], "segment.scales is a"),
        ("segment", "class_weights", [-1.0], "segment.class_weights is -1"),
        ("augment", "mixup", 0.5, "augment.mixup: not for segmentation"),
        ("augment", "aug_splits", 3, "not for segmentation"),
    ],
)
def test_each_wrong_value_of_segmentation_is_named(section: str, field: str, value: Any, told: str) -> None:
    check(from_dict(SEGMENT))
    values = {**SEGMENT, section: {**SEGMENT.get(section, {}), field: value}}
    with pytest.raises(ConfigError, match=told):
        check(from_dict(values))


DETECT: dict[str, Any] = {**SEGMENT, "task": "detect"}


@pytest.mark.parametrize(
    ("section", "field", "value", "told"),
    [
        ("detect", "fpn_dim", 0, "detect.fpn_dim is 0"),
        ("detect", "long_side", 0, "detect.long_side is 0"),
        ("detect", "short_sides", [], "detect.short_sides is empty"),
        ("detect", "short_sides", [480, 0.5], "detect.short_sides is 0.5: it must be a whole number"),
        ("detect", "jitter", [2.0, 0.1], "detect.jitter is .*a smaller and a larger"),
        ("detect", "score_threshold", 1.5, "detect.score_threshold is 1.5"),
        ("detect", "nms_threshold", -0.1, "detect.nms_threshold is -0.1"),
        ("detect", "anchor_scale", 0.0, "detect.anchor_scale is 0.0"),
        ("detect", "scales", [], "detect.scales is empty"),
        ("augment", "cutmix", 0.5, "augment.cutmix: not for detection"),
    ],
)
def test_each_wrong_value_of_detection_is_named(section: str, field: str, value: Any, told: str) -> None:
    check(from_dict(DETECT))
    values = {**DETECT, section: {**DETECT.get(section, {}), field: value}}
    with pytest.raises(ConfigError, match=told):
        check(from_dict(values))


@pytest.mark.parametrize(
    ("task", "section", "field", "value"),
    [
        ("classify", "segment", "head_dim", 7),
        ("segment", "detect", "scales", [2.0]),
        ("detect", "loss", "smoothing", 0.2),
        ("detect", "evaluate", "crops", 5),
        ("segment", "evaluate", "class_subset", "names.txt"),
        ("detect", "model", "head_dropout", 0.1),
    ],
)
def test_what_a_task_has_no_use_for_is_refused(task: str, section: str, field: str, value: Any) -> None:
    plain = GOOD if task == "classify" else {**SEGMENT, "task": task}
    with pytest.raises(ConfigError, match=rf"{section}\.{field}: not for "):
        check(from_dict({**plain, section: {**plain.get(section, {}), field: value}}))
