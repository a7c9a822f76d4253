"""What the last checkpoint of a run predicts for the images of a split."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaformer.checkpoint.checkpoint import Checkpoint, newest
from metaformer.checkpoint.run_dir import RunDir
from metaformer.config import TrainConfig
from metaformer.data.dataset import Batch
from metaformer.data.divide import groups_of
from metaformer.data.shards.tar import TarImages
from metaformer.data.split import Split, open_split
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError, WeightsError
from metaformer.models.base import autocast
from metaformer.study.plan import DataPlan
from metaformer.study.results import Predictions, TestSet
from metaformer.tasks.base import BuildTask, Task
from metaformer.tasks.classification.evaluate import ClassificationEvaluation
from metaformer.tasks.classifier import evaluation_options


def open_test(data: DataPlan, classes: tuple[str, ...]) -> Split:
    """The test split, with the classes of the training split.

    Raises:
        DataError: it is not laid out as it should be, or a stream.
    """
    split = open_split(data.root, data.test, classes)
    if isinstance(split, TarImages):
        raise DataError(f"{split.folder}: tar shards are a stream; a study needs an image folder or parquet")
    return split


def describe_test(data: DataPlan, split: Split) -> TestSet:
    """Test images with their labels and the groups that they belong to.

    Raises:
        DataError: a path that the expression for groups does not match.
        ConfigError: an expression that is none, or that matches all alike: intervals need two groups.
    """
    root = Path(str(split.folder))
    paths = (Path(str(split.path(index))) for index in range(len(split)))
    images = [(path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in paths]
    names = images if data.group is None else groups_of(images, data.group)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(numbers) < 2:
        raise ConfigError(f"data.group: {split.folder} has one group of test images: an interval needs two")
    clusters = np.array([numbers[name] for name in names], dtype=np.int32)
    return TestSet(tuple(images), np.array(split.labels, dtype=np.int32), clusters, tuple(split.classes))


def last_checkpoint(run: Path) -> Checkpoint:
    """The last checkpoint of a run, whatever its accuracy.

    Raises:
        WeightsError: there is none that is not damaged.
    """
    skipped: list[str] = []
    saved = newest(RunDir(run).checkpoints, skipped.append)
    if saved is None:
        raise WeightsError(f"{run}: holds no checkpoint that can be read {'; '.join(skipped)}".strip())
    return saved


def evaluated_weights(config: TrainConfig) -> str:
    """Which weights of its checkpoints a run evaluates: averaged ones (`ema`) or those in training."""
    return "ema" if config.ema.decay is not None and config.ema.evaluate else "model"


def trained_task(config: TrainConfig, build: BuildTask, run: Path, world: World) -> Task:
    """The task of a run with the weights of its last checkpoint."""
    task = build(config, world)
    last_checkpoint(run).load(task.model, evaluated_weights(config))
    task.model.eval()
    return task


@contextmanager
def evaluation_on_test(
    task: Task, config: TrainConfig, data: DataPlan, world: World
) -> Iterator[ClassificationEvaluation]:
    """The evaluation on all test images, preprocessed as in validation."""
    evaluation = ClassificationEvaluation(
        open_test(data, task.classes), task.preprocess, **evaluation_options(config, world, None)
    )
    try:
        yield evaluation
    finally:
        evaluation.close()


def forward(task: Task, config: TrainConfig, images: Tensor, world: World) -> Tensor:
    """Logits (B, K) of images (B, 3, H, W), in the run's precision."""
    with torch.inference_mode(), autocast(world.device, config.runtime.amp):
        logits: Tensor = task.model(images.to(world.device, non_blocking=True))
    return logits.float()


def sample_test_images(
    task: Task, config: TrainConfig, data: DataPlan, world: World, most: int
) -> Iterator[Batch]:
    """Batches of test images as the network is given them, evenly from all, at most so many images."""
    with evaluation_on_test(task, config, data, world) as evaluation:
        stride = -(-len(evaluation.folder) // most)
        for batch in evaluation.loader:
            chosen = batch.indices % stride == 0
            if chosen.any():
                yield Batch(batch.images[chosen], batch.labels[chosen], batch.indices[chosen])


def predict_test(task: Task, config: TrainConfig, data: DataPlan, world: World) -> Predictions:
    """Top-1 predictions for every test image, in order."""
    parts: list[tuple[Any, ...]] = []
    with evaluation_on_test(task, config, data, world) as evaluation:
        for logits, batch in evaluation.logits(lambda images: forward(task, config, images, world)):
            probability, predicted = logits.softmax(1).max(1)
            parts.append((batch.indices.numpy(), predicted.numpy(), probability.numpy()))
    indices, classes, shares = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(indices)
    return Predictions(classes[order].astype(np.int32), shares[order].astype(np.float32))
