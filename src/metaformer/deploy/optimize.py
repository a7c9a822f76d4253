"""The exact form of a network that infers fastest."""

import copy
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from metaformer.backbones.block import Block
from metaformer.backbones.metaformer import Trunk
from metaformer.backbones.stage import Stage
from metaformer.deploy.folded.block import FoldedBlock
from metaformer.deploy.folded.conv import folded_conv, packable
from metaformer.deploy.folded.stage import Chain
from metaformer.errors import ConfigError, OptimizeError
from metaformer.models.base import DenseNetwork

TOLERANCE: Final = 1e-4
"""Largest difference of any output in float32, as a share of the largest output."""


def optimize(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    sample: Tensor | None = None,
) -> nn.Module:
    """Copy a classifier, segmenter, detector or backbone into its inference form: the same function, faster.

    Norms' constants, LayerScale and StarReLU are folded into the weights, dropout and stochastic depth are
    left out, maps lie channels-last, and products on a CPU activate or add in their epilogue. The copy is
    compared with the original on `sample`. An optimized network comes back as it is.

    Args:
        model: a network of this library, or one that holds its backbones, on the device where it will run.
        dtype: type of weights and images of the copy; the model's own by default.
        compile: compile what gives its tensors (`raw` where there is one), on a CPU with the weights as
            constants; the first call with each shape of images then takes a minute or so.
        sample: images (B, in_chans, H, W) to compare on; two random ones of the model's size by default.

    Raises:
        ConfigError: there is nothing here to optimize.
        OptimizeError: the copy does not compute what the original does, or nothing can be compared.
    """
    network = model if getattr(model, "optimized", False) else _rewritten(model, dtype, sample)
    return network if not compile or getattr(network, "compiled", False) else _compiled(network)


def _rewritten(model: nn.Module, dtype: torch.dtype | None, sample: Tensor | None) -> nn.Module:
    if not any(isinstance(module, Block) for module in model.modules()):
        raise ConfigError(f"optimize: {type(model).__name__} has no MetaFormer block")
    first = next(model.parameters())
    original = copy.deepcopy(model).eval().requires_grad_(False).float()
    network = copy.deepcopy(original)
    _fold(network)
    network = network.to(memory_format=torch.channels_last)
    _compare(original, network, _sample(original) if sample is None else sample.float().to(first.device))
    network = network.to(dtype or first.dtype)
    if first.device.type == "cpu":
        _join_graphs(network)
    network.optimized = True  # type: ignore[assignment]
    return network


def _compiled(network: nn.Module) -> nn.Module:
    """The same modules with a compiled method before them."""
    on_cpu = next(network.parameters()).device.type == "cpu"
    network = copy.copy(network)
    method = "forward_head" if isinstance(network, DenseNetwork) else "forward"
    method = "raw" if hasattr(network, "raw") else method  # until the detectors define forward_head
    setattr(network, method, (frozen if on_cpu else torch.compile)(getattr(network, method)))
    network.compiled = True  # type: ignore[assignment]
    return network


def _join_graphs(network: nn.Module) -> None:
    """Let stages that call nothing but kernels on a CPU be single operations to a compiler."""
    chains = [module for module in network.modules() if isinstance(module, Chain)]
    hooks = [
        chain.register_forward_pre_hook(lambda chain, maps: chain.join_graphs(*maps)) for chain in chains
    ]
    with torch.inference_mode():
        _run(network, _sample(network).to(next(network.parameters()).dtype))
    for hook in hooks:
        hook.remove()


def _fold(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Block):
                setattr(module, name, FoldedBlock(child))
            elif isinstance(module, Stage) and name == "blocks":
                setattr(module, name, Chain(map(FoldedBlock, cast(Iterable[Block], module.blocks))))
            elif packable(child):
                setattr(module, name, folded_conv(child))


def _sample(network: nn.Module) -> Tensor:
    """Two images of the size that the network's backbone is made for."""
    trunk = next(module for module in network.modules() if isinstance(module, Trunk))
    parameter = next(network.parameters())
    shape = (2, trunk.config.in_chans, *trunk.config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(parameter.device)


def _compare(original: nn.Module, network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        wanted, found = _tensors(_run(original, images)), _tensors(_run(network, images))
    if not wanted:
        raise OptimizeError(f"{type(original).__name__} gives no tensors that its copy could be compared by")
    for ours, theirs in zip(found, wanted, strict=True):
        share = ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()
        if not share <= TOLERANCE:
            raise OptimizeError(
                f"the optimized {type(original).__name__} differs from the original by {share:.1e} of the "
                f"largest output, more than {TOLERANCE:.0e}: please report the model; it is as it was"
            )


def _run(network: nn.Module, images: Tensor) -> Any:
    """A network's outputs that are tensors whatever is in the images."""
    return network.forward_head(images) if isinstance(network, DenseNetwork) else network(images)


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return (
        [tensor for part in outputs for tensor in _tensors(part)] if isinstance(outputs, list | tuple) else []
    )


def frozen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a network's method, once for each shape of its images; no gradient is kept.

    A change of the weights after the first call is not seen.
    """
    from torch._inductor import config

    def own(*arguments: Any, **options: Any) -> Any:
        """Code of its own: what Dynamo made of a network's method without freezing it would take again."""
        return function(*arguments, **options)

    compiled = torch.compile(own, dynamic=False)

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        # Both the tracer and Inductor ask for this, and again at each new shape.
        with config.patch(freezing=True), torch.no_grad():
            return compiled(*arguments, **options)

    return call
