"""Figures against scikit-learn, losses against their formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from metaformer.tasks.multilabel.loss import AsymmetricLoss, BinaryCrossEntropy, balanced_pos_weight
from metaformer.tasks.multilabel.metrics import average_precision, best_thresholds, count

COLUMN = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


def tensors(rows: list[tuple[int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, 1), many of them equal, and labels."""
    scores = torch.tensor([[score / 6] for score, _ in rows])
    return scores, torch.tensor([[float(label)] for _, label in rows])


@given(COLUMN)
def test_average_precision_is_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    scores, labels = tensors(rows)
    (ap,) = average_precision(scores, labels).tolist()
    if labels.any():
        assert ap == pytest.approx(average_precision_score(labels.numpy().ravel(), scores.numpy().ravel()))
    else:
        assert np.isnan(ap)


@given(COLUMN)
def test_no_threshold_has_a_higher_f1(rows: list[tuple[int, bool]]) -> None:
    scores, labels = tensors(rows)
    thresholds = best_thresholds(scores, labels)
    if not labels.any():
        assert thresholds.tolist() == [0.5]
        return
    best = float(count(scores, labels, thresholds).f1())
    tried = [float(count(scores, labels, torch.tensor([cut])).f1()) for cut in np.arange(-0.05, 1.1, 0.05)]
    assert best == pytest.approx(max(tried))
    predicted = (scores >= thresholds).numpy().ravel()
    assert best == pytest.approx(f1_score(labels.numpy().ravel(), predicted))


def test_a_threshold_lies_between_two_scores() -> None:
    scores = torch.tensor([[0.9], [0.7], [0.3], [0.1]])
    assert best_thresholds(scores, torch.tensor([[1.0], [1], [0], [0]])).tolist() == pytest.approx([0.5])


def test_binary_cross_entropy_and_positive_weights() -> None:
    logits, targets = torch.tensor([[0.3, -1.0], [2.0, 0.1]]), torch.tensor([[1.0, 0], [0, 1]])
    p = logits.sigmoid()
    parts = -(targets * p.log() * torch.tensor([3.0, 1.0]) + (1 - targets) * (1 - p).log())
    assert BinaryCrossEntropy(torch.tensor([3.0, 1.0]))(logits, targets) == pytest.approx(float(parts.mean()))
    assert balanced_pos_weight(torch.tensor([[1.0, 0], [1, 0], [0, 0], [0, 0]])).tolist() == [1, 100]


def test_asymmetric_loss_is_the_papers() -> None:
    logits = torch.tensor([[0.3, -4.0, 2.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    p = torch.sigmoid(torch.tensor([0.3, -4.0, 2.0], dtype=torch.float64))
    shifted = (p - 0.05).clamp(min=0)
    expected = -((1 - p[0]) * p[0].log() + shifted[2] ** 4 * (1 - shifted[2]).log())
    loss = AsymmetricLoss(gamma_pos=1.0)(logits, targets)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0, "an easy negative, below the margin"


def test_without_focus_and_margin_it_is_binary_cross_entropy() -> None:
    logits, targets = torch.randn(5, 3), (torch.rand(5, 3) > 0.5).float()
    plain = AsymmetricLoss(0.0, 0.0, 0.0)(logits, targets) / 3
    assert float(plain) == pytest.approx(float(BinaryCrossEntropy()(logits, targets)), rel=1e-5)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_extreme_logits_have_finite_gradients(logit: float) -> None:
    for target in (0.0, 1.0):
        x = torch.tensor([[logit]], requires_grad=True)
        AsymmetricLoss()(x, torch.tensor([[target]])).backward()
        assert x.grad is not None and x.grad.isfinite().all()
