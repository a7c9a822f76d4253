"""Small runs on the pictures that `metaformer data demo DIR` writes."""

from metaformer.engine.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    LossConfig,
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
        model=ModelConfig("poolformer_n"),
        data=DataConfig(image_size=64, batch_size=64, eval_batch_size=200, workers=2),
        augment=AugmentConfig(
            scale=(0.7, 1.0), hflip=0.0, auto_augment=None, color_jitter=0.2, erase=0.0, mixup=0.0, cutmix=0.0
        ),
        loss=LossConfig(smoothing=0.1),
        optim=OptimConfig(lr=4e-3),
        schedule=ScheduleConfig(epochs=12, warmup_epochs=1),
        evaluate=EvalConfig(crop=1.0),
        runtime=RuntimeConfig(device="cpu"),
        seed=0,
    ),
    summary="A pooling network of a million weights learns to read digits on two processor cores",
)

RUNS = (CLASSIFY,)
