"""What other software calls the parts of dense networks beside the backbone, as tables."""

Rule = tuple[str, str | None]
"""A template of theirs and the one of ours that it stands for; None for what is known and left out."""

DEEPEST = 6
"""Most doublings of a level in a head of Semantic FPN that have a rule; published ones have three."""

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
