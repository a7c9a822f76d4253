"""A network's inference form: the same function with its constants folded, faster."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, nn

from metaformer.backbones.block import Block
from metaformer.backbones.head import Head
from metaformer.backbones.metaformer import MetaFormer, Trunk
from metaformer.backbones.stage import Stage
from metaformer.deploy.dtype import computed_dtype, fastest_dtype
from metaformer.deploy.folded.block import fold_block, unknown_part
from metaformer.deploy.folded.classifier import ReplayableClassifier
from metaformer.deploy.folded.conv import (
    FoldedConv,
    can_fold,
    can_fold_norm,
    can_fold_relu,
    fold_conv,
    fold_conv_norm,
)
from metaformer.deploy.folded.fpn import fold_semantic_fpn
from metaformer.deploy.folded.head import FoldedHead
from metaformer.deploy.folded.linear import FoldedBatchNorm, FoldedNorm
from metaformer.deploy.folded.replay import ReplayableStage, has_hooks
from metaformer.errors import ConfigError, OptimizeError
from metaformer.layers.norm import BatchNorm, LayerNorm
from metaformer.models.base import DenseNetwork
from metaformer.models.segmentation.segmenter import Segmenter

_log: Final = logging.getLogger(__name__)
TOLERANCE: Final = 1e-4
"""Largest difference of any output in float32, relative to the largest output."""


def optimize(
    model: nn.Module,
    *,
    dtype: torch.dtype | Literal["auto"] | None = None,
    compile: bool | None = None,
    sample: Tensor | None = None,
) -> nn.Module:
    """Copy a classifier, segmenter, detector or backbone into its inference form: the same function, faster.

    Norms' constants, LayerScale and StarReLU are folded into the weights, batch norms of necks and heads too,
    with the ReLU after them; the convolutions of Semantic FPN's neck and head are composed, dropout and
    stochastic depth are left out, tensors are channels-last, linear layers on a CPU compute activation and
    residual in their epilogue. The copy is compared with the original on `sample`. An optimized network is
    returned as it is. A block with parts that are not this library's (LoRA, parametrized or pruned layers) or
    have hooks stays as it is, with a warning.

    Args:
        model: a network of this library, or a module that contains its backbones, on the device to run on.
        dtype: type of the copy's weights and images; the model's own by default. "auto" takes the one that
            the device computes in fastest, and logs (at level INFO) which and why; bfloat16 and float16
            change outputs by about a percent of the largest. An x86 processor without instructions that
            multiply them computes in float32, with a warning in the log: that is many times as fast. Images
            of either type are taken then, outputs are in float32.
        compile: compile a dense network's `forward_head`, another's `forward`, on a CPU with the weights as
            constants; the first call with each shape of images then takes a minute or so. None, the default,
            compiles on CUDA, where a network of uncompiled operations waits for launches.
        sample: images (B, in_chans, H, W) to compare on; two random ones of the model's size by default.

    Raises:
        ConfigError: the model has no MetaFormer block, or `dtype` is no dtype.
        OptimizeError: the copy's outputs differ from the original's, or there is none to compare.
    """
    network = model if getattr(model, "optimized", False) else _folded(model, dtype, sample)
    if compile is None:
        compile = next(network.parameters()).device.type == "cuda"
    return network if not compile or getattr(network, "compiled", False) else _compiled(network)


def network_outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """A network's output tensors by name, a dense network's before decoding; a single one is `output`."""
    method: Any = getattr(network, _method(network))
    return dict(named_tensors(method(images)))


def named_tensors(outputs: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries, lists and tuples with their paths, such as `logits.0`."""
    if isinstance(outputs, Tensor):
        yield name or "output", outputs
    elif isinstance(outputs, dict):
        for key, value in outputs.items():
            yield from named_tensors(value, f"{name}.{key}".lstrip("."))
    elif isinstance(outputs, list | tuple):
        keys = getattr(outputs, "_fields", range(len(outputs)))
        yield from named_tensors(dict(zip(keys, outputs, strict=True)), name)


