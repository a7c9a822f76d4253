from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from metaformer.errors import DataError
from metaformer.tasks.segmentation.metrics import BLOCK, ConfusionMatrix, confusion_matrix, figures, mean_iou

LabelMap = NDArray[np.integer[Any]]
IGNORE = 255


def counted(
    predicted: LabelMap, truth: LabelMap, classes: int, ignore: int
) -> tuple[LabelMap, LabelMap, LabelMap]:
    """Intersections, unions and pixels, computed class by class without a matrix."""
    kept = truth != ignore
    sets = [((predicted == k) & kept, (truth == k) & kept) for k in range(classes)]
    return (
        np.array([(p & t).sum() for p, t in sets]),
        np.array([(p | t).sum() for p, t in sets]),
        np.array([t.sum() for _, t in sets]),
    )


def check(predicted: LabelMap, truth: LabelMap, classes: int, ignore: int = IGNORE) -> None:
    matrix = ConfusionMatrix(classes)
    matrix.update(torch.from_numpy(predicted), torch.from_numpy(truth), ignore)
    found = figures(matrix.result(), [str(k) for k in range(classes)])
    both, either, pixels = counted(predicted, truth, classes, ignore)
    assert [row.correct for row in found.per_class] == both.tolist()
    assert [row.union for row in found.per_class] == either.tolist()
    assert [row.pixels for row in found.per_class] == pixels.tolist()
    ious = [both[k] / either[k] for k in range(classes) if either[k]]
    shares = [both[k] / pixels[k] for k in range(classes) if pixels[k]]
    assert [row.iou for row in found.per_class if row.union] == ious
    assert found.miou == (np.mean(ious) if ious else 0)
    assert found.macc == (np.mean(shares) if shares else 0)
    assert found.aacc == (both.sum() / pixels.sum() if shares else 0)
    assert found.pixels == (truth != ignore).sum()


@st.composite
def maps(draw: st.DrawFn) -> tuple[LabelMap, LabelMap, int]:
    classes = draw(st.sampled_from([1, 2, 11, 150, 255]))
    shape = draw(npst.array_shapes(min_dims=2, max_dims=2, max_side=20))
    truths = st.one_of(st.integers(0, classes - 1), st.just(IGNORE), st.sampled_from([0, classes - 1]))
    predicted = draw(npst.arrays(np.uint8, shape, elements=st.integers(0, classes - 1)))
    return predicted, draw(npst.arrays(np.uint8, shape, elements=truths)), classes


@given(maps())
@settings(max_examples=150, deadline=None)
@example((np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), 1))
@example((np.full((3, 2), 7, np.uint8), np.full((3, 2), IGNORE, np.uint8), 11))  # no labeled pixel
@example((np.full((9, 9), 4, np.uint8), np.zeros((9, 9), np.uint8), 5))  # all wrong, three classes absent
@example((np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8), 3))
def test_metrics_equal_sets_of_pixels(case: tuple[LabelMap, LabelMap, int]) -> None:
    check(*case)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_integer_types_and_several_blocks(dtype: type) -> None:
    random = np.random.default_rng(0)
    shape = (3, BLOCK // 2 + 5)
    predicted, truth = (random.integers(0, 7, shape).astype(dtype) for _ in range(2))
    truth[random.random(shape) < 0.3] = 99
    check(predicted, truth, 7, ignore=99)


def test_more_classes_than_a_byte_holds() -> None:
    random = np.random.default_rng(1)
    predicted, truth = (random.integers(0, 300, (50, 60)) for _ in range(2))
    truth[:10] = 65535
    check(predicted, truth, 300, ignore=65535)
    check(predicted.astype(np.uint16), truth.astype(np.uint16), 300, ignore=65535)


@pytest.mark.parametrize("ignore", [0, 2, -1, 11])
def test_ignore_index(ignore: int) -> None:
    random = np.random.default_rng(2)
    truth = random.integers(0, 11, (20, 20))
    truth[:3] = ignore
    check(random.integers(0, 11, (20, 20)), truth, 11, ignore)


def test_updates_are_summed() -> None:
    random = np.random.default_rng(3)
    predicted, truth = (torch.from_numpy(random.integers(0, 5, (4, 30, 20))) for _ in range(2))
    matrix = ConfusionMatrix(5)
    added = [matrix.update(p, t) for p, t in zip(predicted, truth, strict=True)]
    assert torch.equal(matrix.result(), sum(added))
    assert torch.equal(matrix.result(), confusion_matrix(predicted.flatten(0, 1), truth.flatten(0, 1), 5))


@pytest.mark.parametrize(("truth", "value"), [(5, 5), (6, 6), (200, 200), (-1, -1)])
def test_labels_that_are_not_classes(truth: int, value: int) -> None:
    labels = torch.zeros(4, 4, dtype=torch.int64)
    labels[1, 2], labels[3, 3] = truth, IGNORE
    with pytest.raises(DataError, match=f"labels: {value} is not a class; there are 5"):
        ConfusionMatrix(5).update(torch.zeros(4, 4, dtype=torch.uint8), labels)


def test_predictions_of_other_classes_or_size() -> None:
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="prediction: 7 is not a class"):
        ConfusionMatrix(5).update(labels + 7, labels)
    with pytest.raises(DataError, match="labels are 4×4, the prediction is 4×3"):
        ConfusionMatrix(5).update(labels[:, :3], labels)


def test_metrics_of_absent_classes() -> None:
    found = figures(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]]), ["ant", "bee", "cat"])
    ant, bee, cat = found.per_class
    assert (ant.iou, ant.accuracy, ant.precision) == (0.75, 0.75, 1.0)
    assert (bee.iou, bee.accuracy, bee.precision) == (0.0, None, 0.0)
    assert (cat.iou, cat.accuracy, cat.precision) == (None, None, None)
    assert (found.miou, found.macc, found.aacc) == (0.375, 0.75, 0.75)
    assert mean_iou(torch.zeros(3, 3, dtype=torch.int64)) is None
