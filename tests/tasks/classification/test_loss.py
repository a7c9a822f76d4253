import pytest
import torch
import torch.nn.functional as F

from metaformer.errors import ConfigError
from metaformer.tasks.classification.loss import balanced_weights, build_criterion

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
LABELS = torch.tensor([0, 2])
SOFT = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])


def test_label_smoothing_of_cross_entropy() -> None:
    smoothed = F.one_hot(LABELS, 3) * 0.7 + 0.1
    expected = -(smoothed * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(build_criterion("cross_entropy", 0.3)(LOGITS, LABELS), expected)


def test_soft_targets_are_not_smoothed() -> None:
    expected = -(SOFT * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(build_criterion("cross_entropy", 0.3)(LOGITS, SOFT), expected)


def test_bce() -> None:
    loss = build_criterion("bce", 0.0)
    expected = F.binary_cross_entropy_with_logits(LOGITS, F.one_hot(LABELS, 3).float())
    torch.testing.assert_close(loss(LOGITS, LABELS), expected)
    torch.testing.assert_close(loss(LOGITS, SOFT), F.binary_cross_entropy_with_logits(LOGITS, SOFT))
    smoothed = F.one_hot(LABELS, 3) * 0.7 + 0.1
    torch.testing.assert_close(
        build_criterion("bce", 0.3)(LOGITS, LABELS), F.binary_cross_entropy_with_logits(LOGITS, smoothed)
    )


def test_jsd() -> None:
    loss = build_criterion("jsd", 0.0, aug_splits=3)
    alike = loss(LOGITS.repeat(3, 1), LABELS.repeat(3))
    torch.testing.assert_close(alike, F.cross_entropy(LOGITS, LABELS))
    views = torch.cat([LOGITS, LOGITS.flip(1), LOGITS * 2])
    shares = views.softmax(1).view(3, 2, 3)
    middle = shares.mean(0).log()
    divergence = sum(F.kl_div(middle, share, reduction="batchmean") for share in shares) / 3
    expected = F.cross_entropy(LOGITS, LABELS) + 12 * divergence  # alpha of the paper
    torch.testing.assert_close(loss(views, LABELS.repeat(3)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "smoothing", "aug_splits", "error"),
    [
        ("mse", 0.0, 1, "loss.name: 'mse'"),
        ("jsd", 0.0, 1, "augment.aug_splits"),
        ("bce", 1.0, 1, "loss.smoothing is 1.0"),
    ],
)
def test_invalid_options(name: str, smoothing: float, aug_splits: int, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        build_criterion(name, smoothing, aug_splits)


def test_class_weights() -> None:
    weights = [1.0 + k for k in range(LOGITS.shape[1])]
    expected = F.cross_entropy(LOGITS, LABELS, torch.tensor(weights), label_smoothing=0.3)
    torch.testing.assert_close(
        build_criterion("cross_entropy", 0.3, class_weights=weights)(LOGITS, LABELS), expected
    )
    soft = F.cross_entropy(LOGITS, SOFT, torch.tensor(weights))
    torch.testing.assert_close(
        build_criterion("cross_entropy", 0.3, class_weights=weights)(LOGITS, SOFT), soft
    )


def test_balanced_weights_make_classes_weigh_the_same() -> None:
    labels = [0] * 6 + [1] * 3 + [2]
    weights = balanced_weights(labels, 4)
    assert [weights[k] * labels.count(k) for k in range(3)] == pytest.approx([2.5, 2.5, 2.5])
    assert weights[3] == weights[2] and sum(weights[k] for k in labels) == pytest.approx(7.5)
