"""The configuration of a run: frozen, typed, saved with it; each docstring below a field is its `--help`."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = "poolformer_s12"
    """Model name, as `metaformer list` prints it."""
    pretrained: bool = False
    """Start from the published weights, downloaded once; `name` may carry a tag (`NAME.TAG`)."""
    checkpoint: str | None = None
    """Start from this file, in any published format; its classifier is dropped if the class count differs."""
    num_classes: int | None = None
    """Number of classes; taken from the data when not given."""
    mixers: str | list[str] | None = None
    """Token mixer of all stages, `pooling(size=5)`, or a list of one per stage."""
    drop_path_rate: float = 0.0
    """Stochastic depth, growing linearly to this rate at the last block."""
    head_dropout: float = 0.0
    """Dropout inside the classifier."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Further fields of `MetaFormerConfig`, as in `{norm: batch_norm}`."""
    grad_checkpointing: bool | Literal["mlp"] = False
    """Recompute in the backward pass: blocks (`true`: least memory, about a third slower), or only the wide
    maps of their MLPs (`mlp`: most of that memory, about a sixth slower)."""


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they are grouped."""

    root: str = ""
    """Folder that holds the data set."""
    train: str = "train"
    """Sub-folder to learn from: one folder per class inside."""
    val: str = "val"
    """Sub-folder to evaluate on."""
    image_size: int = 224
    """Height and width of the network's input, in pixels; in segmentation those of training crops."""
    batch_size: int = 128
    """Images per optimizer step, over all devices and accumulation steps together."""
    eval_batch_size: int = 128
    """Images per device in evaluation."""
    workers: int = 4
    """Processes that read and augment, per device; 0 reads in the main process."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A training image that cannot be read: an error, or logged and left out (up to 0.1 % of all)."""
    repeated_aug: int = 1
    """Repeated augmentation: how many augmented copies of an image an epoch holds (CycleMLP: 3)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per-channel mean that is subtracted (RGB in 0 … 1)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation that is divided by."""


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training images."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a random crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of a random crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation jitter; unused beside `auto_augment`, as in timm."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's notation for RandAugment, AugMix or AutoAugment; null for none."""
    interpolation: Literal["random", "bicubic", "bilinear"] = "random"
    """Resampling of random crops; `random` takes bilinear or bicubic by chance."""
    erase: float = 0.25
    """Probability of random erasing."""
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What random erasing fills with."""
    mixup: float = 0.8
    """Mixup's alpha; 0 for none."""
    cutmix: float = 1.0
    """CutMix's alpha; 0 for none."""
    mix_probability: float = 1.0
    """Probability that a batch is mixed at all."""
    mix_switch: float = 0.5
    """Probability of CutMix where both are on."""
    mix_off_epoch: int = 0
    """Epoch from which nothing is mixed; 0 for never."""
    aug_splits: int = 1
    """Views per image (the first clean) for the JSD loss; 1 for none."""


