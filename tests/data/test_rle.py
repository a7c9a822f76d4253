import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as reference

from metaformer.data.rle import compress, counts_of, decode, encode
from metaformer.errors import DataError

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(MASKS)
def test_masks_become_what_pycocotools_makes_of_them_and_return(mask: np.ndarray) -> None:
    rle = encode(mask)
    theirs = reference.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert rle == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert np.array_equal(decode(rle), mask) and np.array_equal(decode(theirs), mask)
    plain = {"size": rle["size"], "counts": counts_of(rle).tolist()}
    assert np.array_equal(decode(plain), mask)


def test_long_runs_become_what_pycocotools_makes_of_them() -> None:
    draw = random.Random(0)
    for _ in range(50):
        size = [draw.randint(1, 30_000), draw.randint(1, 30_000)]
        cuts = sorted(draw.sample(range(size[0] * size[1] + 1), min(size[0] * size[1], draw.randint(0, 40))))
        runs = np.diff([0, *cuts, size[0] * size[1]])
        theirs = reference.frPyObjects({"size": size, "counts": runs.tolist()}, *size)
        assert compress(runs) == theirs["counts"].decode()
        assert counts_of(theirs).tolist() == runs.tolist()


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
def test_whatever_the_run_lengths_are_they_fit_or_are_refused(counts: object, size: list[int]) -> None:
    rle = {"size": size, "counts": counts}
    try:
        runs = counts_of(rle)
    except DataError as error:
        assert str(error)
    else:
        assert runs.min(initial=0) >= 0 and runs.sum() == size[0] * size[1]
        assert decode(rle).shape == tuple(size)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([3, 4], "add up to 7 pixels, but width 4 times height 3 is 12"),
        ([13, -1], "run lengths of -1 to 13 pixels in a mask of 4x3"),
        ([12.0], "must be whole numbers"),
        ([[12]], "must be whole numbers"),
        ([10**30], "must be whole numbers"),
        (None, "must be whole numbers"),
        ("<\x7f", r"hold the character '\\x7f'"),
        ("é", "hold the character 'é'"),
        ("<P", "cut off within a number"),
        ("PPPPPPPPP0", "a number that is too long"),
        ("", "add up to 0 pixels"),
    ],
)
def test_what_is_wrong_is_told(counts: object, told: str) -> None:
    with pytest.raises(DataError, match=told):
        counts_of({"size": [3, 4], "counts": counts})


@pytest.mark.parametrize("size", [None, [3], [3, 4, 5], [3.0, 4], [-3, -4], "34", [2**16, 2**16]])
def test_sizes_are_looked_at(size: object) -> None:
    with pytest.raises(DataError, match="not height and width"):
        counts_of({"size": size, "counts": [12]})
