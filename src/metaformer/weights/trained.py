"""What is known of how a network's initial weights were trained, before they are read."""

from pathlib import Path
from typing import NamedTuple

from metaformer.config import ModelConfig
from metaformer.errors import MetaFormerError
from metaformer.weights.saved import read_card
from metaformer.weights.sources import ALIASES, SOURCES, Source, find_source


class Trained(NamedTuple):
    """Size and crop of the images that weights were evaluated on."""

    source: str
    """What the weights are called."""
    image_size: int
    crop: float


def trained_with(network: ModelConfig) -> Trained | None:
    """Size and crop of a classifier's initial weights: of the published ones, or by the card of a checkpoint.

    A checkpoint is one of ours (run, directory, a file in one), a file beside timm's `config.json`, or a file
    with the name of a published one.
    """
    if network.checkpoint is not None:
        path = Path(network.checkpoint).expanduser()
        return _of_card(path) or _of_name(path.name)
    if not network.pretrained:
        return None
    try:
        return _of_source(find_source(network.name))
    except MetaFormerError:  # whoever builds the network says so
        return None


def _of_source(source: Source) -> Trained | None:
    return None if source.data else Trained(source.name, source.image_size[0], source.crop_pct)


def _of_name(name: str) -> Trained | None:
    original = name.removesuffix(".pth").removesuffix(".tar").removesuffix(".pth")
    source = SOURCES.get(ALIASES.get(original, ""))
    return None if source is None else _of_source(source)


def _of_card(path: Path) -> Trained | None:
    try:
        card = read_card(path)
        cfg = (card or {})["pretrained_cfg"]
        size, crop = cfg["input_size"][-1], cfg["crop_pct"]
    except (MetaFormerError, LookupError, TypeError):
        return None
    sane = type(size) is int and 0 < size <= 4096 and type(crop) in (int, float) and 0 < crop <= 1
    return Trained(str(path), size, float(crop)) if sane else None
