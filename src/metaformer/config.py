"""Configuration of a training run: frozen dataclasses; the docstring below a field is its `--help`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

from metaformer.color import Color, read_color
from metaformer.errors import ConfigError
from metaformer.serialize import field_types, validate


@dataclass(frozen=True)
class Checked:
    """Base of configurations, whose fields are checked by type; lists become tuples."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, hint in field_types(kind).items():
            if is_dataclass(hint) and isinstance(getattr(self, name), Mapping):
                section = getattr(hint, "__name__", hint)
                raise ConfigError(
                    f"{name}: a mapping, where {kind.__name__} takes a {section}; "
                    "metaformer.serialize.from_dict(TrainConfig, …) builds one from plain values"
                )
        validate(self)


def _found(name: str, value: float | str) -> float:
    """The value of a field that may be `auto` until a run begins."""
    if isinstance(value, str):
        raise ConfigError(f"{name} is {value}: metaformer.train finds a number, others need one")
    return value


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network."""

    name: str = "poolformer_s12"
    """Model name, as listed by `metaformer list`; or a run or another directory with a network."""
    pretrained: bool = False
    """Start from published weights, downloaded once; `name` may have a tag (`NAME.TAG`)."""
    checkpoint: str | None = None
    """Start from this file, in any published format, or from a run, a checkpoint or another directory, which
    brings its network; the classifier is reset if its classes differ."""
    ema: bool | None = None
    """Of raw and averaged weights in `checkpoint` take the averaged (`true`) or the raw ones (`false`);
    by default those that a run was evaluated with, and the raw ones of other files."""
    num_classes: int | None = None
    """Number of classes; that of the data by default."""
    mixers: str | list[str] | None = None
    """Token mixer of all stages, such as `pooling(size=5)`, or a list with one per stage."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; it grows linearly from 0."""
    head_dropout: float = 0.0
    """Dropout in the classifier."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Other fields of `MetaFormerConfig`, such as `{norm: batch_norm}`."""
    freeze: int = 0
    """Stages of the backbone, from the first on, that keep their weights and statistics, and the stem with
    them; all of them leave the head alone to be trained."""
    grad_checkpointing: bool | Literal["mlp"] = False
    """Recompute activations in the backward pass: of blocks (`true`: least memory, about a third slower), or
    only the hidden ones of MLPs (`mlp`: saves most of that memory, about a sixth slower)."""


