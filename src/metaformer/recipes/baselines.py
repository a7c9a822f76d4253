"""IdentityFormer … CAFormer, https://arxiv.org/abs/2210.13452, code at github.com/sail-sg/metaformer."""

from dataclasses import replace

from metaformer.config import EmaConfig, EvalConfig, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from metaformer.recipes.poolformer import COMMON
from metaformer.recipes.recipe import Recipe

LAMB_NOTE = (
    "The scripts pass no epsilon, so their LAMB ran with timm's 1e-6, and timm's LAMB clips the gradient at "
    "norm 1 by itself; the common settings say epsilon 1e-8 and no clipping, as set here."
)
B36_NOTE = "The published script train_caformer_b36.sh trains caformer_s36; the model is fixed here."
FINETUNE_NOTES = (
    "The scripts of caformer_s36 and _m36 name caformer_s18_384, those of b36 lack --img-size: fixed here.",
    "--sched None also means no warm-up and no cool-down; label smoothing and erasing stay on.",
)

# model: top-1, GMACs, drop-path (README; scripts)
PLAIN = {
    "identityformer_s12": (74.6, 1.8, 0.1),
    "identityformer_s24": (78.2, 3.4, 0.1),
    "identityformer_s36": (79.3, 5.0, 0.2),
    "identityformer_m36": (80.0, 8.8, 0.3),
    "identityformer_m48": (80.4, 11.5, 0.4),
    "randformer_s12": (76.6, 1.9, 0.1),
    "randformer_s24": (78.2, 3.5, 0.1),
    "randformer_s36": (79.5, 5.2, 0.2),
    "randformer_m36": (81.2, 9.0, 0.3),
    "randformer_m48": (81.4, 11.9, 0.3),
    "poolformerv2_s12": (78.0, 1.8, 0.1),
    "poolformerv2_s24": (80.7, 3.4, 0.1),
    "poolformerv2_s36": (81.6, 5.0, 0.2),
    "poolformerv2_m36": (82.2, 8.8, 0.3),
    "poolformerv2_m48": (82.6, 11.5, 0.4),
}

# model: (224: top-1, GMACs, drop-path, head dropout), (384: the same)
STRONG = {
    "convformer_s18": ((83.0, 3.9, 0.2, 0.0), (84.4, 11.6, 0.3, 0.4)),
    "convformer_s36": ((84.1, 7.6, 0.3, 0.0), (85.4, 22.4, 0.5, 0.4)),
    "convformer_m36": ((84.5, 12.8, 0.4, 0.0), (85.6, 37.7, 0.8, 0.5)),
    "convformer_b36": ((84.8, 22.6, 0.6, 0.0), (85.7, 66.5, 0.8, 0.5)),
    "caformer_s18": ((83.6, 4.1, 0.15, 0.0), (85.0, 13.4, 0.3, 0.4)),
    "caformer_s36": ((84.5, 8.0, 0.3, 0.4), (85.7, 26.0, 0.5, 0.4)),
    "caformer_m36": ((85.2, 13.2, 0.4, 0.4), (86.2, 42.0, 0.7, 0.4)),
    "caformer_b36": ((85.5, 23.2, 0.6, 0.5), (86.4, 72.2, 0.8, 0.5)),
}


def plain(model: str) -> Recipe:
    """IdentityFormer, RandFormer or PoolFormerV2 from scratch."""
    top1, gmacs, drop_path = PLAIN[model]
    network = ModelConfig(model, drop_path_rate=drop_path)
    config = replace(COMMON, model=network, evaluate=EvalConfig(crop=1.0))
    return Recipe(f"imagenet/{model}", config, f"{model} on ImageNet-1K from scratch", top1, gmacs)


def strong(model: str) -> Recipe:
    """ConvFormer (AdamW) or CAFormer (LAMB) from scratch."""
    top1, gmacs, drop_path, head_dropout = STRONG[model][0]
    lamb = model.startswith("caformer")
    config = replace(
        COMMON,
        model=ModelConfig(model, drop_path_rate=drop_path, head_dropout=head_dropout),
        optim=replace(COMMON.optim, name="lamb", lr=8e-3) if lamb else COMMON.optim,
        schedule=replace(COMMON.schedule, warmup_epochs=20),
        evaluate=EvalConfig(crop=1.0),
    )
    notes = (LAMB_NOTE,) * lamb + (B36_NOTE,) * (model == "caformer_b36")
    return Recipe(f"imagenet/{model}", config, f"{model} on ImageNet-1K from scratch", top1, gmacs, notes)


def finetuned(model: str) -> Recipe:
    """ConvFormer or CAFormer fine-tuned at 384 pixels from its weights at 224."""
    top1, gmacs, drop_path, head_dropout = STRONG[model][1]
    lamb = model.startswith("caformer")
    config = TrainConfig(
        model=ModelConfig(
            f"{model}.sail_in1k", pretrained=True, drop_path_rate=drop_path, head_dropout=head_dropout
        ),
        data=replace(COMMON.data, image_size=384, batch_size=1024),
        augment=replace(COMMON.augment, mixup=0.0, cutmix=0.0),
        optim=replace(COMMON.optim, name="lamb", lr=1e-4) if lamb else OptimConfig(lr=5e-5),
        schedule=ScheduleConfig(name="constant", epochs=30, warmup_epochs=0),
        ema=EmaConfig(decay=0.9999),
        evaluate=EvalConfig(crop=1.0),
        seed=COMMON.seed,
    )
    summary = f"{model} at 384 pixels on ImageNet-1K, from its published weights at 224"
    return Recipe(f"imagenet/{model}_384", config, summary, top1, gmacs, FINETUNE_NOTES + (LAMB_NOTE,) * lamb)


RUNS = (*map(plain, PLAIN), *map(strong, STRONG), *map(finetuned, STRONG))
