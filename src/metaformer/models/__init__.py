"""Models by name, and their weights: `create_model`, `create_detector`, `load_weights` and their like."""

from metaformer.models.classifiers import create_model, is_model, list_models, model_config
from metaformer.models.detectors import create_detector, is_detector, list_detectors, split_detector
from metaformer.models.segmenters import create_segmenter, is_segmenter, list_segmenters, split_segmenter
from metaformer.weights.convert import convert
from metaformer.weights.hub import from_pretrained, push_to_hub, save_pretrained
from metaformer.weights.load import load_weights
from metaformer.weights.report import LoadReport
from metaformer.weights.timm_registry import register_timm

__all__ = [
    "LoadReport",
    "convert",
    "create_detector",
    "create_model",
    "create_segmenter",
    "from_pretrained",
    "is_detector",
    "is_model",
    "is_segmenter",
    "list_detectors",
    "list_models",
    "list_segmenters",
    "load_weights",
    "model_config",
    "push_to_hub",
    "register_timm",
    "save_pretrained",
    "split_detector",
    "split_segmenter",
]
