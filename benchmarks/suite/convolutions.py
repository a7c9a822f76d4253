"""A network's convolutions and matrix products alone, one after the other: what no rewrite can save."""

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

aten = torch.ops.aten
Run = Callable[[Tensor], Tensor]
TRIES = 3


@dataclass(frozen=True)
class Product:
    """A convolution, or with `stride` None a product of a matrix with a layer's weight."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    bias: bool
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] = (0, 0)
    groups: int = 1

    @property
    def pointwise(self) -> bool:
        """Whether each position's channels are multiplied alone."""
        return self.stride == (1, 1) and self.weight[2:] == (1, 1) and self.groups == 1

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        if self.stride is None:
            return self.input[0] * prod(self.weight)
        sides = zip(self.input[2:], self.padding, self.weight[2:], self.stride, strict=True)
        return self.input[0] * prod(self.weight) * prod((n + 2 * p - k) // s + 1 for n, p, k, s in sides)


def products(network: nn.Module, shape: tuple[int, ...]) -> list[Product]:
    """Find what a network multiplies for images of one shape, in order; it stays as it is.

    Raises:
        ConfigError: it does most of its work in operations that are no convolution and no product.
    """
    meta = copy.deepcopy(network).to("meta", torch.float32).eval()
    seen = _Seen()
    with torch.no_grad(), seen:
        meta(torch.empty(shape, device="meta"))
    counts = count(network, (shape[2], shape[3]), shape[1])
    found, wanted = sum(product.macs for product in seen.products), counts.convolutions + counts.products
    if found < 0.98 * shape[0] * wanted:
        raise ConfigError(f"only {found / shape[0] / wanted:.0%} of the network's products can be seen")
    return seen.products


class Replay(nn.Module):
    """A network's products on inputs made beforehand; what it is given to run is ignored.

    Args:
        network: whose products.
        images: of which shape, type and device.
        quickest: run each product as whatever operation is quickest; otherwise as the network does.
    """

    def __init__(self, network: nn.Module, images: Tensor, quickest: bool = False) -> None:
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
                runs = _runs(product, x, weight, bias) if quickest else [_plain(product, weight, bias)]
                self.runs.append((_quickest(runs, x), x))

    def forward(self, images: Tensor) -> None:
        """Run them all."""
        for run, x in self.runs:
            run(x)


class _Seen(TorchDispatchMode):
    """Writes down the convolutions and products that reach PyTorch's dispatcher."""

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
    """Every way to run it that this machine has."""
    runs = [_plain(product, weight, bias)]
    if product.pointwise:
        flat = weight.flatten(1).contiguous()
        runs.append(lambda x: F.linear(x.permute(0, 2, 3, 1), flat, bias))
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        runs.append(_packed(product, x, weight, bias))
    return runs


def _packed(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Run:
    """The operation of oneDNN, its weight laid out beforehand as it likes best for this shape."""
    mkldnn: Any = torch.ops.mkldnn
    if product.stride is None:
        packed = mkldnn._reorder_linear_weight(weight, x.shape[0])
        return lambda x: mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    padding, stride, groups = list(product.padding), list(product.stride), product.groups
    packed = mkldnn._reorder_convolution_weight(weight, padding, stride, [1, 1], groups, list(x.shape))
    return lambda x: mkldnn._convolution_pointwise(
        x, packed, bias, padding, stride, [1, 1], groups, "none", [], ""
    )


def _quickest(runs: list[Run], x: Tensor) -> Run:
    return runs[0] if len(runs) == 1 else min(runs, key=lambda run: _seconds(run, x))


def _seconds(run: Run, x: Tensor) -> float:
    """Shortest of a few tries; the first warms up, and one that cannot run takes for ever."""
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
