"""A torchvision detector on a backbone of this library: `python examples/torchvision_detector.py`."""

import timm
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import metaformer

metaformer.register_timm()
features = timm.create_model("mf_poolformer_s12", features_only=True)
levels = {f"stages_{i}": str(i) for i in range(4)}
backbone = BackboneWithFPN(features, levels, features.feature_info.channels(), out_channels=256)
detector = MaskRCNN(backbone, num_classes=5, min_size=128, max_size=160).eval()
found = detector([torch.rand(3, 128, 160)])[0]
print({name: tuple(value.shape) for name, value in found.items()})
