from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.errors import ConfigError
from metaformer.ops import cpp, onednn
from metaformer.ops.cpp import kernels
from metaformer.ops.linear import ACTS, NORMS, linear, pack, reference
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
    threads,
    triton_alone,
)

LANES, PANEL = cpp.lanes(), cpp.panel()
EPS: Final = 1e-2
CPP_NORMS = sorted(set(NORMS) - {"group_norm"})
CPP_ACTS = sorted(set(ACTS) - {"star_relu"})
rows = st.sampled_from([0, 1, 2, 7, 13, 50, 200])
widths = st.integers(1, 11).map(lambda count: count * LANES)  # of panels, of what is left over, of both
dtypes = st.sampled_from(list(DTYPES))
workers = st.integers(1, 5)


def tokens(samples: int, count: int, depth: int, dtype: torch.dtype = torch.float32) -> Tensor:
    each = torch.arange(1.0, samples + 1)[:, None, None]  # no two samples have the same moments
    return (torch.randn(samples, count, depth) * each + 2 * each).to(dtype)


def layer(out: int, depth: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A weight (out, depth) and a bias."""
    return (torch.randn(out, depth) / depth**0.5).to(dtype), torch.randn(out).to(dtype)


def memory_for(where: str, like: Tensor, residual: Tensor | None, x: Tensor) -> Tensor | None:
    """Memory for a result: new, or that of the residual or of x."""
    memory = {"residual": residual, "x": x if x.shape == like.shape else None, "given": like.clone()}
    return memory.get(where)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    """The reference in float64; x may be (B, N, C)."""
    tensors = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    return reference(x.double(), weight.double(), None if bias is None else bias.double(), **tensors)


def by(backend: str, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    if backend == "cpp":
        return linear(x, pack(weight, bias), **options)
    if backend == "onednn":
        return onednn.linear(x, onednn.pack(weight), bias, **options)
    with mode(backend):
        return linear(x, weight, bias, **options)


@backends("reference", "onednn", "cpp", "triton")
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", NORMS)
def test_norm_and_activation_agree_with_float64(backend: str, norm: str, act: str) -> None:
    torch.manual_seed(0)
    x, (weight, bias) = torch.randn(2, 3, 5, 2 * LANES) + 1, layer(3 * LANES, 2 * LANES)
    options: dict[str, Any] = {"act": act}
    if backend == "onednn":
        if norm != "none" or act not in onednn.EPILOGUES:
            return
    elif backend == "cpp":
        if norm not in CPP_NORMS or act not in CPP_ACTS or not cpp.supports(x, weight=weight):
            return
        options |= {"norm": norm}
    else:
        star = {"act_scale": torch.tensor([0.9]), "act_bias": torch.tensor([-0.4])}
        options |= {"norm": norm, "gamma": torch.randn(2 * LANES), "beta": torch.randn(2 * LANES)}
        options |= star if act == "star_relu" else {}
    close(by(backend, x, weight, bias, **options), exact(x, weight, bias, **options), 1e-5)


@backends("reference", "onednn", "cpp", "triton")
@pytest.mark.parametrize("factor", [None, 0.5, "each"])
@pytest.mark.parametrize("scaled", [False, True])
def test_residual_and_scale_agree_with_float64(backend: str, factor: Any, scaled: bool) -> None:
    torch.manual_seed(0)
    x, (weight, bias) = torch.randn(2, 3, 5, 2 * LANES), layer(LANES, 2 * LANES)
    options: dict[str, Any] = {"residual": torch.randn(2, 3, 5, LANES)}
    if backend != "onednn":
        options["residual_scale"] = torch.randn(LANES) if factor == "each" else factor
    if scaled and backend in ("reference", "triton"):
        options["scale"] = torch.randn(LANES)
    if backend != "cpp" or cpp.supports(x, weight=weight):
        close(by(backend, x, weight, bias, **options), exact(x, weight, bias, **options), 1e-5)


def test_a_residual_behind_an_activation_takes_the_reference() -> None:
    x, w, y = torch.randn(2, 3, 5, 6), torch.randn(9, 6), torch.randn(2, 3, 5, 9)
    torch.testing.assert_close(linear(x, w, act="relu", residual=y), y + F.relu(F.linear(x, w)))


def test_no_samples() -> None:
    assert linear(torch.zeros(0, 5, 3, 6), torch.zeros(9, 6), act="relu").shape == (0, 5, 3, 9)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"norm": "batch_norm"}, "unknown norm"),
        ({"act": "silu"}, "unknown act"),
        ({"act": "star_relu"}, "star_relu"),
        ({"act": "gelu", "act_scale": torch.ones(1)}, "star_relu"),
    ],
)
def test_unknown_names_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        linear(torch.zeros(1, 1, 1, 2), torch.zeros(2, 2), **options)


# C++


@needs_linear
@pytest.mark.parametrize("norm", CPP_NORMS)
@pytest.mark.parametrize("act", CPP_ACTS)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), rows, widths, widths, dtypes, st.sampled_from(["nothing", "residual", "scaled"]),
    st.sampled_from(["new", "given", "residual", "x"]), workers,
)  # fmt: skip
def test_packed_weights_agree_with_float64(
    act: str, norm: str, samples: int, count: int, depth: int, out_features: int, dtype: torch.dtype,
    added: str, where: str, worker: int,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    x, (weight, bias) = tokens(samples, count, depth, dtype), layer(out_features, depth, dtype)
    like = torch.randn(samples, count, out_features).to(dtype)
    residual = None if added == "nothing" else like.clone()
    scale = torch.randn(out_features) if added == "scaled" else None
    options: dict[str, Any] = {"norm": norm, "eps": EPS, "act": act}
    wanted = exact(x, weight, bias, **options, residual=residual, residual_scale=scale)
    out, before = memory_for(where, like, residual, x), x.clone()
    with threads(worker):
        found = linear(x, pack(weight, bias), **options, residual=residual, residual_scale=scale, out=out)
    assert found.dtype == dtype and (out is None or found is out)
    assert found is x or torch.equal(x, before)
    assert residual is None or found is residual or torch.equal(residual, like)
    close(found, wanted, DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("worker", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 3, 4, 5])
def test_shapes_around_those_of_microkernels(depth: int, worker: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for groups in (1, 3, 4, 5, 20):
        (weight, bias), x = (
            layer(groups * LANES, depth * LANES, dtype),
            torch.randn(50, depth * LANES).to(dtype),
        )
        packed, wanted = pack(weight, bias), exact(x, weight, bias)
        for count in (1, 5, 15, 16, 17, 31, 32, 33, 49):
            with threads(worker):
                close(linear(x[:count], packed), wanted[:count], DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("worker", range(1, 6))
@pytest.mark.parametrize("norm", CPP_NORMS)
@pytest.mark.parametrize("act", CPP_ACTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(dtype: torch.dtype, act: str, norm: str, worker: int) -> None:
    torch.manual_seed(0)
    x, packed = torch.randn(50, LANES).to(dtype), pack(*layer(5 * LANES, LANES, dtype))
    broken = x.clone()
    broken[17, 3] = torch.nan
    with threads(worker):
        whole, found = (linear(each, packed, norm=norm, eps=EPS, act=act) for each in (x, broken))
    others = torch.arange(50) != 17
    assert found[17].isnan().all() and torch.equal(found[others], whole[others])


@needs_linear
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_accurate_everywhere(dtype: torch.dtype) -> None:
    scale = torch.logspace(-6, 4, 200 * LANES).view(-1, LANES)
    x = torch.cat([-scale, scale, torch.linspace(-7, 7, 200 * LANES).view(-1, LANES)]).to(dtype)
    found = linear(x, pack(torch.eye(LANES).to(dtype), None), act="gelu").double()
    bound = 2e-6 if dtype == torch.float32 else 2**-8
    errors = (found - F.gelu(x.double())).abs() / x.double().abs().clamp_min(1.0)
    assert errors.max() < bound


@needs_linear
def test_a_mean_far_from_zero_costs_few_digits() -> None:
    x, (weight, bias) = torch.randn(13, 5 * LANES) + 1e3, layer(LANES, 5 * LANES)
    options: dict[str, Any] = {"norm": "layer_norm", "eps": EPS}
    close(linear(x, pack(weight, bias), **options), exact(x, weight, bias, **options), 3e-4)


def unpacked(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """Each number of a weight, by what matmul.h says of panels."""
    step = 1 if packed.dtype == torch.float32 else 2
    weight, start = packed.new_empty(out_features, in_features), 0
    while start < out_features:
        width = PANEL if start + PANEL <= out_features else LANES
        panel = packed[start * in_features : (start + width) * in_features]
        for c in range(width):
            for k in range(in_features):
                weight[start + c, k] = panel[(k // step * width + c) * step + k % step]
        start += width
    return weight


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.sampled_from([2, 6, 8, 16]), st.booleans())
def test_packed_layout(groups: int, in_features: int, low: bool) -> None:
    out = groups * LANES
    weight = torch.arange(out * in_features).view(out, in_features) % 251  # bfloat16 holds these
    weight = weight.to(torch.bfloat16 if low else torch.float32)
    packed = pack(weight, None)
    assert (packed.out_features, packed.in_features, packed.weight.dtype) == (out, in_features, weight.dtype)
    assert packed.weight.shape == (out * in_features,)
    assert torch.equal(unpacked(packed.weight, out, in_features), weight)


def test_packed_weights_of_gaps_and_gradients_and_their_biases() -> None:
    weight, bias = torch.randn(16, 2 * LANES).t(), torch.randn(2 * LANES, requires_grad=True)
    assert torch.equal(pack(weight, None).weight, pack(weight.contiguous(), None).weight)
    packed = pack(weight.clone().requires_grad_(), bias)
    assert not packed.weight.requires_grad and not packed.bias.requires_grad
    low = pack(weight.bfloat16(), bias.bfloat16()).bias
    assert low.dtype == torch.float32 and torch.equal(low, bias.bfloat16().float())
    assert pack(weight, None).bias.tolist() == [0.0] * (2 * LANES)


@needs_linear
def test_supported_weights_and_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(2 * LANES, LANES), torch.randn(2, 3, LANES)
    assert cpp.supports(x, weight=weight) and cpp.supports(x, x + 1, weight=weight)
    assert cpp.supports(x.bfloat16(), weight=weight.bfloat16()) == cpp.has_linear(torch.bfloat16)
    wrong = [(weight, x.bfloat16()), (weight.bfloat16(), x), (weight.double(), x.double()), (weight, x[:0])]
    wrong += [(weight, x.transpose(0, 1)), (torch.randn(2 * LANES + 1, LANES), x)]
    wrong += [(torch.randn(2 * LANES - 1, LANES), x), (torch.randn(LANES, LANES // 2), x[..., : LANES // 2])]
    wrong += [(weight, x.clone().requires_grad_()), (weight.clone().requires_grad_(), x)]
    assert not any(cpp.supports(x, weight=weight) for weight, x in wrong)
    assert not cpp.supports(x, x.transpose(0, 1), weight=weight)
    with torch.no_grad():
        assert cpp.supports(x.clone().requires_grad_(), weight=weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpp.supports(x, weight=weight)
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    assert not cpp.supports(x, weight=weight)


# oneDNN


@backends("onednn")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("act", onednn.EPILOGUES)
def test_weights_with_and_without_packing(backend: str, act: str, packed: bool) -> None:
    x, (weight, bias) = torch.randn(2, 3, 5), layer(4, 5)
    found = onednn.linear(x, onednn.pack(weight) if packed else weight, bias, act)
    close(found, exact(x, weight, bias, act=act), 1e-5)


@backends("onednn")
@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_in_each_dtype(backend: str, dtype: torch.dtype) -> None:
    x, weight, other = (torch.randn(*size, dtype=dtype) for size in ((6, 5), (4, 5), (6, 4)))
    if not onednn.supports(x):
        pytest.skip("this processor's oneDNN has no bfloat16")
    found = onednn.linear(x, weight, None, residual=other)
    close(found, exact(x, weight, None, residual=other), torch.finfo(dtype).eps * 8)


@backends("onednn")
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_convolution(backend: str, biased: bool, groups: int) -> None:
    x, weight = torch.randn(2, 8, 9, 7), torch.randn(12, 8 // groups, 3, 3)
    bias = torch.randn(12) if biased else None
    geometry = [2, 1], [1, 2], [1, 1], groups
    packed = onednn.pack_convolution(weight, x.shape, geometry)
    found = onednn.convolution(x, packed, bias, geometry)
    wanted = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), *geometry)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@backends("onednn")
def test_where_onednn_runs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    assert onednn.supports(x)
    assert not any(onednn.supports(y) for y in (x.double(), x.to("meta"), x.clone().requires_grad_()))
    assert not onednn.supports(x, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.supports(x)
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    assert not onednn.supports(x)


# Triton


@triton_alone
@low_or_not
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_with_norm_and_star_relu(backend: str, norm: str, dtype: torch.dtype) -> None:
    def star(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor, *gamma: Tensor) -> Tensor:
        options: dict[str, Any] = {"norm": norm, "act": "star_relu", "act_scale": scale, "act_bias": bias}
        return linear(x, w, gamma=gamma[0] if gamma else None, **options)

    tensors = [torch.randn(2, 3, 5, 20) + 1, torch.randn(40, 20) / 4, torch.randn(1), torch.randn(1)]
    agrees(star, tensors + ([] if norm == "none" else [torch.randn(20)]), dtype)


@triton_alone
@low_or_not
def test_gradients_with_scale_and_residual(backend: str, dtype: torch.dtype) -> None:
    def whole(x: Tensor, w: Tensor, b: Tensor, y: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
        return linear(x, w, b, scale=scale, residual=y, residual_scale=factor)

    shapes = [(2, 3, 5, 40), (20, 40), (20,), (2, 3, 5, 20), (20,), (20,)]
    agrees(whole, [torch.randn(s) for s in shapes], dtype)


@triton_alone
@pytest.mark.parametrize("factor", [1.0, 0.5, None])
def test_gradients_with_a_number_for_a_residual_scale(backend: str, factor: float | None) -> None:
    tensors = [torch.randn(s) for s in ((2, 3, 5, 40), (20, 40), (2, 3, 5, 20))]
    agrees(lambda x, w, y: linear(x, w, residual=y, residual_scale=factor), tensors, torch.float32)


@triton_alone
def test_gradients_of_the_layer_alone(backend: str) -> None:
    tensors = [torch.randn(2, 3, 5, 20), torch.randn(40, 20) / 4, torch.randn(40)]
    agrees(linear, tensors, torch.float32)
    agrees(lambda x, w: linear(x, w, act="relu"), tensors[:2], torch.float32)


@triton_alone
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operations(backend: str) -> None:
    shapes = [(2, 4, 3, 5), (20, 5), (5,), (1,), (1,)]
    x, w, gamma, star, offset = (random(*shape) for shape in shapes)
    arguments = x, w, None, gamma, None, star, offset, 1e-5, "layer_norm", "star_relu"
    check_operation("linear_act", lambda: linear(x, w), *arguments)
    x, w, scale, y, factor = (random(*s) for s in ((2, 4, 3, 20), (5, 20), (5,), (2, 4, 3, 5), (5,)))
    check_operation("linear_residual", lambda: linear(x, w), x, w, None, scale, y, factor, 1.0)


@needs_linear
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("out_features", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("in_features", [1, 2, 3, 5])
def test_weights_are_packed_in_cpp_as_in_python(
    in_features: int, out_features: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(out_features * LANES, in_features * LANES).to(dtype)
    packed = torch.full((weight.numel(),), torch.nan, dtype=dtype)
    sizes = {"out_features": len(weight), "in_features": weight.shape[1]}
    scale = torch.randn(len(weight))
    for each, wanted in ((None, weight), (scale, (weight.float() * scale[:, None]).to(dtype))):
        kernels.pack_linear(packed=packed, weight=weight.float(), scale=each, **sizes)
        assert torch.equal(packed, pack(wanted, None).weight)


@needs_linear
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("out_features", [1, LANES - 1, LANES + 1, 10 * LANES - 6])
def test_any_number_of_outputs(out_features: int, dtype: torch.dtype) -> None:
    weight, bias = torch.randn(out_features, 2 * LANES).to(dtype), torch.randn(out_features).to(dtype)
    x, residual = torch.randn(7, 2 * LANES).to(dtype), torch.randn(7, out_features).to(dtype)
    scale = torch.randn(out_features)
    memory = torch.full((7 * out_features + LANES,), 5.0).to(dtype)
    out = memory[: 7 * out_features].view(7, out_features)
    options: Any = {"act": "relu", "residual": residual}
    linear(x, pack(weight, bias), **options, residual_scale=scale, out=out)
    close(out, exact(x, weight, bias, **options, residual_scale=scale.double()), DTYPES[dtype])
    assert (memory[7 * out_features :] == 5).all(), "nothing is written behind the last row"
