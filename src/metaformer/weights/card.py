"""Model cards: `pretrained_cfg` in timm's terms, and the `config.json` beside saved weights."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from metaformer.backbones.config import Count, MetaFormerConfig, Padding
from metaformer.backbones.variants import VARIANTS
from metaformer.errors import ConfigError, UnknownName
from metaformer.models.build import DENSE_KINDS, NetworkConfig, kind_of
from metaformer.serialize import Serializable, Text, decode, from_dict
from metaformer.weights.sources import Source

SHOWN_CLASSES = 100
"""Class names in a model card."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pretrained_cfg(name: str, config: NetworkConfig, source: Source | None) -> dict[str, Any]:
    """Describe a network, with these published weights or none, in timm's terms."""
    backbone = config if isinstance(config, MetaFormerConfig) else config.backbone
    size = config.image_size if source is None else source.image_size
    card: dict[str, Any] = {
        "url": "",
        "architecture": name,
        "tag": "",
        "num_classes": config.num_classes,
        "input_size": (3 if backbone is None else backbone.in_chans, *size),
    }
    if isinstance(config, MetaFormerConfig):
        card |= {
            "pool_size": replace(config, image_size=size).grid(config.stages - 1),
            "crop_pct": 0.9,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "fixed_input_size": config.fixed_size,
        }
        first_conv = "stem.conv"
        classifier = "head.fc.fc2" if config.mlp_head else "head.fc"
    else:
        first_conv, classifier = "backbone.stem.conv", config.classifier
    card |= {
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
    }
    if source is not None:
        card |= {
            "url": source.url,
            "tag": source.tag,
            "num_classes": source.num_classes,
            "license": source.license,
        }
        if source.data:
            card["data"] = source.data
        else:
            card |= {"crop_pct": source.crop_pct, "interpolation": source.interpolation}
    return card


