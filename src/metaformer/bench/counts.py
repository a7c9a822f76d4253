"""Parameters and multiply-adds of a network, counted on the meta device, where nothing is computed."""

import copy
from collections import Counter
from collections.abc import Callable
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
    """Parameters and arithmetic of a forward pass of one image."""

    params: int
    """Parameters, frozen ones included."""
    trainable: int
    """Parameters with `requires_grad`."""
    convolutions: int
    """Multiply-adds of convolutions, 1×1 ones included."""
    products: int
    """Multiply-adds of matrix products."""
    attention: int
    """Multiply-adds of attention: queries times keys, weights times values."""
    pooling: int
    """Additions in averages and comparisons in maxima; not part of `macs`."""
    norms: int
    """Elements that norms read; not part of `macs`."""
    activations: int
    """Output elements of convolutions, products and attention."""
    parts: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)
    """The figures of each module with arithmetic or parameters of its own, by dotted name."""
    mixers: dict[str, str] = field(default_factory=dict, repr=False)
    """Class of each token mixer, by dotted name."""

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions, products and attention, as papers report them."""
        return self.convolutions + self.products + self.attention

    def by(self, what: By) -> dict[str, dict[str, int]]:
        """Sum the parts by stage, by block, or by class of token mixer and other parts."""
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
    """Count a forward pass of one image (1, in_chans, H, W) on a copy of the model.

    Fused attention is counted, and CycleFC as a 1×1 convolution. The method `macs(height, width)` of a module
    that has one replaces what is counted inside it.
    """
    model = copy.deepcopy(model).to("meta", torch.float32).eval()
    tally = _Tally(model)
    tally.add_hooks()
    with torch.no_grad(), _AttentionMode(tally), _OperationMode(tally):
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
    """Figures by the running module; inside a module with `macs`, its multiply-adds are not counted."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parts: dict[str, Counter[str]] = {}
        self.running: list[str] = [""]
        self.inside_macs = 0

    def add(self, kind: str, amount: int, activations: int = 0) -> None:
        """Add an operation to the innermost running module."""
        if self.inside_macs and kind in ("convolutions", "products", "attention"):
            amount = 0
        figures = {kind: amount, "activations": activations}
        self.parts.setdefault(self.running[-1], Counter()).update(figures)

    def add_hooks(self) -> None:
        """Track the running module; the model is a copy, so the hooks need no removal."""
        for name, module in self.model.named_modules():
            module.register_forward_pre_hook(lambda m, args, name=name: self._enter(name, m, *args[:1]))
            module.register_forward_hook(lambda m, args, out: self._leave(m), always_call=True)
            fused = getattr(module, "fused", None)
            if fused is not None:  # called by the block in place of the module itself
                module.fused = self._tracked(name, module, fused)

    def _tracked(self, name: str, module: nn.Module, fused: Callable[..., Tensor]) -> Callable[..., Tensor]:
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
            if x is not None and not self.inside_macs:
                self.add("products", int(macs(*x.shape[-2:])))
            self.inside_macs += 1

    def _leave(self, module: nn.Module) -> None:
        self.running.pop()
        self.inside_macs -= callable(getattr(module, "macs", None))


class _AttentionMode(TorchFunctionMode):
    """Counts attention at the call, whichever kernel would run."""

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


class _OperationMode(TorchDispatchMode):
    """Counts everything else at PyTorch's dispatcher."""

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
            pooled = out[0] if isinstance(out, tuple) else out
            self.tally.add("pooling", pooled.numel() * prod(_pair(args[1])))
        elif packet in REDUCTIONS:
            self.tally.add("pooling", args[0].numel())
        elif packet in NORMS:
            self.tally.add("norms", args[0].numel())
        return out


def _pair(size: int | list[int]) -> list[int]:
    values = [size] if isinstance(size, int) else list(size)
    return values * 2 if len(values) == 1 else values


def _group(name: str, what: By) -> str:
    """Row of the breakdown that a module belongs to."""
    parts = name.split(".")
    if parts[0] != "stages" or len(parts) < 2:
        return parts[0] or "between modules"
    if what == "stage":
        return ".".join(parts[:2])
    if len(parts) < 4 or parts[2] != "blocks":
        return ".".join(parts[:3]) if what == "block" else (parts[2] if len(parts) > 2 else "stages")
    if what == "block":
        return ".".join(parts[:4])
    return _role(parts[4]) if len(parts) > 4 else "block"


def _role(name: str) -> str:
    """Name of a block's module without its number: norm1 and norm2 are both `norm`."""
    return name.rstrip("0123456789")
