"""From a configuration to the task of telling classes of pixels apart."""

import torch

from metaformer.data.dataset import AugmentedPairs
from metaformer.data.dense_preprocess import DensePreprocess
from metaformer.data.joint import train_joint
from metaformer.data.label_check import check_segmentation
from metaformer.data.loader import DATA_TIMEOUT, Stop
from metaformer.data.segmentation import SegmentationFolder, open_segmentation
from metaformer.dense.criterion import SegmentationLoss
from metaformer.dense.segmenter import Segmenter
from metaformer.engine.config import TrainConfig
from metaformer.engine.distributed import World
from metaformer.engine.first_look import look_at_all
from metaformer.engine.start import begin_with_weights, dense_backbone
from metaformer.errors import ConfigError, DataError
from metaformer.tasks.inference import Inference
from metaformer.tasks.segment import Segment
from metaformer.tasks.segment_evaluation import SegmentEvaluation


def build_segment(config: TrainConfig, world: World, stop: Stop | None = None) -> Segment:
    """Open the data and make model, loss and evaluation, all on the run's device; `stop` cuts evaluations.

    All label maps are looked at before anything is learned.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be, or a label map cannot be used.
        WeightsError: a checkpoint does not fit.
    """
    train, val = (open_labelled(config, split) for split in (config.data.train, config.data.val))
    _check_classes(config, train, val)
    look_at_all(world, check_segmentation, (train, config.data.on_bad_image == "skip"), (val, False))
    preprocess, plan = dense_preprocessing(config), config.segment
    torch.manual_seed(config.seed)
    augment = train_joint(
        crop=config.data.image_size,
        base=plan.base,
        scale=plan.scale,
        cat_max_ratio=plan.cat_max_ratio,
        hflip=config.augment.hflip,
        photometric=plan.photometric,
        ignore_index=train.ignore_index,
        mean=config.data.mean,
        std=config.data.std,
    )
    evaluation = SegmentEvaluation(
        val,
        preprocess,
        inference=inference(config),
        workers=config.data.workers,
        pin_memory=world.device.type == "cuda",
        timeout=min(DATA_TIMEOUT, config.runtime.timeout),
        stop=stop,
    )
    name = f"{plan.head}_{config.model.name}"
    task = Segment(
        build_segmenter(config, train),
        name,
        AugmentedPairs(train, augment, config.seed),
        evaluation,
        preprocess,
    )
    task.to(world.device)
    return task


def open_labelled(config: TrainConfig, split: str) -> SegmentationFolder:
    """Open a split of a run's data set.

    Raises:
        DataError: it is not laid out as it should be.
    """
    plan = config.segment
    return open_segmentation(
        config.data.root,
        split,
        plan.layout,
        classes=plan.classes,
        reduce_zero_label=plan.reduce_zero_label,
    )


def dense_preprocessing(config: TrainConfig) -> DensePreprocess:
    """How a run's pictures become input in evaluation."""
    longer, shorter = config.segment.base or (None, None)
    return DensePreprocess(longer, shorter, config.segment.multiple, config.data.mean, config.data.std)


def inference(config: TrainConfig) -> Inference:
    """How a run's pictures are looked at in evaluation."""
    plan = config.segment
    return Inference(
        mode=plan.inference,
        window=(plan.window, plan.window),
        stride=(plan.stride, plan.stride),
        scales=tuple(plan.scales),
        flip=config.evaluate.flip,
    )


def build_segmenter(config: TrainConfig, data: SegmentationFolder) -> Segmenter:
    """Make the network for the classes of the data, from own or published weights where they are asked for.

    A file of a backbone leaves neck and head fresh; one of other classes gives everything but the last layer.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    from metaformer.models import create_segmenter

    plan = config.segment
    model = create_segmenter(
        plan.head,
        backbone=dense_backbone(config.model, image_size=(config.data.image_size,) * 2),
        num_classes=len(data.classes),
        fpn_dim=plan.fpn_dim,
        head_dim=plan.head_dim,
        dropout=plan.dropout,
        auxiliary=plan.auxiliary,
        feature_norm=plan.feature_norm,
        drop_path_rate=None,  # the configuration has it
    )
    model.criterion = SegmentationLoss(
        ignore_index=data.ignore_index,
        average=plan.average,
        ohem=plan.ohem,
        dice=plan.dice,
        class_weights=plan.class_weights,
    )
    begin_with_weights(model, config.model)
    return model


def _check_classes(config: TrainConfig, train: SegmentationFolder, val: SegmentationFolder) -> None:
    classes = len(train.classes)
    if train.classes != val.classes:
        raise DataError(f"{val.folder}: {len(val.classes)} classes, but {train.folder} has {classes} others")
    if classes < 2:
        raise DataError(f"{train.folder}: only one class, {train.classes[0]!r}: training needs at least two")
    if config.model.num_classes not in (None, classes):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, {train.folder} holds {classes} classes: "
            "leave the field out"
        )
    weights = config.segment.class_weights
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"segment.class_weights has {len(weights)} numbers for {classes} classes")
