import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.data.preprocess import Preprocess
from metaformer.errors import ConfigError
from metaformer.tasks.classification.loss import Distillation


class Mean(nn.Module):
    """Teacher whose logits are the means of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        return self.dropout(x.mean(dim=(2, 3)) * self.scale)


IMAGES = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LOGITS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def test_hard_distillation() -> None:
    loss = Distillation(Mean(), "hard")(LOGITS, IMAGES)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, IMAGES.mean(dim=(2, 3)).argmax(1)))


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation(tau: float) -> None:
    loss = Distillation(Mean(), "soft", tau=tau)(LOGITS, IMAGES)
    teacher = (IMAGES.mean(dim=(2, 3)) / tau).softmax(1)
    expected = (teacher * (teacher.log() - (LOGITS / tau).log_softmax(1))).sum(1).mean() * tau**2
    torch.testing.assert_close(loss, expected)
    same = IMAGES.mean(dim=(2, 3))
    torch.testing.assert_close(
        Distillation(Mean(), "soft")(same, IMAGES), torch.tensor(0.0), atol=1e-6, rtol=0
    )


def test_teacher_is_frozen_and_in_evaluation_mode() -> None:
    distillation = Distillation(Mean().train(), "soft")
    student = LOGITS.clone().requires_grad_()
    distillation(student, IMAGES).backward()
    assert student.grad is not None and not distillation.teacher.training
    assert all(not p.requires_grad and p.grad is None for p in distillation.teacher.parameters())


def test_images_are_renormalized_for_the_teacher() -> None:
    student = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    trained = Preprocess(mean=(0.4, 0.4, 0.4), std=(0.2, 0.3, 0.4))
    raw = torch.rand(5, 3, 4, 4)
    column = [
        torch.tensor(values).view(3, 1, 1)
        for values in (student.mean, student.std, trained.mean, trained.std)
    ]
    inputs: list[Tensor] = []
    teacher = Mean()
    teacher.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    distillation = Distillation(teacher, "hard", student_preprocess=student, teacher_preprocess=trained)
    distillation(LOGITS, (raw - column[0]) / column[1])
    torch.testing.assert_close(inputs[0], (raw - column[2]) / column[3])


@pytest.mark.parametrize(
    ("kind", "alpha", "tau"), [("warm", 0.5, 1.0), ("soft", 1.5, 1.0), ("soft", 0.5, 0.0)]
)
def test_invalid_options(kind: str, alpha: float, tau: float) -> None:
    with pytest.raises(ConfigError, match=r"loss\.distill"):
        Distillation(Mean(), kind, alpha=alpha, tau=tau)
