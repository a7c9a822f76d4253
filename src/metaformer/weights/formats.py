"""Published checkpoint formats, as tables of the names that they give to the same tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

Rule = tuple[str, str | None]
"""A template of theirs and ours for it; None for names that are known and ignored."""

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
TIMM_NEXT: tuple[Rule, ...] = (
    ("stem.0.*", "stem.conv.*"),
    ("stem.1.*", "stem.norm.*"),
    ("stages.{stage}.downsample.0.*", "stages.{stage}.downsample.norm.*"),
    ("stages.{stage}.downsample.1.*", "stages.{stage}.downsample.conv.*"),
    *(
        (f"stages.{{stage}}.blocks.{{block}}.{theirs}", f"stages.{{stage}}.blocks.{{block}}.{ours}")
        for theirs, ours in (
            ("norm.*", "norm.*"),
            ("mlp.fc1.*", "mlp.fc1.*"),
            ("mlp.fc2.*", "mlp.fc2.*"),
            ("gamma", "layer_scale.scale"),
        )
    ),
)
TIMM_CONVNEXT: tuple[Rule, ...] = (
    *TIMM_NEXT,
    ("stages.{stage}.blocks.{block}.conv_dw.*", "stages.{stage}.blocks.{block}.token_mixer.conv.*"),
    ("head.norm.*", "head.norm.*"),
    ("head.fc.*", "head.fc.*"),
)
TIMM_INCEPTION_NEXT: tuple[Rule, ...] = (
    *TIMM_NEXT,
    ("stages.{stage}.blocks.{block}.token_mixer.*", "stages.{stage}.blocks.{block}.token_mixer.*"),
    ("head.fc1.*", "head.fc.fc1.*"),
    ("head.norm.*", "head.fc.norm.*"),
    ("head.fc2.*", "head.fc.fc2.*"),
)
TIMM_MAMBAOUT: tuple[Rule, ...] = (
    ("stem.conv1.*", "stem.conv.*"),
    ("stem.norm1.*", "stem.mid_norm.*"),
    ("stem.conv2.*", "stem.conv2.*"),
    ("stem.norm2.*", "stem.norm.*"),
    ("stages.{stage}.downsample.*", "stages.{stage}.downsample.*"),
    *(
        (f"stages.{{stage}}.blocks.{{block}}.{theirs}", f"stages.{{stage}}.blocks.{{block}}.{ours}")
        for theirs, ours in (
            ("norm.*", "norm1.*"),
            ("fc1.*", "token_mixer.fc1.*"),
            ("conv.*", "token_mixer.conv.*"),
            ("fc2.*", "token_mixer.fc2.*"),
            ("ls.gamma", "layer_scale1.scale"),
        )
    ),
    ("head.norm.*", "head.norm.*"),
    ("head.pre_logits.fc.*", "head.fc.fc1.*"),
    ("head.pre_logits.norm.*", "head.fc.norm.*"),
    ("head.fc.*", "head.fc.fc2.*"),
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

DEEPEST = 6
"""Largest number of upsamplings of a level in Semantic FPN that has rules; published ones have three."""

PYRAMID: tuple[Rule, ...] = (
    ("neck.lateral_convs.{level}.conv.*", "neck.laterals.{level}.*"),
    ("neck.fpn_convs.{extra}.conv.*", "neck.extra.p{stage}.*"),  # counted on behind the levels there
    ("neck.fpn_convs.{level}.conv.*", "neck.outputs.{level}.*"),
)
MMSEGMENTATION_HEADS: tuple[Rule, ...] = (
    *PYRAMID,
    *(
        (f"decode_head.scale_heads.{{level}}.{2 * i}.{theirs}.*", f"head.scales.{{level}}.{i}.{ours}.*")
        for i in range(DEEPEST)  # a doubling stands after each convolution there
        for theirs, ours in (("conv", "conv"), ("bn", "norm"))
    ),
    *(
        (f"decode_head.{theirs}.{their_part}.*", f"head.{ours}.{our_part}.*")
        for theirs, ours in (
            ("psp_modules.{level}.1", "pools.{level}"),
            ("bottleneck", "bottleneck"),
            ("lateral_convs.{level}", "laterals.{level}"),
            ("fpn_convs.{level}", "outputs.{level}"),
            ("fpn_bottleneck", "fusion"),
        )
        for their_part, our_part in (("conv", "conv"), ("bn", "norm"))
    ),
    ("decode_head.conv_seg.*", "head.classifier.*"),
    ("auxiliary_head.convs.0.conv.*", "auxiliary.conv.conv.*"),
    ("auxiliary_head.convs.0.bn.*", "auxiliary.conv.norm.*"),
    ("auxiliary_head.conv_seg.*", "auxiliary.classifier.*"),
    ("data_preprocessor.*", None),
)
TRANSFORMERS_HEADS: tuple[Rule, ...] = tuple(
    (
        theirs.replace(".bn.", ".batch_norm.").replace("conv_seg", "classifier"),
        ours,
    )
    for theirs, ours in MMSEGMENTATION_HEADS
    if theirs.startswith(("decode_head.", "auxiliary_head.")) and "scale_heads" not in theirs
)
MMDETECTION_HEADS: tuple[Rule, ...] = (
    *PYRAMID,
    *(
        (f"bbox_head.{theirs}", f"head.{ours}")
        for theirs, ours in (
            ("cls_convs.{level}.conv.*", "classification_head.conv.{level}.0.*"),
            ("retina_cls.*", "classification_head.cls_logits.*"),
            ("reg_convs.{level}.conv.*", "regression_head.conv.{level}.0.*"),
            ("retina_reg.*", "regression_head.bbox_reg.*"),
        )
    ),
    ("rpn_head.rpn_conv.*", "rpn.head.conv.0.0.*"),
    ("rpn_head.rpn_cls.*", "rpn.head.cls_logits.*"),
    ("rpn_head.rpn_reg.*", "rpn.head.bbox_pred.*"),
    *(
        (f"roi_head.{theirs}", ours)
        for theirs, ours in (
            ("bbox_head.shared_fcs.0.*", "box_head.fc6.*"),
            ("bbox_head.shared_fcs.1.*", "box_head.fc7.*"),
            ("bbox_head.fc_cls.*", "box_predictor.cls_score.*"),
            ("bbox_head.fc_reg.*", "box_predictor.bbox_pred.*"),
            ("mask_head.convs.{level}.conv.*", "mask_head.{level}.0.*"),
            ("mask_head.upsample.*", "mask_predictor.conv5_mask.*"),
            ("mask_head.conv_logits.*", "mask_predictor.mask_fcn_logits.*"),
        )
    ),
    ("data_preprocessor.*", None),
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
GATED_POINTWISE = ("token_mixer.fc1.weight", "token_mixer.fc2.weight")
POINTWISE = (
    *MLP_POINTWISE,
    *ATTENTION_POINTWISE,
    *SEPCONV_POINTWISE,
    *GATED_POINTWISE,
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
    """Templates that each match a key of a file of this format, and not all of a format before it."""
    rules: tuple[Rule, ...]
    """Templates of their names and ours."""
    any_sign: tuple[str, ...] = ()
    """Templates of which at least one matches."""
    families: tuple[str, ...]
    """Prefixes of the models that its own software has; empty for all."""
    matrices: tuple[str, ...] = ()
    """Suffixes of our names whose (out, in, 1, 1) is a matrix there."""
    matrices_with: str = ""
    """… only in stages that have a name with this suffix."""
    convolutional: tuple[str, ...] = ()
    """Prefixes of the models whose products are convolutions there, (out, in, 1, 1) all the same."""
    dialect_of: str = ""
    """The format that this one is part of: its software names the parts of different families differently."""
    wrapper: str = ""
    """Key of the file under which the tensors are; empty if the file holds nothing else."""
    dense: bool = False
    """Of a network on a backbone, with names `backbone.…`, `neck.…`, `head.…` here."""


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
        families=("poolformer", "convformer", "caformer", "convnext", "inception_next", "mambaout"),
        matrices=(*MLP_POINTWISE, *ATTENTION_POINTWISE),
        matrices_with="token_mixer.qkv.weight",
    ),
    "timm_convnext": Format(
        title="timm, ConvNeXt",
        signs=("stem.0.weight", "stages.{stage}.blocks.{block}.conv_dw.weight"),
        rules=TIMM_CONVNEXT,
        families=("convnext",),
        matrices=MLP_POINTWISE,
        convolutional=("convnext_atto",),
        dialect_of="timm",
    ),
    "timm_inception_next": Format(
        title="timm, InceptionNeXt",
        signs=("stem.0.weight", "stages.{stage}.blocks.{block}.token_mixer.dwconv_hw.weight"),
        rules=TIMM_INCEPTION_NEXT,
        families=("inception_next",),
        dialect_of="timm",
    ),
    "timm_mambaout": Format(
        title="timm, MambaOut",
        signs=("stem.conv1.weight", "stages.{stage}.blocks.{block}.fc1.weight"),
        rules=TIMM_MAMBAOUT,
        families=("mambaout",),
        matrices=GATED_POINTWISE,
        dialect_of="timm",
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
