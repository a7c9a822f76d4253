"""Every published checkpoint of a segmentation network: address, hash and mIoU, as data."""

from dataclasses import dataclass
from typing import Any

from metaformer.weights.dense_source import DenseSource, find_dense_source

MMSEGMENTATION_FILES = "https://download.openmmlab.com/mmsegmentation/v0.5/poolformer"


@dataclass(frozen=True, kw_only=True)
class SegmentationSource(DenseSource):
    """One published file of a segmentation network; kinds are those of `models.segmentation.config`."""

    miou: float
    """Published mIoU in per cent: whole images at one scale, both sides rounded up to multiples of 32."""
    miou_unrounded: float
    """… and without the rounding."""
    miou_paper: float
    """What the paper's authors report for their own training of the same network."""
    data: str = "ade20k"
    num_classes: int = 150
    image_size: tuple[int, int] = (512, 512)

    def pretrained_cfg(self) -> dict[str, Any]:
        """The same as a dictionary in timm's words, where it has some."""
        return super().pretrained_cfg() | {"classifier": "head.classifier"}


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
    """The source that a network, with a tag or without, means; see `find_dense_source`."""
    return find_dense_source(SEGMENTATION_SOURCES, model, tag)
