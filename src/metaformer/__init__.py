"""One PyTorch skeleton, any token mixer, every vision task."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaformer.backbones.config import MetaFormerConfig
    from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
    from metaformer.config import TrainConfig
    from metaformer.deploy.int8.quantize import quantize
    from metaformer.deploy.optimize import optimize
    from metaformer.deploy.packaging.package import package
    from metaformer.deploy.packaging.packaged import load_package
    from metaformer.errors import MetaFormerError
    from metaformer.factory import (
        create_detector,
        create_model,
        create_segmenter,
        is_detector,
        is_model,
        is_segmenter,
        list_detectors,
        list_models,
        list_segmenters,
    )
    from metaformer.inference.evaluate import evaluate
    from metaformer.inference.predictor import Predictor
    from metaformer.mixers import MIXERS
    from metaformer.models.detection.config import DetectorConfig
    from metaformer.models.detection.detector import Detector
    from metaformer.models.detection.structures import Detections, Targets
    from metaformer.models.segmentation.config import SegmenterConfig
    from metaformer.models.segmentation.loss import SegmentationLoss
    from metaformer.models.segmentation.segmenter import Segmenter
    from metaformer.training.train import train
    from metaformer.weights.convert import convert
    from metaformer.weights.hub import from_pretrained, push_to_hub, save_pretrained
    from metaformer.weights.load import load_weights
    from metaformer.weights.report import LoadReport
    from metaformer.weights.timm_registry import register_timm

__all__ = [
    "MIXERS",
    "Detections",
    "Detector",
    "DetectorConfig",
    "LoadReport",
    "MetaFormer",
    "MetaFormerConfig",
    "MetaFormerError",
    "MetaFormerFeatures",
    "Predictor",
    "SegmentationLoss",
    "Segmenter",
    "SegmenterConfig",
    "Targets",
    "TrainConfig",
    "convert",
    "create_detector",
    "create_model",
    "create_segmenter",
    "evaluate",
    "from_pretrained",
    "is_detector",
    "is_model",
    "is_segmenter",
    "list_detectors",
    "list_models",
    "list_segmenters",
    "load_package",
    "load_weights",
    "optimize",
    "package",
    "push_to_hub",
    "quantize",
    "register_timm",
    "save_pretrained",
    "train",
]

# Each name loads its module on first use: `metaformer --help` needs no torch, a backbone no timm.
_MODULES = {
    "backbones.config": ("MetaFormerConfig",),
    "backbones.metaformer": ("MetaFormer", "MetaFormerFeatures"),
    "config": ("TrainConfig",),
    "deploy.int8.quantize": ("quantize",),
    "deploy.optimize": ("optimize",),
    "deploy.packaging.package": ("package",),
    "deploy.packaging.packaged": ("load_package",),
    "errors": ("MetaFormerError",),
    "factory": (
        "create_detector",
        "create_model",
        "create_segmenter",
        "is_detector",
        "is_model",
        "is_segmenter",
        "list_detectors",
        "list_models",
        "list_segmenters",
    ),
    "inference.evaluate": ("evaluate",),
    "inference.predictor": ("Predictor",),
    "mixers": ("MIXERS",),
    "models.detection.config": ("DetectorConfig",),
    "models.detection.detector": ("Detector",),
    "models.detection.structures": ("Detections", "Targets"),
    "models.segmentation.config": ("SegmenterConfig",),
    "models.segmentation.loss": ("SegmentationLoss",),
    "models.segmentation.segmenter": ("Segmenter",),
    "training.train": ("train",),
    "weights.convert": ("convert",),
    "weights.hub": ("from_pretrained", "push_to_hub", "save_pretrained"),
    "weights.load": ("load_weights",),
    "weights.report": ("LoadReport",),
    "weights.timm_registry": ("register_timm",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("metaformer")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next(module for module, names in _MODULES.items() if name in names)
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
