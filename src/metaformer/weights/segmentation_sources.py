"""Every published checkpoint of a segmentation network: address, hash and mIoU, as data."""

from dataclasses import dataclass
from typing import Any

from metaformer.errors import UnknownName, WeightsError
from metaformer.weights.sources import IMAGENET_MEAN, IMAGENET_STD

MMSEGMENTATION_FILES = "https://download.openmmlab.com/mmsegmentation/v0.5/poolformer"


@dataclass(frozen=True, kw_only=True)
class SegmentationSource:
    """One published file of a segmentation network's weights."""

    kind: str
    """What is on the backbone, a key of `metaformer.dense.config.HEAD_DIMS`."""
    backbone: str
    """The variant under it."""
    tag: str
    """What tells these weights from others of the same network."""
    url: str
    """Where the file is published."""
    format: str
    """Its key names, a key of `metaformer.weights.formats.FORMATS`."""
    miou: float
    """Published mIoU in per cent: whole pictures at one scale, both sides rounded up to multiples of 32."""
    miou_unrounded: float
    """… and without the rounding."""
    miou_paper: float
    """What the paper's authors report for their own training of the same network."""
    sha256: str = ""
    """First digits of the file's SHA-256, where its name carries them."""
    licence: str = "apache-2.0"
    """SPDX name, in lower case."""
    data: str = "ade20k"
    """The data set whose classes it tells apart."""
    num_classes: int = 150
    """How many these are."""
    image_size: int = 512
    """Height and width of the crops that it was trained on."""

    @property
    def model(self) -> str:
        """Kind and backbone, as `create_segmenter` takes them."""
        return f"{self.kind}_{self.backbone}"

    @property
    def name(self) -> str:
        """`model.tag`, as `create_segmenter` takes it."""
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
            "input_size": (3, self.image_size, self.image_size),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "classifier": "head.classifier",
            "license": self.licence,
        }


# size: time and hash in the file's name, mIoU with and without rounding (mmsegmentation's README, 2022), and
# the paper's mIoU (README of PoolFormer)
POOLFORMER = {
    "s12": ("20220501_115154", "b5aa2f49", 37.07, 36.68, 37.2),
    "s24": ("20220503_222049", "394a7cf7", 40.36, 40.12, 40.3),
    "s36": ("20220501_151122", "b47e607d", 41.81, 41.61, 42.0),
    "m36": ("20220501_164230", "3dc83921", 42.35, 41.95, 42.4),
    "m48": ("20220504_003923", "64168d3b", 42.76, 42.43, 42.7),
}


def _poolformer(size: str) -> SegmentationSource:
    time, sha, miou, unrounded, paper = POOLFORMER[size]
    run = f"fpn_poolformer_{size}_8x4_512x512_40k_ade20k"
    return SegmentationSource(
        kind="semantic_fpn",
        backbone=f"poolformer_{size}",
        tag="mmseg_ade20k",
        url=f"{MMSEGMENTATION_FILES}/{run}/{run}_{time}-{sha}.pth",
        format="mmsegmentation",
        miou=miou,
        miou_unrounded=unrounded,
        miou_paper=paper,
        sha256=sha,
    )


SEGMENTATION_SOURCES: dict[str, SegmentationSource] = {
    source.name: source for source in map(_poolformer, POOLFORMER)
}
"""All sources by `kind_backbone.tag`; the first of a network is what its bare name means."""


def find_segmentation_source(model: str, tag: str = "") -> SegmentationSource:
    """The source that a network, with a tag or without, means.

    Raises:
        UnknownName: the tag is not one of the network's.
        WeightsError: no weights were published for the network.
    """
    known = [source.tag for source in SEGMENTATION_SOURCES.values() if source.model == model]
    if not known:
        published = ", ".join(dict.fromkeys(source.model for source in SEGMENTATION_SOURCES.values()))
        raise WeightsError(
            f"{model}: no weights were published for it; train it, give a file of weights "
            "(checkpoint_path=), or start from those of its backbone (backbone_pretrained=True). "
            f"Published: {published}"
        )
    if tag and tag not in known:
        raise UnknownName(f"weights of {model}", tag, known)
    return SEGMENTATION_SOURCES[f"{model}.{tag or known[0]}"]
