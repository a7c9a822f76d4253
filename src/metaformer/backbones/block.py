"""The MetaFormer block, https://arxiv.org/abs/2111.11418."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaformer.backbones.config import MetaFormerConfig, MixerSpec
from metaformer.layers.drop_path import DropPath
from metaformer.layers.lean import can_recompute, mlp_branch, watched
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.ops.backend import working_dtype
from metaformer.registry import parse


class Block(nn.Module):
    """Mix tokens, then channels; each on a normalized, scaled branch beside a shortcut."""

    def __init__(self, config: MetaFormerConfig, stage: int, mixer: MixerSpec, drop_path: float) -> None:
        super().__init__()
        dim, hidden = config.dims[stage], int(config.dims[stage] * config.mlp_ratios[stage])
        self.residual = config.residual
        self.skip_lam = config.skip_lam
        self.norm1 = NORMS.build(config.norm, dim, eps=config.norm_eps)
        self.token_mixer = build_mixer(mixer, dim, config.grid(stage), config.grid_mode)
        self.drop_path1 = DropPath(drop_path)
        self.layer_scale1 = _scale(dim, config.layer_scale[stage])
        self.res_scale1 = _scale(dim, config.res_scale[stage])
        self.mlp: nn.Module | None = None
        if hidden:
            self.norm2 = NORMS.build(config.norm, dim, eps=config.norm_eps)
            self.mlp = Mlp(dim, hidden, act=config.act, bias=config.mlp_bias, dropout=config.dropout)
            self.drop_path2 = DropPath(drop_path)
            self.layer_scale2 = _scale(dim, config.layer_scale[stage])
            self.res_scale2 = _scale(dim, config.res_scale[stage])

    def forward(self, x: Tensor, recompute_mlp: bool = False) -> Tensor:
        """Map (B, C, H, W) to the same shape.

        Args:
            x: the map.
            recompute_mlp: keep a narrow map for the backward pass, and make the MLP's wide ones again.
        """
        fused: Callable[..., Tensor] | None = getattr(self.token_mixer, "fused", None)
        if fused is not None and not watched(self.norm1, self.token_mixer, self.layer_scale1):
            branch = fused(x, self.norm1, self.layer_scale1)
        else:
            branch = self.layer_scale1(self.token_mixer(self.norm1(x)))
        x = self._add(self.res_scale1, x, self.drop_path1(branch))
        return x if self.mlp is None else self._mix_channels(x, self.mlp, recompute_mlp)

    def _mix_channels(self, x: Tensor, mlp: nn.Module, recompute: bool) -> Tensor:
        free = not watched(self.norm2, mlp, self.layer_scale2, self.drop_path2, self.res_scale2)
        if free and can_recompute(x, self.norm2, mlp, self.layer_scale2, recompute):
            whole = self._has_bare_shortcut()
            y = mlp_branch(x, self.norm2, mlp, self.layer_scale2, whole, keep=not recompute)
            return y if whole else self._add(self.res_scale2, x, self.drop_path2(y))
        if recompute:
            branch = checkpoint(self._scaled_mlp, x, mlp, free, use_reentrant=False)
        else:
            branch = self._scaled_mlp(x, mlp, free and torch.is_grad_enabled())
        return self._add(self.res_scale2, x, self.drop_path2(branch))

    def _scaled_mlp(self, x: Tensor, mlp: nn.Module, fold: bool) -> Tensor:
        """`fold`: the scale in the second product's weights, so that its result is neither kept nor made."""
        # a LayerScale of 1e-5 times a weight is too small a number for float16
        fold = fold and working_dtype(x) != torch.float16
        if fold and type(mlp) is Mlp and type(self.layer_scale2) is Scale:
            return mlp(self.norm2(x), self.layer_scale2.scale)
        return self.layer_scale2(mlp(self.norm2(x)))

    def _has_bare_shortcut(self) -> bool:
        """Whether the second half is x + branch, and nothing else now."""
        dropping = self.training and self.drop_path2.rate > 0
        plain = type(self.drop_path2) is DropPath and type(self.res_scale2) is nn.Identity
        return plain and not dropping and self.residual and self.skip_lam == 1.0

    def _add(self, res_scale: nn.Module, shortcut: Tensor, branch: Tensor) -> Tensor:
        if self.skip_lam != 1.0:
            branch = branch / self.skip_lam
        return res_scale(shortcut) + branch if self.residual else branch


def build_mixer(spec: MixerSpec, dim: int, grid: tuple[int, int], grid_mode: str) -> nn.Module:
    """Make a mixer from its name, or from a class or callable that takes `dim`.

    Raises:
        ConfigError: an unknown name or option.
    """
    if not isinstance(spec, str):
        return spec(dim)
    name, _ = parse(spec)
    context = {"grid": grid, "grid_mode": grid_mode} if MIXERS.fixed_grid(name) else {}
    return MIXERS.build(spec, dim, **context)


def _scale(dim: int, init: float | None) -> nn.Module:
    return nn.Identity() if init is None else Scale(dim, init)
