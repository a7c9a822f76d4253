"""Token mixers: modules that take and return (B, C, H, W), one file each, found by discovery."""

import importlib
import pkgutil

from torch import nn

from metaformer.registry import Registry

MIXERS: Registry[nn.Module] = Registry("mixer")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
