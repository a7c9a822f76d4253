"""Learning from another network's answers (https://arxiv.org/abs/1503.02531, https://arxiv.org/abs/2012.12877)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.data.preprocess import Preprocess
from metaformer.errors import ConfigError, UnknownName, WeightsError

KINDS = ("soft", "hard")


class Distillation:
    """The loss of a student's logits against a frozen teacher's.

    Args:
        teacher: gives logits (B, K) of the images that the student sees.
        kind: `soft` compares distributions at temperature `tau`, `hard` takes the teacher's decision.
        alpha: share of this loss in the whole.
        tau: temperature.
        student, taught: how the student's images are normalized, and how the teacher's were.
    """

    def __init__(
        self,
        teacher: nn.Module,
        kind: str,
        *,
        alpha: float = 0.5,
        tau: float = 1.0,
        student: Preprocess | None = None,
        taught: Preprocess | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"loss.distill: {kind!r} is none of none, soft, hard")
        if not 0 <= alpha <= 1 or tau <= 0:
            raise ConfigError(f"loss.distill_alpha {alpha} must lie in 0 … 1, loss.distill_tau {tau} above 0")
        self.teacher = teacher.eval().requires_grad_(False)
        self.kind, self.alpha, self.tau = kind, alpha, tau
        self._scale, self._shift = _renormalize(student or Preprocess(), taught or student or Preprocess())

    def to(self, device: torch.device) -> None:
        """Move the teacher."""
        self.teacher.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)

    def __call__(self, logits: Tensor, images: Tensor) -> Tensor:
        """Mean loss of the student's logits (B, K) on these images (B, 3, H, W)."""
        with torch.no_grad():
            answers = self.teacher(images * self._scale + self._shift).float()
        if self.kind == "hard":
            return F.cross_entropy(logits, answers.argmax(dim=1))
        student, teacher = (F.log_softmax(x.float() / self.tau, dim=1) for x in (logits, answers))
        # tau² keeps the gradient's size whatever the temperature (Hinton et al., section 2)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * self.tau**2


def load_teacher(name: str, checkpoint: str | None, classes: int) -> tuple[nn.Module, Preprocess]:
    """Load a network of this library, or of timm (`timm:NAME`), and say how its images are normalized.

    Raises:
        ConfigError: it tells another number of classes apart.
    """
    if name.startswith("timm:"):
        teacher: Any = _timm_teacher(name[5:], checkpoint, classes)
    else:
        from metaformer.factory import create_model

        count = classes if checkpoint else None
        teacher = create_model(
            name, pretrained=checkpoint is None, checkpoint_path=checkpoint, num_classes=count
        )
    if teacher.num_classes != classes:
        raise ConfigError(
            f"loss.teacher: {name} tells {teacher.num_classes} classes apart, the data has {classes}; "
            f"give loss.teacher_checkpoint of one that was trained on them"
        )
    return teacher, Preprocess.from_pretrained_cfg(teacher.pretrained_cfg)


def _timm_teacher(name: str, checkpoint: str | None, classes: int) -> Any:
    """One of timm's networks; from its published weights, with the classifier that they have."""
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


def _renormalize(here: Preprocess, there: Preprocess) -> tuple[Tensor, Tensor]:
    """Factor and offset (3, 1, 1) that turn images normalized here into images normalized there."""
    mean, std = _column(here.mean), _column(here.std)
    mean_there, std_there = _column(there.mean), _column(there.std)
    return std / std_there, (mean - mean_there) / std_there


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
