"""The MetaFormer block, https://arxiv.org/abs/2111.11418."""

from collections.abc import Callable

from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig, MixerSpec
from metaformer.backbones.fast_mlp import fast_mlp, has_hooks
from metaformer.layers.drop_path import DropPath
from metaformer.layers.init import init_part
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.registry import parse


class Block(nn.Module):
    """Token mixer, then channel MLP, each on a normalized, scaled branch beside a residual connection."""

    def __init__(self, config: MetaFormerConfig, stage: int, mixer: MixerSpec, drop_path: float) -> None:
        super().__init__()
        dim, hidden = config.dims[stage], int(config.dims[stage] * config.mlp_ratios[stage])
        self.residual = config.residual
        self.skip_lam = config.skip_lam
        self.norm1 = NORMS.build(config.norm, dim, eps=config.norm_eps)
        context = (dim, config.grid(stage), config.grid_mode)
        self.token_mixer = init_part("token_mixer", build_mixer, mixer, *context)
        self.drop_path1 = DropPath(drop_path)
        self.layer_scale1 = _scale(dim, config.layer_scale[stage])
        self.res_scale1 = _scale(dim, config.res_scale[stage])
        self.mlp: nn.Module | None = None
        if hidden:
            self.norm2 = NORMS.build(config.norm, dim, eps=config.norm_eps)
            bias, dropout = config.mlp_bias, config.dropout
            self.mlp = init_part("mlp", Mlp, dim, hidden, act=config.act, bias=bias, dropout=dropout)
            self.drop_path2 = DropPath(drop_path)
            self.layer_scale2 = _scale(dim, config.layer_scale[stage])
            self.res_scale2 = _scale(dim, config.res_scale[stage])

    def forward(self, x: Tensor, recompute_mlp: bool = False) -> Tensor:
        """Map (B, C, H, W) to the same shape; `recompute_mlp` saves no hidden activations of the MLP."""
        # x = x + drop_path1(layer_scale1(token_mixer(norm1(x))))
        x = self._residual(x, self.drop_path1(self._mix_tokens(x)), self.res_scale1)
        if self.mlp is None:
            return x
        y = fast_mlp(self, x, recompute_mlp)
        if y is not None:
            return y
        # x = x + drop_path2(layer_scale2(mlp(norm2(x))))
        return self._residual(x, self.drop_path2(self.layer_scale2(self.mlp(self.norm2(x)))), self.res_scale2)

    def _mix_tokens(self, x: Tensor) -> Tensor:
        """layer_scale1(token_mixer(norm1(x))), in the mixer's fused form where it has one."""
        fused: Callable[..., Tensor] | None = getattr(self.token_mixer, "fused", None)
        if fused is None or has_hooks(self.norm1, self.token_mixer, self.layer_scale1):
            return self.layer_scale1(self.token_mixer(self.norm1(x)))
        return fused(x, self.norm1, self.layer_scale1)

    def _residual(self, x: Tensor, branch: Tensor, res_scale: nn.Module) -> Tensor:
        """res_scale(x) + branch / skip_lam, or the branch alone without a residual connection."""
        branch = branch if self.skip_lam == 1.0 else branch / self.skip_lam
        return res_scale(x) + branch if self.residual else branch


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


def _scale(dim: int, init: float | None) -> nn.Module:
    return nn.Identity() if init is None else Scale(dim, init)
