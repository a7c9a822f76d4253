"""Runs on the real data of `metaformer data fashion-mnist DIR` and `metaformer data icons DIR`."""

from dataclasses import replace

from metaformer.config import (
    AugmentConfig,
    DataConfig,
    EmaConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
)
from metaformer.recipes.recipe import Recipe

SMALL = {
    "depths": [1, 2, 2, 1],
    "dims": [24, 48, 96, 192],
    "norm": "batch_norm",
    "embed_norm": "batch_norm",
    "stem_kernel": 3,
    "stem_stride": 2,
    "stem_padding": 1,
    "head": "pool_norm_fc",
}
"""A network for images of about 30 pixels, of which the published stem would leave seven."""

FASHION = TrainConfig(
    model=ModelConfig("poolformer_n", overrides=SMALL),
    data=DataConfig(
        image_size=28,
        batch_size=128,
        eval_batch_size=500,
        workers=1,
        mean=(0.286, 0.286, 0.286),
        std=(0.353, 0.353, 0.353),
    ),
    augment=AugmentConfig(
        scale=(0.8, 1.0),
        ratio=(0.9, 1.1),
        hflip=0.5,
        color_jitter=0.0,
        auto_augment=None,
        interpolation="bilinear",
        erase=0.1,
        mixup=0.0,
        cutmix=0.0,
    ),
    loss=LossConfig(smoothing=0.1),
    optim=OptimConfig(lr=4e-3, clip=1.0),
    schedule=ScheduleConfig(epochs=7, warmup_epochs=0.5),
    ema=EmaConfig(decay=0.995),
    evaluate=EvalConfig(crop=1.0),
    runtime=RuntimeConfig(threads=2, log_every=50),
    seed=0,
)

ICONS = replace(
    FASHION,
    data=DataConfig(image_size=32, batch_size=64, eval_batch_size=256, workers=1),
    augment=replace(FASHION.augment, hflip=0.0, erase=0.1),  # arrows and letters have a direction
    schedule=ScheduleConfig(epochs=20, warmup_epochs=1),
    evaluate=EvalConfig(crop=1.0, every=2),
)

MIXERS = {"pooling": "average pooling", "dwconv": "depthwise convolutions"}
# data set: configuration, what it is
DATA = {
    "fashion": (FASHION, "Fashion-MNIST"),
    "icons": (ICONS, "icons of designers that it has not seen"),
}
NOT_MEASURED = "Settings to start from: nobody has measured where they lead."
NOTES = {"fashion/dwconv": "90.7 % of the test images, after ten minutes of one core's time."}


def small(data: str, mixer: str) -> Recipe:
    """A small network with a token mixer on one of the data sets."""
    (config, what), name = DATA[data], f"{data}/{mixer}"
    model = replace(config.model, mixers=mixer)
    summary = f"A small network with {MIXERS[mixer]} on {what}, on two processor cores"
    return Recipe(name, replace(config, model=model), summary, notes=(NOTES.get(name, NOT_MEASURED),))


RUNS = tuple(small(data, mixer) for data in DATA for mixer in MIXERS)
