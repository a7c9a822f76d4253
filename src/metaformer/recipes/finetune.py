"""Fine-tuning of published weights on the user's own image folder."""

from metaformer.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from metaformer.recipes.recipe import Recipe

FINETUNE = Recipe(
    name="finetune",
    config=TrainConfig(
        model=ModelConfig("poolformer_s12", pretrained=True, drop_path_rate=0.1),
        data=DataConfig(batch_size=64),
        augment=AugmentConfig(scale=(0.3, 1.0), mixup=0.0, cutmix=0.0),
        optim=OptimConfig(lr=2e-4),
        schedule=ScheduleConfig(epochs=20, warmup_epochs=1, min_lr=1e-6),
        evaluate=EvalConfig(crop=0.95),
    ),
    summary="Published weights fine-tuned on your own image folder, whatever its classes",
    notes=(
        "--model.checkpoint FILE starts from a file in any published format instead of a download.",
        "Not a published run: settings to start from.",
    ),
    command="--model.name poolformer_s12",
)

RUNS = (FINETUNE,)