def model_card(
    name: str,
    config: NetworkConfig,
    pretrained_cfg: Mapping[str, Any],
    out_indices: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Content of `config.json`, which `read_config` reads.

    Args:
        name: of the architecture.
        config: of the network.
        pretrained_cfg: what is known of its weights.
        out_indices: the stages whose outputs a backbone returns.

    Raises:
        ConfigError: a mixer without a registered name, or a backbone that is a module.
    """
    kind = kind_of(config)
    card: dict[str, Any] = {"library_name": "metaformer", "version": metadata.version("metaformer")}
    if task := pretrained_cfg.get("task") if kind is None else kind.task:
        card["task"] = task
    card |= {"architecture": name, "config": config.to_dict(), "pretrained_cfg": dict(pretrained_cfg)}
    if kind is None:
        card["out_indices"] = None if out_indices is None else list(out_indices)
    return card


def readme(card: Mapping[str, Any], parameters: int, num_classes: int) -> str:
    """Model card in Markdown, as the Hugging Face Hub shows it, of what `config.json` says.

    Args:
        card: content of `config.json`.
        parameters: number of parameters.
        num_classes: outputs of the network.
    """
    cfg = card["pretrained_cfg"]
    pipelines = {kind.task: kind.pipeline for kind in DENSE_KINDS}
    pipeline = pipelines.get(card.get("task", ""), "image-classification")
    name = json.dumps(str(card["architecture"]), ensure_ascii=False).strip('"')
    lines = ["---", "library_name: metaformer"]
    if cfg.get("url") and cfg.get("license"):  # of published weights; those of one's own have none yet
        lines.append(f"license: {json.dumps(str(cfg['license']))}")
    lines += [f"pipeline_tag: {pipeline}", "tags: [metaformer]", "---"]
    lines += ["", f"# {name}", "", "| | |", "|---|---|", f"| parameters | {parameters:,} |"]
    if "out_indices" not in card or card["out_indices"] is None:
        lines.append(f"| classes | {num_classes} |")
    if size := cfg.get("input_size"):
        lines.append(f"| input | {' × '.join(map(str, size))} |")
    if cfg.get("mean") is not None and cfg.get("std") is not None:
        mean, std = (", ".join(f"{value:g}" for value in cfg[key]) for key in ("mean", "std"))
        lines.append(f"| mean, standard deviation | {mean}; {std} |")
    if cfg.get("background") is not None:
        lines.append(f"| transparent pixels | blended on {', '.join(map(str, cfg['background']))} |")
    if cfg.get("url"):
        lines.append(f"| weights | <{cfg['url']}> |")
    lines += ["", "```python", "import metaformer", "", 'model = metaformer.from_pretrained("DIRECTORY")']
    if card.get("out_indices") is None:
        lines += ['for result in metaformer.Predictor("DIRECTORY")("IMAGES"):', "    print(result)"]
    lines.append("```")
    if names := cfg.get("label_names"):
        shown = ", ".join(" ".join(str(label).split()) for label in names[:SHOWN_CLASSES])
        more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
        lines += ["", f"Classes: {_escape(shown)}{more}"]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Text without meaning in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>#|&])", r"\\\1", text)


def read_config(card: Mapping[str, Any]) -> NetworkConfig:
    """The network that a `config.json` of this library, of timm or of transformers describes.

    Raises:
        ConfigError: it describes none of ours, or one of an earlier development version.
    """
    if isinstance(card.get("config"), Mapping):
        types = {kind.task: kind.config for kind in DENSE_KINDS}
        config_type = types.get(decode(Text, card.get("task", ""), "task"), MetaFormerConfig)
        try:
            config: NetworkConfig = config_type.from_dict(card["config"])
        except UnknownName as error:
            if "version" in card:
                raise
            raise ConfigError(
                f"written by a development version before 0.1.0 ({error}): build the network by its name and "
                "load the weights beside it (checkpoint_path=, --checkpoint)"
            ) from error
        return config
    if card.get("model_type") == "poolformer":
        return _from_transformers(card)
    name = decode(Text, card.get("architecture", ""), "architecture")
    if name not in VARIANTS:
        raise ConfigError(f"architecture {name!r} is none of this library's")
    return replace(VARIANTS[name], num_classes=card.get("num_classes", 1000))


@dataclass(frozen=True)
class _PoolFormer(Serializable):
    """`PoolFormerConfig` of transformers; what its file does not have is the default."""

    patch_sizes: tuple[Count, ...] = (7, 3, 3, 3)
    strides: tuple[Count, ...] = (4, 2, 2, 2)
    padding: tuple[Padding, ...] = (2, 1, 1, 1)
    hidden_sizes: tuple[Count, ...] = (64, 128, 320, 512)
    depths: tuple[Count, ...] = (2, 2, 6, 2)
    mlp_ratio: float = 4.0
    pool_size: Count = 3
    hidden_act: Text = "gelu"
    use_layer_scale: bool = True
    layer_scale_init_value: float = 1e-5
    num_channels: Count = 3
    id2label: dict[Any, Any] | None = None  # numbers as keys in memory, text in a file
    num_labels: Count = 2


def _from_transformers(card: Mapping[str, Any]) -> MetaFormerConfig:
    """`PoolFormerConfig` in our fields; what it does not write has its default."""
    theirs = from_dict(_PoolFormer, card, others=True)
    patches, strides, padding, dims = theirs.patch_sizes, theirs.strides, theirs.padding, theirs.hidden_sizes
    if any(len(set(values[1:])) > 1 for values in (patches, strides, padding)):
        raise ConfigError("patch_sizes, strides and padding must be the same from the second stage on")
    if not all((patches, strides, padding, dims)):
        raise ConfigError("patch_sizes, strides, padding and hidden_sizes must hold a value for each stage")
    scale = theirs.layer_scale_init_value if theirs.use_layer_scale else None
    return MetaFormerConfig(
        depths=theirs.depths,
        dims=dims,
        mlp_ratios=(theirs.mlp_ratio,) * len(dims),
        mixers=(f"pooling(size={theirs.pool_size})",) * len(dims),
        act=theirs.hidden_act,
        layer_scale=(scale,) * len(dims),
        res_scale=(None,) * len(dims),
        pos_embed=(False,) * len(dims),
        downsamples=(True,) * (len(dims) - 1),
        stem_kernel=patches[0],
        stem_stride=strides[0],
        stem_padding=padding[0],
        down_kernel=patches[-1],
        down_stride=strides[-1],
        down_padding=padding[-1],
        in_chans=theirs.num_channels,
        num_classes=theirs.num_labels if theirs.id2label is None else len(theirs.id2label),
    )
