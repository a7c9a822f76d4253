"""How tests of the C++ kernels compare maps, and share their rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

DTYPES: Final = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Type -> how far a result may be from float64's, relative to the largest number, or to 1."""


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Both are numbers, or are none, at the same places."""
    largest = wanted.nan_to_num().abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=0, atol=tolerance * max(1.0, largest), equal_nan=True
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let kernels have so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
