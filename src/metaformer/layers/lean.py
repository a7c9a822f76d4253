"""A block's second half in the form that keeps least for the backward pass on a CPU, where it has one."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from metaformer.layers.act import SquaredReLU, StarReLU
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import GroupNorm, LayerNorm, NoNorm
from metaformer.layers.pointwise import Pointwise
from metaformer.layers.scale import Scale
from metaformer.ops import onednn, train_mlp
from metaformer.ops.backend import mode, without_autocast, working_dtype

FEW: Final = 16
"""Samples from which on oneDNN's convolution is as fast on one thread as on several."""
NORMS: Final[dict[type[nn.Module], str]] = {
    GroupNorm: "group_norm",
    LayerNorm: "layer_norm",
    NoNorm: "none",
}
ACTS: Final[dict[type[nn.Module], str]] = {
    nn.GELU: "gelu",
    nn.ReLU: "relu",
    SquaredReLU: "squared_relu",
    StarReLU: "squared_relu",
}


def can_recompute(x: Tensor, norm: nn.Module, mlp: nn.Module, scale: nn.Module, asked: bool) -> bool:
    """Say whether `mlp_branch` computes scale(mlp(norm(x))): with a gradient, on a CPU, of known parts.

    The parts' hooks are the caller's business; dropout and modules of a user's own are not known.

    Args:
        x: the map.
        norm: before the MLP.
        mlp: the MLP.
        scale: behind it.
        asked: whether little memory is asked for; else it runs where it is the faster form too.
    """
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.numel() > 1  # group norm of one number is an error, and plain PyTorch says so
        and onednn.has_dtype(working_dtype(x))
        and mode() != "reference"
        and _known(norm, mlp, scale)
        and not _observed()
        and (asked or _faster(x, mlp))
    )


def mlp_branch(
    x: Tensor, norm: nn.Module, mlp: Any, scale: nn.Module, shortcut: bool, keep: bool = False
) -> Tensor:
    """Give scale(mlp(norm(x))), plus x with `shortcut`, of (B, C, H, W); `keep` the hidden map if faster.

    LayerScale and StarReLU's two numbers are multiplied into the second product's weights.
    """
    dtype = working_dtype(x)
    w1, b1, w2, b2 = mlp.fc1.matrix(), mlp.fc1.bias, mlp.fc2.matrix(), mlp.fc2.bias
    if isinstance(mlp.act, StarReLU):
        shift = w2.sum(1) * mlp.act.bias
        b2 = shift if b2 is None else b2 + shift
        w2 = w2 * mlp.act.scale
    if isinstance(scale, Scale):
        w2 = w2 * scale.scale[:, None]
        b2 = None if b2 is None else b2 * scale.scale
    w1, b1, w2, b2 = (None if tensor is None else tensor.to(dtype) for tensor in (w1, b1, w2, b2))
    gamma, beta = (_as_wide(getattr(norm, name, None), x) for name in ("weight", "bias"))
    eps = getattr(norm, "eps", 0.0)
    kind, act, past = NORMS[type(norm)], ACTS[type(mlp.act)], shortcut and x.dtype == dtype
    with without_autocast(x):
        y, _ = train_mlp.train_mlp(x, w1, b1, w2, b2, gamma, beta, kind, eps, act, past, keep)
    return x + y if shortcut and not past else y


def watched(*modules: nn.Module) -> bool:
    """Say whether any of these has a hook, which must be told what the module gives."""
    return torch_module._has_any_global_hook() or any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for module in modules
        for part in module.modules()
    )


def _as_wide(constant: Tensor | None, x: Tensor) -> Tensor | None:
    """Norms take constants that are wider than the map, and none that are narrower."""
    return None if constant is None else constant.to(torch.promote_types(constant.dtype, x.dtype))


def _faster(x: Tensor, mlp: Any) -> bool:
    """Where it saves time: by the C++ kernels, and on one thread, where PyTorch's 1×1 convolution is slow."""
    if torch.compiler.is_compiling() or working_dtype(x) != torch.float32:
        return False
    return train_mlp.supports_cpp(mlp.fc1.matrix()) or (len(x) < FEW and torch.get_num_threads() == 1)


def _known(norm: nn.Module, mlp: nn.Module, scale: nn.Module) -> bool:
    return (
        type(norm) in NORMS
        and type(mlp) is Mlp
        and type(mlp.fc1) is type(mlp.fc2) is Pointwise
        and type(mlp.act) in ACTS
        and getattr(mlp.act, "approximate", "none") == "none"
        and not (mlp.drop.p and mlp.training)
        and type(scale) in (Scale, nn.Identity)
    )


def _observed() -> bool:
    """Whether something wants to see every operation: an exporter, a transform, a counter of arithmetic."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return (
        torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