@dataclass(frozen=True)
class LossConfig:
    """What is minimized."""

    name: Literal["cross_entropy", "bce", "jsd"] = "cross_entropy"
    """Cross-entropy, binary cross-entropy over classes, or Jensen-Shannon divergence between views."""
    smoothing: float = 0.1
    """Label smoothing."""
    distill: Literal["none", "soft", "hard"] = "none"
    """Knowledge distillation from a teacher: its softened distribution, or its decision."""
    teacher: str | None = None
    """Teacher's model name; `timm:NAME` for one of timm's."""
    teacher_checkpoint: str | None = None
    """The teacher's weights; its published ones when not given."""
    distill_alpha: float = 0.5
    """Share of the distillation loss."""
    distill_tau: float = 1.0
    """Temperature of soft distillation."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer."""

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    """AdamW, LAMB (CAFormer) or SGD with momentum 0.9."""
    lr: float = 1e-3
    """Peak learning rate, for `data.batch_size` images a step."""
    weight_decay: float = 0.05
    """Weight decay; one-dimensional parameters and biases have none."""
    eps: float = 1e-8
    """Adam's epsilon."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's averages."""
    clip: float | None = None
    """Largest gradient norm; null for no clipping."""
    accumulate: int = 1
    """Backward passes per step: memory falls, the batch stays `data.batch_size`."""
    layer_decay: float = 1.0
    """Learning-rate factor from each block to the one before it; 1 for none."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, and the learning rate over time."""

    name: Literal["cosine", "poly", "step", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    power: float = 0.9
    """Exponent of `poly`: the rate falls as (1 - step / steps) to this power."""
    milestones: list[int] = field(default_factory=lambda: [8, 11])
    """Epochs after which `step` lowers the rate."""
    gamma: float = 0.1
    """Factor by which `step` lowers it."""
    epochs: int = 300
    """Epochs of the schedule, warm-up included."""
    steps: int | None = None
    """Steps of the schedule, warm-up included, instead of epochs; dense tasks count so."""
    warmup_epochs: float = 5
    """Epochs of linear warm-up."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, instead of epochs."""
    warmup_lr: float = 1e-6
    """Learning rate at the first step."""
    min_lr: float = 1e-5
    """Learning rate at the end, and in the cool-down."""
    cooldown_epochs: int = 0
    """Further epochs at the smallest learning rate."""


@dataclass(frozen=True)
class EmaConfig:
    """The exponential moving average of the weights."""

    decay: float | None = None
    """Decay per step; null for no average."""
    evaluate: bool = True
    """Evaluate and publish the average rather than the raw weights."""


@dataclass(frozen=True)
class EvalConfig:
    """How accuracy is measured."""

    crop: float = 0.9
    """Share of the resized image that the center crop keeps."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Resampling."""
    every: int = 1
    """Epochs between evaluations."""
    every_steps: int = 0
    """Steps between evaluations, instead of epochs; 0 for none."""
    real_labels: str | None = None
    """ReaL labels: a JSON list with the accepted classes of each validation image, in file order."""
    class_subset: str | None = None
    """Text file with one class name per line: only their logits and images count (ImageNet-A, -R)."""
    flip: bool = False
    """Average with the mirrored image."""
    crops: Literal[1, 5] = 1
    """Center crop, or center and corners averaged."""


@dataclass(frozen=True)
class RuntimeConfig:
    """The machine, the log and the checkpoints."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision."""
    compile: bool = False
    """Run the model through torch.compile."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """On several devices: a copy of the model on each, or its parameters shared out among them (FSDP2)."""
    sync_batch_norm: bool = False
    """Batch norm over all devices' images instead of each device's own; CUDA only."""
    timeout: float = 600.0
    """Seconds that a process waits for the others, and 120 at most for data, before the run ends."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose input, loss or gradient is not finite: end the run, or leave out up to three in a row."""
    wandb: str | None = None
    """Weights & Biases project that figures are sent to as well."""
    threads: int | None = None
    """CPU threads; PyTorch's choice when not given."""
    save_every: int = 0
    """Steps between checkpoints, beside the one after each epoch; 0 for none between."""
    keep: int = 2
    """Newest checkpoints that are kept beside the best."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""


@dataclass(frozen=True)
class SegmentConfig:
    """Semantic segmentation: what `task` `segment` takes beside, or instead of, the other sections."""

    head: Literal["semantic_fpn", "upernet"] = "semantic_fpn"
    """What turns the backbone's four maps into classes of pixels."""
    feature_norm: Literal["fresh", "none"] = "fresh"
    """A new norm on each of the backbone's maps, as the published models have, or none."""
    fpn_dim: int = 256
    """Channels of the feature pyramid (`semantic_fpn`)."""
    head_dim: int | None = None
    """Channels of the head; 128 for `semantic_fpn` and 512 for `upernet` when not given."""
    dropout: float = 0.1
    """Dropout of whole channels before the classifier."""
    auxiliary: bool = False
    """A second head on the third map, in training only; its loss counts 0.4."""
    layout: Literal["auto", "ade20k", "voc", "cityscapes", "coco_stuff", "folders"] = "auto"
    """How the data set lies; found out from its folders when not given."""
    class_names: str | None = None
    """Text file with one class name per line, where the data set brings none."""
    reduce_zero_label: bool | None = None
    """Whether label 0 is no class but ignored (ADE20K); as the layout has it when not given."""
    resize: tuple[int, int] | None = (2048, 512)
    """Longer and shorter side that images are fitted into, in pixels; null keeps their own size."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Random factor of that size in training."""
    size_divisor: int = 32
    """In evaluation both sides are rounded up to multiples of this; 1 leaves them."""
    cat_max_ratio: float = 0.75
    """A random crop with more than this share of one class is drawn anew, up to ten times."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue in training."""
    reduction: Literal["valid", "all"] = "valid"
    """Divide the loss by the pixels that count, or by all, ignored ones too, as the published runs did."""
    ohem: float | None = None
    """Learn only from pixels whose right class has a probability below this; null for all."""
    dice: float = 0.0
    """Weight of the Dice loss beside cross-entropy."""
    class_weights: list[float] | None = None
    """A weight of the loss for each class."""
    inference: Literal["whole", "slide"] = "whole"
    """Evaluate whole images, or overlapping windows of them."""
    window: int = 512
    """Side of such a window, in pixels."""
    stride: int = 341
    """Pixels from one window to the next."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Sizes that evaluation averages over, as factors; `evaluate.flip` adds the mirrored images."""


@dataclass(frozen=True)
class DetectConfig:
    """Object detection and instance segmentation: what `task` `detect` takes beside the other sections."""

    head: Literal["retinanet", "faster_rcnn", "mask_rcnn"] = "retinanet"
    """What turns the backbone's maps into objects; `mask_rcnn` gives masks too."""
    feature_norm: Literal["fresh", "none"] = "fresh"
    """A new norm on each of the backbone's maps, as the published models have, or none."""
    fpn_dim: int = 256
    """Channels of the feature pyramid."""
    head_dim: int | None = None
    """Channels of towers and of the mask head; those of the pyramid when not given."""
    box_fc_dim: int = 1024
    """Channels of the two layers that look at a region (`faster_rcnn`, `mask_rcnn`)."""
    roi_batch_size: int = 512
    """Regions of each image that the second stage learns from; on a CPU their number decides its speed."""
    anchor_scale: float | None = None
    """Side of the smallest anchors in strides of their map; 4 for `retinanet` and 8 when not given."""
    layout: Literal["auto", "coco", "voc", "yolo"] = "auto"
    """How the data set lies; found out from its files when not given."""
    class_names: str | None = None
    """Text file with one class name per line, where the data set brings none."""
    long_side: int | None = 1333
    """Longest side that images are fitted into, in pixels; null keeps their own size."""
    short_sides: list[int] = field(default_factory=lambda: [800])
    """Shorter side they are fitted into: the last in evaluation, one of them by chance in training."""
    jitter: tuple[float, float] | None = None
    """Large-scale jitter: random factor of a square of `data.image_size`, to which it is cut or filled up."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue in training."""
    group_by_aspect: bool = True
    """Batches of images that are all wide or all tall, so that little is filled up."""
    score_threshold: float = 0.05
    """Objects with a lower score are left out."""
    nms_threshold: float = 0.5
    """Of two boxes of a class that overlap by more than this IoU the one of lower score is left out."""
    max_detections: int = 100
    """Most objects of an image."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Sizes that evaluation looks at, as factors; `evaluate.flip` adds the mirrored images."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run, whole."""

    task: Literal["classify", "segment", "detect"] = "classify"
    """What is learned: classes of images, of pixels, or objects with their places."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    seed: int = 42
    """Everything random is a function of it."""
