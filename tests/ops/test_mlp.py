from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
from metaformer.ops import cpp
from metaformer.ops.linear import pack
from metaformer.ops.mlp import mlp, reference
from ops.numerics import (
    DTYPES,
    agrees,
    backends,
    check_operation,
    close,
    low_or_not,
    mode,
    needs_linear,
    random,
    same_gradients,
    threads,
    triton_alone,
)
from ops.test_linear import CPP_ACTS, CPP_NORMS, EPS, dtypes, layer, memory_for, rows, tokens, widths, workers

LANES = cpp.lanes()
sides = st.integers(1, 7)
NAMES = {
    "GroupNorm": "group_norm", "LayerNorm": "layer_norm", "NoNorm": "none", "GELU": "gelu", "ReLU": "relu",
    "StarReLU": "star_relu", "SquaredReLU": "squared_relu",
}  # fmt: skip


class Half(nn.Module):
    """Second half of a block, of this library's layers."""

    def __init__(self, dim: int, norm: str, act: str) -> None:
        super().__init__()
        self.norm, self.mlp, self.scale = NORMS.build(norm, dim), Mlp(dim, 2 * dim, act=act), Scale(dim)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2)
        return (y + self.scale(self.mlp(self.norm(y)))).permute(0, 2, 3, 1)

    def by_operation(self, x: Tensor) -> Tensor:
        fc1, fc2, act = self.mlp.fc1, self.mlp.fc2, self.mlp.act
        return mlp(
            x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm=NAMES[type(self.norm).__name__],
            gamma=getattr(self.norm, "weight", None), beta=getattr(self.norm, "bias", None),
            act=NAMES[type(act).__name__], act_scale=getattr(act, "scale", None),
            act_bias=getattr(act, "bias", None), scale=self.scale.scale, residual=x,
        )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 3), st.integers(2, 9), sides, sides,
    st.sampled_from(["group_norm", "layer_norm", "none"]),
    st.sampled_from(["gelu", "star_relu", "squared_relu", "relu"]),
)  # fmt: skip
def test_is_norm_mlp_scale_and_residual(
    batch: int, dim: int, height: int, width: int, norm: str, act: str
) -> None:
    torch.manual_seed(0)
    half = Half(dim, norm, act).double()
    x = torch.randn(batch, height, width, dim, dtype=torch.float64, requires_grad=True)
    same_gradients(half.by_operation(x), half(x), (x, *half.parameters()))


@backends("reference", "triton")
def test_residuals(backend: str) -> None:
    x, w1, w2, each = torch.randn(2, 3, 3, 4), torch.randn(6, 4), torch.randn(4, 6), torch.randn(4)
    with mode(backend):
        branch = mlp(x, w1, None, w2, None)
        for residual in (x, x + 1):
            for scale, factor in ((None, 1.0), (0.5, 0.5), (each, each)):
                found = mlp(x, w1, None, w2, None, residual=residual, residual_scale=scale)
                torch.testing.assert_close(found, factor * residual + branch)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown norm"):
        mlp(torch.zeros(1, 1, 1, 2), torch.zeros(2, 2), None, torch.zeros(2, 2), None, norm="batch_norm")


def test_autocast_chooses_the_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mlp(torch.randn(1, 3, 3, 2), torch.randn(4, 2), None, torch.randn(2, 4), None)
    assert y.dtype == torch.bfloat16


def test_compiles_without_graph_breaks() -> None:
    half = Half(4, "group_norm", "gelu")
    x = torch.randn(1, 5, 5, 4)
    compiled = torch.compile(half.by_operation, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), half(x))


# C++


def moments(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x.float().flatten(1), 1, correction=0)
    return torch.stack([mean, (variance + EPS).rsqrt()], 1)


