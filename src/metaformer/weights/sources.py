"""Every published checkpoint: address, hash, license, preprocessing and metrics, as data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from metaformer.errors import ConfigError, UnknownName, WeightsError
from metaformer.serialize import shown

POOLFORMER_RELEASE = "https://github.com/sail-sg/poolformer/releases/download/v1.0"
BASELINES_FILES = "https://huggingface.co/sail/dl/resolve/main"
CYCLEMLP_RELEASE = "https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1"
OPENMMLAB_FILES = "https://download.openmmlab.com"
DRIVE = "https://drive.usercontent.google.com/download?id={id}&export=download&confirm=t"
"""Direct download of a file of Google Drive, without the page in front of it; no hashes were published."""
SIZES = ("s12", "s24", "s36", "m36", "m48")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One published file of weights."""

    model: str
    """Name of the network: a variant, `semantic_fpn_VARIANT`, `mask_rcnn_VARIANT`, …"""
    tag: str
    """What distinguishes these weights from others of the same network; timm's tag where it has one."""
    url: str
    """Where the file is published."""
    format: str
    """Its key names, a key of `metaformer.weights.formats.FORMATS`."""
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Published metrics in per cent: `top1` and `top5` on ImageNet-1K, `miou`, `box_ap`, `mask_ap`."""
    filename: str = ""
    """The file's name, where the address does not end in it."""
    sha256: str = ""
    """First digits of the file's SHA-256, where its name carries them."""
    license: str = "apache-2.0"
    """SPDX name, in lower case."""
    data: str = ""
    """Data set whose classes the network has, where it is not ImageNet."""
    num_classes: int = 1000
    """Number of those classes."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width of the input; of a detector, shorter side and largest longer side."""
    crop_pct: float = 1.0
    """Share of the resized image that the center crop keeps; the shorter edge is image_size / crop_pct."""
    interpolation: str = "bicubic"
    """Resampling before the crop."""
    notes: str = ""
    """What is worth knowing before using it."""

    @property
    def name(self) -> str:
        """`model.tag`, as the `create_*` functions take it."""
        return f"{self.model}.{self.tag}"

    @property
    def file(self) -> str:
        """The file's name; Hugging Face's are all the same, so theirs is preceded by the repository's."""
        repository, last = self.url.split("/")[-4], self.url.split("/")[-1]
        return self.filename or (last if last != "model.safetensors" else f"{repository}_{last}")

    @property
    def original(self) -> str:
        """The name that the original repository gives to these weights."""
        return self.file.removesuffix(".tar").removesuffix(".pth").removesuffix("_model.safetensors")


