"""Every published checkpoint: address, hash, license, preprocessing and accuracy, as data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from metaformer.errors import UnknownName, WeightsError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOLFORMER_RELEASE = "https://github.com/sail-sg/poolformer/releases/download/v1.0"
BASELINES_FILES = "https://huggingface.co/sail/dl/resolve/main"
CYCLEMLP_RELEASE = "https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1"
MMPRETRAIN_FILES = "https://download.openmmlab.com/mmclassification/v0/poolformer"
SIZES = ("s12", "s24", "s36", "m36", "m48")
CONV_SIZES = ("s18", "s36", "m36", "b36")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One published file of weights."""

    model: str
    """The variant that the weights are for."""
    tag: str
    """What tells these weights from others of the same variant; timm's tag where it has one."""
    url: str
    """Where the file is published."""
    format: str
    """Its key names, a key of `metaformer.weights.keymap.FORMATS`."""
    top1: float | None = None
    """Published ImageNet-1K accuracy in per cent; None for the 21,841-class weights."""
    top5: float | None = None
    """Published top-5 accuracy in per cent, where one is given."""
    sha256: str = ""
    """First digits of the file's SHA-256, where its name carries them."""
    license: str = "apache-2.0"
    """SPDX name, in lower case."""
    num_classes: int = 1000
    """Outputs of its classifier."""
    image_size: int = 224
    """Height and width that it was evaluated at."""
    crop_pct: float = 1.0
    """Share of the resized image that the center crop keeps; the shorter edge is image_size / crop_pct."""
    interpolation: str = "bicubic"
    """Resampling before the crop."""
    notes: str = ""
    """What is worth knowing before using it."""

    @property
    def name(self) -> str:
        """`model.tag`, as `create_model` takes it."""
        return f"{self.model}.{self.tag}"

    @property
    def file(self) -> str:
        """The published file's name; Hugging Face's all have the same, so theirs carries the repository's."""
        repository, last = self.url.split("/")[-4], self.url.split("/")[-1]
        return last if last != "model.safetensors" else f"{repository}_{last}"

    @property
    def original(self) -> str:
        """The name that the original repository gives to these weights."""
        return self.file.removesuffix(".tar").removesuffix(".pth").removesuffix("_model.safetensors")

    def pretrained_cfg(self, classifier: str = "head.fc") -> dict[str, Any]:
        """The same as a dictionary in timm's words."""
        return {
            "url": self.url,
            "architecture": self.model,
            "tag": self.tag,
            "num_classes": self.num_classes,
            "input_size": (3, self.image_size, self.image_size),
            "crop_pct": self.crop_pct,
            "crop_mode": "center",
            "interpolation": self.interpolation,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "first_conv": "stem.conv",
            "classifier": classifier,
            "license": self.license,
        }


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
RANDOM_NOTE = "the frozen random matrices belong to 14×14 and 7×7 positions: 224×224 pixels"


def _poolformer() -> Iterator[Source]:
    for size, (top1, top1_two_digits, top5, sha) in POOLFORMER.items():
        model, small = f"poolformer_{size}", size.startswith("s")
        yield Source(
            model=model,
            tag="sail_in1k",
            url=f"{POOLFORMER_RELEASE}/{model}.pth.tar",
            format="poolformer",
            top1=top1,
            crop_pct=0.9 if small else 0.95,
        )
        yield Source(
            model=model,
            tag="sail_in1k_hf",
            url=f"https://huggingface.co/sail/{model}/resolve/main/model.safetensors",
            format="huggingface",
            top1=top1,
            crop_pct=0.9 if small else 0.95,
            notes="the same weights under Hugging Face's names",
        )
        yield Source(
            model=model,
            tag="mmpretrain_in1k",
            url=f"{MMPRETRAIN_FILES}/poolformer-{size}_3rdparty_32xb128_in1k_20220414-{sha}.pth",
            format="mmpretrain",
            sha256=sha,
            top1=top1_two_digits,
            top5=top5,
            crop_pct=224 / (248 if small else 236),
            notes="the same weights under mmpretrain's names; the shorter edge is 248 (S) or 236 (M) pixels",
        )
    for model, (file, top1, crop) in HYBRIDS.items():
        yield Source(
            model=model,
            tag="sail_in1k",
            url=f"{POOLFORMER_RELEASE}/{file}.pth.tar",
            format="poolformer",
            top1=top1,
            crop_pct=crop,
        )


def _cyclemlp() -> Iterator[Source]:
    for size, top1 in CYCLEMLP.items():
        yield Source(
            model=f"cyclemlp_{size}",
            tag="in1k",
            url=f"{CYCLEMLP_RELEASE}/CycleMLP_{size.upper()}.pth",
            format="cyclemlp",
            top1=top1,
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
                top1=top1,
                notes=RANDOM_NOTE if family == "randformer" else "",
            )
    for model, by_recipe in CONV_BASELINES.items():
        for (suffix, tag, pixels), accuracy in zip(RECIPES, by_recipe, strict=True):
            yield Source(
                model=model,
                tag=tag,
                url=f"{BASELINES_FILES}/{model.split('_')[0]}/{model}{suffix}.pth",
                format="baselines",
                top1=accuracy,
                num_classes=21841 if accuracy is None else 1000,
                image_size=pixels,
            )


SOURCES: dict[str, Source] = {
    source.name: source for table in (_poolformer, _cyclemlp, _baselines) for source in table()
}
"""All sources by `model.tag`; the first of a model is what its bare name means."""

ALIASES: dict[str, str] = {
    **{source.original: source.name for source in SOURCES.values() if source.original != source.model},
    **{f"CycleMLP_{size}": f"cyclemlp_{size[0]}" for size in ("tiny", "small", "base")},
}
"""The names of the original repositories, `caformer_s18_384_in21ft1k`, to ours."""


def tags(model: str) -> list[str]:
    """The tags of a variant's published weights, the default first."""
    return [source.tag for source in SOURCES.values() if source.model == model]


def split_name(name: str) -> tuple[str, str]:
    """Split `model.tag` or an original repository's name into model and tag; the tag may be empty."""
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
            f"{model}: no weights were published for it; train it, or give a file of weights "
            "(checkpoint_path=, --checkpoint). "
            f"Published: {', '.join(dict.fromkeys(source.model for source in SOURCES.values()))}"
        )
    if tag and tag not in known:
        raise UnknownName(f"weights of {model}", tag, known)
    return SOURCES[f"{model}.{tag or known[0]}"]
