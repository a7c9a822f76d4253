"""The published networks, and a small one for demos, as data; from the papers' tables and official code."""

from dataclasses import replace

from metaformer.backbones.config import MetaFormerConfig

S_DIMS, M_DIMS = (64, 128, 320, 512), (96, 192, 384, 768)
DEPTHS = {"12": (2, 2, 6, 2), "24": (4, 4, 12, 4), "36": (6, 6, 18, 6), "48": (8, 8, 24, 8)}
SIZES = {
    name: (DEPTHS[name[1:]], S_DIMS if name[0] == "s" else M_DIMS)
    for name in ("s12", "s24", "s36", "m36", "m48")
}
CONV_SIZES = {
    "s18": ((3, 3, 9, 3), S_DIMS),
    "s36": ((3, 12, 18, 3), S_DIMS),
    "m36": ((3, 12, 18, 3), (96, 192, 384, 576)),
    "b36": ((3, 12, 18, 3), (128, 256, 512, 768)),
}

NEXT_SIZES = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}
MAMBAOUT_SIZES = {
    "femto": ((3, 3, 9, 3), (48, 96, 192, 288)),
    "kobe": ((3, 3, 15, 3), (48, 96, 192, 288)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 576)),
    "small": ((3, 4, 27, 3), (96, 192, 384, 576)),
    "base": ((3, 4, 27, 3), (128, 256, 512, 768)),
}

POOLFORMER = MetaFormerConfig()
HYBRID = replace(POOLFORMER, norm="layer_norm")
CYCLEMLP = MetaFormerConfig(mixers=("cycle_mlp",) * 4, norm="layer_norm", layer_scale=(None,) * 4)
BASELINE = MetaFormerConfig(
    norm="group_norm(bias=False)",
    norm_eps=1e-6,
    act="star_relu",
    mlp_bias=False,
    layer_scale=(None,) * 4,
    res_scale=(None, None, 1.0, 1.0),
    embed_norm="layer_norm(bias=False)",
    conv_init="trunc_normal",
    head="pool_norm_fc",
)
CONVFORMER = replace(BASELINE, mixers=("sepconv",) * 4, norm="layer_norm(bias=False)", head="pool_norm_mlp")
CAFORMER = replace(CONVFORMER, mixers=("sepconv", "sepconv", "attention", "attention"))
CONVNEXT = MetaFormerConfig(
    block="metanext",
    mixers=("dwconv(kernel=7, std=0.02)",) * 4,
    norm="layer_norm",
    norm_eps=1e-6,
    layer_scale=(1e-6,) * 4,
    stem_kernel=4,
    stem_padding=0,
    down_kernel=2,
    down_padding=0,
    embed_norm="layer_norm",
    conv_init="trunc_normal",
    head="pool_norm_fc",
)
INCEPTION_NEXT = replace(
    CONVNEXT,
    mixers=("inception_dwconv",) * 4,
    mlp_ratios=(4, 4, 4, 3),
    norm="batch_norm",
    norm_eps=1e-5,
    embed_norm="batch_norm",
    head="pool_mlp",
    head_mlp_ratio=3,
    head_mlp_act="gelu",
    head_mlp_norm_eps=1e-6,
)
INCEPTION_MIXERS = {
    "atto": "inception_dwconv(band=9, ratio=0.25)",
    **dict.fromkeys(("tiny", "small", "base"), "inception_dwconv"),
}
MAMBAOUT = MetaFormerConfig(
    mixers=("gated_dwconv",) * 4,
    mlp_ratios=(0,) * 4,
    norm="layer_norm",
    norm_eps=1e-6,
    layer_scale=(None,) * 4,
    stem="conv_norm_act_conv",
    stem_kernel=3,
    stem_stride=2,
    stem_padding=1,
    down="conv_norm",
    embed_norm="layer_norm",
    conv_init="trunc_normal",
    head="pool_norm_mlp",
    head_mlp_act="gelu",
    head_mlp_norm_eps=1e-6,
)
MAMBAOUT_RW = replace(
    MAMBAOUT, layer_scale=(1e-6,) * 4, stem="conv_act_conv", down="norm_conv", head_mlp_norm_eps=None
)
# timm's own: depths, dims, options of the mixer, activation of stem and gates
MAMBAOUT_RW_SIZES = {
    "small": (*MAMBAOUT_SIZES["small"], "", "gelu"),
    "base_short": ((3, 3, 25, 3), (128, 256, 512, 768), "(expansion=3.0, conv_ratio=1.25)", "gelu"),
    "base_tall": ((3, 4, 30, 3), (128, 256, 512, 768), "(expansion=2.5, conv_ratio=1.25)", "gelu"),
    "base_wide": ((3, 4, 27, 3), (128, 256, 512, 768), "(expansion=3.0, conv_ratio=1.5, act='silu')", "silu"),
    "base_plus": ((3, 4, 30, 3), (128, 256, 512, 768), "(expansion=3.0, conv_ratio=1.5, act='silu')", "silu"),
}

