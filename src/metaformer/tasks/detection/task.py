"""Training of object detection and instance segmentation: data, network, loss and evaluation of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metaformer.config import TrainConfig
from metaformer.data.dataset import Batch
from metaformer.data.loader import Stop
from metaformer.data.rle import encode
from metaformer.data.sampler import TrainSampler
from metaformer.distributed import World
from metaformer.factory import create_detector
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.structures import Targets
from metaformer.tasks.base import Forward, StepContext, Task, load_initial_weights, loading
from metaformer.tasks.check import validate_splits, warnings_of
from metaformer.tasks.dense import backbone_config, check_split_classes, fitting_batch, typical_size
from metaformer.tasks.detection.check import check_sizes, object_findings
from metaformer.tasks.detection.dataset import DetectionDataset, DetectionFolder, open_annotated, open_parts
from metaformer.tasks.detection.draw import Shape, draw_shapes
from metaformer.tasks.detection.evaluate import DetectionEvaluation
from metaformer.tasks.detection.predict import run_inference
from metaformer.tasks.detection.results import DetectionReport
from metaformer.tasks.detection.transforms import DetectionPreprocess, train_transform


class DetectionTask(Task):
    """Object detection, and with masks instance segmentation.

    Args:
        model: gives `Detections`, or losses where it is also given targets.
        name: what the model is called.
        train: augmented training images with their objects.
        evaluation: the validation data.
        preprocess: how images become input when the model is used.
        group_by_aspect: draw batches of images that are all wide or all tall.
    """

    task, metric, counted = "detect", "ap", "objects of each class"
    model: Detector
    train: DetectionDataset
    evaluation: DetectionEvaluation
    preprocess: DetectionPreprocess

    def __init__(
        self,
        model: Detector,
        name: str,
        train: DetectionDataset,
        evaluation: DetectionEvaluation,
        preprocess: DetectionPreprocess,
        group_by_aspect: bool = False,
    ) -> None:
        super().__init__(model, name, train, evaluation, preprocess)
        self.group_by_aspect = group_by_aspect
        self.score: float | None = None
        """Score from which objects are shown, chosen by the last evaluation."""

    def sampler(self, **options: Any) -> TrainSampler:
        """Order of the training images, on request with wide and tall ones in separate batches."""
        source = self.train.source
        wide = [source.aspect(index) > 1 for index in range(len(source))] if self.group_by_aspect else None
        return super().sampler(groups=wide, **options)

    def count_classes(self, source: Any) -> Sequence[int]:
        """Objects of each class."""
        return np.bincount(source.objects.labels, minlength=len(source.classes)).tolist()

    def losses(self, model: nn.Module, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Losses of a batch of images."""
        losses: dict[str, Tensor] = model(batch.images, batch.targets, batch.sizes)
        return losses

    def draw_sample(self, image: Image.Image, target: Targets) -> tuple[str, Image.Image]:
        """A sample with its boxes and masks."""
        source, shapes = self.train.source, []
        for row, (box, label) in enumerate(zip(target.boxes.tolist(), target.labels.tolist(), strict=True)):
            mask = None if target.masks is None else encode(target.masks[row].numpy().astype(bool))
            shapes.append(Shape(tuple(box), source.classes[label], source.palette[label], mask))
        return "", draw_shapes(image, shapes)

    def evaluate(self, forward: Forward) -> DetectionReport:
        """Evaluate, and keep the score threshold for the checkpoint."""
        report = self.evaluation.run(forward)
        self.score = report.score
        return report

    def restore(self, card: Mapping[str, Any]) -> None:
        """Take over the score threshold of a checkpoint."""
        self.score = card.get("score")

    def metadata(self) -> dict[str, Any]:
        """Colors and COCO numbers of the classes, and the score from which objects are shown."""
        palette, ids = self.train.source.palette, self.train.source.category_ids
        colors = [list(color) for color in palette]
        return {"palette": colors, "category_ids": list(ids), "score": self.score}


