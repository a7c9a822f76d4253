"""Semantic segmentation on ADE20K: PoolFormer's and CycleMLP's Semantic FPN, and UperNet."""

from dataclasses import replace

from metaformer.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    ScheduleConfig,
    SegmentConfig,
    TrainConfig,
)
from metaformer.recipes.recipe import Recipe

PLAIN = AugmentConfig(color_jitter=0.0, auto_augment=None, erase=0.0, mixup=0.0, cutmix=0.0)
"""Flips alone: the other augmentations of dense tasks are fields of their own sections."""

SEMANTIC_FPN = TrainConfig(
    task="segment",
    data=DataConfig(image_size=512, batch_size=32, workers=4),
    augment=PLAIN,
    segment=SegmentConfig(head="semantic_fpn", layout="ade20k", reduction="all"),
    optim=OptimConfig(lr=2e-4, weight_decay=1e-4),
    schedule=ScheduleConfig(name="poly", power=0.9, steps=40_000, warmup_epochs=0, min_lr=0.0),
    evaluate=EvalConfig(every_steps=4_000),
    runtime=RuntimeConfig(sync_batch_norm=True, log_every=50),
)
"""github.com/sail-sg/poolformer, segmentation/configs; no layer is frozen, stochastic depth is off."""

UPERNET = replace(
    SEMANTIC_FPN,
    data=replace(SEMANTIC_FPN.data, batch_size=16),
    segment=replace(SEMANTIC_FPN.segment, head="upernet", auxiliary=True),
    optim=OptimConfig(lr=6e-5, weight_decay=0.01),
    schedule=ScheduleConfig(
        name="poly", power=1.0, steps=160_000, warmup_steps=1_500, warmup_lr=6e-11, min_lr=0.0
    ),
    evaluate=EvalConfig(every_steps=16_000),
)

LOSS_NOTE = (
    "The loss is divided by all pixels, ignored ones too, as mmsegmentation did; --segment.reduction valid "
    "divides by those that count."
)
DECAY_NOTE = "Vectors and biases have no weight decay here; mmsegmentation's configuration decays all."
NOISE_NOTE = "Five reruns by mmsegmentation lie within 0.9 points of each other: half a point is noise."
CYCLE_NOTE = (
    "After PVT's settings, which CycleMLP's authors say they follow (issue 9 of their repository); the "
    "paper's table of mIoU was not accessible, so none is given."
)
UPERNET_NOTE = (
    "Swin's settings, with which MetaFormer baselines are compared; a published mIoU is second-hand "
    "(github.com/yuweihao/metaformer gives none for segmentation)."
)

# model: mIoU of the README
POOLFORMER = {
    "poolformer_s12": 37.2,
    "poolformer_s24": 40.3,
    "poolformer_s36": 42.0,
    "poolformer_m36": 42.4,
    "poolformer_m48": 42.7,
}
CYCLEMLP = ("cyclemlp_b1", "cyclemlp_b2", "cyclemlp_b3", "cyclemlp_b4", "cyclemlp_b5")
# model: drop-path, mIoU
BASELINES = {
    "convformer_s18": (0.2, 48.6),
    "convformer_s36": (0.3, None),
    "convformer_m36": (0.4, None),
    "caformer_s18": (0.2, 48.9),
    "caformer_s36": (0.3, None),
    "caformer_m36": (0.4, None),
}


def poolformer(model: str) -> Recipe:
    """Semantic FPN on a PoolFormer."""
    config = replace(SEMANTIC_FPN, model=ModelConfig(model, pretrained=True))
    notes = (LOSS_NOTE, DECAY_NOTE, NOISE_NOTE)
    return Recipe(
        f"ade20k/semantic_fpn_{model}",
        config,
        f"Semantic FPN on {model}, ADE20K",
        notes=notes,
        miou=POOLFORMER[model],
    )


def cyclemlp(model: str) -> Recipe:
    """Semantic FPN on a CycleMLP."""
    config = replace(
        SEMANTIC_FPN,
        model=ModelConfig(model, pretrained=True),
        data=replace(SEMANTIC_FPN.data, batch_size=16),
        optim=replace(SEMANTIC_FPN.optim, lr=1e-4),
        schedule=replace(SEMANTIC_FPN.schedule, steps=80_000),
        evaluate=replace(SEMANTIC_FPN.evaluate, every_steps=8_000),
    )
    notes = (CYCLE_NOTE, LOSS_NOTE, DECAY_NOTE)
    return Recipe(f"ade20k/semantic_fpn_{model}", config, f"Semantic FPN on {model}, ADE20K", notes=notes)


def upernet(model: str) -> Recipe:
    """UperNet on a MetaFormer baseline."""
    drop_path, miou = BASELINES[model]
    config = replace(UPERNET, model=ModelConfig(model, pretrained=True, drop_path_rate=drop_path))
    notes = (UPERNET_NOTE, LOSS_NOTE)
    return Recipe(f"ade20k/upernet_{model}", config, f"UperNet on {model}, ADE20K", notes=notes, miou=miou)


RUNS = (*map(poolformer, POOLFORMER), *map(cyclemlp, CYCLEMLP), *map(upernet, BASELINES))