VARIANTS: dict[str, MetaFormerConfig] = {
    "poolformer_n": replace(POOLFORMER, depths=(2, 2, 4, 2), dims=(32, 64, 128, 256), layer_scale=(0.1,) * 4),
    **{
        f"poolformer_{name}": replace(
            POOLFORMER, depths=depths, dims=dims, layer_scale=(1e-5 if name in ("s12", "s24") else 1e-6,) * 4
        )
        for name, (depths, dims) in SIZES.items()
    },
    "metaformer_id_s12": replace(POOLFORMER, mixers=("identity",) * 4),
    "metaformer_pppa_s12": replace(
        HYBRID,
        mixers=("pooling",) * 3 + ("attention(proj_bias=True)",),
        pos_embed=(False, False, False, True),
    ),
    "metaformer_ppaa_s12": replace(
        HYBRID,
        mixers=("pooling",) * 2 + ("attention(proj_bias=True)",) * 2,
        pos_embed=(False, False, True, False),
    ),
    "metaformer_pppf_s12": replace(POOLFORMER, mixers=("pooling",) * 3 + ("spatial_fc",)),
    "metaformer_ppff_s12": replace(POOLFORMER, mixers=("pooling",) * 2 + ("spatial_fc",) * 2),
    "cyclemlp_b1": replace(CYCLEMLP, depths=(2, 2, 4, 2)),
    "cyclemlp_b2": replace(CYCLEMLP, depths=(2, 3, 10, 3)),
    "cyclemlp_b3": replace(CYCLEMLP, depths=(3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4)),
    "cyclemlp_b4": replace(CYCLEMLP, depths=(3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4)),
    "cyclemlp_b5": replace(CYCLEMLP, depths=(3, 4, 24, 3), dims=M_DIMS),
    **{
        f"identityformer_{name}": replace(BASELINE, depths=depths, dims=dims, mixers=("identity",) * 4)
        for name, (depths, dims) in SIZES.items()
    },
    **{
        f"randformer_{name}": replace(
            BASELINE, depths=depths, dims=dims, mixers=("identity", "identity", "random", "random")
        )
        for name, (depths, dims) in SIZES.items()
    },
    **{
        f"poolformerv2_{name}": replace(BASELINE, depths=depths, dims=dims, mixers=("pooling",) * 4)
        for name, (depths, dims) in SIZES.items()
    },
    **{
        f"convformer_{name}": replace(CONVFORMER, depths=depths, dims=dims)
        for name, (depths, dims) in CONV_SIZES.items()
    },
    **{
        f"caformer_{name}": replace(CAFORMER, depths=depths, dims=dims)
        for name, (depths, dims) in CONV_SIZES.items()
    },
    **{
        f"convnext_{name}": replace(CONVNEXT, depths=depths, dims=dims)
        for name, (depths, dims) in NEXT_SIZES.items()
    },
    **{
        f"inception_next_{name}": replace(
            INCEPTION_NEXT, depths=NEXT_SIZES[name][0], dims=NEXT_SIZES[name][1], mixers=(mixer,) * 4
        )
        for name, mixer in INCEPTION_MIXERS.items()
    },
    **{
        f"mambaout_{name}": replace(MAMBAOUT, depths=depths, dims=dims)
        for name, (depths, dims) in MAMBAOUT_SIZES.items()
    },
    **{
        f"mambaout_{name}_rw": replace(
            MAMBAOUT_RW, depths=depths, dims=dims, mixers=(f"gated_dwconv{options}",) * 4, act=act
        )
        for name, (depths, dims, options, act) in MAMBAOUT_RW_SIZES.items()
    },
}

UNAVAILABLE = {
    f"cyclemlp_{name}": "weights were published without code: a CycleMLP at Swin's depths and dims has "
    f"{ours} parameters where {published} were published, so embedding, merging or mixer differ"
    for name, ours, published in (("t", "32.4M", "28M"), ("s", "55.4M", "50M"), ("b", "98.2M", "88M"))
}
"""Published names that cannot be built, with the reason."""


def family(variant: str) -> str:
    """A variant's name without its size: `inception_next` of `inception_next_tiny`."""
    return "inception_next" if variant.startswith("inception_next_") else variant.partition("_")[0]
