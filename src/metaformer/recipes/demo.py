"""Small runs on the pictures that `metaformer data demo DIR` writes."""

from metaformer.engine.config import (
    AugmentConfig,
    DataConfig,
    EmaConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    ScheduleConfig,
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
        schedule=ScheduleConfig(epochs=8, warmup_epochs=1),
        ema=EmaConfig(decay=0.98),
        evaluate=EvalConfig(crop=1.0),
        runtime=RuntimeConfig(threads=1),  # one core computes, the other makes pictures
        seed=0,
    ),
    summary="A pooling network of two million weights learns to read digits on two processor cores",
    notes=(
        "98 % of the held-out digits, after three to four minutes on two cores (`make demo`).",
        "Batch norm, since pooling networks of this size start slowly with the published group norm.",
    ),
)

RUNS = (CLASSIFY,)