@needs_linear
@pytest.mark.parametrize("norm", [*CPP_NORMS, "moments"])
@pytest.mark.parametrize("act", CPP_ACTS)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), rows, widths, widths, dtypes, st.sampled_from(["nothing", "residual", "scaled", "x"]),
    st.sampled_from(["new", "given", "residual", "x"]), workers,
)  # fmt: skip
def test_packed_weights_agree_with_float64(
    act: str, norm: str, samples: int, count: int, dim: int, hidden: int, dtype: torch.dtype, added: str,
    where: str, worker: int,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    count = max(1, count) if norm == "moments" else count
    x, first, second = (
        tokens(samples, count, dim, dtype),
        layer(hidden, dim, dtype),
        layer(dim, hidden, dtype),
    )
    like = torch.randn(samples, count, dim).to(dtype)
    residual = None if added == "nothing" else x if added == "x" else like.clone()
    scale = torch.randn(dim) if added == "scaled" else None
    n = x.double()
    if norm != "none":
        over = n.flatten(1) if norm == "moments" else n
        n = F.layer_norm(over, over.shape[-1:], eps=EPS).view_as(n)
    wanted = reference(
        n, *(part.double() for part in (*first, *second)), act=act,
        residual=None if residual is None else residual.double(),
        residual_scale=None if scale is None else scale.double(),
    )  # fmt: skip
    out, before = memory_for(where, like, residual, x), x.clone()
    known = {"moments": moments(x)} if norm == "moments" else {"norm": norm, "eps": EPS}
    options: dict[str, Any] = {**known, "act": act, "residual": residual, "residual_scale": scale}
    with threads(worker):
        found = mlp(x, pack(*first), None, pack(*second), None, **options, out=out)
    assert found.dtype == dtype and (out is None or found is out)
    assert found is x or torch.equal(x, before)
    assert residual is None or residual is x or found is residual or torch.equal(residual, like)
    close(found, wanted, 2 * DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("worker", [1, 2, 3, 5])
def test_rows_so_wide_that_few_fit_the_cache(dtype: torch.dtype, worker: int) -> None:
    torch.manual_seed(0)
    dim, hidden = cpp.panel() + LANES, 2**15  # 19 rows are four groups, worked on one after the other
    x, first, second = tokens(1, 19, dim, dtype), layer(hidden, dim, dtype), layer(dim, hidden, dtype)
    with threads(worker):
        found = mlp(x, pack(*first), None, pack(*second), None, act="relu")
    wide = [part.double() for part in (*first, *second)]
    close(found, reference(x.double(), *wide, act="relu"), 5 * DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("worker", range(1, 6))
@pytest.mark.parametrize("act", CPP_ACTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(dtype: torch.dtype, act: str, worker: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, LANES).to(dtype)
    first, second = pack(*layer(5 * LANES, LANES, dtype)), pack(*layer(LANES, 5 * LANES, dtype))
    broken = x.clone()
    broken[17, 3] = torch.nan
    for norm in CPP_NORMS:
        with threads(worker):
            whole, found = (
                mlp(each, first, None, second, None, norm=norm, eps=EPS, act=act) for each in (x, broken)
            )
        others = torch.arange(50) != 17
        assert found[17].isnan().all() and torch.equal(found[others], whole[others])


@needs_linear
@pytest.mark.parametrize("worker", range(1, 6))
@pytest.mark.parametrize("count", [1, 2, 7, 13])
def test_nothing_of_an_earlier_call_comes_back(count: int, worker: int) -> None:
    torch.manual_seed(0)
    first, second = (pack(*layer(3 * LANES, 3 * LANES)) for _ in range(2))
    x = torch.randn(count, 3 * LANES)
    with threads(worker):
        before = mlp(x, first, None, second, None)
        mlp(torch.full((200, 3 * LANES), torch.nan), first, None, second, None)
        after = mlp(x, first, None, second, None)
    assert torch.equal(before, after)


@needs_linear
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 13, 50, 200])
def test_the_number_of_threads_changes_nothing(count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, dim = torch.randn(count, 3 * LANES).to(dtype), 3 * LANES
    first, second = (pack(*layer(dim, dim, dtype)) for _ in "12")
    found = []
    for worker in range(1, 6):
        with threads(worker):
            found.append(mlp(x, first, None, second, None, norm="layer_norm", eps=EPS, residual=x))
    assert all(torch.equal(found[0], other) for other in found)


# Triton


def weights(dim: int, hidden: int) -> list[Tensor]:
    return [torch.randn(hidden, dim) / dim**0.5, torch.randn(dim, hidden) / hidden**0.5]


# 130 channels no longer fit one kernel; none of the numbers fills its tiles
@triton_alone
@low_or_not
@pytest.mark.parametrize(("dim", "hidden"), [(20, 50), (130, 40)])
@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_gradients_agree_with_float64(
    backend: str, dim: int, hidden: int, norm: str, dtype: torch.dtype
) -> None:
    def everything(x: Tensor, w1: Tensor, w2: Tensor, *vectors: Tensor) -> Tensor:
        b1, b2, gamma, beta, scale, factor = vectors
        options: dict[str, Any] = {"norm": norm, "gamma": gamma, "beta": beta, "scale": scale}
        return mlp(x, w1, b1, w2, b2, **options, residual=x, residual_scale=factor)

    tensors = [torch.randn(2, 5, 7, dim) + 1, *weights(dim, hidden), torch.randn(hidden)]
    agrees(everything, tensors + [torch.randn(dim) for _ in range(5)], dtype)


@triton_alone
@pytest.mark.parametrize("dim", [20, 130])
@pytest.mark.parametrize("norm", ["group_norm", "layer_norm", "none"])
@pytest.mark.parametrize("act", ["relu", "squared_relu"])
def test_gradients_of_the_branch_alone(backend: str, dim: int, norm: str, act: str) -> None:
    def least(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return mlp(x, w1, None, w2, None, norm=norm, act=act)

    agrees(least, [torch.randn(1, 3, 3, dim), *weights(dim, 24)], torch.float32)


@triton_alone
@low_or_not
@pytest.mark.parametrize("dim", [20, 130])
def test_gradients_of_star_relu(backend: str, dim: int, dtype: torch.dtype) -> None:
    def star(x: Tensor, w1: Tensor, w2: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        options: dict[str, Any] = {"act": "star_relu", "act_scale": scale, "act_bias": bias}
        return mlp(x, w1, None, w2, None, norm="layer_norm", **options, residual=x, residual_scale=0.5)

    tensors = [torch.randn(2, 4, 3, dim), *weights(dim, 24), torch.tensor([0.9]), torch.tensor([-0.4])]
    agrees(star, tensors, dtype)


@triton_alone
def test_gradients_by_slices(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaformer.ops.triton import linear

    monkeypatch.setattr(linear, "_LEAST", 8)
    monkeypatch.setattr(linear, "_WIDE", 1)

    def branch(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return mlp(x, w1, None, w2, None, norm="group_norm", residual=x)

    agrees(branch, [torch.randn(2, 3, 5, 6), *weights(6, 8)], torch.float32)


@triton_alone
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operation(backend: str) -> None:
    shapes = [(2, 4, 3, 5), (20, 5), (20,), (5, 20), (5,), (5,)]
    x, w1, b1, w2, gamma, scale = (random(*shape) for shape in shapes)
    arguments = x, w1, b1, w2, None, gamma, None, scale, None, None, None, 1.0, 1e-5, "group_norm", "gelu"
    check_operation("mlp", lambda: mlp(x, w1, b1, w2, None), *arguments)
