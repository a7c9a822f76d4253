"""Parameters and arithmetic of a network, counted on the meta device, where nothing is computed."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

By = Literal["stage", "mixer", "block"]

aten = torch.ops.aten
POOLING = {aten.avg_pool2d, aten.max_pool2d_with_indices}
REDUCTIONS = {aten.mean, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d}
NORMS = {aten.native_layer_norm, aten.native_group_norm, aten.native_batch_norm, aten.cudnn_batch_norm}


@dataclass(frozen=True)
class Counts:
    """What one image costs."""

    params: int
    """Parameters, frozen ones included."""
    trainable: int
    """Parameters that are trained."""
    convolutions: int
    """Multiply-adds of convolutions, 1×1 products among them."""
    products: int
    """Multiply-adds of matrix products."""
    attention: int
    """Multiply-adds of attention: queries by keys, weights by values."""
    pooling: int
    """Additions in averages and comparisons in maxima; not part of `macs`."""
    norms: int
    """Elements that are normalized; not part of `macs`."""
    activations: int
    """Elements that convolutions, products and attention put out."""
    parts: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)
    """The same figures of each module that has its own, by dotted name."""
    mixers: dict[str, str] = field(default_factory=dict, repr=False)
    """Class of each token mixer, by dotted name."""

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions, products and attention, as papers give them."""
        return self.convolutions + self.products + self.attention

    def by(self, what: By) -> dict[str, dict[str, int]]:
        """Sum the parts up by stage, by block, or by kind of token mixer beside the other parts."""
        rows: dict[str, Counter[str]] = {}
        for name, figures in self.parts.items():
            bare = name.removeprefix("backbone.")  # of a dense network's backbone
            mixer = name.removesuffix(bare) + ".".join(bare.split(".")[:5])
            row = self.mixers.get(mixer) if what == "mixer" else None
            rows.setdefault(row or _group(bare, what), Counter()).update(figures)
        return {name: dict(row) for name, row in rows.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        del values["parts"], values["mixers"]
        return {**values, "macs": self.macs}


def count(model: nn.Module, image_size: tuple[int, int] = (224, 224), in_chans: int = 3) -> Counts:
    """Count one forward pass of one image (1, in_chans, H, W); the model stays as it is.

    Fused attention is counted; so is CycleFC, which is a shift and a product. A module that has a method
    `macs(height, width)` is believed: what it says stands for everything it computes.
    """
    model = copy.deepcopy(model).to("meta", torch.float32).eval()
    tally = _Tally(model)
    with torch.no_grad(), tally.watching(), _Attention(tally), _Operations(tally):
        model(torch.empty(1, in_chans, *image_size, device="meta"))
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own:
            tally.parts.setdefault(name, Counter())["params"] += own
    total = sum(tally.parts.values(), Counter[str]())
    params = list(model.parameters())
    kinds = ("convolutions", "products", "attention", "pooling", "norms", "activations")
    return Counts(
        params=sum(p.numel() for p in params),
        trainable=sum(p.numel() for p in params if p.requires_grad),
        **{kind: total[kind] for kind in kinds},
        parts={name: dict(figures) for name, figures in tally.parts.items()},
        mixers={name: type(m).__name__ for name, m in model.named_modules() if name.endswith(".token_mixer")},
    )


class _Tally:
    """Figures by the module that is running, and whether that module's own word replaces them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parts: dict[str, Counter[str]] = {}
        self.running: list[str] = [""]
        self.silent = 0

    def add(self, kind: str, amount: int, activations: int = 0) -> None:
        """Book an operation on the innermost running module."""
        if self.silent and kind in ("convolutions", "products", "attention"):
            amount = 0
        figures = {kind: amount, "activations": activations}
        self.parts.setdefault(self.running[-1], Counter()).update(figures)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep track of the running module; the model is a copy, so its hooks need no removal."""
        for name, module in self.model.named_modules():
            module.register_forward_pre_hook(lambda m, args, name=name: self._enter(name, m, *args[:1]))
            module.register_forward_hook(lambda m, args, out: self._leave(m), always_call=True)
            fused = getattr(module, "fused", None)
            if fused is not None:  # called by the block in place of the module itself
                module.fused = self._followed(name, module, fused)
        yield

    def _followed(self, name: str, module: nn.Module, fused: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, *args: Any) -> Tensor:
            self._enter(name, module, x)
            try:
                return fused(x, *args)
            finally:
                self._leave(module)

        return run

    def _enter(self, name: str, module: nn.Module, x: Tensor | None = None) -> None:
        self.running.append(name)
        macs = getattr(module, "macs", None)
        if callable(macs):
            if x is not None and not self.silent:
                self.add("products", int(macs(*x.shape[-2:])))
            self.silent += 1

    def _leave(self, module: nn.Module) -> None:
        self.running.pop()
        self.silent -= callable(getattr(module, "macs", None))


class _Attention(TorchFunctionMode):
    """Counts attention where it is called, whichever kernel it would run."""

    def __init__(self, tally: _Tally) -> None:
        super().__init__()
        self.tally = tally

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = (named[name] for name in ("query", "key", "value"))
        out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device="meta")
        pairs = prod(query.shape[:-1]) * key.shape[-2]
        self.tally.add("attention", pairs * (query.shape[-1] + value.shape[-1]), out.numel())
        return out


class _Operations(TorchDispatchMode):
    """Counts everything else where it reaches PyTorch's dispatcher."""

    def __init__(self, tally: _Tally) -> None:
        super().__init__()
        self.tally = tally
        self.flops = FlopCounterMode(display=False).flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in self.flops:
            kind = "convolutions" if "convolution" in str(packet) else "products"
            macs = self.flops[packet](*args, **(kwargs or {}), out_val=out) // 2
            self.tally.add(kind, int(macs), out.numel())
        elif packet in POOLING:
            maps = out[0] if isinstance(out, tuple) else out
            self.tally.add("pooling", maps.numel() * prod(_pair(args[1])))
        elif packet in REDUCTIONS:
            self.tally.add("pooling", args[0].numel())
        elif packet in NORMS:
            self.tally.add("norms", args[0].numel())
        return out


def _pair(size: int | list[int]) -> list[int]:
    values = [size] if isinstance(size, int) else list(size)
    return values * 2 if len(values) == 1 else values


def _group(name: str, what: By) -> str:
    """Row of a table to which a module belongs."""
    words = name.split(".")
    if words[0] != "stages" or len(words) < 2:
        return words[0] or "between modules"
    if what == "stage":
        return ".".join(words[:2])
    if len(words) < 4 or words[2] != "blocks":
        return ".".join(words[:3]) if what == "block" else (words[2] if len(words) > 2 else "stages")
    if what == "block":
        return ".".join(words[:4])
    return _role(words[4]) if len(words) > 4 else "block"


def _role(word: str) -> str:
    """A module of a block without its number: norm1 and norm2 are both `norm`."""
    return word.rstrip("0123456789")
