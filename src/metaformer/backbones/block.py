"""The MetaFormer block, https://arxiv.org/abs/2111.11418."""

from collections.abc import Callable

from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig, MixerSpec
from metaformer.layers.drop_path import DropPath
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.registry import parse


class Block(nn.Module):
    """Mix tokens, then channels; each on a normalised, scaled branch beside a shortcut."""

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

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        fused: Callable[..., Tensor] | None = getattr(self.token_mixer, "fused", None)
        if fused is not None:
            branch = fused(x, self.norm1, self.layer_scale1)
        else:
            branch = self.layer_scale1(self.token_mixer(self.norm1(x)))
        x = self._add(self.res_scale1, x, self.drop_path1(branch))
        if self.mlp is not None:
            x = self._add(self.res_scale2, x, self.drop_path2(self.layer_scale2(self.mlp(self.norm2(x)))))
        return x

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
