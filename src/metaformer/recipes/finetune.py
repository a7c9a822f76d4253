"""Fine-tuning of published weights on the user's own data."""

from dataclasses import replace

from metaformer.config import (
    AugmentConfig,
    DataConfig,
    DetectConfig,
    EvalConfig,
    ModelConfig,
    MultilabelConfig,
    OptimConfig,
    ScheduleConfig,
    SegmentConfig,
    TrainConfig,
)
from metaformer.recipes.ade20k import PLAIN
from metaformer.recipes.recipe import Recipe

NOTES = (
    "--model.checkpoint FILE starts from a file in any published format instead of a download.",
    "Not a published run: settings to start from.",
)
FIT_NOTE = (
    "Sizes follow the median image, up to 640 pixels, and the batch the images; the run's first line "
    "names them, and a size or batch that you give stays."
)

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
    notes=NOTES,
    command="--model.name poolformer_s12",
)

MULTILABEL = Recipe(
    name="finetune/multilabel",
    config=replace(FINETUNE.config, task="multilabel", multilabel=MultilabelConfig(loss="asymmetric")),
    summary="Published weights fine-tuned on your own images of several labels",
    notes=(
        "train.csv and val.csv name the labels, or labels.csv with --data.train . --data.val_fraction 0.2.",
        *NOTES,
    ),
    command="--model.name poolformer_s12",
)

SEGMENT = Recipe(
    name="finetune/segment",
    config=replace(
        FINETUNE.config,
        task="segment",
        data=DataConfig(image_size=512, batch_size=8, workers=2),
        augment=PLAIN,
        segment=SegmentConfig(resize=(640, 512), scale=(0.75, 1.5), fpn_dim=128),
        optim=OptimConfig(lr=2e-4, weight_decay=0.01, clip=1.0),
        evaluate=EvalConfig(),
    ),
    summary="Semantic FPN on published weights, fine-tuned on your own images and label maps",
    notes=(FIT_NOTE, *NOTES),
    command="--model.name poolformer_s12",
    fits_data=True,
)

DETECT = Recipe(
    name="finetune/detect",
    config=replace(
        SEGMENT.config,
        task="detect",
        data=DataConfig(batch_size=8, workers=2),
        segment=SegmentConfig(),
        detect=DetectConfig(
            head="retinanet", long_side=640, short_sides=[640], photometric=True, fpn_dim=128
        ),
    ),
    summary="RetinaNet on published weights, fine-tuned on your own images with boxes",
    notes=("--detect.head mask_rcnn also learns masks, where objects have outlines.", FIT_NOTE, *NOTES),
    command="--model.name poolformer_s12",
    fits_data=True,
)

RUNS = (FINETUNE, MULTILABEL, SEGMENT, DETECT)
