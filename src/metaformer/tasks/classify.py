"""Image classification."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.backbones.skeleton import MetaFormer
from metaformer.backbones.stage import Recompute
from metaformer.data.dataset import Augmented
from metaformer.data.loader import Batch
from metaformer.data.mix import Mix
from metaformer.data.preprocess import Preprocess
from metaformer.errors import ConfigError
from metaformer.tasks.criterion import Criterion
from metaformer.tasks.distill import Distillation
from metaformer.tasks.evaluation import Evaluation
from metaformer.tasks.results import EvalReport
from metaformer.tasks.task import Forward, Moment


class Classify:
    """Tell the classes of an image folder apart.

    Args:
        model: gives logits (B, K).
        name: what the model is called.
        train: augmented training pictures; labels are the model's classes.
        evaluation: the validation data.
        preprocess: how pictures become input when the model is used.
        criterion: the loss.
        mix: Mixup and CutMix; their targets replace the classes.
        mix_off_epoch: epoch from which nothing is mixed; 0 for never.
        distillation: a teacher's part of the loss.
    """

    metric = "top1"

    def __init__(
        self,
        model: MetaFormer,
        name: str,
        train: Augmented,
        evaluation: Evaluation,
        preprocess: Preprocess,
        criterion: Criterion,
        *,
        mix: Mix | None = None,
        mix_off_epoch: int = 0,
        distillation: Distillation | None = None,
    ) -> None:
        self.model, self.name, self.train, self.evaluation = model, name, train, evaluation
        self.preprocess, self.criterion = preprocess, criterion
        self.mix, self.mix_off_epoch, self.distillation = mix, mix_off_epoch, distillation

    def to(self, device: torch.device) -> None:
        """Move model and teacher."""
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.distillation is not None:
            self.distillation.to(device)

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Losses of a batch; with views of an image, they are stacked view by view."""
        images, targets = batch.images, batch.labels
        if images.ndim == 5:
            targets = targets.repeat(images.shape[1])
            images = images.transpose(0, 1).flatten(0, 1)  # (views·B, 3, H, W)
        if self.mix is not None:
            active = not self.mix_off_epoch or moment.epoch < self.mix_off_epoch
            images, targets = self.mix(images, targets, moment.step, part=moment.part, active=active)
        logits = model(images).float()
        loss = self.criterion(logits, targets)
        if self.distillation is None:
            return {"loss": loss}
        distilled, share = self.distillation(logits, images), self.distillation.alpha
        return {"loss": loss * (1 - share) + distilled * share, "distill": distilled}

    def names(self, batch: Batch) -> list[str]:
        """Files that a batch came from."""
        source = self.train.source
        return [str(source.path(int(index))) for index in batch.indices]

    def evaluate(self, forward: Forward) -> EvalReport:
        """Measure on the validation data."""
        return self.evaluation.run(forward)

    def close(self) -> None:
        """Stop the processes that read validation data."""
        self.evaluation.close()

    def card(self) -> dict[str, Any]:
        """Architecture, classes and preprocessing."""
        return {
            "task": "classify",
            "name": self.name,
            "model": self.model.config.to_dict(),
            "classes": list(self.evaluation.folder.classes),
            "preprocess": self.preprocess.to_dict(),
        }

    def hub_card(self) -> dict[str, Any]:
        """Architecture and preprocessing, as `from_pretrained` reads them from `config.json`."""
        look, classes = self.preprocess, list(self.evaluation.folder.classes)
        return {
            "library_name": "metaformer",
            "architecture": self.name,
            "out_indices": None,
            "config": self.model.config.to_dict(),
            "pretrained_cfg": {
                **self.model.pretrained_cfg,
                "url": "",
                "tag": "",
                "num_classes": len(classes),
                "label_names": classes,
                "input_size": [3, look.image_size, look.image_size],
                "crop_pct": look.crop,
                "interpolation": look.interpolation,
                "mean": list(look.mean),
                "std": list(look.std),
            },
        }


def build_classifier(
    name: str,
    classes: int,
    *,
    pretrained: bool = False,
    checkpoint: str | None = None,
    mixers: str | Sequence[str] | None = None,
    drop_path_rate: float = 0.0,
    head_dropout: float = 0.0,
    image_size: int = 224,
    overrides: dict[str, Any] | None = None,
    grad_checkpointing: Recompute = False,
) -> MetaFormer:
    """Make the network for this many classes, from own or published weights where they are asked for.

    A file of other classes gives everything but its last layer; one of another grid is resampled.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    from metaformer.models import create_model, load_weights

    fields: dict[str, Any] = {"head_dropout": head_dropout, **(overrides or {})}
    for own in ("num_classes", "drop_path_rate"):
        if own in fields:
            raise ConfigError(f"model.overrides: {own} has a field of its own, model.{own}")
    if mixers is not None:
        fields["mixers"] = mixers if isinstance(mixers, str) else tuple(mixers)
    published = pretrained and checkpoint is None
    if not published:  # published weights bring the grid that they were trained on
        fields.setdefault("image_size", (image_size, image_size))
    model = create_model(
        name, pretrained=published, num_classes=classes, drop_path_rate=drop_path_rate, **fields
    )
    if checkpoint is not None:
        report = load_weights(model, checkpoint, classifier="fresh", grid="interpolate")
        logging.getLogger(__name__).info("%s", report)
    assert isinstance(model, MetaFormer)
    if grad_checkpointing:
        model.set_grad_checkpointing(grad_checkpointing)
    return model
