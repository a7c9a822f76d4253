"""Run-length encoding, compared with pycocotools."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as reference

from metaformer.data.rle import compress, decode, encode, mask_areas, read_counts, run_lengths
from metaformer.errors import DataError

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(MASKS, st.integers(0, 40), st.integers(0, 40))
def test_masks_are_encoded_as_by_pycocotools_and_decoded_again(
    mask: NDArray[Any], left: int, right: int
) -> None:
    rle = encode(mask)
    theirs = reference.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert rle == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert np.array_equal(decode(rle), mask) and np.array_equal(decode(theirs), mask)
    plain = {"size": rle["size"], "counts": read_counts(rle).tolist()}
    assert np.array_equal(decode(plain), mask)
    mask[:, :left], mask[:, left + right :] = False, False
    assert encode(mask, left, left + right) == encode(mask)


def test_long_runs_are_those_of_pycocotools() -> None:
    draw = random.Random(0)
    for _ in range(50):
        size = [draw.randint(1, 30_000), draw.randint(1, 30_000)]
        cuts = sorted(draw.sample(range(size[0] * size[1] + 1), min(size[0] * size[1], draw.randint(0, 40))))
        runs = np.diff([0, *cuts, size[0] * size[1]])
        theirs = reference.frPyObjects({"size": size, "counts": runs.tolist()}, *size)
        assert compress(runs) == theirs["counts"].decode()
        assert read_counts(theirs).tolist() == runs.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_those_of_each_values_mask(seed: int) -> None:
    draw = np.random.RandomState(seed)
    label_map = draw.randint(0, 4, draw.randint(1, 9, 2)).astype(np.uint8)
    found = dict(run_lengths(label_map))
    assert list(found) == np.unique(label_map).tolist()
    for value, counts in found.items():
        mask = decode({"size": list(label_map.shape), "counts": counts})
        assert (mask == (label_map == value)).all() and 0 not in counts[1:]


@given(
    st.one_of(
        st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=60),
        st.text(max_size=20),
        st.binary(max_size=40),
        st.lists(st.integers(-5, 100), max_size=8),
        st.lists(st.one_of(st.floats(), st.text(), st.none(), st.integers()), max_size=4),
    ),
    st.lists(st.integers(0, 9), min_size=2, max_size=2),
)
def test_any_run_lengths_fit_or_are_refused(counts: object, size: list[int]) -> None:
    rle = {"size": size, "counts": counts}
    try:
        runs = read_counts(rle)
    except DataError as error:
        assert str(error)
    else:
        assert runs.min(initial=0) >= 0 and runs.sum() == size[0] * size[1]
        assert decode(rle).shape == tuple(size)


TEXTS = [
    ("<\x7f", "characters"),
    ("é", "characters"),
    (b"0\xff", "characters"),
    ("<P", "cut off"),
    ("PPPPPPPPP0", "too long"),
    ("", "no run lengths"),
    ("1", "add up to 1 pixels, but 4×3 are 12"),
    ("OO1e0", "below 0"),
]


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        *TEXTS,
        ([3, 4], "add up to 7 pixels"),
        ([13, -1], "below 0"),
        ([2**62, 2**62, 2**62, 2**62 + 12], "add up to"),
        ([12.0], "whole numbers"),
        ([[12]], "whole numbers"),
        ([10**30], "whole numbers"),
        (None, "whole numbers"),
    ],
)
def test_damaged_run_lengths_are_refused(counts: object, error: str) -> None:
    with pytest.raises(DataError, match=error):
        read_counts({"size": [3, 4], "counts": counts})


@pytest.mark.parametrize("size", [None, [3], [3, 4, 5], [3.0, 4], [-3, -4], "34", [2**16, 2**16]])
def test_damaged_sizes_are_refused(size: object) -> None:
    with pytest.raises(DataError, match="size"):
        read_counts({"size": size, "counts": [12]})


@st.composite
def stacks(draw: st.DrawFn) -> NDArray[np.uint8]:
    shape = draw(st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(0, 5)))
    filled = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).random(shape) < filled
    pixels[..., 2:3] = draw(arrays(bool, pixels[..., 2:3].shape))
    return np.asfortranarray(pixels.astype(np.uint8))


@given(stacks(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_areas_are_pycocotools(pixels: NDArray[np.uint8], text: bool) -> None:
    masks = reference.encode(pixels)
    if text:
        masks = [{**mask, "counts": mask["counts"].decode()} for mask in masks]
    assert mask_areas(masks, pixels.shape[:2]).tolist() == pixels.sum(axis=(0, 1)).tolist()


def test_the_area_of_a_run_of_many_characters() -> None:
    mask = reference.encode(np.zeros((4000, 5000, 1), np.uint8, order="F"))[0]
    assert mask_areas([mask], (4000, 5000)).tolist() == [0]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        *(({"size": [3, 4], "counts": counts}, error) for counts, error in TEXTS),
        ({"size": [4, 3], "counts": "<"}, r"height and width are \[4, 3\]"),
        ({"size": [3, 4], "counts": [0, 12]}, "no compressed run lengths"),
        ({"counts": "<"}, "no compressed run lengths"),
        (None, "no compressed run lengths"),
    ],
)
def test_a_damaged_mask_among_others_is_numbered(bad: Any, error: str) -> None:
    good = {"size": [3, 4], "counts": "<"}
    with pytest.raises(DataError, match=f"^mask 1: .*{error}"):
        mask_areas([good, bad, good], (3, 4))


@given(st.lists(st.binary(max_size=12) | st.text(max_size=12), max_size=4))
@settings(max_examples=300, deadline=None)
def test_areas_of_any_text_are_pycocotools_or_refused(texts: list[Any]) -> None:
    masks = [{"size": [4, 5], "counts": text} for text in texts]
    try:
        areas = mask_areas(masks, (4, 5))
    except DataError:
        return
    assert areas.tolist() == reference.area([dict(mask) for mask in masks]).tolist()
