import numpy as np
import pytest

from metaformer.data.rle import run_lengths


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_those_of_each_mask(seed: int) -> None:
    draw = np.random.RandomState(seed)
    label_map = draw.randint(0, 4, draw.randint(1, 9, 2)).astype(np.uint8)
    found = dict(run_lengths(label_map))
    assert sorted(found) == np.unique(label_map).tolist()
    for index, counts in found.items():
        turns = np.arange(len(counts)) % 2
        mask = np.repeat(turns, counts).reshape(label_map.shape, order="F")
        assert (mask == (label_map == index)).all() and 0 not in counts[1:]
