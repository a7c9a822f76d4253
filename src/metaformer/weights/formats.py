"""The published formats of checkpoints as tables: each names the same tensors in its own words."""

from collections.abc import Sequence
from dataclasses import dataclass

from metaformer.weights.heads import MMDETECTION_HEADS, MMSEGMENTATION_HEADS, TRANSFORMERS_HEADS, Rule

# Placeholders: {stage} and {block} count from 0. {net}, {down} and {pos} are positions in the originals' one
# list of blocks, downsamplings and position embeddings: all give the stage. {last} is the last stage's {net}.
# {extra} counts a pyramid's outputs beyond its levels, whose {stage} is the 6 of P6 for the first.
# A final * stands for the rest of the name. The first rule that fits is taken.
BLOCK_PARTS = ("norm1.*", "norm2.*", "mlp.fc1.*", "mlp.fc2.*")

NETWORK: tuple[Rule, ...] = (
    ("patch_embed.proj.*", "stem.conv.*"),
    ("network.{down}.proj.*", "stages.{stage}.downsample.conv.*"),
    ("network.{pos}.pos_embed", "stages.{stage}.pos_embed.weight"),
    ("network.{net}.{block}.layer_scale_1", "stages.{stage}.blocks.{block}.layer_scale1.scale"),
    ("network.{net}.{block}.layer_scale_2", "stages.{stage}.blocks.{block}.layer_scale2.scale"),
    *(
        (f"network.{{net}}.{{block}}.{part}", f"stages.{{stage}}.blocks.{{block}}.{part}")
        for part in BLOCK_PARTS
    ),
    ("norm{net}.*", "norms.{stage}.*"),
)
MIXER: tuple[Rule, ...] = (
    ("network.{net}.{block}.token_mixer.*", "stages.{stage}.blocks.{block}.token_mixer.*"),
)
CYCLE: tuple[Rule, ...] = (
    ("network.{net}.{block}.attn.sfc_h.offset", None),
    ("network.{net}.{block}.attn.sfc_w.offset", None),
    ("network.{net}.{block}.attn.*", "stages.{stage}.blocks.{block}.token_mixer.*"),
)
LINEAR_HEAD: tuple[Rule, ...] = (
    ("norm.*", "head.norm.*"),
    ("head.weight", "head.fc.weight"),
    ("head.bias", "head.fc.bias"),
)
BASELINES: tuple[Rule, ...] = (
    ("downsample_layers.0.conv.*", "stem.conv.*"),
    ("downsample_layers.0.post_norm.*", "stem.norm.*"),
    ("downsample_layers.{stage}.conv.*", "stages.{stage}.downsample.conv.*"),
    ("downsample_layers.{stage}.pre_norm.*", "stages.{stage}.downsample.norm.*"),
    *(
        (f"stages.{{stage}}.{{block}}.{part}", f"stages.{{stage}}.blocks.{{block}}.{part}")
        for part in (
            *BLOCK_PARTS,
            "mlp.act.*",
            "token_mixer.*",
            "layer_scale1.*",
            "layer_scale2.*",
            "res_scale1.*",
            "res_scale2.*",
        )
    ),
    *LINEAR_HEAD,
    ("head.fc1.*", "head.fc.fc1.*"),
    ("head.norm.*", "head.fc.norm.*"),
    ("head.fc2.*", "head.fc.fc2.*"),
)
HUGGINGFACE: tuple[Rule, ...] = (
    ("encoder.patch_embeddings.0.projection.*", "stem.conv.*"),
    ("encoder.patch_embeddings.{stage}.projection.*", "stages.{stage}.downsample.conv.*"),
    *(
        (f"encoder.block.{{stage}}.{{block}}.{theirs}", f"stages.{{stage}}.blocks.{{block}}.{ours}")
        for theirs, ours in (
            ("before_norm.*", "norm1.*"),
            ("after_norm.*", "norm2.*"),
            ("output.conv1.*", "mlp.fc1.*"),
            ("output.conv2.*", "mlp.fc2.*"),
            ("layer_scale_1", "layer_scale1.scale"),
            ("layer_scale_2", "layer_scale2.scale"),
        )
    ),
)
TIMM: tuple[Rule, ...] = (
    ("stem.*", "stem.*"),
    ("stages.{stage}.downsample.*", "stages.{stage}.downsample.*"),
    ("stages.{stage}.blocks.{block}.*", "stages.{stage}.blocks.{block}.*"),
    ("head.*", "head.*"),
)
TIMM_FEATURES: tuple[Rule, ...] = (
    ("stem.*", "stem.*"),
    ("stages_{stage}.downsample.*", "stages.{stage}.downsample.*"),
    ("stages_{stage}.blocks.{block}.*", "stages.{stage}.blocks.{block}.*"),
)
OTHER_PARTS: tuple[Rule, ...] = tuple(
    (f"{part}.*", None)
    for part in (
        "neck",
        "decode_head",
        "auxiliary_head",
        "bbox_head",
        "rpn_head",
        "roi_head",
        "data_preprocessor",
    )
)

