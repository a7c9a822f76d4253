"""Where a network's classes show in its tensors, by our names."""

from collections.abc import Mapping

from torch import Tensor

from metaformer.errors import WeightsError

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


def class_layers(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of weights and biases with outputs for each class, of those that are in both states."""
    names = [f"{layer}.{part}" for layer in LAST_LAYERS for part in ("weight", "bias")]
    return [name for name in names if name in state and name in other]


def class_count(state: Mapping[str, Tensor]) -> int:
    """How many classes a network's tensors tell apart, a detector's background not counted; 0 for none."""
    if BACKGROUND in state:
        return state[BACKGROUND].shape[0] - 1
    if ANCHOR_CLASSES in state and ANCHORS in state:
        return state[ANCHOR_CLASSES].shape[0] // max(1, state[ANCHORS].shape[0] // 4)
    layers = (state.get(f"{layer}.weight") for layer in LAST_LAYERS)
    return next((layer.shape[0] for layer in layers if layer is not None), 0)


def refuse_torchvision(state: Mapping[str, Tensor]) -> None:
    """Refuse a detector in torchvision's arithmetic: the same names, trained to mean something else.

    There the background is the first class and has a box of its own, and RetinaNet's P6 is made of P5.

    Raises:
        WeightsError: the shapes of the tensors say so.
    """
    levels = [int(name.split(".")[2]) for name in state if name.startswith("neck.laterals.")]
    channels = state[f"neck.laterals.{max(levels)}.weight"].shape[1] if levels else 0
    background_box = {BOXES, BACKGROUND} <= state.keys() and len(state[BOXES]) == 4 * len(state[BACKGROUND])
    if background_box or (levels and P6 in state and state[P6].shape[1] != channels):
        raise WeightsError(
            "a detector in torchvision's arithmetic (background first, P6 made of P5), and this library "
            "computes mmdetection's alone: load its backbone alone (backbone_checkpoint=) and train the heads"
        )