# model: top-1 (README), top-1 and top-5 to two digits (mmpretrain), and the hash in mmpretrain's file name
POOLFORMER = {
    "s12": (77.2, 77.24, 93.51, "f8d83051"),
    "s24": (80.3, 80.33, 95.05, "d7055904"),
    "s36": (81.4, 81.43, 95.45, "d78ff3e8"),
    "m36": (82.1, 82.14, 95.71, "c55e0949"),
    "m48": (82.5, 82.51, 95.95, "9378f3eb"),
}
# model: file, top-1 (paper Table 5), crop (models/metaformer.py)
HYBRIDS = {
    "metaformer_id_s12": ("metaformer_id_s12", 74.3, 0.9),
    "metaformer_pppa_s12": ("metaformer_pppa_s12_224", 78.3, 0.95),
    "metaformer_ppaa_s12": ("metaformer_ppaa_s12_224", 81.0, 0.95),
    "metaformer_pppf_s12": ("metaformer_pppf_s12_224", 77.5, 0.9),
    "metaformer_ppff_s12": ("metaformer_ppff_s12_224", 77.9, 0.95),
}
CYCLEMLP = {"b1": 78.9, "b2": 81.6, "b3": 82.4, "b4": 83.0, "b5": 83.2}
# family: top-1 by size (README of the baselines)
LINEAR_BASELINES = {
    "identityformer": (74.6, 78.2, 79.3, 80.0, 80.4),
    "randformer": (76.6, 78.2, 79.5, 81.2, 81.4),
    "poolformerv2": (78.0, 80.7, 81.6, 82.2, 82.6),
}
# the original suffix, timm's tag, image size; the first is what a name without a tag means
RECIPES = (
    ("", "sail_in1k", 224),
    ("_384", "sail_in1k_384", 384),
    ("_in21ft1k", "sail_in22k_ft_in1k", 224),
    ("_384_in21ft1k", "sail_in22k_ft_in1k_384", 384),
    ("_in21k", "sail_in22k", 224),
)
# model: top-1 by recipe (README of the baselines)
CONV_BASELINES: dict[str, tuple[float | None, ...]] = {
    "convformer_s18": (83.0, 84.4, 83.7, 85.0, None),
    "convformer_s36": (84.1, 85.4, 85.4, 86.4, None),
    "convformer_m36": (84.5, 85.6, 86.1, 86.9, None),
    "convformer_b36": (84.8, 85.7, 87.0, 87.6, None),
    "caformer_s18": (83.6, 85.0, 84.1, 85.4, None),
    "caformer_s36": (84.5, 85.7, 85.8, 86.9, None),
    "caformer_m36": (85.2, 86.2, 86.6, 87.5, None),
    "caformer_b36": (85.5, 86.4, 87.4, 88.1, None),
}
# family, size: timm's tags with image size, share of the resized image that is seen, and top-1 (READMEs of
# ConvNeXt, InceptionNeXt, which has both attos', and MambaOut; the rw models are timm's, with its results)
TIMM: dict[str, dict[str, dict[str, tuple[int, float, float | None]]]] = {
    "convnext": {
        "atto": {"d2_in1k": (224, 0.875, 75.7)},
        **{
            size: {
                "fb_in1k": (224, 0.875, alone),
                "fb_in22k_ft_in1k": (224, 0.875, tuned),
                "fb_in22k_ft_in1k_384": (384, 1.0, larger),
                "fb_in22k": (224, 0.875, None),
            }
            for size, alone, tuned, larger in (
                ("tiny", 82.1, 82.9, 84.1),
                ("small", 83.1, 84.6, 85.8),
                ("base", 83.8, 85.8, 86.8),
                ("large", 84.3, 86.6, 87.5),
            )
        },
        "xlarge": {
            "fb_in22k_ft_in1k": (224, 0.875, 87.0),
            "fb_in22k_ft_in1k_384": (384, 1.0, 87.8),
            "fb_in22k": (224, 0.875, None),
        },
    },
    "inception_next": {
        "atto": {"sail_in1k": (224, 0.875, 75.3)},
        "tiny": {"sail_in1k": (224, 0.875, 82.3)},
        "small": {"sail_in1k": (224, 0.875, 83.5)},
        "base": {"sail_in1k": (224, 0.95, 84.0), "sail_in1k_384": (384, 1.0, 85.2)},
    },
    "mambaout": {
        "femto": {"in1k": (224, 1.0, 78.9)},
        "kobe": {"in1k": (224, 1.0, 80.0)},
        "tiny": {"in1k": (224, 1.0, 82.7)},
        "small": {"in1k": (224, 1.0, 84.1)},
        "base": {"in1k": (224, 1.0, 84.2)},
        "small_rw": {"sw_e450_in1k": (224, 1.0, 84.0)},
        "base_short_rw": {"sw_e500_in1k": (224, 0.95, 84.4)},
        "base_tall_rw": {"sw_e500_in1k": (224, 0.95, 84.4)},
        "base_wide_rw": {"sw_e500_in1k": (224, 0.95, 84.5)},
        "base_plus_rw": {
            "sw_e150_in12k_ft_in1k": (224, 1.0, 86.6),
            "sw_e150_r384_in12k_ft_in1k": (384, 1.0, 87.5),
        },
    },
}
# size: time and hash in the file's name, mIoU with and without rounding the image's sides up to multiples
# of 32 (mmsegmentation's README, 2022), and what PoolFormer's authors report for their own training
SEMANTIC_FPN = {
    "s12": ("20220501_115154", "b5aa2f49", 37.07, 36.68, 37.2),
    "s24": ("20220503_222049", "394a7cf7", 40.36, 40.12, 40.3),
    "s36": ("20220501_151122", "b47e607d", 41.81, 41.61, 42.0),
    "m36": ("20220501_164230", "3dc83921", 42.35, 41.95, 42.4),
    "m48": ("20220504_003923", "64168d3b", 42.76, 42.43, 42.7),
}
# file (README of PoolFormer's detection) and average precision (paper, table 3) of boxes: mean, at IoU .5, at
# IoU .75, for RetinaNet also of small, medium and large objects; and of masks
DETECTORS: dict[tuple[str, str], tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    ("retinanet", "s12"): ("1GKx4jbxdO4ClagPXXt7CoomrV4pOpqul", (36.2, 56.2, 38.2, 20.8, 39.1, 48.0), ()),
    ("retinanet", "s24"): ("1EjsWpdopem-xeLndPQnQcHp8aoEUHQXR", (38.9, 59.7, 41.3, 23.3, 42.1, 51.8), ()),
    ("retinanet", "s36"): ("1EgJDCg7LXXnHdGdJaHyEnoBPm-fNG2bt", (39.5, 60.5, 41.8, 22.5, 42.9, 52.4), ()),
    ("mask_rcnn", "s12"): ("1-GSkqaS3SovfCVDsH8CzS1DikPX3cFTY", (37.3, 59.0, 40.1), (34.6, 55.8, 36.9)),
    ("mask_rcnn", "s24"): ("10Br62EU-VErQq6rP67sf4qXJIBLOnmLT", (40.1, 62.2, 43.4), (37.0, 59.1, 39.6)),
    ("mask_rcnn", "s36"): ("1LyJxcO0fw2hwZg9Z--Zbjbw3W7U4JyqT", (41.0, 63.1, 44.8), (37.7, 60.1, 40.0)),
}
AP = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
SQUASH_NOTE = "evaluated by its authors on images resized to a square, whatever their shape"
RANDOM_NOTE = "the frozen random matrices belong to 14×14 and 7×7 positions: 224×224 pixels"