@dataclass(frozen=True)
class DataConfig(Checked):
    """The data set and its batches."""

    root: str = ""
    """Folder of the data set."""
    train: str = "train"
    """Training split."""
    val: str = "val"
    """Validation split."""
    val_fraction: float | None = None
    """Instead of a validation split, hold out this share of the training images by seed and path, of each
    class alike where images have classes; `root` may then hold class folders without splits."""
    group: str | None = None
    """With `val_fraction`, keep images together whose paths this regular expression matches alike, such as
    `(patient[0-9]+)`."""
    image_size: int = 224
    """Height and width of the network's input in pixels; in segmentation, of training crops."""
    batch_size: int | Literal["auto"] = 128
    """Images per optimizer step, over all devices and accumulation steps;
    `auto` takes as many as memory holds."""
    eval_batch_size: int = 128
    """Images per batch and device in evaluation."""
    workers: int = 4
    """Data loading processes per device; 0 loads in the main process."""
    on_bad_image: Literal["error", "skip"] = "error"
    """Training images that cannot be read: stop with an error, or log and skip them (up to 0.1 % of all)."""
    balanced_sampling: bool = False
    """Classification: draw every class equally often; images of rare ones come several times an epoch."""
    repeated_aug: int = 1
    """Repeated augmentation: augmented copies of an image per epoch (CycleMLP: 3)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each channel (RGB, 0 to 1), subtracted from images."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, which images are divided by."""
    background: tuple[int, int, int] | str | None = None
    """Color that transparent pixels are blended on: three numbers from 0 to 255, or a name such as `white`;
    null drops transparency, as timm does, and the colors that it hides show."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "background", self.background_color)

    @property
    def background_color(self) -> Color | None:
        """`background` as red, green and blue."""
        return read_color(self.background, "data.background")

    @property
    def step_images(self) -> int:
        """`batch_size` as a number.

        Raises:
            ConfigError: it is `auto`.
        """
        return int(_found("data.batch_size", self.batch_size))


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """Augmentation of training images."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Area of random crops, as a fraction of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of random crops."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation jitter; not applied with `auto_augment`, as in timm."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment, AugMix or AutoAugment in timm's notation; null for none."""
    interpolation: Literal["random", "bicubic", "bilinear"] = "random"
    """Resampling of random crops; `random` picks bilinear or bicubic for each image."""
    erase: float = 0.25
    """Probability of random erasing."""
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Fill of random erasing: zeros, one random color, or random pixels."""
    mixup: float = 0.8
    """Mixup alpha; 0 for none."""
    cutmix: float = 1.0
    """CutMix alpha; 0 for none."""
    mix_probability: float = 1.0
    """Probability that Mixup or CutMix is applied to a batch."""
    mix_switch: float = 0.5
    """Probability of CutMix rather than Mixup when both are enabled."""
    mix_off_epoch: int = 0
    """Epoch from which Mixup and CutMix are off; 0 for never."""
    aug_splits: int = 1
    """Augmented views per image for the JSD loss, the first only cropped and flipped; 1 for none."""


@dataclass(frozen=True)
class LossConfig(Checked):
    """Classification loss."""

    name: Literal["cross_entropy", "bce", "jsd"] = "cross_entropy"
    """Cross-entropy, binary cross-entropy, or cross-entropy with Jensen-Shannon divergence between views."""
    smoothing: float = 0.1
    """Label smoothing."""
    class_weights: list[float] | None = None
    """Weight of each class in `cross_entropy`, in the order of the class names."""
    balance: bool = False
    """Weight each class in `cross_entropy` by the inverse of its share of the training images instead."""
    distill: Literal["none", "soft", "hard"] = "none"
    """Knowledge distillation: from the teacher's probabilities (`soft`) or its top class (`hard`)."""
    teacher: str | None = None
    """Model name of the teacher; `timm:NAME` for a timm model."""
    teacher_checkpoint: str | None = None
    """Weights of the teacher; the published ones by default."""
    distill_alpha: float = 0.5
    """Weight of the distillation loss; the other loss has 1 minus it."""
    distill_tau: float = 1.0
    """Temperature of soft distillation."""


@dataclass(frozen=True)
class OptimConfig(Checked):
    """The optimizer."""

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    """AdamW, LAMB (CAFormer) or SGD with momentum 0.9."""
    lr: float | Literal["auto"] = 1e-3
    """Peak learning rate, for a batch of `data.batch_size`; `auto` finds it by a range test before."""
    weight_decay: float = 0.05
    """Weight decay; not for biases and one-dimensional parameters."""
    eps: float = 1e-8
    """Epsilon of Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of Adam."""
    clip: float | None = None
    """Maximum gradient norm; null for no clipping."""
    accumulate: int = 1
    """Gradient accumulation steps; the batch stays `data.batch_size`."""
    layer_decay: float = 1.0
    """Layer-wise learning-rate decay: factor from each block to the one before; 1 for none."""

    @property
    def peak_lr(self) -> float:
        """`lr` as a number.

        Raises:
            ConfigError: it is `auto`.
        """
        return _found("optim.lr", self.lr)


@dataclass(frozen=True)
class ScheduleConfig(Checked):
    """Length of the run and learning-rate schedule."""

    name: Literal["cosine", "poly", "step", "constant"] = "cosine"
    """Learning-rate schedule after warm-up."""
    power: float = 0.9
    """Exponent of `poly`: the rate is proportional to (1 - step / steps) ** power."""
    milestones: list[int] = field(default_factory=lambda: [8, 11])
    """Epochs at which `step` lowers the rate."""
    gamma: float = 0.1
    """Factor of `step` at each milestone."""
    epochs: int = 300
    """Epochs, warm-up included."""
    steps: int | None = None
    """Steps, warm-up included, instead of epochs."""
    warmup_epochs: float = 5
    """Epochs of linear warm-up."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, instead of epochs."""
    warmup_lr: float = 1e-6
    """Learning rate at the first step."""
    min_lr: float = 1e-5
    """Learning rate at the end and during cool-down."""
    cooldown_epochs: int = 0
    """Epochs at `min_lr` after the schedule."""
    patience: int | None = None
    """End the run after so many evaluations in a row without a new best; null for never."""


