"""Classification losses, and knowledge distillation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.data.preprocess import Preprocess
from metaformer.errors import ConfigError, UnknownName, WeightsError
from metaformer.factory import create_model

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of logits (B, K) with classes (B,) or soft targets (B, K)."""


def build_criterion(
    name: str, smoothing: float = 0.0, aug_splits: int = 1, class_weights: Sequence[float] | None = None
) -> Criterion:
    """Build a loss by name.

    Args:
        name: `cross_entropy`; `bce`, binary cross-entropy over all classes (https://arxiv.org/abs/2110.00476);
            or `jsd`, cross-entropy with the Jensen-Shannon divergence between augmented views
            (https://arxiv.org/abs/1912.02781).
        smoothing: label smoothing of classes; soft targets have their own.
        aug_splits: views of each image, which follow each other along the batch.
        class_weights: weight of each class, of `cross_entropy` alone.

    Raises:
        ConfigError: an unknown name, a value out of range, or `jsd` with a single view.
    """
    if not 0 <= smoothing < 1:
        raise ConfigError(f"loss.smoothing is {smoothing}: it must be at least 0 and below 1")
    if name == "cross_entropy":
        return CrossEntropy(smoothing, class_weights)
    if name == "bce":
        from timm.loss import BinaryCrossEntropy

        return BinaryCrossEntropy(smoothing=smoothing)
    if name == "jsd":
        if aug_splits < 2:
            raise ConfigError(
                f"loss.name 'jsd' compares views: set augment.aug_splits to 2 or 3, not {aug_splits}"
            )
        from timm.loss import JsdCrossEntropy

        return JsdCrossEntropy(num_splits=aug_splits, smoothing=smoothing)
    raise ConfigError(f"loss.name: {name!r} is unknown; choose cross_entropy, bce or jsd")


class CrossEntropy:
    """Cross-entropy with classes, which are label-smoothed, or with soft targets as they are.

    Args:
        smoothing: label smoothing.
        class_weights: weight of each class; all the same by default.
    """

    def __init__(self, smoothing: float, class_weights: Sequence[float] | None = None) -> None:
        self.smoothing = smoothing
        self.weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch, weighted as PyTorch does: classes by their weights, soft targets by number."""
        if self.weights is not None and self.weights.device != logits.device:
            self.weights = self.weights.to(logits.device)
        smoothing = self.smoothing if targets.ndim == 1 else 0.0
        return F.cross_entropy(logits, targets, self.weights, label_smoothing=smoothing)


def balanced_weights(labels: Sequence[int], classes: int) -> list[float]:
    """Weight of each class so that all weigh the same: images by classes and the class's images.

    A class without images has the weight of one with a single image.
    """
    counts = torch.bincount(torch.as_tensor(labels), minlength=classes).clamp(min=1)
    return [float(weight) for weight in len(labels) / (classes * counts)]


class Distillation:
    """Distillation loss of a student's logits with a frozen teacher.

    https://arxiv.org/abs/1503.02531 and https://arxiv.org/abs/2012.12877.

    Args:
        teacher: network with logits (B, K).
        kind: `soft` compares distributions at temperature `tau`, `hard` uses the teacher's top class.
        alpha: weight of this loss in the total.
        tau: temperature.
        student_preprocess: normalization of the images that the loss is given.
        teacher_preprocess: normalization that the teacher was trained with.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        teacher: nn.Module,
        kind: str,
        *,
        alpha: float = 0.5,
        tau: float = 1.0,
        student_preprocess: Preprocess | None = None,
        teacher_preprocess: Preprocess | None = None,
    ) -> None:
        if kind not in ("soft", "hard"):
            raise ConfigError(f"loss.distill: {kind!r} is unknown; choose none, soft or hard")
        if not 0 <= alpha <= 1 or tau <= 0:
            raise ConfigError(f"loss.distill_alpha {alpha} must lie in 0 … 1, loss.distill_tau {tau} above 0")
        self.teacher = teacher.eval().requires_grad_(False)
        self.kind, self.alpha, self.tau = kind, alpha, tau
        source = student_preprocess or Preprocess()
        self._scale, self._shift = _renormalization(source, teacher_preprocess or source)

    def to(self, device: torch.device) -> None:
        """Move the teacher."""
        self.teacher.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)

    def __call__(self, logits: Tensor, images: Tensor) -> Tensor:
        """Mean loss of the student's logits (B, K) for images (B, 3, H, W)."""
        with torch.no_grad():
            targets = self.teacher(images * self._scale + self._shift).float()
        if self.kind == "hard":
            return F.cross_entropy(logits, targets.argmax(dim=1))
        student, teacher = (F.log_softmax(x.float() / self.tau, dim=1) for x in (logits, targets))
        # tau² makes the scale of gradients independent of the temperature (Hinton et al., section 2)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * self.tau**2


def load_teacher(name: str, checkpoint: str | None, classes: int) -> tuple[nn.Module, Preprocess]:
    """Load a network of this library or of timm (`timm:NAME`), with its preprocessing.

    Args:
        name: name of the network.
        checkpoint: file of its weights; None for the published ones.
        classes: number of classes of the data.

    Raises:
        ConfigError: the network has another number of classes.
        UnknownName: there is no such network.
        WeightsError: the checkpoint does not fit.
    """
    if name.startswith("timm:"):
        teacher: Any = _timm_teacher(name[5:], checkpoint, classes)
    else:
        count = classes if checkpoint else None
        teacher = create_model(
            name, pretrained=checkpoint is None, checkpoint_path=checkpoint, num_classes=count
        )
    if teacher.num_classes != classes:
        raise ConfigError(
            f"loss.teacher: {name} has {teacher.num_classes} classes, the data {classes}; give a "
            "loss.teacher_checkpoint that was trained on them"
        )
    return teacher, Preprocess.from_pretrained_cfg(teacher.pretrained_cfg)


def _timm_teacher(name: str, checkpoint: str | None, classes: int) -> Any:
    """Network of timm; published weights keep their own classifier."""
    import timm

    if not timm.is_model(name):
        raise UnknownName("model of timm", name, timm.list_models())
    if checkpoint is None:
        return timm.create_model(name, pretrained=True)
    try:
        return timm.create_model(name, checkpoint_path=checkpoint, num_classes=classes)
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsError(
            f"{checkpoint}: does not fit timm's {name} with {classes} classes: {error}"
        ) from error


def _renormalization(source: Preprocess, target: Preprocess) -> tuple[Tensor, Tensor]:
    """Scale and shift (3, 1, 1) from images normalized as `source` to images normalized as `target`."""
    mean, std = _column(source.mean), _column(source.std)
    target_mean, target_std = _column(target.mean), _column(target.std)
    return std / target_std, (mean - target_mean) / target_std


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
