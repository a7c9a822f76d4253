"""What other software calls the parts of dense networks beside the backbone, as tables."""

Rule = tuple[str, str | None]
"""A template of theirs and the one of ours that it stands for; None for what is known and left out."""

DEEPEST = 6
"""Most doublings of a level in a head of Semantic FPN that have a rule; published ones have three."""

MMSEGMENTATION_HEADS: tuple[Rule, ...] = (
    ("neck.lateral_convs.{level}.conv.*", "neck.laterals.{level}.*"),
    ("neck.fpn_convs.{level}.conv.*", "neck.outputs.{level}.*"),
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
