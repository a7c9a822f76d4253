"""Blocks: MetaFormer's, https://arxiv.org/abs/2111.11418, and MetaNeXt's, https://arxiv.org/abs/2303.16900."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig, MixerSpec
from metaformer.backbones.fast_mlp import adds_input, fast_branch, fast_mlp, has_hooks
from metaformer.layers.drop_path import DropPath
from metaformer.layers.init import init_part
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.registry import parse


class Block(nn.Module):
    """Token mixer and channel MLP in one of the forms of `FORMS`, (B, C, H, W) to the same shape."""

    token_mixer: nn.Module

    def __init__(self, config: MetaFormerConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.skip_lam = config.skip_lam

    def _residual(self, x: Tensor, branch: Tensor, res_scale: nn.Module) -> Tensor:
        """res_scale(x) + branch / skip_lam, or the branch alone without a residual connection."""
        branch = branch if self.skip_lam == 1.0 else branch / self.skip_lam
        return res_scale(x) + branch if self.residual else branch


class MetaFormerBlock(Block):
    """Token mixer, then channel MLP, each on a normalized, scaled branch beside a residual connection."""

    def __init__(self, config: MetaFormerConfig, stage: int, mixer: MixerSpec, drop_path: float) -> None:
        super().__init__(config)
        dim = config.dims[stage]
        self.norm1 = NORMS.build(config.norm, dim, eps=config.norm_eps)
        self.token_mixer = _mixer(config, stage, mixer)
        self.drop_path1 = DropPath(drop_path)
        self.layer_scale1 = _scale(dim, config.layer_scale[stage])
        self.res_scale1 = _scale(dim, config.res_scale[stage])
        self.mlp: nn.Module | None = None
        if config.hidden(stage):
            self.norm2 = NORMS.build(config.norm, dim, eps=config.norm_eps)
            self.mlp = _mlp(config, stage)
            self.drop_path2 = DropPath(drop_path)
            self.layer_scale2 = _scale(dim, config.layer_scale[stage])
            self.res_scale2 = _scale(dim, config.res_scale[stage])

    def forward(self, x: Tensor, recompute_mlp: bool = False) -> Tensor:
        """Map (B, C, H, W) to the same shape; `recompute_mlp` saves no hidden activations of the MLP."""
        # x = x + drop_path1(layer_scale1(token_mixer(norm1(x))))
        x, moments = self._mix_tokens(x)
        if self.mlp is None:
            return x
        y = fast_mlp(self, x, recompute_mlp, moments)
        if y is not None:
            return y
        # x = x + drop_path2(layer_scale2(mlp(norm2(x))))
        return self._residual(x, self.drop_path2(self.layer_scale2(self.mlp(self.norm2(x)))), self.res_scale2)

    def _mix_tokens(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The first half, in a fused form of the mixer where it has one; the result's moments, if known."""
        norm, mixer, scale = self.norm1, self.token_mixer, self.layer_scale1
        drop_path, res_scale = self.drop_path1, self.res_scale1
        hooked = has_hooks(norm, mixer, scale)
        whole: Callable[..., Any] = getattr(mixer, "fused_residual", lambda *_: None)
        if not hooked and adds_input(self, drop_path, res_scale) and not has_hooks(drop_path, res_scale):
            next_eps = getattr(self.norm2, "eps", 0.0) if self.mlp is not None else 0.0
            result: tuple[Tensor, Tensor] | None = whole(x, norm, scale, drop_path, next_eps)
            if result is not None:
                return result
        fused: Callable[..., Tensor] | None = None if hooked else getattr(mixer, "fused", None)
        branch = scale(mixer(norm(x))) if fused is None else fused(x, norm, scale)
        return self._residual(x, drop_path(branch), res_scale), None


class MetaNeXtBlock(Block):
    """Token mixer, norm and channel MLP on one scaled branch beside a residual connection (ConvNeXt)."""

    def __init__(self, config: MetaFormerConfig, stage: int, mixer: MixerSpec, drop_path: float) -> None:
        super().__init__(config)
        dim = config.dims[stage]
        self.token_mixer = _mixer(config, stage, mixer)
        self.norm = NORMS.build(config.norm, dim, eps=config.norm_eps)
        self.mlp = _mlp(config, stage)
        self.drop_path = DropPath(drop_path)
        self.layer_scale = _scale(dim, config.layer_scale[stage])
        self.res_scale = _scale(dim, config.res_scale[stage])

    def forward(self, x: Tensor, recompute_mlp: bool = False) -> Tensor:
        """Map (B, C, H, W) to the same shape; `recompute_mlp` saves no hidden activations of the MLP."""
        # x = x + drop_path(layer_scale(mlp(norm(token_mixer(x)))))
        mixed = self.token_mixer(x)
        branch = fast_branch(mixed, self.norm, self.mlp, self.layer_scale, recompute_mlp)
        if branch is None:
            branch = self.layer_scale(self.mlp(self.norm(mixed)))
        return self._residual(x, self.drop_path(branch), self.res_scale)


FORMS = {"metaformer": MetaFormerBlock, "metanext": MetaNeXtBlock}
"""Block by its name in a configuration."""


def build_block(config: MetaFormerConfig, stage: int, mixer: MixerSpec, drop_path: float) -> Block:
    """Build a block of a stage in the configuration's form."""
    return FORMS[config.block](config, stage, mixer, drop_path)


def build_mixer(spec: MixerSpec, dim: int, grid: tuple[int, int], grid_mode: str) -> nn.Module:
    """Build a mixer from its name, or from a class or callable that takes `dim`.

    Raises:
        ConfigError: an unknown name or option.
    """
    if not isinstance(spec, str):
        return spec(dim)
    name, _ = parse(spec)
    context = {"grid": grid, "grid_mode": grid_mode} if MIXERS.fixed_grid(name) else {}
    return MIXERS.build(spec, dim, **context)


def _mixer(config: MetaFormerConfig, stage: int, spec: MixerSpec) -> nn.Module:
    context = (config.dims[stage], config.grid(stage), config.grid_mode)
    return init_part("token_mixer", build_mixer, spec, *context)


def _mlp(config: MetaFormerConfig, stage: int) -> nn.Module:
    dim, hidden, bias = config.dims[stage], config.hidden(stage), config.mlp_bias
    return init_part("mlp", Mlp, dim, hidden, act=config.act, bias=bias, dropout=config.dropout)


def _scale(dim: int, init: float | None) -> nn.Module:
    return nn.Identity() if init is None else Scale(dim, init)