@dataclass(frozen=True)
class EmaConfig(Checked):
    """Exponential moving average (EMA) of the weights."""

    decay: float | None = None
    """Decay per step; null for no EMA."""
    evaluate: bool = True
    """Evaluate the EMA and save it as the best weights."""


@dataclass(frozen=True)
class EvalConfig(Checked):
    """Evaluation."""

    crop: float = 0.9
    """Center crop, as a fraction of the resized image."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Resampling of validation images."""
    every: int = 1
    """Epochs between evaluations; there is one after the first epoch, too."""
    every_steps: int = 0
    """Steps between evaluations, instead of epochs; 0 to count epochs."""
    real_labels: str | None = None
    """ReaL labels: JSON list with the correct classes of each validation image, in file order."""
    class_subset: str | None = None
    """Text file with one class name per line; other classes are ignored (ImageNet-A, ImageNet-R)."""
    flip: bool = False
    """Test-time augmentation: average with the horizontally flipped image."""
    crops: Literal[1, 5] = 1
    """Center crop, or the average of center and corner crops."""


@dataclass(frozen=True)
class RuntimeConfig(Checked):
    """Devices, logging and checkpoints."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision."""
    compile: bool = False
    """Compile the model with torch.compile."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """On several devices: replicate the model (DDP) or shard its parameters (FSDP2)."""
    sync_batch_norm: bool = False
    """Synchronize batch norm over devices; CUDA only."""
    timeout: float = 600.0
    """Seconds to wait for another process, and at most 120 for data, before the run stops with an error."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Steps whose input, loss or gradient is not finite: stop the run, or skip up to three in a row."""
    wandb: str | None = None
    """Weights & Biases project to log metrics to."""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""
    save_every: int = 0
    """Steps between checkpoints, besides the one after each epoch; 0 for none."""
    keep: int = 2
    """Number of newest checkpoints to keep, besides the best."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""


@dataclass(frozen=True)
class SegmentConfig(Checked):
    """Semantic segmentation; read by task `segment` only."""

    head: Literal["semantic_fpn", "upernet"] = "semantic_fpn"
    """Segmentation head."""
    feature_norm: Literal["fresh", "none"] = "fresh"
    """A new norm on each feature level of the backbone, as in the published models, or none."""
    fpn_dim: int = 256
    """Channels of the feature pyramid (`semantic_fpn`)."""
    head_dim: int | None = None
    """Channels of the head; by default 128 for `semantic_fpn` and 512 for `upernet`."""
    dropout: float = 0.1
    """Channel dropout before the classifier."""
    auxiliary: bool = False
    """Auxiliary head on the third feature level, in training only; its loss has weight 0.4."""
    layout: Literal["auto", "ade20k", "voc", "cityscapes", "coco_stuff", "folders", "fiftyone"] = "auto"
    """Layout of the data set; `auto` recognizes it by its folders."""
    class_names: str | None = None
    """Text file with one class name per line, for a data set without class names."""
    reduce_zero_label: bool | None = None
    """Ignore label 0 and shift the others down (ADE20K); by default as the layout has it."""
    resize: tuple[int, int] | None = (2048, 512)
    """Maximum longer and shorter side that images are resized to, in pixels; null for their own size."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random resize factor in training."""
    size_divisor: int = 32
    """Round both sides up to a multiple of this in evaluation; 1 for none."""
    cat_max_ratio: float = 0.75
    """Redraw a random crop in which one class has more than this fraction, up to ten times."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue in training."""
    reduction: Literal["valid", "all"] = "valid"
    """Average the loss over labeled pixels, or over all, ignored ones too, as the published runs did."""
    ohem: float | None = None
    """Hard example mining: only pixels whose true class has a probability below this; null for all."""
    dice: float = 0.0
    """Weight of the Dice loss, added to cross-entropy."""
    class_weights: list[float] | None = None
    """Loss weight of each class."""
    inference: Literal["whole", "slide"] = "whole"
    """Evaluate whole images or sliding windows."""
    window: int = 512
    """Side of a sliding window in pixels."""
    stride: int = 341
    """Stride of sliding windows in pixels."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Multi-scale evaluation: resize factors to average over; `evaluate.flip` adds flipped images."""


