"""A network as data."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin

from torch import nn

from metaformer.errors import ConfigError, UnknownName
from metaformer.layers.act import ACTS
from metaformer.layers.norm import NORMS
from metaformer.mixers import MIXERS
from metaformer.registry import parse

MixerSpec = str | Callable[..., nn.Module]
"""A registered name with options, `"attention(head_dim=32)"`, or a class or callable taking `dim`."""

HEADS = ("norm_pool_fc", "pool_norm_fc", "pool_norm_mlp")
GRID_MODES = ("strict", "interpolate")
FEATURE_NORMS = ("none", "fresh", "head")
GLOBAL_POOLS = ("avg", "max", "")
CONV_INITS = ("kaiming", "trunc_normal")


@dataclass(frozen=True, kw_only=True)
class MetaFormerConfig:
    """Everything that defines a MetaFormer; a published variant is one value of it."""

    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks in each stage."""
    dims: tuple[int, ...] = (64, 128, 320, 512)
    """Channels of each stage."""
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    """Width of each stage's channel MLP over its dim; 0 leaves the MLP out."""
    mixers: tuple[MixerSpec | tuple[MixerSpec, ...], ...] = ("pooling",) * 4
    """Token mixer of each stage, or of each of its blocks; one name alone is used everywhere."""
    norm: str = "group_norm"
    """Normalization before mixer and MLP (`layer_norm(bias=False)`, `batch_norm`, `none`, …)."""
    norm_eps: float = 1e-5
    """Added to the variance."""
    act: str = "gelu"
    """Activation of the channel MLP."""
    mlp_bias: bool = True
    """Biases in the channel MLP."""
    layer_scale: tuple[float | None, ...] = (1e-5,) * 4
    """First value of the learned per-channel factor on each branch, by stage; None leaves it out."""
    res_scale: tuple[float | None, ...] = (None,) * 4
    """First value of the learned per-channel factor on the shortcut, by stage; None leaves it out."""
    residual: bool = True
    """Shortcuts around mixer and MLP."""
    skip_lam: float = 1.0
    """Both branches are divided by this (CycleMLP)."""
    pos_embed: tuple[bool, ...] = (False,) * 4
    """Learned position embedding before a stage."""
    image_size: tuple[int, int] = (224, 224)
    """Input height and width for which fixed-grid mixers and position embeddings are made."""
    grid_mode: str = "strict"
    """At another size fixed-grid parts raise an error (`strict`) or resample tokens (`interpolate`)."""
    in_chans: int = 3
    """Channels of the input."""
    stem_kernel: int = 7
    """Kernel of the stem convolution."""
    stem_stride: int = 4
    """Its stride."""
    stem_padding: int = 2
    """Its padding."""
    down_kernel: int = 3
    """Kernel of the convolutions between stages."""
    down_stride: int = 2
    """Their stride."""
    down_padding: int = 1
    """Their padding."""
    downsamples: tuple[bool, ...] = (True, True, True)
    """Whether a convolution stands before stage 2, 3, …; one does wherever the dim changes."""
    embed_norm: str = "none"
    """Normalization after the stem and before each downsampling."""
    conv_init: str = "kaiming"
    """First values of stem and downsampling: PyTorch's own, or a normal of std 0.02 cut at 2."""
    drop_path_rate: float = 0.0
    """Stochastic depth at the last block; it grows linearly from 0 at the first."""
    dropout: float = 0.0
    """Dropout inside the channel MLPs."""
    num_classes: int = 1000
    """Outputs of the classifier; 0 leaves it out."""
    head: str = "norm_pool_fc"
    """Order of the head: normalize the map, average it, classify (`norm_pool_fc`: PoolFormer, CycleMLP);
    or average first (`pool_norm_fc`: the baselines and timm), with an MLP (`pool_norm_mlp`)."""
    head_norm_eps: float | None = None
    """Epsilon of the final norm, where it differs from `norm_eps`."""
    head_dropout: float = 0.0
    """Dropout before the last product."""
    global_pool: str = "avg"
    """`avg`, `max`, or empty to classify every position."""
    feature_norm: str = "none"
    """Norms on the pyramid's levels: none, all fresh, or the last one taken from the classifier's head."""

    def __post_init__(self) -> None:
        self._check_kinds()
        object.__setattr__(self, "mixers", _per_stage(self.mixers, len(self.depths)))
        self._check_lengths()
        self._check_names()
        self._check_ranges()

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.depths)

    def block_mixers(self, stage: int) -> tuple[MixerSpec, ...]:
        """The mixer of each block of a stage."""
        spec = self.mixers[stage]
        return spec if isinstance(spec, tuple) else (spec,) * self.depths[stage]

    def downsampled(self, stage: int) -> bool:
        """Tell whether a strided convolution stands before this stage (0 is the stem)."""
        return stage == 0 or self.downsamples[stage - 1] or self.dims[stage] != self.dims[stage - 1]

    def grid(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's map for an input of `image_size`."""
        height, width = self.image_size
        for i in range(stage + 1):
            if i == 0:
                kernel, stride, padding = self.stem_kernel, self.stem_stride, self.stem_padding
            elif self.downsampled(i):
                kernel, stride, padding = self.down_kernel, self.down_stride, self.down_padding
            else:
                continue
            height, width = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
        return height, width

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as saved in JSON.

        Raises:
            ConfigError: a mixer is not a registered name, so that a reader could not find it.
        """
        for spec in (spec for stage in range(self.stages) for spec in self.block_mixers(stage)):
            if not isinstance(spec, str):
                raise ConfigError(
                    f"mixers: {spec!r} has no registered name: @MIXERS.register one to save this model"
                )
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MetaFormerConfig":
        """Read what `to_dict` gave, lists standing for tuples.

        Raises:
            UnknownName: a field that this version does not know.
            ConfigError: a value out of range.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise UnknownName("MetaFormerConfig field", name, known)
        try:
            return cls(**{name: _tuples(value) for name, value in values.items()})
        except TypeError as error:
            raise ConfigError(f"model configuration: {error}") from error

    def _check_kinds(self) -> None:
        for field in fields(self):
            value, hint = getattr(self, field.name), field.type
            if not _fits(value, hint if field.name != "mixers" else MixerSpec | hint | list[Any]):
                raise ConfigError(f"{field.name}: {value!r} must be such as {field.default!r}")

    def _check_lengths(self) -> None:
        for name in ("dims", "mlp_ratios", "mixers", "layer_scale", "res_scale", "pos_embed", "downsamples"):
            wanted = self.stages - (name == "downsamples")
            if len(getattr(self, name)) != wanted:
                raise ConfigError(
                    f"{name}: {getattr(self, name)!r} must hold {wanted} values, as depths has {self.stages}"
                )
        for stage, (spec, depth) in enumerate(zip(self.mixers, self.depths, strict=True)):
            if isinstance(spec, tuple) and len(spec) != depth:
                raise ConfigError(f"mixers: stage {stage} names {len(spec)} mixers for {depth} blocks")

    def _check_names(self) -> None:
        for name, registry in (("norm", NORMS), ("embed_norm", NORMS), ("act", ACTS)):
            registry[parse(getattr(self, name))[0]]
        for stage in range(self.stages):
            for spec in self.block_mixers(stage):
                if isinstance(spec, str):
                    MIXERS[parse(spec)[0]]
        for name, known in (
            ("head", HEADS),
            ("grid_mode", GRID_MODES),
            ("feature_norm", FEATURE_NORMS),
            ("global_pool", GLOBAL_POOLS),
            ("conv_init", CONV_INITS),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is none of {', '.join(map(repr, known))}")

    def _check_ranges(self) -> None:
        for name, least in (
            *((name, 1) for name in ("in_chans", "stem_kernel", "stem_stride", "down_kernel", "down_stride")),
            *((name, 0) for name in ("stem_padding", "down_padding", "num_classes")),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)!r} must be at least {least}")
        for name in ("depths", "dims", "image_size"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)!r} must be whole numbers of at least 1")
        for name in ("drop_path_rate", "dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)!r} must be at least 0 and below 1")
        for name in ("norm_eps", "skip_lam"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: {getattr(self, name)!r} must be above 0")
        if min(self.mlp_ratios) < 0:
            raise ConfigError(f"mlp_ratios: {self.mlp_ratios!r} must not be negative")


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the kind that a field declares; lists may stand for tuples."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        wanted = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _per_stage(mixers: Any, stages: int) -> tuple[Any, ...]:
    """One mixer for all, or one entry per stage."""
    return tuple(_tuples(mixers)) if isinstance(mixers, list | tuple) else (mixers,) * stages


def _tuples(value: Any) -> Any:
    """Lists, at any depth, as tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
