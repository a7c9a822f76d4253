"""What the published files of segmentation networks and detectors have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from metaformer.errors import UnknownName, WeightsError
from metaformer.weights.sources import IMAGENET_MEAN, IMAGENET_STD

Source = TypeVar("Source", bound="DenseSource")


@dataclass(frozen=True, kw_only=True)
class DenseSource:
    """One published file of a dense network's weights."""

    kind: str
    """What is on the backbone."""
    backbone: str
    """The variant under it."""
    tag: str
    """What tells these weights from others of the same network."""
    url: str
    """Where the file is published."""
    format: str
    """Its key names, a key of `metaformer.weights.formats.FORMATS`."""
    data: str
    """The data set whose classes it tells apart."""
    num_classes: int
    """How many these are."""
    image_size: tuple[int, int]
    """Height and width of what it was trained on; a detector's shorter side, and the longest of the other."""
    sha256: str = ""
    """First digits of the file's SHA-256, where its name carries them."""
    license: str = "apache-2.0"
    """SPDX name, in lower case."""

    @property
    def model(self) -> str:
        """Kind and backbone, as `create_segmenter` and `create_detector` take them."""
        return f"{self.kind}_{self.backbone}"

    @property
    def name(self) -> str:
        """`model.tag`, as they take it, too."""
        return f"{self.model}.{self.tag}"

    @property
    def file(self) -> str:
        """The published file's name."""
        return self.url.rpartition("/")[2]

    def pretrained_cfg(self) -> dict[str, Any]:
        """The same as a dictionary in timm's words, where it has some."""
        return {
            "url": self.url,
            "architecture": self.model,
            "tag": self.tag,
            "num_classes": self.num_classes,
            "data": self.data,
            "input_size": (3, *self.image_size),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "license": self.license,
        }


def find_dense_source(sources: Mapping[str, Source], model: str, tag: str = "") -> Source:
    """The source that a network, with a tag or without, means.

    Raises:
        UnknownName: the tag is not one of the network's.
        WeightsError: no weights were published for the network.
    """
    known = [source.tag for source in sources.values() if source.model == model]
    if not known:
        published = ", ".join(dict.fromkeys(source.model for source in sources.values()))
        raise WeightsError(
            f"{model}: no weights were published for it; train it, give a file of weights "
            "(checkpoint_path=), or start from those of its backbone (backbone_pretrained=True). "
            f"Published: {published}"
        )
    if tag and tag not in known:
        raise UnknownName(f"weights of {model}", tag, known)
    return sources[f"{model}.{tag or known[0]}"]