@dataclass(frozen=True)
class DetectConfig(Checked):
    """Object detection and instance segmentation; read by task `detect` only."""

    head: Literal["retinanet", "faster_rcnn", "mask_rcnn"] = "retinanet"
    """Detector; `mask_rcnn` also predicts masks."""
    feature_norm: Literal["fresh", "none"] = "fresh"
    """A new norm on each feature level of the backbone, as in the published models, or none."""
    fpn_dim: int = 256
    """Channels of the feature pyramid."""
    head_dim: int | None = None
    """Channels of the head's towers and of the mask head; `fpn_dim` by default."""
    box_fc_dim: int = 1024
    """Channels of the box head's two linear layers (`faster_rcnn`, `mask_rcnn`)."""
    roi_batch_size: int = 512
    """Proposals per image that the box head is trained on; on a CPU their number decides the speed."""
    rpn_pre_nms_topk: int = 1000
    """Best candidates of each pyramid level that enter non-maximum suppression, outside training."""
    rpn_pre_nms_topk_train: int = 2000
    """The same in training (`faster_rcnn`, `mask_rcnn`)."""
    rpn_post_nms_topk: int = 1000
    """Proposals per image that enter the box head (`faster_rcnn`, `mask_rcnn`)."""
    anchor_scale: float | None = None
    """Side of the smallest anchors in strides of their level; by default 4 for `retinanet`, else 8."""
    layout: Literal["auto", "coco", "voc", "yolo"] = "auto"
    """Layout of the data set; `auto` recognizes it by its files."""
    class_names: str | None = None
    """Text file with one class name per line, for a data set without class names."""
    clip_boxes: bool = False
    """Clip boxes and outlines over the border of their image to it; by default they are errors."""
    long_side: int | None = 1333
    """Maximum longer side that images are resized to, in pixels; null for their own size."""
    short_sides: list[int] = field(default_factory=lambda: [800])
    """Maximum shorter side: a random one in training, the last in evaluation."""
    jitter: tuple[float, float] | None = None
    """Large-scale jitter: resize to a random factor of `data.image_size`, then pad or crop to it."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue in training."""
    group_by_aspect: bool = True
    """Batch wide images with wide and tall with tall ones, to pad less."""
    score_threshold: float = 0.05
    """Minimum score of a detection."""
    nms_threshold: float = 0.5
    """IoU threshold of non-maximum suppression."""
    max_detections: int = 100
    """Maximum number of detections per image."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Multi-scale evaluation: resize factors; `evaluate.flip` adds flipped images."""


@dataclass(frozen=True)
class MultilabelConfig(Checked):
    """Multi-label classification; read by task `multilabel` only."""

    layout: Literal["auto", "csv", "jsonl", "coco"] = "auto"
    """How the labels lie on disk: SPLIT.csv, SPLIT.jsonl, or COCO's objects; recognized by default."""
    class_names: str | None = None
    """Text file with one class name per line; by default the columns or labels of the training split."""
    separator: str = " "
    """What stands between the labels in a CSV column."""
    loss: Literal["bce", "asymmetric"] = "bce"
    """Binary cross-entropy, or asymmetric loss (https://arxiv.org/abs/2009.14119)."""
    gamma_pos: float = 0.0
    """Focusing of present classes in the asymmetric loss."""
    gamma_neg: float = 4.0
    """Focusing of absent classes in the asymmetric loss."""
    margin: float = 0.05
    """Probability below which absent classes count nothing in the asymmetric loss."""
    pos_weight: list[float] | None = None
    """Weight of the loss of present classes, a number for each class."""
    balance: bool = False
    """Weight present classes by absent per present training images instead."""
    threshold: float | None = None
    """Score from which on a class is predicted; null chooses for each class the one of the highest F1 on the
    validation data, and keeps it in the checkpoint."""


@dataclass(frozen=True)
class TrainConfig(Checked):
    """A training run."""

    task: Literal["classify", "multilabel", "segment", "detect"] = "classify"
    """Image classification, multi-label classification, semantic segmentation, or object detection."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    multilabel: MultilabelConfig = field(default_factory=MultilabelConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    seed: int = 42
    """Seed of everything random."""