def _poolformer() -> Iterator[Source]:
    for size, (top1, top1_two_digits, top5, sha) in POOLFORMER.items():
        model, small = f"poolformer_{size}", size.startswith("s")
        yield Source(
            model=model,
            tag="sail_in1k",
            url=f"{POOLFORMER_RELEASE}/{model}.pth.tar",
            format="poolformer",
            metrics={"top1": top1},
            crop_pct=0.9 if small else 0.95,
        )
        yield Source(
            model=model,
            tag="sail_in1k_hf",
            url=f"https://huggingface.co/sail/{model}/resolve/main/model.safetensors",
            format="huggingface",
            metrics={"top1": top1},
            crop_pct=0.9 if small else 0.95,
            notes="the same weights under Hugging Face's names",
        )
        yield Source(
            model=model,
            tag="mmpretrain_in1k",
            url=f"{OPENMMLAB_FILES}/mmclassification/v0/poolformer/poolformer-{size}_3rdparty_32xb128_in1k_20220414-{sha}.pth",
            format="mmpretrain",
            sha256=sha,
            metrics={"top1": top1_two_digits, "top5": top5},
            crop_pct=224 / (248 if small else 236),
            notes="the same weights under mmpretrain's names; the shorter edge is 248 (S) or 236 (M) pixels",
        )
    for model, (file, top1, crop) in HYBRIDS.items():
        yield Source(
            model=model,
            tag="sail_in1k",
            url=f"{POOLFORMER_RELEASE}/{file}.pth.tar",
            format="poolformer",
            metrics={"top1": top1},
            crop_pct=crop,
        )


def _cyclemlp() -> Iterator[Source]:
    for size, top1 in CYCLEMLP.items():
        yield Source(
            model=f"cyclemlp_{size}",
            tag="in1k",
            url=f"{CYCLEMLP_RELEASE}/CycleMLP_{size.upper()}.pth",
            format="cyclemlp",
            metrics={"top1": top1},
            license="mit",
            crop_pct=0.875,
            notes="evaluated after a resize to 256 pixels, whatever the code's default_cfg says",
        )


def _baselines() -> Iterator[Source]:
    for family, tops in LINEAR_BASELINES.items():
        for size, top1 in zip(SIZES, tops, strict=True):
            yield Source(
                model=f"{family}_{size}",
                tag="sail_in1k",
                url=f"{BASELINES_FILES}/{family}/{family}_{size}.pth",
                format="baselines",
                metrics={"top1": top1},
                notes=RANDOM_NOTE if family == "randformer" else "",
            )
    for model, by_recipe in CONV_BASELINES.items():
        for (suffix, tag, pixels), accuracy in zip(RECIPES, by_recipe, strict=True):
            yield Source(
                model=model,
                tag=tag,
                url=f"{BASELINES_FILES}/{model.split('_')[0]}/{model}{suffix}.pth",
                format="baselines",
                metrics={} if accuracy is None else {"top1": accuracy},
                num_classes=21841 if accuracy is None else 1000,
                image_size=(pixels, pixels),
            )


