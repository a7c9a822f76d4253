"""Ceilings: the machine's rates of matrix products and copies, and a network's products alone."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaformer.bench.counts import count
from metaformer.errors import ConfigError
from metaformer.ops import onednn

SIDE = {"cpu": 2048, "cuda": 8192}
"""Height and width of the matrices."""
POSITIONS = {"cpu": (8, 28, 28), "cuda": (64, 56, 56)}
"""Batch, height and width of the 1×1 convolution's input."""
CHANNELS = (512, 2048)
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes that are copied, far more than the caches hold."""


class Ceiling(nn.Module):
    """An operation that is timed beside the networks; it ignores its input."""

    work = 0.0
    """Floating-point operations of a run, or bytes read and written."""


class MatrixProduct(Ceiling):
    """The product of two square matrices."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        side = SIDE[device.type]
        self.a = torch.randn(side, side, device=device, dtype=dtype)
        self.out = torch.empty_like(self.a)
        self.work = 2.0 * side**3

    def forward(self, images: Tensor) -> None:
        """Multiply."""
        torch.mm(self.a, self.a, out=self.out)


class Convolution(Ceiling):
    """A wide 1×1 convolution, channels-last."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        (batch, height, width), (dim, out) = POSITIONS[device.type], CHANNELS
        x = torch.randn(batch, dim, height, width, device=device, dtype=dtype)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.weight = torch.randn(out, dim, 1, 1, device=device, dtype=dtype)
        self.work = 2.0 * batch * height * width * dim * out

    def forward(self, images: Tensor) -> None:
        """Convolve."""
        F.conv2d(self.x, self.weight)


class Copy(Ceiling):
    """A copy in memory."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        elements = COPIED[device.type] // dtype.itemsize
        self.a = torch.zeros(elements, device=device, dtype=dtype)
        self.b = torch.zeros_like(self.a)
        self.work = 2.0 * elements * dtype.itemsize

    def forward(self, images: Tensor) -> None:
        """Copy."""
        self.b.copy_(self.a)


CEILINGS: dict[str, type[Ceiling]] = {
    "ceiling product": MatrixProduct,
    "ceiling convolution": Convolution,
    "ceiling copy": Copy,
}
PRODUCTS = ("ceiling product", "ceiling convolution")
COPY = "ceiling copy"


aten = torch.ops.aten
Run = Callable[[Tensor], Tensor]
TRIES = 3


@dataclass(frozen=True)
class Product:
    """A convolution, or a linear layer where `stride` is None."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    bias: bool
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] = (0, 0)
    groups: int = 1

    @property
    def pointwise(self) -> bool:
        """Whether it is a 1×1 convolution."""
        return self.stride == (1, 1) and self.weight[2:] == (1, 1) and self.groups == 1

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        if self.stride is None:
            return self.input[0] * prod(self.weight)
        sides = zip(self.input[2:], self.padding, self.weight[2:], self.stride, strict=True)
        return self.input[0] * prod(self.weight) * prod((n + 2 * p - k) // s + 1 for n, p, k, s in sides)


def products(network: nn.Module, shape: tuple[int, ...]) -> list[Product]:
    """The convolutions and matrix products of a network on images of one shape, in order.

    Raises:
        ConfigError: more than 2 % of its multiply-adds are in other operations.
    """
    meta = copy.deepcopy(network).to("meta", torch.float32).eval()
    mode = _ProductMode()
    with torch.no_grad(), mode:
        meta(torch.empty(shape, device="meta"))
    counts = count(network, (shape[2], shape[3]), shape[1])
    share = sum(product.macs for product in mode.products) / (
        shape[0] * (counts.convolutions + counts.products)
    )
    if share < 0.98:
        raise ConfigError(f"only {share:.0%} of the network's products reach the dispatcher")
    return mode.products


class Replay(nn.Module):
    """A network's convolutions and products alone, on random inputs; it ignores its own.

    Args:
        network: the network.
        images: images of the shape, type and device.
        fastest: run each product by the fastest operation, otherwise by the network's.
    """

    def __init__(self, network: nn.Module, images: Tensor, fastest: bool = False) -> None:
        super().__init__()
        self.inputs: dict[tuple[int, ...], Tensor] = {}
        self.runs: list[tuple[Run, Tensor]] = []
        like: dict[str, Any] = {"device": images.device, "dtype": images.dtype}
        found = products(network, tuple(images.shape))
        with torch.inference_mode():
            for product in found:
                x = self.inputs.setdefault(product.input, _channels_last(torch.randn(product.input, **like)))
                weight = _channels_last(torch.randn(product.weight, **like))
                bias = torch.randn(product.weight[0], **like) if product.bias else None
                runs = _runs(product, x, weight, bias) if fastest else [_plain(product, weight, bias)]
                self.runs.append((_fastest(runs, x), x))

    def forward(self, images: Tensor) -> None:
        """Run them all."""
        for run, x in self.runs:
            run(x)


class _ProductMode(TorchDispatchMode):
    """Records the convolutions and products that reach PyTorch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = func._overloadpacket
        if packet is aten.convolution:
            x, weight, bias, stride, padding = args[:5]
            shapes = tuple(x.shape), tuple(weight.shape), bias is not None
            self.products.append(Product(*shapes, tuple(stride), tuple(padding), args[8]))
        elif packet is aten.addmm:
            self.products.append(Product(tuple(args[1].shape), tuple(args[2].shape)[::-1], True))
        elif packet is aten.mm:
            self.products.append(Product(tuple(args[0].shape), tuple(args[1].shape)[::-1], False))
        return func(*args, **(kwargs or {}))


def _plain(product: Product, weight: Tensor, bias: Tensor | None) -> Run:
    if product.stride is None:
        return lambda x: F.linear(x, weight, bias)
    stride, padding, groups = product.stride, product.padding, product.groups
    return lambda x: F.conv2d(x, weight, bias, stride, padding, 1, groups)


def _runs(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Run]:
    """The operations that can run a product here."""
    runs = [_plain(product, weight, bias)]
    if product.pointwise:
        flat = weight.flatten(1).contiguous()
        runs.append(lambda x: F.linear(x.permute(0, 2, 3, 1), flat, bias))
    if x.device.type == "cpu" and onednn.has_dtype(x.dtype):
        runs.append(_packed(product, x, weight, bias))
    return runs


def _packed(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Run:
    """OneDNN's operation, with the weight packed for this shape."""
    mkldnn: Any = torch.ops.mkldnn
    if product.stride is None:
        packed = mkldnn._reorder_linear_weight(weight, x.shape[0])
        return lambda x: mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    padding, stride, groups = list(product.padding), list(product.stride), product.groups
    packed = mkldnn._reorder_convolution_weight(weight, padding, stride, [1, 1], groups, list(x.shape))
    return lambda x: mkldnn._convolution_pointwise(
        x, packed, bias, padding, stride, [1, 1], groups, "none", [], ""
    )


def _fastest(runs: list[Run], x: Tensor) -> Run:
    return runs[0] if len(runs) == 1 else min(runs, key=lambda run: _seconds(run, x))


def _seconds(run: Run, x: Tensor) -> float:
    """Shortest of some runs after a warmup; infinite where the operation fails."""
    times = []
    try:
        for _ in range(TRIES + 1):
            start = time.perf_counter()
            run(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - start)
    except RuntimeError:
        return float("inf")
    return min(times[1:])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
