"""Fast forms of a block's channel MLP in training: the one place that chooses a CPU kernel for it."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from metaformer.layers.act import SquaredReLU, StarReLU
from metaformer.layers.drop_path import DropPath
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import GroupNorm, LayerNorm, NoNorm
from metaformer.layers.pointwise import Pointwise
from metaformer.layers.scale import Scale
from metaformer.ops import onednn, train_mlp
from metaformer.ops.backend import is_traced, mode, without_autocast, working_dtype

FEW_SAMPLES: Final = 16
"""Batch size from which on oneDNN's convolution is as fast on one thread as on several."""
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


def fast_mlp(block: Any, x: Tensor, recompute: bool, moments: Tensor | None = None) -> Tensor | None:
    """A `MetaFormerBlock`'s second half, residual included, with `fast_branch`; None where that is none.

    Args:
        block: the block.
        x: input of its second half, (B, C, H, W).
        recompute: recompute the hidden activations in the backward pass rather than save them.
        moments: of x, with the eps of the norm, where they are known: mean and 1/σ of each sample, (B, 2).
    """
    parts = block.norm2, block.mlp, block.layer_scale2
    drop_path, res_scale = block.drop_path2, block.res_scale2
    adds = adds_input(block, drop_path, res_scale) and not drop_path.drops
    if adds and supports(x, *parts[1:], recompute) and not has_hooks(*parts, drop_path, res_scale):
        return mlp_branch(x, *parts, residual=True, save_pre_act=not recompute, moments=moments)
    y = fast_branch(x, *parts, recompute, moments)
    return None if y is None else block._residual(x, drop_path(y), res_scale)


def fast_branch(
    x: Tensor,
    norm: nn.Module,
    mlp: nn.Module,
    scale: nn.Module,
    recompute: bool,
    moments: Tensor | None = None,
) -> Tensor | None:
    """scale(mlp(norm(x))) of (B, C, H, W) in a faster form than the plain one; None without one.

    That is `ops.train_mlp` on CPUs; elsewhere, with `recompute`, a checkpoint; and where a gradient is
    computed LayerScale in the second layer's weights: the unscaled output is neither computed nor saved.
    The last two arguments are those of `fast_mlp`.
    """
    if isinstance(x, Proxy) or (not recompute and not torch.is_grad_enabled()):
        return None
    hooked = has_hooks(norm, mlp, scale)
    if not hooked and supports(x, mlp, scale, recompute):
        return mlp_branch(x, norm, mlp, scale, False, save_pre_act=not recompute, moments=moments)
    if recompute:
        return checkpoint(_scaled_mlp, x, norm, mlp, scale, not hooked, use_reentrant=False)
    return None if hooked else _scaled_mlp(x, norm, mlp, scale, True)


def supports(x: Tensor, mlp: nn.Module, scale: nn.Module, recompute: bool) -> bool:
    """Whether `mlp_branch` computes scale(mlp(norm(x))): with a gradient, on a CPU, of modules that it knows.

    Modules with hooks, dropout or of a user's own it does not know; the first is checked by the caller.

    Args:
        x: (B, C, H, W).
        mlp: the MLP.
        scale: behind it.
        recompute: whether little memory is asked for; else it runs only where it is faster.
    """
    return (
        torch.is_grad_enabled()
        and not is_traced(x)
        and x.device.type == "cpu"
        and x.numel() > 1  # group norm of one number is an error, and plain PyTorch says so
        and onednn.has_dtype(working_dtype(x))
        and mode() != "reference"
        and _is_known(mlp, scale)
        and (recompute or _is_faster(x, mlp))
    )


def mlp_branch(
    x: Tensor, norm: nn.Module, mlp: Any, scale: nn.Module, residual: bool, save_pre_act: bool = False,
    moments: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """scale(mlp(norm(x))) by `ops.train_mlp`, plus x with `residual`, of (B, C, H, W).

    StarReLU's two numbers are folded into the second layer's weights. A norm that is not in `NORMS`, such as
    batch norm, is called before.
    """
    shortcut, kind = x, NORMS.get(type(norm))
    if kind is None:
        x, kind, norm = norm(x), "none", NoNorm(x.shape[1])
    dtype = working_dtype(x)
    w1, b1, w2, b2 = mlp.fc1.matrix(), mlp.fc1.bias, mlp.fc2.matrix(), mlp.fc2.bias
    if isinstance(mlp.act, StarReLU):
        shift = w2.sum(1) * mlp.act.bias
        b2 = shift if b2 is None else b2 + shift
        w2 = w2 * mlp.act.scale
    vector = scale.scale if isinstance(scale, Scale) else None
    gamma, beta = (_widened(getattr(norm, name, None), x) for name in ("weight", "bias"))
    eps = getattr(norm, "eps", 0.0)
    names, adds = (kind, eps, ACTS[type(mlp.act)]), residual and x is shortcut and x.dtype == dtype
    with without_autocast(x):
        y, _ = train_mlp.train_mlp(
            x, w1, b1, w2, b2, gamma, beta, *names, adds, save_pre_act, moments, vector, dtype
        )
    return shortcut + y if residual and not adds else y


def has_hooks(*modules: nn.Module) -> bool:
    """Whether any of these modules has a hook, so that it has to be called itself."""
    return torch_module._has_any_global_hook() or any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for module in modules
        for part in module.modules()
    )


def adds_input(block: Any, drop_path: nn.Module, res_scale: nn.Module) -> bool:
    """Whether one of a block's halves is x + drop_path(branch)."""
    plain = type(drop_path) is DropPath and type(res_scale) is nn.Identity
    return plain and bool(block.residual) and block.skip_lam == 1.0


def _scaled_mlp(x: Tensor, norm: nn.Module, mlp: nn.Module, scale: nn.Module, fold: bool) -> Tensor:
    """scale(mlp(norm(x))) in plain PyTorch; `fold` puts the scale into the second layer's weights."""
    # a LayerScale of 1e-5 times a weight is too small a number for float16
    if fold and working_dtype(x) != torch.float16 and type(mlp) is Mlp and type(scale) is Scale:
        return mlp(norm(x), scale.scale)
    return scale(mlp(norm(x)))


def _widened(constant: Tensor | None, x: Tensor) -> Tensor | None:
    """Norms take constants that are wider than x, and none that are narrower."""
    return None if constant is None else constant.to(torch.promote_types(constant.dtype, x.dtype))


def _is_faster(x: Tensor, mlp: Any) -> bool:
    """In C++, and on one thread, where PyTorch's 1×1 convolution is slow."""
    dtype = working_dtype(x)
    if train_mlp.supports_cpp(mlp.fc1.matrix(), dtype):
        return True
    return dtype == torch.float32 and len(x) < FEW_SAMPLES and torch.get_num_threads() == 1


def _is_known(mlp: nn.Module, scale: nn.Module) -> bool:
    return (
        type(mlp) is Mlp
        and type(mlp.fc1) is type(mlp.fc2) is Pointwise
        and type(mlp.act) in ACTS
        and getattr(mlp.act, "approximate", "none") == "none"
        and not (mlp.drop.p and mlp.training)
        and type(scale) in (Scale, nn.Identity)
    )
