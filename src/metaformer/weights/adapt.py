"""Adapt tensors to a model with other input channels, classes or grid."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.errors import MissingPackage, WeightsError

Grid = tuple[int, int]
CLASSES_21K = 21841
BOXES, BACKGROUND = "box_predictor.bbox_pred.weight", "box_predictor.cls_score.weight"
ANCHORS, ANCHOR_CLASSES = (
    "head.regression_head.bbox_reg.weight",
    "head.classification_head.cls_logits.weight",
)
P6 = "neck.extra.p6.weight"
LAST_LAYERS = (
    "head.fc.fc2",
    "head.fc",
    "head.classifier",
    "auxiliary.classifier",
    "head.classification_head.cls_logits",
    "box_predictor.cls_score",
    "box_predictor.bbox_pred",
    "mask_predictor.mask_fcn_logits",
)
"""Layers with outputs for each class; a classifier has one of the first two."""


def adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt a stem (O, I, k, k) to other input channels, as timm does.

    One channel gets the sum; more get the channels in turn, scaled so that equal inputs give the same output.
    """
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    channels = weight.shape[1]
    repeated = weight.repeat(1, math.ceil(in_chans / channels), 1, 1)[:, :in_chans]
    return repeated * (channels / in_chans)


def class_map_21k() -> list[int | None]:
    """Index of each ImageNet-1K class among the 21,841 of ImageNet-21K (fall 2011); None for 850.

    The class lists are timm's; the mapping is the one that the authors of the baselines publish.

    Raises:
        MissingPackage: timm is not installed.
    """
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise MissingPackage("timm", None, "mapping 21,841 classes to 1,000") from error
    index = {synset: i for i, synset in enumerate(ImageNetInfo("imagenet-22k").label_names())}
    return [index.get(synset) for synset in ImageNetInfo("imagenet-1k").label_names()]


def map_21k_to_1k(value: Tensor) -> Tensor:
    """Pick the 1,000 classes' rows out of a classifier's weight (21841, C) or bias (21841,).

    The one class without a counterpart, 850, gets the mean of all rows, as in the authors' script.

    Raises:
        WeightsError: the classifier does not have 21,841 classes.
    """
    if _rows(value) != CLASSES_21K:
        raise WeightsError(f"classifier of {_rows(value)} classes: only one of 21,841 is mapped to 1,000")
    rows = class_map_21k()
    mapped = value[torch.tensor([0 if row is None else row for row in rows])]
    for i, row in enumerate(rows):
        if row is None:
            mapped[i] = value.mean(0)
    return mapped


def class_layers(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of weights and biases with outputs for each class, of those that are in both states."""
    names = [f"{layer}.{part}" for layer in LAST_LAYERS for part in ("weight", "bias")]
    return [name for name in names if name in state and name in other]


def class_count(state: Mapping[str, Tensor]) -> int:
    """Number of classes of a network's tensors, without a detector's background; 0 for none."""
    if BACKGROUND in state:
        return _rows(state[BACKGROUND]) - 1
    if ANCHOR_CLASSES in state and ANCHORS in state:
        return _rows(state[ANCHOR_CLASSES]) // max(1, _rows(state[ANCHORS]) // 4)
    layers = (state.get(f"{layer}.weight") for layer in LAST_LAYERS)
    return next((_rows(layer) for layer in layers if layer is not None), 0)


def _rows(value: Tensor) -> int:
    """Length of the first dimension; 0 where a damaged file has a single number."""
    return len(value) if value.ndim else 0


def refuse_torchvision(state: Mapping[str, Tensor]) -> None:
    """Refuse a detector in torchvision's arithmetic: the same names, trained to mean something else.

    There the background is the first class and has a box of its own, and RetinaNet's P6 is made of P5.

    Raises:
        WeightsError: the shapes of the tensors say so.
    """
    parts = (name.split(".")[2] for name in state if name.startswith("neck.laterals."))
    levels = [int(part) for part in parts if part.isdecimal()]
    coarsest = state.get(f"neck.laterals.{max(levels, default=0)}.weight")
    both = {BOXES, BACKGROUND} <= state.keys()
    background_box = both and _rows(state[BOXES]) == 4 * _rows(state[BACKGROUND])
    made_of_p5 = coarsest is not None and P6 in state and state[P6].shape[1:2] != coarsest.shape[1:2]
    if background_box or made_of_p5:
        raise WeightsError(
            "a detector in torchvision's arithmetic (background first, P6 made of P5), and this library "
            "computes mmdetection's alone: load its backbone alone (backbone_checkpoint=) and train the heads"
        )


def resample_grid(value: Tensor, shape: torch.Size, grid: Grid) -> Tensor | None:
    """Resample a position embedding, or a matrix or bias over positions, to another grid; None for others.

    A matrix becomes: resample to the old grid, mix, resample back; what `grid_mode="interpolate"` computes.

    Args:
        value: (1, C, h, w), (N, N) or (N,) of a square old grid.
        shape: the shape wanted.
        grid: height and width of the new grid.
    """
    if value.ndim == 4 and len(shape) == 4 and value.shape[:2] == shape[:2]:
        return F.interpolate(value.float(), grid, mode="bicubic", align_corners=False).to(value.dtype)
    side = math.isqrt(_rows(value))
    if value.ndim not in (1, 2) or side * side != value.shape[0] or len(set(value.shape)) != 1:
        return None
    old = (side, side)
    up = _resampling(old, grid, value)
    if value.ndim == 1:
        return up @ value
    return up @ value @ _resampling(grid, old, value)


def _resampling(source: Grid, target: Grid, like: Tensor) -> Tensor:
    """The matrix (target positions, source positions) of bilinear resampling."""
    count = source[0] * source[1]
    images = torch.eye(count, dtype=like.dtype).reshape(count, 1, *source)
    return F.interpolate(images, target, mode="bilinear", align_corners=False).reshape(count, -1).T
