"""One PyTorch skeleton, any token mixer, every vision task."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `X as X` exports a name to type checkers
    from metaformer.backbones.config import MetaFormerConfig as MetaFormerConfig
    from metaformer.backbones.metaformer import MetaFormer as MetaFormer
    from metaformer.backbones.metaformer import MetaFormerFeatures as MetaFormerFeatures
    from metaformer.config import TrainConfig as TrainConfig
    from metaformer.deploy.export.write import export as export
    from metaformer.deploy.int8.quantize import quantize as quantize
    from metaformer.deploy.optimize import optimize as optimize
    from metaformer.deploy.packaging.load import load_package as load_package
    from metaformer.deploy.packaging.write import package as package
    from metaformer.deploy.server.server import serve as serve
    from metaformer.errors import MetaFormerError as MetaFormerError
    from metaformer.factory import create_detector as create_detector
    from metaformer.factory import create_model as create_model
    from metaformer.factory import create_segmenter as create_segmenter
    from metaformer.factory import is_detector as is_detector
    from metaformer.factory import is_model as is_model
    from metaformer.factory import is_segmenter as is_segmenter
    from metaformer.factory import list_detectors as list_detectors
    from metaformer.factory import list_models as list_models
    from metaformer.factory import list_segmenters as list_segmenters
    from metaformer.inference.evaluate import evaluate as evaluate
    from metaformer.inference.explain import explain as explain
    from metaformer.inference.predictor import Predictor as Predictor
    from metaformer.inference.receptive_field import measure_receptive_field as measure_receptive_field
    from metaformer.mixers import MIXERS as MIXERS
    from metaformer.models.detection.config import DetectorConfig as DetectorConfig
    from metaformer.models.detection.detector import Detector as Detector
    from metaformer.models.detection.structures import Detections as Detections
    from metaformer.models.detection.structures import Targets as Targets
    from metaformer.models.segmentation.config import SegmenterConfig as SegmenterConfig
    from metaformer.models.segmentation.loss import SegmentationLoss as SegmentationLoss
    from metaformer.models.segmentation.segmenter import Segmenter as Segmenter
    from metaformer.recipes import load_recipe as load_recipe
    from metaformer.study.execute import run_study as run_study
    from metaformer.study.study_dir import read_study as read_study
    from metaformer.tasks.demo import write_demo_data as write_demo_data
    from metaformer.training.callbacks import Callback as Callback
    from metaformer.training.callbacks import TrainState as TrainState
    from metaformer.training.train import TrainResult as TrainResult
    from metaformer.training.train import find_learning_rate as find_learning_rate
    from metaformer.training.train import train as train
    from metaformer.weights.convert import convert as convert
    from metaformer.weights.hub import from_pretrained as from_pretrained
    from metaformer.weights.hub import push_to_hub as push_to_hub
    from metaformer.weights.hub import save_pretrained as save_pretrained
    from metaformer.weights.load import LoadReport as LoadReport
    from metaformer.weights.load import load_weights as load_weights
    from metaformer.weights.timm_registry import register_timm as register_timm

# Each name loads its module on first use: `metaformer --help` needs no torch, a backbone no timm.
PUBLIC = {
    "backbones.config": ("MetaFormerConfig",),
    "backbones.metaformer": ("MetaFormer", "MetaFormerFeatures"),
    "config": ("TrainConfig",),
    "deploy.export.write": ("export",),
    "deploy.int8.quantize": ("quantize",),
    "deploy.optimize": ("optimize",),
    "deploy.packaging.write": ("package",),
    "deploy.packaging.load": ("load_package",),
    "deploy.server.server": ("serve",),
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
    "inference.explain": ("explain",),
    "inference.predictor": ("Predictor",),
    "inference.receptive_field": ("measure_receptive_field",),
    "mixers": ("MIXERS",),
    "models.detection.config": ("DetectorConfig",),
    "models.detection.detector": ("Detector",),
    "models.detection.structures": ("Detections", "Targets"),
    "models.segmentation.config": ("SegmenterConfig",),
    "models.segmentation.loss": ("SegmentationLoss",),
    "models.segmentation.segmenter": ("Segmenter",),
    "recipes": ("load_recipe",),
    "study.execute": ("run_study",),
    "study.study_dir": ("read_study",),
    "tasks.demo": ("write_demo_data",),
    "training.callbacks": ("Callback", "TrainState"),
    "training.train": ("TrainResult", "find_learning_rate", "train"),
    "weights.convert": ("convert",),
    "weights.hub": ("from_pretrained", "push_to_hub", "save_pretrained"),
    "weights.load": ("LoadReport", "load_weights"),
    "weights.timm_registry": ("register_timm",),
}
"""Public names by the module that defines them."""


__all__ = [name for names in PUBLIC.values() for name in names]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("metaformer")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next(module for module, names in PUBLIC.items() if name in names)
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
