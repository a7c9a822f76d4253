"""Where a network's classes show in its tensors, by our names."""

from collections.abc import Mapping

from torch import Tensor

BOXES, BACKGROUND = "box_predictor.bbox_pred.weight", "box_predictor.cls_score.weight"
ANCHORS, ANCHOR_CLASSES = (
    "head.regression_head.bbox_reg.weight",
    "head.classification_head.cls_logits.weight",
)
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


def compat_of(state: Mapping[str, Tensor]) -> str | None:
    """Whose detector the tensors are of, `mmdet` or `torchvision`; None where they do not tell.

    torchvision's has a box for its background too, and makes RetinaNet's P6 of P5 instead of the last map.
    """
    if BACKGROUND in state and BOXES in state:
        return "torchvision" if state[BOXES].shape[0] == 4 * state[BACKGROUND].shape[0] else "mmdet"
    p6 = state.get("neck.extra.p6.weight")
    laterals = {int(name.split(".")[2]): name for name in state if name.startswith("neck.laterals.")}
    if p6 is None or not laterals:
        return None
    outputs, inputs = state[f"neck.laterals.{max(laterals)}.weight"].shape[:2]
    if inputs == outputs:
        return None
    return "mmdet" if p6.shape[1] == inputs else "torchvision"
