from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metaformer.data.dataset import Batch
from metaformer.data.loader import Loader
from metaformer.data.sampler import EvalSampler
from metaformer.factory import create_detector, model_config
from metaformer.models.detection.structures import Size
from metaformer.tasks.base import StepContext
from metaformer.tasks.detection.dataset import DetectionDataset, DetectionFolder
from metaformer.tasks.detection.evaluate import DetectionEvaluation
from metaformer.tasks.detection.task import DetectionTask
from metaformer.tasks.detection.transforms import DetectionPreprocess, train_transform

PREPROCESS = DetectionPreprocess(long_side=96, short_side=48)
LOSSES = {
    "retinanet": {"loss", "loss_cls", "loss_bbox"},
    "mask_rcnn": {"loss", "loss_cls", "loss_bbox", "loss_rpn_cls", "loss_rpn_bbox", "loss_mask"},
}
Make = Callable[..., DetectionTask]


@pytest.fixture
def make(rectangles: Callable[..., DetectionFolder]) -> Make:
    def build(kind: str = "mask_rcnn", **fields: Any) -> DetectionTask:
        folder = rectangles(**fields)
        backbone = model_config("poolformer_n", depths=(1,) * 4, dims=(8, 8, 16, 16), grid_mode="interpolate")
        torch.manual_seed(0)
        sizes = {"fpn_dim": 8, "box_fc_dim": 16, "roi_batch_size": 32, "num_classes": 2}
        masks = kind == "mask_rcnn"
        model = create_detector(kind, backbone=backbone, **sizes)
        scenes = DetectionDataset(folder, train_transform((48,), 96), seed=1, masks=masks)
        return DetectionTask(
            model, f"{kind}_tiny", scenes, DetectionEvaluation(folder, PREPROCESS, masks=masks), PREPROCESS
        )

    return build


def batch_of(task: DetectionTask) -> Batch:
    return next(iter(Loader(task.train, EvalSampler(7, batch_size=7))))


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_of_a_batch(make: Make, kind: str) -> None:
    task = make(kind)
    task.to(torch.device("cpu"))
    losses = task.losses(task.model, batch_of(task), StepContext(0, 0))
    assert losses.keys() == LOSSES[kind]
    losses["loss"].backward()
    stem = task.model.get_parameter("backbone.stem.conv.weight")
    assert stem.grad is not None and stem.grad.isfinite().all() and stem.grad.any()
    assert stem.is_contiguous(memory_format=torch.channels_last)


def test_images_without_objects_have_losses(make: Make) -> None:
    task = make(nothing=range(7))
    losses = task.losses(task.model, batch_of(task), StepContext(0, 0))
    assert losses["loss"].isfinite() and losses["loss_rpn_cls"] > 0
    assert losses["loss_bbox"] == losses["loss_mask"] == 0


def test_losses_get_the_size_of_each_image_in_the_padded_batch(make: Make) -> None:
    task, asked = make("retinanet"), []

    def network(images: Tensor, targets: Any, sizes: Sequence[Size]) -> dict[str, Tensor]:
        asked.append((images.shape[2:], sizes))
        return {"loss": images.sum()}

    task.losses(network, batch_of(task), StepContext(0, 0))  # type: ignore[arg-type]
    ((padded, sizes),) = asked
    assert padded == (96, 96) and sizes[:2] == ((48, 64), (48, 48)) and sizes[3] == (96, 45)


def test_a_batch_names_its_files(make: Make) -> None:
    task = make()
    assert [Path(name).name for name in task.names(batch_of(task))] == [f"{i}.png" for i in range(7)]
