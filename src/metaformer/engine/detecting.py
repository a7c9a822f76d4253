"""From a configuration to the task of finding objects."""

from collections.abc import Sequence
from typing import Literal

import torch

from metaformer.data.dataset import AugmentedScenes
from metaformer.data.detection import DetectionFolder, open_detection
from metaformer.data.detection_preprocess import DetectionPreprocess
from metaformer.data.detection_transforms import train_scene
from metaformer.data.loader import DATA_TIMEOUT, Stop
from metaformer.data.size_check import check_sizes
from metaformer.detection.detector import Detector
from metaformer.engine.config import TrainConfig
from metaformer.engine.distributed import World
from metaformer.engine.first_look import look_at_all
from metaformer.engine.start import begin_with_weights, dense_backbone
from metaformer.errors import ConfigError, DataError
from metaformer.tasks.detect import Detect
from metaformer.tasks.detect_evaluation import DetectEvaluation
from metaformer.tasks.detect_inference import DetectInference


def build_detect(config: TrainConfig, world: World, stop: Stop | None = None) -> Detect:
    """Open the data and make model and evaluation, all on the run's device; `stop` cuts evaluations.

    Every picture's size is looked at before anything is learned.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be, or an annotation cannot be used.
        WeightsError: a checkpoint does not fit.
    """
    train = open_annotated(config, config.data.train, config.data.on_bad_image)
    val = open_annotated(config, config.data.val, classes=train.classes)  # it may lack some
    _check_classes(config, train, val)
    train.check_any()
    val.check_any()
    look_at_all(world, check_sizes, (train, config.data.on_bad_image == "skip"), (val, False))
    preprocess, plan = detection_preprocessing(config), config.detect
    torch.manual_seed(config.seed)
    augment = train_scene(
        sides=tuple(plan.short_sides),
        long_side=plan.long_side,
        hflip=config.augment.hflip,
        photometric=plan.photometric,
        jitter=plan.jitter,
        crop=config.data.image_size if plan.jitter is not None else None,
        mean=config.data.mean,
        std=config.data.std,
    )
    evaluation = DetectEvaluation(
        val,
        preprocess,
        inference=detect_inference(config),
        masks=plan.head == "mask_rcnn",
        workers=config.data.workers,
        pin_memory=world.device.type == "cuda",
        timeout=min(DATA_TIMEOUT, config.runtime.timeout),
        stop=stop,
    )
    scenes = AugmentedScenes(train, augment, config.seed, masks=plan.head == "mask_rcnn")
    name = f"{plan.head}_{config.model.name}"
    task = Detect(build_detector(config, train), name, scenes, evaluation, preprocess)
    task.to(world.device)
    return task


def open_annotated(
    config: TrainConfig,
    split: str,
    on_bad: Literal["error", "skip"] = "error",
    classes: Sequence[str] | None = None,
) -> DetectionFolder:
    """Open a split of a run's data set; `on_bad` says what to do about objects that cannot be used.

    Its classes are those of the file that the run names, or `classes`, or its own.

    Raises:
        DataError: it is not laid out as it should be.
    """
    plan = config.detect
    return open_detection(
        config.data.root,
        split,
        plan.layout,
        classes=plan.classes or classes,
        masks=plan.head == "mask_rcnn",
        on_bad=on_bad,
    )


def detection_preprocessing(config: TrainConfig) -> DetectionPreprocess:
    """How a run's pictures become input in evaluation."""
    plan = config.detect
    short = None if plan.long_side is None else plan.short_sides[-1]
    return DetectionPreprocess(plan.long_side, short, mean=config.data.mean, std=config.data.std)


def detect_inference(config: TrainConfig) -> DetectInference:
    """How a run's pictures are looked at in evaluation."""
    plan = config.detect
    return DetectInference(
        scales=tuple(plan.scales),
        flip=config.evaluate.flip,
        nms_threshold=plan.nms_threshold,
        max_detections=plan.max_detections,
    )


def build_detector(config: TrainConfig, data: DetectionFolder) -> Detector:
    """Make the network for the classes of the data, from own or published weights where they are asked for.

    A file of a backbone leaves neck and heads fresh; one of other classes gives all but the last layers.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    from metaformer.models import create_detector

    plan = config.detect
    model = create_detector(
        plan.head,
        backbone=dense_backbone(config.model, grid_mode="interpolate"),
        num_classes=len(data.classes),
        compat=plan.compat,
        fpn_dim=plan.fpn_dim,
        head_dim=plan.head_dim,
        box_fc_dim=plan.box_fc_dim,
        box_samples=plan.box_samples,
        anchor_scale=plan.anchor_scale,
        feature_norm=plan.feature_norm,
        score_threshold=plan.score_threshold,
        nms_threshold=plan.nms_threshold,
        max_detections=plan.max_detections,
        drop_path_rate=None,  # the configuration has it
    )
    begin_with_weights(model, config.model)
    return model


def _check_classes(config: TrainConfig, train: DetectionFolder, val: DetectionFolder) -> None:
    classes = len(train.classes)
    if train.classes != val.classes:
        raise DataError(f"{val.folder}: {len(val.classes)} classes, but {train.folder} has {classes} others")
    if config.model.num_classes not in (None, classes):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, {train.folder} holds {classes} classes: "
            "leave the field out"
        )