def compile_frozen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a network's method for each shape of images, with the weights as constants and no gradients.

    Inductor folds constants and packs them for its operations. A change of the weights after the first call
    has no effect.
    """
    from torch._inductor import config

    # a code object of its own: Dynamo would reuse what it compiled of the method without freezing
    def call_uncompiled(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    compiled = torch.compile(call_uncompiled, dynamic=False)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # both the tracer and Inductor read this setting, again at each new shape
        with config.patch(freezing=True), torch.no_grad():
            return compiled(*args, **kwargs)

    return call


def _folded(
    model: nn.Module, dtype: torch.dtype | Literal["auto"] | None, sample: Tensor | None
) -> nn.Module:
    if not any(isinstance(module, Block) for module in model.modules()):
        raise ConfigError(f"optimize: {type(model).__name__} has no MetaFormer block")
    first = next(model.parameters())
    if dtype == "auto":
        dtype, reason = fastest_dtype(first.device)
        _log.info("optimize: %s", reason)
    if not isinstance(dtype, torch.dtype | None):
        raise ConfigError(f"optimize: dtype {dtype!r} is neither a dtype of torch nor 'auto'")
    original = _copy(model).eval().requires_grad_(False).float()
    network = copy.deepcopy(original)
    _fold(network)
    if type(network) is MetaFormer:
        network = ReplayableClassifier(network)
    network = network.to(memory_format=torch.channels_last)
    _compare(original, network, _sample(original) if sample is None else sample.float().to(first.device))
    _convert(network, dtype or first.dtype, first.device)
    if first.device.type == "cpu":
        _hide_stages_from_compiler(network)
    network.optimized = True  # type: ignore[assignment]
    return network


def _convert(network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Convert a network in place to the dtype that is asked for, or to one that the device multiplies."""
    computed = computed_dtype(dtype, device)
    network.to(computed)
    if computed == dtype:
        return
    _log.warning(
        "optimize: %s instead of %s, which this processor has no instructions to multiply",
        *(str(each).removeprefix("torch.") for each in (computed, dtype)),
    )
    for module in network.modules():
        if isinstance(module, Trunk):
            module.converts_images = True


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; weights that are computed from others, as a pruned layer's, are copied by value."""
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def _fold(module: nn.Module, path: str = "") -> None:
    """Put folded forms in the places of a module's blocks, convolutions, norms and head, at any depth."""
    if isinstance(module, Segmenter):
        fold_semantic_fpn(module)
    for name, child in list(module.named_children()):
        if isinstance(child, Block):
            setattr(module, name, _fold_block(child, path + name))
        elif isinstance(module, Stage) and name == "blocks":
            blocks = cast(nn.Sequential, child).named_children()
            folded = (_fold_block(cast(Block, block), f"{path}blocks.{i}") for i, block in blocks)
            module.blocks = ReplayableStage(folded)
        elif type(child) is Head:
            setattr(module, name, FoldedHead(child))
        elif can_fold(child):
            setattr(module, name, fold_conv(child))
        elif can_fold_norm(child):
            setattr(module, name, fold_conv_norm(child))
        elif can_fold_relu(child):
            setattr(module, name, FoldedConv(cast(nn.Conv2d, child[0]), relu=True))
        elif isinstance(child, LayerNorm | BatchNorm):
            setattr(module, name, _fold_norm(child))
        else:
            _fold(child, f"{path}{name}.")


def _fold_block(block: Block, path: str) -> nn.Module:
    """The folded form of the block at `path`, or the block where a part of it is unknown."""
    unknown = unknown_part(block)
    if unknown is None:
        return fold_block(block)
    name, part = unknown
    warnings.warn(
        f"optimize: {path}.{name} is a {type(part).__name__} that it does not know, or has hooks: the block "
        "stays as it is",
        stacklevel=2,
    )
    return block


def _fold_norm(norm: LayerNorm | BatchNorm) -> nn.Module:
    """The folded form of a norm outside blocks, or the norm where it is of a subclass or has hooks."""
    if type(norm) is LayerNorm and not has_hooks(norm):
        return FoldedNorm(norm)
    if type(norm) is BatchNorm and norm.running_mean is not None and not has_hooks(norm):
        return FoldedBatchNorm(norm)
    return norm


def _sample(network: nn.Module) -> Tensor:
    """Two random images of the backbone's size."""
    trunk = next(module for module in network.modules() if isinstance(module, Trunk))
    shape = (2, trunk.config.in_chans, *trunk.config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(next(network.parameters()).device)


def _compare(original: nn.Module, network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        expected, outputs = network_outputs(original, images), network_outputs(network, images)
    if not expected:
        raise OptimizeError(
            f"{type(original).__name__} returns no tensors that its copy could be compared by"
        )
    for name, theirs in expected.items():
        difference = ((outputs[name] - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()
        if not difference <= TOLERANCE:
            raise OptimizeError(
                f"{name} of the optimized {type(original).__name__} differs from the original's by "
                f"{difference:.1e} of the largest value, more than {TOLERANCE:.0e}: please report the model"
            )


def _hide_stages_from_compiler(network: nn.Module) -> None:
    """Make stages that call C++ kernels alone single operations of compiled graphs."""
    stages = [module for module in network.modules() if isinstance(module, ReplayableStage)]
    hooks = [
        stage.register_forward_pre_hook(lambda stage, args: stage.hide_from_compiler(*args))
        for stage in stages
    ]
    with torch.inference_mode():
        network_outputs(network, _sample(network).to(next(network.parameters()).dtype))
    for hook in hooks:
        hook.remove()


def _compiled(network: nn.Module) -> nn.Module:
    """A shallow copy with the compiled method."""
    on_cpu = next(network.parameters()).device.type == "cpu"
    network = copy.copy(network)
    method = _method(network)
    setattr(network, method, (compile_frozen if on_cpu else torch.compile)(getattr(network, method)))
    network.compiled = True  # type: ignore[assignment]
    return network


def _method(network: nn.Module) -> str:
    """The method that returns tensors alone, whatever is in the images."""
    return "forward_head" if isinstance(network, DenseNetwork) else "forward"
