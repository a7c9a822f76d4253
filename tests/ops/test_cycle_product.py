import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.cycle_product import FARTHEST, cycle_means, cycle_product, cycle_shares
from metaformer.ops.native import library
from metaformer.ops.packed import pack
from metaformer.ops.shift import shift_channels
from ops.numerics import DTYPES, close, threads

compiled = pytest.mark.skipif(library.load() is None, reason=library.describe())
multiplying = pytest.mark.skipif(
    not library.multiplies(torch.float32), reason="no C++ compiler, or a processor without AVX2"
)
LANES = library.lanes()
HEIGHT, WIDTH = 2, 3
dtypes = st.sampled_from(list(DTYPES))
sides = st.integers(1, 9)
kernels = st.sampled_from([1, 3])
workers = st.integers(1, 5)


def shifted(x: Tensor, kernel: int) -> list[Tensor]:
    """The map (B, H, W, C) in float64, read along the width, the height, and in place."""
    nchw = x.double().permute(0, 3, 1, 2)
    maps = shift_channels(nchw, kernel, WIDTH), shift_channels(nchw, kernel, HEIGHT), nchw
    return [map_.permute(0, 2, 3, 1) for map_ in maps]


def layers(channels: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the three branches, and of the last product."""
    size = channels, channels
    return [
        ((torch.randn(*size) / channels**0.5).to(dtype), torch.randn(channels).to(dtype)) for _ in range(4)
    ]


def run(
    x: Tensor,
    share: Tensor,
    of: list[tuple[Tensor, Tensor]],
    kernel: int,
    past: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    width, height, plain, last = (pack(*layer) for layer in of)
    return cycle_product(x, (width, height, plain), share, last, kernel, past, keep)


def reference(
    x: Tensor,
    share: Tensor,
    of: list[tuple[Tensor, Tensor]],
    kernel: int,
    past: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    *branches, last = ([part.double() for part in layer] for layer in of)
    y = torch.zeros_like(x, dtype=torch.float64)
    for i, (map_, layer) in enumerate(zip(shifted(x, kernel), branches, strict=True)):
        y += F.linear(map_, *layer) * share[:, None, None, i].double()
    y = F.linear(y, *last)
    return y if past is None else y + past.double() * (1 if keep is None else keep.double())


def test_the_kernels_longest_staircase_is_compared() -> None:
    assert FARTHEST == 3


@compiled
@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), sides, sides, st.integers(1, 70), kernels, dtypes, workers)
def test_means_are_those_of_the_shifted_maps(
    batch: int, height: int, width: int, channels: int, kernel: int, dtype: torch.dtype, worker: int
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(batch, height, width, channels) + 2).to(dtype)
    with threads(worker):
        found = cycle_means(x, kernel)
    assert found.dtype == dtype
    wanted = torch.stack([map_.mean((1, 2)) for map_ in shifted(x, kernel)], 1)
    close(found, wanted, DTYPES[dtype])


@compiled
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), st.sampled_from([1.0, 100.0]), dtypes, workers)
def test_shares_are_the_softmax(
    batch: int, channels: int, size: float, dtype: torch.dtype, worker: int
) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(batch, channels, 3) * size).to(dtype)
    with threads(worker):
        found = cycle_shares(logits)
    assert found.dtype == torch.float32
    close(found, logits.double().softmax(-1).transpose(1, 2), 1e-6)


@compiled
def test_shares_of_what_is_no_number_are_none() -> None:
    logits = torch.randn(2, 5, 3)
    logits[1, 2, 0] = torch.nan
    missing = cycle_shares(logits).isnan()
    assert missing[1, :, 2].all() and missing.sum() == 3


@multiplying
@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3),
    sides,
    sides,
    st.integers(1, 9),
    kernels,
    dtypes,
    st.sampled_from(["nothing", "past", "kept past", "tokens"]),
    workers,
)
def test_product_is_what_float64_gives(
    batch: int, height: int, width: int, groups: int, kernel: int, dtype: torch.dtype, added: str, worker: int
) -> None:
    torch.manual_seed(0)
    channels = groups * LANES
    x, share = torch.randn(batch, height, width, channels).to(dtype), torch.rand(batch, 3, channels)
    past = {"nothing": None, "tokens": x}.get(added, torch.randn_like(x))
    keep = torch.randn(channels) if added == "kept past" else None
    of, before = layers(channels, dtype), x.clone()
    with threads(worker):
        found = run(x, share, of, kernel, past, keep)
    assert found.dtype == dtype and torch.equal(x, before)
    close(found, reference(x, share, of, kernel, past, keep), DTYPES[dtype])


@multiplying
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 8), (8, 1), (40, 40)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_lines_single_tokens_and_maps_larger_than_the_cache(height: int, width: int, kernel: int) -> None:
    x, share, of = (
        torch.randn(2, height, width, 5 * LANES),
        torch.rand(2, 3, 5 * LANES),
        layers(5 * LANES, torch.float32),
    )
    close(run(x, share, of, kernel), reference(x, share, of, kernel), 1e-5)


@multiplying
@pytest.mark.parametrize("worker", range(1, 6))
def test_what_is_no_number_reaches_its_neighbors_only(worker: int) -> None:
    torch.manual_seed(0)
    x, share, of = (
        torch.randn(2, 6, 7, 3 * LANES),
        torch.rand(2, 3, 3 * LANES),
        layers(3 * LANES, torch.float32),
    )
    broken = x.clone()
    broken[1, 3, 4, 1] = torch.nan  # whose channel is read one token further on
    with threads(worker):
        whole, found = (run(map_, share, of, 3) for map_ in (x, broken))
    reached = torch.zeros(2, 6, 7, dtype=torch.bool)
    reached[1, 3, 4] = reached[1, 2, 4] = reached[1, 3, 3] = True
    assert found[reached].isnan().all()
    assert torch.equal(found[~reached], whole[~reached])
