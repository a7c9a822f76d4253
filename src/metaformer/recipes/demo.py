"""Small runs on the demo data of `metaformer data demo DIR`."""

from dataclasses import replace

from metaformer.config import (
    AugmentConfig,
    DataConfig,
    DetectConfig,
    EmaConfig,
    EvalConfig,
    ModelConfig,
    MultilabelConfig,
    OptimConfig,
    RuntimeConfig,
    ScheduleConfig,
    SegmentConfig,
    TrainConfig,
)
from metaformer.recipes.recipe import Recipe

CLASSIFY = Recipe(
    name="demo/classify",
    config=TrainConfig(
        model=ModelConfig("poolformer_n", overrides={"norm": "batch_norm", "embed_norm": "batch_norm"}),
        data=DataConfig(image_size=64, batch_size=32, eval_batch_size=128, workers=1),
        augment=AugmentConfig(
            scale=(0.8, 1.0),
            ratio=(0.9, 1.1),
            hflip=0.0,
            color_jitter=0.0,
            auto_augment=None,
            erase=0.0,
            mixup=0.0,
            cutmix=0.0,
        ),
        optim=OptimConfig(lr=3e-3, clip=1.0),
        schedule=ScheduleConfig(epochs=7, warmup_epochs=1),
        ema=EmaConfig(decay=0.98),
        evaluate=EvalConfig(crop=1.0),
        runtime=RuntimeConfig(threads=2),
        seed=0,
    ),
    summary="A pooling network of two million weights learns to read digits on two processor cores",
    notes=(
        "98 % of the held-out digits, after two minutes on two cores (`make demo`).",
        "Batch norm, since pooling networks of this size start slowly with the published group norm.",
    ),
)

MULTILABEL = Recipe(
    name="demo/multilabel",
    config=replace(
        CLASSIFY.config,
        task="multilabel",
        data=DataConfig(image_size=128, batch_size=16, eval_batch_size=64, workers=1),
        multilabel=MultilabelConfig(loss="asymmetric"),
        optim=OptimConfig(lr=2e-3, weight_decay=0.01, clip=1.0),
        schedule=ScheduleConfig(epochs=9, warmup_epochs=1),
        evaluate=EvalConfig(crop=1.0, every=9),
    ),
    summary="A pooling network says which digits a scene holds on two processor cores",
    notes=(
        "86 % mean average precision on held-out scenes, ten classes (`make demo`).",
        "Begins with the weights of demo/classify: --model.checkpoint RUN/best/model.safetensors.",
    ),
)

SEGMENT = Recipe(
    name="demo/segment",
    config=replace(
        CLASSIFY.config,
        task="segment",
        data=DataConfig(image_size=128, batch_size=8, workers=1),
        segment=SegmentConfig(
            layout="ade20k",
            reduce_zero_label=False,  # the background is a class here
            resize=None,
            scale=(0.8, 1.25),
            photometric=False,
            fpn_dim=64,
            head_dim=64,
            dice=1.0,  # nine pixels of ten are background
        ),
        optim=OptimConfig(lr=3e-3, weight_decay=0.01, clip=1.0),
        schedule=ScheduleConfig(name="poly", epochs=10, warmup_epochs=1, min_lr=0.0),
        evaluate=EvalConfig(every=10),
    ),
    summary="A small Semantic FPN on a pooling network finds the pixels of digits on two processor cores",
    notes=(
        "77 % mean IoU on held-out scenes, eleven classes (`make demo`).",
        "Begins with the weights of demo/classify: --model.checkpoint RUN/best/model.safetensors.",
    ),
)

DETECT = Recipe(
    name="demo/detect",
    config=replace(
        SEGMENT.config,
        task="detect",
        data=DataConfig(image_size=128, batch_size=8, workers=1),
        segment=SegmentConfig(),
        detect=DetectConfig(
            head="mask_rcnn",
            layout="coco",
            long_side=128,
            short_sides=[128],
            fpn_dim=64,
            box_fc_dim=256,
            roi_batch_size=32,  # a scene has five objects at most
            rpn_pre_nms_topk=200,
            rpn_pre_nms_topk_train=200,
            rpn_post_nms_topk=100,
        ),
        optim=OptimConfig(lr=2e-3, weight_decay=0.01, clip=1.0),
        schedule=ScheduleConfig(name="cosine", epochs=5, warmup_epochs=1, min_lr=0.0),
        evaluate=EvalConfig(every=5),
    ),
    summary="A small Mask R-CNN on a pooling network finds digits and their outlines on two processor cores",
    notes=(
        "98 % AP50 of boxes and of masks on held-out scenes (`make demo`).",
        "Begins with the weights of demo/classify: --model.checkpoint RUN/best/model.safetensors.",
    ),
)

RUNS = (CLASSIFY, MULTILABEL, SEGMENT, DETECT)
