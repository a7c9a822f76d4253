from collections.abc import Callable
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.native import library
from metaformer.ops.packed import pack
from metaformer.ops.product import ACTS, NORMS, mlp, product
from ops.numerics import DTYPES, close, threads

pytestmark = pytest.mark.skipif(
    not library.multiplies(torch.float32), reason="no C++ compiler, or a processor without AVX2"
)
LANES = library.lanes()
EPS: Final = 1e-2
PLAIN: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "squared_relu": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
}
rows = st.sampled_from([0, 1, 2, 7, 13, 50, 200])
widths = st.integers(1, 11).map(lambda count: count * LANES)  # of panels, of what is left over, of both
dtypes = st.sampled_from(list(DTYPES))
workers = st.integers(1, 5)


def test_every_activation_is_compared() -> None:
    assert set(PLAIN) == set(ACTS)


def moments(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x.float().flatten(1), 1, correction=0)
    return torch.stack([mean, (variance + EPS).rsqrt()], 1)


def normed(x: Tensor, norm: str) -> Tensor:
    if norm == "none":
        return x
    over = x.flatten(1) if norm == "group_norm" else x
    return F.layer_norm(over, over.shape[-1:], eps=EPS).view_as(x)


def tokens(samples: int, count: int, depth: int, dtype: torch.dtype) -> Tensor:
    each = torch.arange(1.0, samples + 1)[:, None, None]  # no two samples have the same moments
    return (torch.randn(samples, count, depth) * each + 2 * each).to(dtype)


def layer(columns: int, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (torch.randn(columns, depth) / depth**0.5).to(dtype), torch.randn(columns).to(dtype)


def placed(where: str, like: Tensor, past: Tensor | None, x: Tensor) -> Tensor | None:
    """Where a result goes: a map of its own, or one of the others."""
    places = {"past": past, "tokens": x if x.shape == like.shape else None, "given": like.clone()}
    return places.get(where)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTS)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    rows,
    widths,
    widths,
    dtypes,
    st.sampled_from(["nothing", "past", "kept past"]),
    st.sampled_from(["new", "given", "past", "tokens"]),
    workers,
)
def test_product_is_what_float64_gives(
    act: str,
    norm: str,
    samples: int,
    count: int,
    depth: int,
    columns: int,
    dtype: torch.dtype,
    added: str,
    where: str,
    worker: int,
) -> None:
    torch.manual_seed(0)
    x, (weight, bias) = tokens(samples, count, depth, dtype), layer(columns, depth, dtype)
    like = torch.randn(samples, count, columns).to(dtype)
    past = None if added == "nothing" else like.clone()
    keep = torch.randn(columns) if added == "kept past" else None
    wanted = PLAIN[act](F.linear(normed(x.double(), norm), weight.double(), bias.double()))
    if past is not None:
        wanted = wanted + past.double() * (1 if keep is None else keep.double())
    out, before = placed(where, like, past, x), x.clone()
    with threads(worker):
        found = product(x, pack(weight, bias), norm=norm, eps=EPS, act=act, past=past, keep=keep, out=out)
    assert found.dtype == dtype and (out is None or found is out)
    assert found is x or torch.equal(x, before)
    assert past is None or found is past or torch.equal(past, like)
    close(found, wanted, DTYPES[dtype])