def build_detect(config: TrainConfig, world: World, stop: Stop | None = None) -> DetectionTask:
    """Open the data and make model and evaluation, all on the run's device; `stop` cuts evaluations.

    The size of every image is checked before training.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be, or an annotation cannot be used.
        WeightsError: a checkpoint does not fit.
    """
    parts = open_parts(config)
    if parts is None:
        train = open_annotated(config, config.data.train, config.data.on_bad_image)
        parts = train, open_annotated(config, config.data.val, classes=train.classes)  # it may lack some
    train, val = parts
    check_split_classes(config, train, val)
    train.check_any()
    val.check_any()
    validate_splits(world, check_sizes, (train, config.data.on_bad_image == "skip"), (val, False))
    preprocess, detect = detection_preprocessing(config), config.detect
    torch.manual_seed(config.seed)
    augment = train_transform(
        sides=tuple(detect.short_sides),
        long_side=detect.long_side,
        hflip=config.augment.hflip,
        photometric=detect.photometric,
        jitter=detect.jitter,
        crop=config.data.image_size if detect.jitter is not None else None,
        mean=config.data.mean,
        std=config.data.std,
    )
    evaluation = DetectionEvaluation(
        val,
        preprocess,
        inference=run_inference(config),
        masks=detect.head == "mask_rcnn",
        **loading(config, world, stop),
    )
    dataset = DetectionDataset(
        train, augment, config.seed, preprocess.background, masks=detect.head == "mask_rcnn"
    )
    name = f"{detect.head}_{config.model.name}"
    task = DetectionTask(
        build_detector(config, train), name, dataset, evaluation, preprocess, detect.group_by_aspect
    )
    task.warnings = [
        *warnings_of(object_findings(train, training=True)),
        *warnings_of(object_findings(val, training=False)),
    ]
    task.to(world.device)
    return task


def fit_data(config: TrainConfig) -> Mapping[str, Any]:
    """Sizes and batch that fit the training images: images at the median size.

    Raises:
        DataError: the data set is not laid out as it should be, or an annotation cannot be used.
    """
    parts = open_parts(config)
    data = config.data
    train = open_annotated(config, data.train, data.on_bad_image) if parts is None else parts[0]
    train.check_any()
    longer, shorter = typical_size(train.size, len(train))
    return {
        "detect.long_side": longer,
        "detect.short_sides": [shorter],
        "data.batch_size": fitting_batch(config, len(train)),
    }


def detection_preprocessing(config: TrainConfig) -> DetectionPreprocess:
    """Preprocessing of a run's evaluation."""
    detect = config.detect
    short = None if detect.long_side is None else detect.short_sides[-1]
    return DetectionPreprocess(
        detect.long_side,
        short,
        mean=config.data.mean,
        std=config.data.std,
        background=config.data.background_color,
    )


def build_detector(config: TrainConfig, data: DetectionFolder) -> Detector:
    """Network for the classes of the data, with initial weights if the configuration names some.

    A file of a backbone leaves neck and heads fresh; one of other classes gives all but the last layers.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    detect = config.detect
    model = create_detector(
        detect.head,
        backbone=backbone_config(config.model, grid_mode="interpolate"),
        num_classes=len(data.classes),
        fpn_dim=detect.fpn_dim,
        head_dim=detect.head_dim,
        box_fc_dim=detect.box_fc_dim,
        roi_batch_size=detect.roi_batch_size,
        rpn_pre_nms_topk=detect.rpn_pre_nms_topk,
        rpn_pre_nms_topk_train=detect.rpn_pre_nms_topk_train,
        rpn_post_nms_topk=detect.rpn_post_nms_topk,
        anchor_scale=detect.anchor_scale,
        feature_norm=detect.feature_norm,
        score_threshold=detect.score_threshold,
        nms_threshold=detect.nms_threshold,
        max_detections=detect.max_detections,
        drop_path_rate=None,  # the configuration has it
    )
    load_initial_weights(model, config.model)
    return model