CYCLE_POINTWISE = (
    "token_mixer.mlp_c.weight",
    "token_mixer.proj.weight",
    "token_mixer.reweight.fc1.weight",
    "token_mixer.reweight.fc2.weight",
)
MLP_POINTWISE = ("mlp.fc1.weight", "mlp.fc2.weight")
ATTENTION_POINTWISE = ("token_mixer.qkv.weight", "token_mixer.proj.weight")
SEPCONV_POINTWISE = ("token_mixer.pwconv1.weight", "token_mixer.pwconv2.weight")
POINTWISE = (
    *MLP_POINTWISE,
    *ATTENTION_POINTWISE,
    *SEPCONV_POINTWISE,
    *CYCLE_POINTWISE,
    "token_mixer.sfc_h.weight",
    "token_mixer.sfc_w.weight",
)
"""Products over channels inside a block: (out, in, 1, 1) here, matrices in some of the other formats."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to name and shape the tensors of a MetaFormer."""

    title: str
    """What users know it as."""
    signs: tuple[str, ...]
    """Templates that a file of this format, and of none before it in the table, all has."""
    rules: tuple[Rule, ...]
    """Names, theirs to ours."""
    any_sign: tuple[str, ...] = ()
    """Templates of which such a file has one at least."""
    families: tuple[str, ...]
    """Beginnings of the names of the models that its own software can hold; empty for all."""
    matrices: tuple[str, ...] = ()
    """Ends of our names whose (out, in, 1, 1) is a matrix there."""
    matrices_with: str = ""
    """… only in stages that hold a name with this end."""
    wrapper: str = ""
    """The entry of the file that holds the tensors; empty when the file is nothing else."""
    dense: bool = False
    """Of a network with a backbone among its parts; its names are `backbone.…`, `neck.…`, `head.…` here."""


def _under(prefix: str, rules: Sequence[Rule], ours_under: str = "") -> tuple[Rule, ...]:
    return tuple((prefix + theirs, ours and ours_under + ours) for theirs, ours in rules)


