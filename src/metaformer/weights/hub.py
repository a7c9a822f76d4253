"""Save models with their configuration, and load them back, from a directory or the Hugging Face Hub."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import VARIANTS
from metaformer.errors import (
    ConfigError,
    DownloadError,
    MetaFormerError,
    MissingPackage,
    OutputError,
    WeightsError,
)
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.storage import write_atomically
from metaformer.weights.io import write_state
from metaformer.weights.load import load_weights

CONFIG, WEIGHTS, PICKLED_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"
HF_CONVOLUTIONS = {"patch_sizes": (7, 3, 3, 3), "strides": (4, 2, 2, 2), "padding": (2, 1, 1, 1)}
TASKS: dict[type, str] = {SegmenterConfig: "segment", DetectorConfig: "detect"}
"""What a network with such a configuration is for; others classify or give maps."""

if TYPE_CHECKING:
    from metaformer.models.detection.detector import Detector

Model: TypeAlias = "MetaFormer | MetaFormerFeatures | Segmenter | Detector"


def save_pretrained(model: Model, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into a directory, as Hugging Face does.

    Raises:
        ConfigError: the model has a mixer without a registered name, or a foreign backbone.
        OutputError: the directory cannot be written to.
    """
    directory = Path(directory)
    config: MetaFormerConfig | SegmenterConfig | DetectorConfig = model.config
    if isinstance(model, MetaFormer):
        config = replace(model.config, num_classes=model.num_classes, global_pool=model.head.global_pool)
    card = {
        "library_name": "metaformer",
        "architecture": model.pretrained_cfg.get("architecture", "metaformer"),
        "config": config.to_dict(),
        "pretrained_cfg": model.pretrained_cfg,
    }
    if type(config) in TASKS:
        card["task"] = TASKS[type(config)]
    else:
        card["out_indices"] = list(model.out_indices) if isinstance(model, MetaFormerFeatures) else None
    text = json.dumps(card, indent=2) + "\n"
    write_state(directory / WEIGHTS, model.state_dict())
    write_atomically(directory / CONFIG, lambda place: place.write_text(text))


def from_pretrained(
    repo_or_dir: str | Path, *, revision: str | None = None, token: str | None = None
) -> Model:
    """Build a model as it was saved, from a directory or a repository of the Hugging Face Hub.

    Besides our own it reads repositories of timm and transformers that hold one of our models.

    Args:
        repo_or_dir: a directory, or `owner/name`.
        revision: branch, tag or commit of the repository.
        token: for private repositories.

    Raises:
        DownloadError: no such repository, or no network.
        WeightsError: no configuration in it, or weights that do not fit it.
        ConfigError: a configuration that is none of ours.
    """
    directory = Path(repo_or_dir).expanduser()
    if directory.is_dir():
        config, weights = directory / CONFIG, directory
    elif directory.is_absolute() or str(repo_or_dir).count("/") != 1:
        raise WeightsError(f"{repo_or_dir}: neither a directory nor the name of a repository (owner/name)")
    else:
        config = _from_hub(str(repo_or_dir), (CONFIG,), revision, token)
        weights = _from_hub(str(repo_or_dir), (WEIGHTS, PICKLED_WEIGHTS), revision, token)
    try:
        card = json.loads(config.read_text())
        if not isinstance(card, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{config}: no readable configuration ({error})") from error
    model = _build(card, str(config))
    notes = dict(card.get("pretrained_cfg") or {})
    model.pretrained_cfg = {key: tuple(v) if isinstance(v, list) else v for key, v in notes.items()}
    load_weights(model, weights)
    return model.eval()


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload model",
) -> str:
    """Upload a model to the Hugging Face Hub, and return the address of the commit.

    Raises:
        MissingPackage: huggingface_hub is not installed.
        OutputError: no network, or no right to write there.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingPackage("huggingface-hub", "peers", "uploading to the Hugging Face Hub") from error
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        try:
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
        except Exception as error:  # of the network, of the hub and of its checks: no class covers them
            raise OutputError(f"{repo_id}: not uploaded to the Hugging Face Hub ({_line(error)})") from error


def _from_hub(repo_id: str, names: tuple[str, ...], revision: str | None, token: str | None) -> Path:
    """The first of these files that the repository has."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingPackage("huggingface-hub", "peers", "downloading from the Hugging Face Hub") from error
    for name in names:
        try:
            return Path(hf_hub_download(repo_id, name, revision=revision, token=token))
        except Exception as error:  # the network's, the hub's, its checks': no class covers them
            absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
            if not absent:
                raise DownloadError(
                    f"{repo_id}: {name} could not be fetched from the Hugging Face Hub ({_line(error)}); "
                    "without a network, copy the repository and pass its directory"
                ) from error
    raise WeightsError(f"{repo_id}: the repository has no {' or '.join(names)}")


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _build(card: Mapping[str, Any], where: str) -> Model:
    """A network from our, timm's or transformers' configuration."""
    try:
        if card.get("task") == "segment":
            return Segmenter(SegmenterConfig.from_dict(dict(card.get("config") or {})))
        if card.get("task") == "detect":
            from metaformer.models.detection.build import build_detector  # which imports torchvision

            return build_detector(DetectorConfig.from_dict(dict(card.get("config") or {})))
        config = read_config(card)
    except MetaFormerError as error:
        raise ConfigError(f"{where}: {error}") from error
    indices = card.get("out_indices")
    if "config" in card and indices is not None:
        return MetaFormerFeatures(config, tuple(indices))
    return MetaFormer(config)


def read_config(card: Mapping[str, Any]) -> MetaFormerConfig:
    """The network that a `config.json` of this library, of timm or of transformers describes.

    Raises:
        ConfigError: it describes none of ours.
    """
    if isinstance(card.get("config"), Mapping):
        return MetaFormerConfig.from_dict(dict(card["config"]))
    if card.get("model_type") == "poolformer":
        return _from_transformers(card)
    name = str(card.get("architecture", ""))
    if name not in VARIANTS:
        raise ConfigError(f"architecture {name!r} is none of this library's")
    return replace(VARIANTS[name], num_classes=int(card.get("num_classes", 1000)))


def _from_transformers(card: Mapping[str, Any]) -> MetaFormerConfig:
    """`PoolFormerConfig` in our fields; what it does not write is its default."""
    patches, strides, padding = (
        tuple(card.get(name, default))
        for name, default in (
            ("patch_sizes", (7, 3, 3, 3)),
            ("strides", (4, 2, 2, 2)),
            ("padding", (2, 1, 1, 1)),
        )
    )
    if any(len(set(values[1:])) > 1 for values in (patches, strides, padding)):
        raise ConfigError("patch_sizes, strides and padding must be the same from the second stage on")
    dims = tuple(card.get("hidden_sizes", (64, 128, 320, 512)))
    scale = float(card.get("layer_scale_init_value", 1e-5)) if card.get("use_layer_scale", True) else None
    return MetaFormerConfig(
        depths=tuple(card.get("depths", (2, 2, 6, 2))),
        dims=dims,
        mlp_ratios=(float(card.get("mlp_ratio", 4.0)),) * len(dims),
        mixers=(f"pooling(size={int(card.get('pool_size', 3))})",) * len(dims),
        act=str(card.get("hidden_act", "gelu")),
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
        in_chans=int(card.get("num_channels", 3)),
        num_classes=len(card["id2label"]) if "id2label" in card else int(card.get("num_labels", 2)),
    )
