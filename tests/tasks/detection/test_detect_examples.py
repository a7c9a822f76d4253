from typing import Any

import numpy as np
import pytest

from metaformer.data.rle import decode, encode
from metaformer.tasks.detection.evaluate import EXAMPLES, Examples, agreement
from metaformer.tasks.detection.instances import Instance
from metaformer.tasks.detection.results import DetectedObjects

LEFT, RIGHT = (10.0, 10.0, 30.0, 30.0), (60.0, 10.0, 90.0, 40.0)


def found(*objects: tuple[Any, int, float], path: str = "x.jpg", **fields: Any) -> DetectedObjects:
    return DetectedObjects(
        path,
        (400, 300),
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([score for _, _, score in objects], np.float32),
        np.array([label for _, label, _ in objects], np.int64),
        ("ant", "bee"),
        ((200, 0, 0), (0, 200, 0)),
        **fields,
    )


def there(box: Any, label: int = 0, crowd: bool = False, outline: Any = None) -> Instance:
    return Instance(box, label, crowd, 1, 400.0, outline)


@pytest.mark.parametrize(
    ("objects", "truth", "f1"),
    [
        ([(LEFT, 0, 0.9)], [there(LEFT)], 1.0),
        ([(LEFT, 1, 0.9)], [there(LEFT)], 0.0),
        ([(LEFT, 0, 0.9), (LEFT, 0, 0.8)], [there(LEFT)], 2 / 3),
        ([(LEFT, 0, 0.9)], [there(LEFT), there(RIGHT)], 2 / 3),
        ([], [there(LEFT)], 0.0),
        ([(LEFT, 0, 0.9)], [], 0.0),
        ([], [], None),
        ([(RIGHT, 0, 0.9), (LEFT, 0, 0.8)], [there((50, 0, 99, 50), crowd=True), there(LEFT)], 1.0),
        ([(RIGHT, 0, 0.9)], [there((50, 0, 99, 50), crowd=True)], None),
        ([((10, 10, 10, 10), 0, 0.9)], [there(LEFT)], 0.0),
        ([((14, 10, 34, 30), 0, 0.9), (LEFT, 0, 0.5)], [there(LEFT)], 2 / 3),
    ],
)
def test_agreement_is_f1(objects: Any, truth: Any, f1: float | None) -> None:
    assert agreement(found(*objects), truth) == (None if f1 is None else pytest.approx(f1))


def test_the_worst_and_the_best_are_kept() -> None:
    examples, boxes = Examples(), [(x, 10.0, x + 8, 20.0) for x in range(0, 200, 10)]
    for index in range(20):
        seen = found(*((box, 0, 0.9) for box in boxes[: index + 1]), path=f"{index:02d}.jpg")
        examples.update(index, seen, [there(box) for box in boxes])
    examples.update(20, found(), [])
    chosen = examples.chosen()
    assert [one.index for one in chosen] == [*range(EXAMPLES), *range(19, 19 - EXAMPLES, -1)]
    assert chosen[EXAMPLES].f1 == 1 and len(chosen[0].truth) == 20 and len(chosen[0].predicted) == 1


def test_few_images_are_shown_once() -> None:
    examples = Examples()
    for index in range(3):
        examples.update(index, found((LEFT, 0, 0.9), (RIGHT, 0, 0.1)), [there(LEFT)])
    assert [one.index for one in examples.chosen()] == [0, 1, 2]
    assert examples.chosen()[0].f1 == 1  # what is not sure does not count


def test_masks_are_made_small() -> None:
    pixels = np.zeros((300, 400), bool)
    pixels[10:30, 10:30] = True
    square = [[10.0, 10, 30, 10, 30, 30, 10, 30]]
    runs = {"size": [300, 400], "counts": [3010, *([20, 280] * 20)[:-1], 113290 - 2000 + 0]}
    runs["counts"][-1] = 300 * 400 - sum(runs["counts"][:-1])
    examples = Examples()
    examples.update(
        0,
        found((LEFT, 0, 0.9), masks=(encode(pixels),)),
        [there(LEFT, outline=square), there(LEFT, outline=runs), there(RIGHT, crowd=True)],
    )
    (example,) = examples.chosen()
    small = decode(example.predicted[0].mask or {})
    assert small.shape == (192, 256) and small.sum() == pytest.approx(400 * 0.64**2, rel=0.1)
    assert [decode(one.mask or {}).tolist() == small.tolist() for one in example.truth[:2]] == [True, True]
    assert example.truth[2].crowd and example.truth[2].mask is None