FORMATS: dict[str, Format] = {
    "cyclemlp": Format(
        title="CycleMLP (original)",
        signs=("patch_embed.proj.weight", "network.{net}.{block}.attn.mlp_c.weight"),
        rules=(*CYCLE, *NETWORK, *LINEAR_HEAD),
        families=("cyclemlp",),
        matrices=(*CYCLE_POINTWISE, *MLP_POINTWISE),
        wrapper="model",
    ),
    "poolformer": Format(
        title="PoolFormer and hybrids (original; timm before 0.9)",
        signs=("patch_embed.proj.weight",),
        rules=(*NETWORK, *MIXER, *LINEAR_HEAD),
        families=("poolformer_", "metaformer_"),
        matrices=ATTENTION_POINTWISE,
    ),
    "baselines": Format(
        title="MetaFormer baselines (original)",
        signs=("downsample_layers.0.conv.weight",),
        rules=BASELINES,
        families=("identityformer", "randformer", "poolformerv2", "convformer", "caformer"),
        matrices=(*MLP_POINTWISE, *ATTENTION_POINTWISE, *SEPCONV_POINTWISE),
    ),
    "huggingface": Format(
        title="Hugging Face transformers",
        signs=("poolformer.encoder.patch_embeddings.0.projection.weight",),
        rules=(
            *_under("poolformer.", HUGGINGFACE),
            ("norm.*", "head.norm.*"),
            ("classifier.*", "head.fc.*"),
        ),
        families=("poolformer_",),
    ),
    "huggingface_base": Format(
        title="Hugging Face transformers, without classifier",
        signs=("encoder.patch_embeddings.0.projection.weight",),
        rules=HUGGINGFACE,
        families=("poolformer_",),
    ),
    "mmpretrain": Format(
        title="mmpretrain",
        signs=("backbone.patch_embed.proj.weight", "head.fc.weight"),
        rules=(
            ("backbone.norm{last}.*", "head.norm.*"),
            *_under("backbone.", (*NETWORK, *MIXER)),
            ("head.fc.*", "head.fc.*"),
            *OTHER_PARTS,
        ),
        families=("poolformer_",),
        wrapper="state_dict",
    ),
    "mmsegmentation": Format(
        title="mmsegmentation",
        signs=("decode_head.conv_seg.weight",),
        rules=(*_under("backbone.", (*CYCLE, *NETWORK, *MIXER), "backbone."), *MMSEGMENTATION_HEADS),
        families=("poolformer_", "cyclemlp"),
        wrapper="state_dict",
        dense=True,
    ),
    "mmdetection": Format(
        title="mmdetection",
        signs=("backbone.*", "neck.lateral_convs.{level}.conv.weight"),
        any_sign=("bbox_head.*", "rpn_head.*", "roi_head.*"),
        rules=(*_under("backbone.", (*CYCLE, *NETWORK, *MIXER), "backbone."), *MMDETECTION_HEADS),
        families=("poolformer_", "cyclemlp"),
        wrapper="state_dict",
        dense=True,
    ),
    "openmmlab": Format(
        title="mmsegmentation or mmdetection, backbone",
        signs=("backbone.patch_embed.proj.weight",),
        rules=(*_under("backbone.", (*CYCLE, *NETWORK, *MIXER)), *OTHER_PARTS),
        families=("poolformer_", "cyclemlp"),
        wrapper="state_dict",
    ),
    "huggingface_upernet": Format(
        title="Hugging Face transformers, UperNet on a backbone of timm",
        signs=("decode_head.classifier.weight", "decode_head.fpn_bottleneck.conv.weight"),
        rules=(*_under("backbone._backbone.", TIMM_FEATURES, "backbone."), *TRANSFORMERS_HEADS),
        families=("poolformer", "convformer", "caformer"),
        matrices=(*MLP_POINTWISE, *ATTENTION_POINTWISE),
        matrices_with="token_mixer.qkv.weight",
        dense=True,
    ),
    "timm": Format(
        title="timm from 0.9",
        signs=("stem.conv.weight",),
        rules=TIMM,
        families=("poolformer", "convformer", "caformer"),
        matrices=(*MLP_POINTWISE, *ATTENTION_POINTWISE),
        matrices_with="token_mixer.qkv.weight",
    ),
    "segmenter": Format(
        title="this library, segmentation",
        signs=("backbone.*", "head.classifier.weight"),
        rules=(("*", "*"),),
        families=(),
        dense=True,
    ),
    "detector": Format(
        title="this library, detection",
        signs=("backbone.*", "neck.laterals.{level}.weight"),
        any_sign=("head.classification_head.*", "rpn.head.*"),
        rules=(("*", "*"),),
        families=(),
        dense=True,
    ),
    "metaformer": Format(
        title="this library (timm's names)",
        signs=("stem.conv.weight",),
        rules=(("*", "*"),),
        families=(),
    ),
}
"""All formats by name, in the order in which they are tried."""
