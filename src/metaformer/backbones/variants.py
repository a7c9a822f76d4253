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
}

UNAVAILABLE = {
    f"cyclemlp_{name}": "weights were published without code: a CycleMLP at Swin's depths and dims has "
    f"{ours} parameters where {published} were published, so embedding, merging or mixer differ"
    for name, ours, published in (("t", "32.4M", "28M"), ("s", "55.4M", "50M"), ("b", "98.2M", "88M"))
}
"""Published names that cannot be built, with the reason."""
