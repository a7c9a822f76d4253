"""Object detection on COCO: RetinaNet and Mask R-CNN on PoolFormer and CycleMLP."""

from dataclasses import replace

from metaformer.config import (
    DataConfig,
    DetectConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
)
from metaformer.recipes.ade20k import PLAIN
from metaformer.recipes.recipe import Recipe

RETINANET = TrainConfig(
    task="detect",
    data=DataConfig(batch_size=16, workers=4, on_bad_image="skip"),  # two boxes of train2017 have height 0
    augment=PLAIN,
    detect=DetectConfig(head="retinanet"),
    optim=OptimConfig(lr=1e-4, weight_decay=1e-4),
    schedule=ScheduleConfig(
        name="step", epochs=12, milestones=[8, 11], warmup_steps=500, warmup_lr=1e-7, min_lr=0.0
    ),
    runtime=RuntimeConfig(log_every=50),
)
"""github.com/sail-sg/poolformer, detection/configs; no layer is frozen, stochastic depth is off."""

MASK_RCNN = replace(
    RETINANET,
    detect=replace(RETINANET.detect, head="mask_rcnn"),
    optim=replace(RETINANET.optim, lr=2e-4),
    schedule=replace(RETINANET.schedule, warmup_lr=2e-7),
)

EMPTY_NOTE = "Images without objects are trained on as well; mmdetection left them out of training."
DECAY_NOTE = "Vectors and biases have no weight decay here; mmdetection's configuration decays all."
LR_NOTE = "The paper gives a learning rate of 1e-4 for both heads; the configuration of Mask R-CNN says 2e-4."
CYCLE_LR_NOTE = "For Mask R-CNN that issue gives a learning rate of 1e-4 or 2e-4."
CYCLE_NOTE = (
    "After PVT's settings, which CycleMLP's authors say they follow (issue 9 of their repository); the "
    "paper's table of AP was not accessible, so none is given."
)
LONG_NOTE = (
    "Not a published run: three times the epochs, and multi-scale training with a shorter side of 480 to "
    "800 pixels."
)

# head, model: AP, AP50 and AP75 of boxes, with those of small, medium and large ones; of masks (Table 3)
POOLFORMER = {
    ("retinanet", "poolformer_s12"): ((36.2, 56.2, 38.2, 20.8, 39.1, 48.0), None),
    ("retinanet", "poolformer_s24"): ((38.9, 59.7, 41.3, 23.3, 42.1, 51.8), None),
    ("retinanet", "poolformer_s36"): ((39.5, 60.5, 41.8, 22.5, 42.9, 52.4), None),
    ("mask_rcnn", "poolformer_s12"): ((37.3, 59.0, 40.1), (34.6, 55.8, 36.9)),
    ("mask_rcnn", "poolformer_s24"): ((40.1, 62.2, 43.4), (37.0, 59.1, 39.6)),
    ("mask_rcnn", "poolformer_s36"): ((41.0, 63.1, 44.8), (37.7, 60.1, 40.0)),
}
CYCLEMLP = ("cyclemlp_b1", "cyclemlp_b2", "cyclemlp_b3", "cyclemlp_b4", "cyclemlp_b5")
HEADS = {"retinanet": ("RetinaNet", RETINANET), "mask_rcnn": ("Mask R-CNN", MASK_RCNN)}


def schedule_1x(head: str, model: str) -> Recipe:
    """1x schedule: 12 epochs at one size."""
    title, config = HEADS[head]
    box_ap, mask_ap = POOLFORMER.get((head, model), (None, None))
    return Recipe(
        f"coco/{head}_{model}_1x",
        replace(config, model=ModelConfig(model, pretrained=True)),
        f"{title} on {model}, COCO",
        notes=(*_sources(head, model), EMPTY_NOTE, DECAY_NOTE),
        box_ap=box_ap,
        mask_ap=mask_ap,
    )


def _sources(head: str, model: str) -> tuple[str, ...]:
    """Notes on the sources of the settings."""
    if model in CYCLEMLP:
        return (CYCLE_NOTE, CYCLE_LR_NOTE) if head == "mask_rcnn" else (CYCLE_NOTE,)
    return (LR_NOTE,) if head == "mask_rcnn" else ()


def schedule_3x(head: str, model: str) -> Recipe:
    """3x schedule: 36 epochs, multi-scale."""
    short = schedule_1x(head, model)
    config = replace(
        short(),
        detect=replace(short().detect, short_sides=list(range(480, 801, 32))),
        schedule=replace(short().schedule, epochs=36, milestones=[27, 33]),
    )
    return Recipe(
        f"coco/{head}_{model}_3x",
        config,
        f"{short.summary}, 3x schedule and multi-scale",
        notes=(LONG_NOTE, EMPTY_NOTE, DECAY_NOTE),
    )


NAMES = [(head, model) for head in HEADS for model in (*(m for h, m in POOLFORMER if h == head), *CYCLEMLP)]
RUNS = (*(schedule_1x(*name) for name in NAMES), *(schedule_3x(*name) for name in NAMES))
