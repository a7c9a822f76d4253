from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from pycocotools import mask as their_mask

from metaformer.data.rle import mask_areas
from metaformer.errors import DataError

Pixels = NDArray[np.uint8]


@st.composite
def stacks(draw: st.DrawFn) -> Pixels:
    shape = draw(st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(0, 5)))
    filled = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).random(shape) < filled
    pixels[..., 2:3] = draw(npst.arrays(bool, pixels[..., 2:3].shape))
    return np.asfortranarray(pixels.astype(np.uint8))


@given(stacks(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_areas_are_pycocotools(pixels: Pixels, text: bool) -> None:
    masks = their_mask.encode(pixels)
    if text:
        masks = [{**mask, "counts": mask["counts"].decode()} for mask in masks]
    assert mask_areas(masks, pixels.shape[:2]).tolist() == pixels.sum(axis=(0, 1)).tolist()


def test_a_run_of_many_characters() -> None:
    mask = their_mask.encode(np.zeros((4000, 5000, 1), np.uint8, order="F"))[0]
    assert mask_areas([mask], (4000, 5000)).tolist() == [0]


GOOD = {"size": [4, 5], "counts": "0d0"}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"size": [5, 4], "counts": "0d0"}, r"height and width are \[5, 4\]"),
        ({"size": [4, 5], "counts": [0, 20]}, "no compressed run lengths"),
        ({"counts": "0d0"}, "no compressed run lengths"),
        (None, "no compressed run lengths"),
        ({"size": [4, 5], "counts": ""}, "no run lengths"),
        ({"size": [4, 5], "counts": "0é"}, "characters"),
        ({"size": [4, 5], "counts": b"0\xff"}, "characters"),
        ({"size": [4, 5], "counts": "0P"}, "ends within a number"),
        ({"size": [4, 5], "counts": "0ooooooo0"}, "beyond any image"),
        ({"size": [4, 5], "counts": "1"}, "not the run lengths of 5×4 pixels"),
        ({"size": [4, 5], "counts": "OO1e0"}, "below 0"),
    ],
)
def test_a_bad_mask_is_named(bad: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"^mask 1: .*{told}"):
        mask_areas([GOOD, bad, GOOD], (4, 5))


@given(st.lists(st.binary(max_size=12) | st.text(max_size=12), max_size=4))
@settings(max_examples=300, deadline=None)
def test_nothing_else_passes_or_breaks(texts: list[Any]) -> None:
    masks = [{"size": [4, 5], "counts": text} for text in texts]
    try:
        areas = mask_areas(masks, (4, 5))
    except DataError:
        return
    assert areas.tolist() == their_mask.area([{**m, "counts": m["counts"]} for m in masks]).tolist()
