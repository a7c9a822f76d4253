"""CycleMLP, https://arxiv.org/abs/2107.10224, code at github.com/ShoufaChen/CycleMLP."""

from metaformer.config import (
    AugmentConfig,
    DataConfig,
    EmaConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from metaformer.recipes.recipe import Recipe

NOTES = (
    "The drop-path rates of the published runs are unknown: 0.1 is the default of main.py.",
    "The EMA of the weights is tracked, but the raw weights were evaluated and published.",
    "main.py always evaluates at Resize 256, crop 224 (0.875), whatever crop the model's default_cfg names.",
    "main.py trains in float16 mixed precision by default: add --runtime.amp fp16 on CUDA.",
)

# model: top-1, GMACs (README)
CYCLEMLP = {
    "cyclemlp_b1": (78.9, 2.13),
    "cyclemlp_b2": (81.6, 3.89),
    "cyclemlp_b3": (82.4, 6.85),
    "cyclemlp_b4": (83.0, 10.06),
    "cyclemlp_b5": (83.2, 12.27),
}


def cyclemlp(model: str) -> Recipe:
    """CycleMLP from scratch by DeiT's recipe, with repeated augmentation."""
    top1, gmacs = CYCLEMLP[model]
    config = TrainConfig(
        model=ModelConfig(model, drop_path_rate=0.1),
        data=DataConfig(batch_size=8 * 128, workers=10, repeated_aug=3),
        augment=AugmentConfig(interpolation="bicubic"),
        optim=OptimConfig(name="adamw", lr=5e-4 * 8 * 128 / 512, weight_decay=0.05, eps=1e-8),
        schedule=ScheduleConfig(name="cosine", epochs=300, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5),
        ema=EmaConfig(decay=0.99996, evaluate=False),
        evaluate=EvalConfig(crop=224 / 256),
        seed=0,
    )
    return Recipe(f"imagenet/{model}", config, f"{model} on ImageNet-1K from scratch", top1, gmacs, NOTES)


RUNS = tuple(map(cyclemlp, CYCLEMLP))
