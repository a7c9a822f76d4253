"""Masks as COCO writes them without compression."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def run_lengths(label_map: NDArray[Any]) -> Iterator[tuple[int, list[int]]]:
    """Each class that a label map holds, with COCO's uncompressed run lengths of its mask.

    They go down the columns and take turns, beginning with the pixels before the first of the class.
    """
    flat = label_map.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    of = flat[starts]
    order = np.argsort(of, kind="stable")
    found, first = np.unique(of[order], return_index=True)
    for index, runs in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        turns = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        counts = np.diff(turns, prepend=0).tolist()
        rest = flat.size - int(turns[-1])
        yield int(index), [*counts, rest] if rest else counts
