"""One PyTorch skeleton, any token mixer, every vision task."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaformer.backbones.config import MetaFormerConfig
    from metaformer.backbones.skeleton import MetaFormer, MetaFormerFeatures
    from metaformer.dense.config import SegmenterConfig
    from metaformer.dense.criterion import SegmentationLoss
    from metaformer.dense.segmenter import Segmenter
    from metaformer.deploy.int8.quantize import quantize
    from metaformer.deploy.optimize import optimize
    from metaformer.deploy.packaging.package import package
    from metaformer.deploy.packaging.packaged import load_package
    from metaformer.detection.config import DetectorConfig
    from metaformer.detection.detector import Detector
    from metaformer.detection.results import Detections, Targets
    from metaformer.engine.config import TrainConfig
    from metaformer.engine.evaluate import evaluate
    from metaformer.engine.predict import Predictor
    from metaformer.engine.train import train
    from metaformer.errors import MetaFormerError
    from metaformer.mixers import MIXERS
    from metaformer.models import (
        LoadReport,
        convert,
        create_detector,
        create_model,
        create_segmenter,
        from_pretrained,
        is_detector,
        is_model,
        is_segmenter,
        list_detectors,
        list_models,
        list_segmenters,
        load_weights,
        push_to_hub,
        register_timm,
        save_pretrained,
    )

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

# Each name loads its module when it is asked for: `metaformer --help` needs no torch, a backbone no timm.
_HOMES = {
    "backbones.config": ("MetaFormerConfig",),
    "backbones.skeleton": ("MetaFormer", "MetaFormerFeatures"),
    "dense.config": ("SegmenterConfig",),
    "dense.criterion": ("SegmentationLoss",),
    "dense.segmenter": ("Segmenter",),
    "deploy.optimize": ("optimize",),
    "deploy.packaging.package": ("package",),
    "deploy.packaging.packaged": ("load_package",),
    "deploy.int8.quantize": ("quantize",),
    "detection.config": ("DetectorConfig",),
    "detection.detector": ("Detector",),
    "detection.results": ("Detections", "Targets"),
    "engine.config": ("TrainConfig",),
    "engine.evaluate": ("evaluate",),
    "engine.predict": ("Predictor",),
    "engine.train": ("train",),
    "errors": ("MetaFormerError",),
    "mixers": ("MIXERS",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "models")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
