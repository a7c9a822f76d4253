"""A network as data."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

from torch import nn

from metaformer.errors import ConfigError
from metaformer.layers.act import ACTS
from metaformer.layers.norm import NORMS
from metaformer.mixers import MIXERS
from metaformer.registry import parse
from metaformer.serialize import OneOf, Range, Serializable

MixerSpec = str | Callable[..., nn.Module]
"""A registered name with options, `"attention(head_dim=32)"`, or a class or callable taking `dim`."""

Count = Annotated[int, Range(1, 1_000_000, integer=True)]
Side = Annotated[int, Range(1, 2**15, integer=True)]
Padding = Annotated[int, Range(0, 1000, integer=True)]
Factor = Annotated[float, Range(-1e30, 1e30)]
Epsilon = Annotated[float, Range(0, 1e30, above=True)]
MAX_BLOCKS = 300
"""Blocks of a network, over all stages."""
Rate = Annotated[float, Range(0, 1, below=True)]
BLOCKS = ("metaformer", "metanext")
STEMS = ("conv", "conv_act_conv", "conv_norm_act_conv")
DOWNS = ("norm_conv", "conv_norm")
HEADS = ("norm_pool_fc", "pool_norm_fc", "pool_norm_mlp", "pool_mlp")
GRID_MODES = ("strict", "interpolate")
FEATURE_NORMS = ("none", "fresh", "head")
GLOBAL_POOLS = ("avg", "max", "")
CONV_INITS = ("kaiming", "trunc_normal")


@dataclass(frozen=True, kw_only=True)
class MetaFormerConfig(Serializable):
    """Everything that defines a MetaFormer; a published variant is one value of it."""

    depths: tuple[Count, ...] = (2, 2, 6, 2)
    """Blocks in each stage."""
    dims: tuple[Count, ...] = (64, 128, 320, 512)
    """Channels of each stage."""
    mlp_ratios: tuple[Annotated[float, Range(0, 1000)], ...] = (4, 4, 4, 4)
    """Width of each stage's channel MLP over its dim; 0 leaves the MLP out."""
    mixers: tuple[MixerSpec | tuple[MixerSpec, ...], ...] = ("pooling",) * 4
    """Token mixer of each stage, or of each of its blocks; one name alone is used everywhere."""
    block: Annotated[str, OneOf(BLOCKS)] = "metaformer"
    """`metaformer`: mixer and channel MLP, each behind a norm and beside a residual connection; `metanext`:
    mixer, norm and MLP beside one (ConvNeXt, InceptionNeXt)."""
    norm: str = "group_norm"
    """Normalization before mixer and MLP (`layer_norm(bias=False)`, `batch_norm`, `none`, …)."""
    norm_eps: Epsilon = 1e-5
    """Added to the variance."""
    act: str = "gelu"
    """Activation of the channel MLP, and of a stem of two convolutions."""
    mlp_bias: bool = True
    """Biases in the channel MLP."""
    layer_scale: tuple[Factor | None, ...] = (1e-5,) * 4
    """First value of the learned per-channel factor on each branch, by stage; None leaves it out."""
    res_scale: tuple[Factor | None, ...] = (None,) * 4
    """First value of the learned per-channel factor on the shortcut, by stage; None leaves it out."""
    residual: bool = True
    """Shortcuts around mixer and MLP."""
    skip_lam: Epsilon = 1.0
    """Both branches are divided by this (CycleMLP)."""
    pos_embed: tuple[bool, ...] = (False,) * 4
    """Learned position embedding before a stage."""
    image_size: tuple[Side, Side] = (224, 224)
    """Input height and width for which fixed-grid mixers and position embeddings are made."""
    grid_mode: Annotated[str, OneOf(GRID_MODES)] = "strict"
    """At another size fixed-grid parts raise an error (`strict`) or resample tokens (`interpolate`)."""
    in_chans: Annotated[int, Range(1, 10_000, integer=True)] = 3
    """Channels of the input."""
    stem: Annotated[str, OneOf(STEMS)] = "conv"
    """Order of the stem, behind which `embed_norm` stands: one convolution, or two of the same kernel, stride
    and padding with half the channels between them."""
    stem_kernel: Count = 7
    """Kernel of the stem's convolutions."""
    stem_stride: Count = 4
    """Their stride."""
    stem_padding: Padding = 2
    """Their padding."""
    down: Annotated[str, OneOf(DOWNS)] = "norm_conv"
    """Order between stages of `embed_norm` and convolution."""
    down_kernel: Count = 3
    """Kernel of the convolutions between stages."""
    down_stride: Count = 2
    """Their stride."""
    down_padding: Padding = 1
    """Their padding."""
    downsamples: tuple[bool, ...] = (True, True, True)
    """Whether a convolution stands before stage 2, 3, …; one does wherever the dim changes."""
    embed_norm: str = "none"
    """Normalization after the stem and at each downsampling."""
    conv_init: Annotated[str, OneOf(CONV_INITS)] = "kaiming"
    """First values of stem and downsampling: PyTorch's own, or a normal of std 0.02 cut at 2."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth at the last block; it grows linearly from 0 at the first."""
    dropout: Rate = 0.0
    """Dropout inside the channel MLPs."""
    num_classes: Annotated[int, Range(0, 1_000_000, integer=True)] = 1000
    """Outputs of the classifier; 0 leaves it out."""
    head: Annotated[str, OneOf(HEADS)] = "norm_pool_fc"
    """Order of the head: normalize features, average them, classify (`norm_pool_fc`: PoolFormer, CycleMLP);
    or average first (`pool_norm_fc`: the baselines and timm), with an MLP (`pool_norm_mlp`), which may have
    no norm before it (`pool_mlp`: InceptionNeXt)."""
    head_mlp_ratio: Annotated[float, Range(0, 1000, above=True)] = 4
    """Width of the head's MLP over the last dim."""
    head_mlp_act: str = "squared_relu"
    """Its activation."""
    head_mlp_norm_eps: Epsilon | None = 1e-5
    """Epsilon of the layer norm behind it; None leaves the norm out."""
    head_norm_eps: Epsilon | None = None
    """Epsilon of the final norm, where it differs from `norm_eps`."""
    head_dropout: Rate = 0.0
    """Dropout before the last product."""
    global_pool: Annotated[str, OneOf(GLOBAL_POOLS)] = "avg"
    """`avg`, `max`, or empty to classify every position."""
    feature_norm: Annotated[str, OneOf(FEATURE_NORMS)] = "none"
    """Norms on the pyramid's levels: none, all fresh, or the last one taken from the classifier's head."""

    def __post_init__(self) -> None:
        if not isinstance(self.mixers, list | tuple) and isinstance(self.depths, list | tuple):
            object.__setattr__(self, "mixers", (self.mixers,) * len(self.depths))
        super().__post_init__()
        self._check_lengths()
        self._check_names()
        self._check_forms()

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.depths)

    def block_mixers(self, stage: int) -> tuple[MixerSpec, ...]:
        """The mixer of each block of a stage."""
        spec = self.mixers[stage]
        return spec if isinstance(spec, tuple) else (spec,) * self.depths[stage]

    @property
    def mlp_head(self) -> bool:
        """Whether the classifier is an MLP."""
        return self.head.endswith("_mlp")

    def hidden(self, stage: int) -> int:
        """Channels inside the MLPs of a stage; 0 without."""
        return int(self.dims[stage] * self.mlp_ratios[stage])

    def downsampled(self, stage: int) -> bool:
        """Tell whether a strided convolution stands before this stage (0 is the stem)."""
        return stage == 0 or self.downsamples[stage - 1] or self.dims[stage] != self.dims[stage - 1]

    def strided_convs(self, stage: int) -> tuple[tuple[int, int, int], ...]:
        """Kernel, stride and padding of the convolutions before a stage (0 is the stem); those are equal."""
        if not self.downsampled(stage):
            return ()
        if stage > 0:
            return ((self.down_kernel, self.down_stride, self.down_padding),)
        return ((self.stem_kernel, self.stem_stride, self.stem_padding),) * self.stem.split("_").count("conv")

    def grid(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's features for an input of `image_size`.

        Raises:
            ConfigError: a kernel is larger than what it is applied to.
        """
        height, width = self.image_size
        for kernel, stride, padding in chain(*(self.strided_convs(i) for i in range(stage + 1))):
            height, width = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
        if min(height, width) < 1:
            raise ConfigError(
                f"image_size: {self.image_size} leaves no pixel for stage {stage} by its kernels"
            )
        return height, width

    @property
    def fixed_size(self) -> bool:
        """Whether the network takes images of `image_size` alone: a part of it belongs to one grid."""
        specs = (spec for stage in range(self.stages) for spec in self.block_mixers(stage))
        fixed = any(isinstance(spec, str) and MIXERS.fixed_grid(parse(spec)[0]) for spec in specs)
        return self.grid_mode == "strict" and (fixed or any(self.pos_embed))

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
        return super().to_dict()

    def _check_lengths(self) -> None:
        if not self.depths:
            raise ConfigError("depths: () must hold a number of blocks for each stage")
        if sum(self.depths) > MAX_BLOCKS:
            raise ConfigError(f"depths: {sum(self.depths):,} blocks together, at most {MAX_BLOCKS} are built")
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
        fields = (("norm", NORMS), ("embed_norm", NORMS), ("act", ACTS), ("head_mlp_act", ACTS))
        for name, registry in fields:
            registry[parse(getattr(self, name))[0]]
        for stage in range(self.stages):
            for spec in self.block_mixers(stage):
                if isinstance(spec, str):
                    MIXERS[parse(spec)[0]]

    def _check_forms(self) -> None:
        if self.block == "metanext" and not all(self.hidden(stage) for stage in range(self.stages)):
            raise ConfigError(
                f"mlp_ratios: {self.mlp_ratios} leaves MLPs out, and a metanext block needs one"
            )
        if self.head == "pool_mlp" and self.feature_norm == "head":
            raise ConfigError("feature_norm: 'head' takes the head's norm, and a pool_mlp head has none")