@pytest.mark.parametrize("norm", [*NORMS, "group_norm"])
@pytest.mark.parametrize("act", ACTS)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    rows,
    widths,
    widths,
    dtypes,
    st.sampled_from(["nothing", "past", "kept past", "tokens"]),
    st.sampled_from(["new", "given", "past", "tokens"]),
    workers,
)
def test_mlp_is_what_float64_gives(
    act: str,
    norm: str,
    samples: int,
    count: int,
    dim: int,
    hidden: int,
    dtype: torch.dtype,
    added: str,
    where: str,
    worker: int,
) -> None:
    torch.manual_seed(0)
    count = max(1, count) if norm == "group_norm" else count
    x, first, second = (
        tokens(samples, count, dim, dtype),
        layer(hidden, dim, dtype),
        layer(dim, hidden, dtype),
    )
    like = torch.randn(samples, count, dim).to(dtype)
    past = None if added == "nothing" else x if added == "tokens" else like.clone()
    keep = torch.randn(dim) if added == "kept past" else None
    wide = [part.double() for part in (*first, *second)]
    wanted = F.linear(PLAIN[act](F.linear(normed(x.double(), norm), *wide[:2])), *wide[2:])
    if past is not None:
        wanted = wanted + past.double() * (1 if keep is None else keep.double())
    out, before = placed(where, like, past, x), x.clone()
    known = moments(x) if norm == "group_norm" else None
    with threads(worker):
        found = mlp(
            x,
            pack(*first),
            pack(*second),
            norm="none" if norm == "group_norm" else norm,
            eps=EPS,
            moments=known,
            act=act,
            past=past,
            keep=keep,
            out=out,
        )
    assert found.dtype == dtype and (out is None or found is out)
    assert found is x or torch.equal(x, before)
    assert past is None or past is x or found is past or torch.equal(past, like)
    close(found, wanted, 2 * DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("worker", [1, 2, 3, 5])
def test_rows_so_wide_that_few_lie_in_the_cache(dtype: torch.dtype, worker: int) -> None:
    torch.manual_seed(0)
    dim, hidden = library.panel() + LANES, 2**15  # 19 rows are four groups, worked on one after the other
    x, first, second = tokens(1, 19, dim, dtype), layer(hidden, dim, dtype), layer(dim, hidden, dtype)
    between = torch.randn(1, 19, hidden).to(dtype)
    wide = [part.double() for part in (*first, *second)]
    with threads(worker):
        of_product = product(between, pack(*second), norm="layer_norm", eps=EPS)
        of_mlp = mlp(x, pack(*first), pack(*second), act="relu")
    wanted = F.linear(normed(between.double(), "layer_norm"), *wide[2:])
    close(of_product, wanted, 5 * DTYPES[dtype])
    close(of_mlp, F.linear(F.relu(F.linear(x.double(), *wide[:2])), *wide[2:]), 5 * DTYPES[dtype])


@pytest.mark.parametrize("worker", range(1, 6))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_in_its_row(dtype: torch.dtype, act: str, norm: str, worker: int) -> None:
    torch.manual_seed(0)
    x, wide, narrow = (
        torch.randn(50, LANES).to(dtype),
        layer(5 * LANES, LANES, dtype),
        layer(LANES, 5 * LANES, dtype),
    )
    broken = x.clone()
    broken[17, 3] = torch.nan
    first, second = pack(*wide), pack(*narrow)
    whole: list[Tensor] = []
    found: list[Tensor] = []
    with threads(worker):
        for x_, results in ((x, whole), (broken, found)):
            results.append(product(x_, first, norm=norm, eps=EPS, act=act))
            results.append(mlp(x_, first, second, norm=norm, eps=EPS, act=act))
    others = torch.arange(50) != 17
    for ours, theirs in zip(found, whole, strict=True):
        assert ours[17].isnan().all()
        assert torch.equal(ours[others], theirs[others])


@pytest.mark.parametrize("worker", range(1, 6))
@pytest.mark.parametrize("count", [1, 2, 7, 13])
def test_nothing_of_an_earlier_call_comes_back(count: int, worker: int) -> None:
    torch.manual_seed(0)
    first, second = (pack(*layer(3 * LANES, 3 * LANES, torch.float32)) for _ in range(2))
    x = torch.randn(count, 3 * LANES)
    with threads(worker):
        before = product(x, first), mlp(x, first, second)
        mlp(torch.full((200, 3 * LANES), torch.nan), first, second)
        after = product(x, first), mlp(x, first, second)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, after, strict=True))


@pytest.mark.parametrize("count", [1, 13, 50, 200])
def test_the_number_of_threads_changes_nothing(count: int) -> None:
    torch.manual_seed(0)
    x, first, second = (
        torch.randn(count, 3 * LANES),
        *(layer(3 * LANES, 3 * LANES, torch.float32) for _ in "12"),
    )
    found = []
    for worker in range(1, 6):
        with threads(worker):
            found.append(mlp(x, pack(*first), pack(*second), norm="layer_norm", eps=EPS, past=x))
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_close_wherever_it_is_asked(dtype: torch.dtype) -> None:
    scale = torch.logspace(-6, 4, 200 * LANES).view(-1, LANES)
    x = torch.cat([-scale, scale, torch.linspace(-7, 7, 200 * LANES).view(-1, LANES)]).to(dtype)
    found = product(x, pack(torch.eye(LANES).to(dtype), None), act="gelu").double()
    bound = 2e-6 if dtype == torch.float32 else 2**-8
    errors = (found - F.gelu(x.double())).abs() / x.double().abs().clamp_min(1.0)
    assert errors.max() < bound


def test_a_mean_far_from_zero_costs_few_digits() -> None:
    x, (weight, bias) = torch.randn(13, 5 * LANES) + 1e3, layer(LANES, 5 * LANES, torch.float32)
    wanted = F.linear(normed(x.double(), "layer_norm"), weight.double(), bias.double())
    close(product(x, pack(weight, bias), norm="layer_norm", eps=EPS), wanted, 3e-4)