def _timm() -> Iterator[Source]:
    models = ((family, f"{family}_{size}", rows) for family in TIMM for size, rows in TIMM[family].items())
    for family, model, rows in models:
        for tag, (pixels, crop, top1) in rows.items():
            squashed = pixels == 384 and family != "inception_next"
            yield Source(
                model=model,
                tag=tag,
                url=f"https://huggingface.co/timm/{model}.{tag}/resolve/main/model.safetensors",
                format=f"timm_{family}",
                metrics={} if top1 is None else {"top1": top1},
                num_classes=21841 if top1 is None else 1000,
                image_size=(pixels, pixels),
                crop_pct=crop,
                notes=SQUASH_NOTE if squashed else "",
            )


def _segmenters() -> Iterator[Source]:
    for size, (time, sha, miou, unrounded, paper) in SEMANTIC_FPN.items():
        run = f"fpn_poolformer_{size}_8x4_512x512_40k_ade20k"
        yield Source(
            model=f"semantic_fpn_poolformer_{size}",
            tag="mmseg_ade20k",
            url=f"{OPENMMLAB_FILES}/mmsegmentation/v0.5/poolformer/{run}/{run}_{time}-{sha}.pth",
            format="mmsegmentation",
            metrics={"miou": miou, "miou_unrounded": unrounded, "miou_paper": paper},
            sha256=sha,
            data="ade20k",
            num_classes=150,
            image_size=(512, 512),
        )


def _detectors() -> Iterator[Source]:
    for (kind, size), (file, *precision) in DETECTORS.items():
        model = f"{kind}_poolformer_{size}"
        named = {
            f"{of}_{name}": value
            for of, values in zip(("box", "mask"), precision, strict=True)
            for name, value in zip(AP, values, strict=False)
        }
        yield Source(
            model=model,
            tag="sail_coco_1x",
            url=DRIVE.format(id=file),
            filename=f"{model}_fpn_1x_coco.pth",
            format="mmdetection",
            metrics=named,
            data="coco",
            num_classes=80,
            image_size=(800, 1333),
        )


SOURCES: dict[str, Source] = {
    source.name: source
    for table in (_poolformer, _cyclemlp, _baselines, _timm, _segmenters, _detectors)
    for source in table()
}
"""All sources by `model.tag`; the first of a model is what its bare name means."""

ALIASES: dict[str, str] = {
    **{
        source.original: source.name
        for source in SOURCES.values()
        if not source.data and source.original not in (source.model, source.name)
    },
    **{f"CycleMLP_{size}": f"cyclemlp_{size[0]}" for size in ("tiny", "small", "base")},
}
"""Names of the original repositories (`caformer_s18_384_in21ft1k`) to ours."""


def tags(model: str) -> list[str]:
    """Tags of a network's published weights, the default first."""
    return [source.tag for source in SOURCES.values() if source.model == model]


def split_name(name: str) -> tuple[str, str]:
    """Split `model.tag` or an original repository's name into model and tag; the tag may be empty.

    Raises:
        ConfigError: it is no text.
    """
    if not isinstance(name, str):
        raise ConfigError(f"name: {shown(name)} must be the name of a model")
    model, _, tag = ALIASES.get(name, name).partition(".")
    return model, tag


def find_source(name: str) -> Source:
    """The source that `model`, `model.tag` or an original name means.

    Raises:
        UnknownName: the tag is not one of the model's.
        WeightsError: no weights were published for the model.
    """
    model, tag = split_name(name)
    known = tags(model)
    if not known:
        raise WeightsError(
            f"{model}: no weights were published for it; begin with random ones (pretrained=False, "
            "--model.pretrained false), a segmenter or detector with its backbone's "
            "(backbone_pretrained=True, --model.pretrained true), or give a file "
            "(checkpoint_path=, --checkpoint, in training --model.checkpoint); "
            "metaformer list says what is published"
        )
    if tag and tag not in known:
        raise UnknownName(f"weights of {model}", tag, known)
    return SOURCES[f"{model}.{tag or known[0]}"]
