"""Save models with their configuration, and load them, in a directory or on the Hugging Face Hub."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.errors import (
    DownloadError,
    MissingPackage,
    OutputError,
    WeightsError,
)
from metaformer.models.build import NetworkConfig, build_network, check_memory
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.serialize import decode, errors_at
from metaformer.storage import as_path, write_text
from metaformer.weights.card import model_card, readme
from metaformer.weights.io import write_state
from metaformer.weights.load import load_weights
from metaformer.weights.saved import SavedNetwork, need_saved

README = "README.md"
CONFIG, WEIGHTS, PICKLED_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"

if TYPE_CHECKING:
    from metaformer.models.detection.detector import Detector

Model: TypeAlias = "MetaFormer | MetaFormerFeatures | Segmenter | Detector"


def save_pretrained(model: Model, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into a directory, as Hugging Face does.

    A model card, `README.md`, is written beside them unless there is one.

    Raises:
        ConfigError: the model has a mixer without a registered name, or a foreign backbone.
        OutputError: the directory cannot be written to.
    """
    directory = as_path(directory, "directory")
    config: NetworkConfig = model.config
    if isinstance(model, MetaFormer):
        config = replace(model.config, num_classes=model.num_classes, global_pool=model.head.global_pool)
    name = model.pretrained_cfg.get("architecture", "metaformer")
    out_indices = model.out_indices if isinstance(model, MetaFormerFeatures) else None
    card = model_card(name, config, model.pretrained_cfg, out_indices)
    write_state(directory / WEIGHTS, model.state_dict())
    write_text(directory / CONFIG, json.dumps(card, indent=2) + "\n")
    if not (directory / README).exists():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        write_text(directory / README, readme(card, parameters, config.num_classes))


def from_pretrained(
    repo_or_dir: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    ema: bool | None = None,
) -> Model:
    """Build a model as it was saved, from a directory or a repository of the Hugging Face Hub.

    Besides our own it reads repositories of timm and transformers that hold one of our models; of a run it
    takes the best weights, else the newest checkpoint.

    Args:
        repo_or_dir: a directory (also a run or one of its checkpoints), or `owner/name`.
        revision: branch, tag or commit of the repository.
        token: for private repositories.
        ema: of raw and averaged weights take the averaged ones, or with False the raw ones.

    Raises:
        DownloadError: no such repository, or no network.
        WeightsError: no configuration in it, or weights that do not fit it.
        ConfigError: a configuration that is none of ours.
    """
    directory = as_path(repo_or_dir, "repo_or_dir", WeightsError, expand=True)
    if directory.is_dir():
        saved = need_saved(directory)
    elif directory.is_absolute() or str(repo_or_dir).count("/") != 1:
        raise WeightsError(f"{repo_or_dir}: neither a directory nor the name of a repository (owner/name)")
    else:
        file = _from_hub(str(repo_or_dir), (CONFIG,), revision, token)
        _from_hub(str(repo_or_dir), (WEIGHTS, PICKLED_WEIGHTS), revision, token)  # beside it
        saved = need_saved(file.parent)
    return build_saved(saved, ema).eval()


def build_saved(saved: SavedNetwork, ema: bool | None = None) -> Model:
    """The network of a directory, with its weights.

    Raises:
        ConfigError: a network that cannot be built, or has more parameters than its file holds.
        WeightsError: weights that do not fit it.
    """
    with errors_at(saved.path):
        indices = decode(tuple[int, ...] | None, saved.card.get("out_indices"), "out_indices")

        def build() -> Model:
            if isinstance(saved.config, MetaFormerConfig) and indices is not None:
                return MetaFormerFeatures(saved.config, indices)
            return build_network(saved.config)

        check_memory(build, saved.weights.stat().st_size)
        model = build()
        model.pretrained_cfg = saved.notes
    load_weights(model, saved.path, ema=ema)
    return model


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload model",
) -> str:
    """Upload a model to the Hugging Face Hub, and return the address of the commit.

    A model card goes with it, unless the repository has one.

    Raises:
        MissingPackage: huggingface_hub is not installed.
        OutputError: no network, or no right to write there.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingPackage("huggingface-hub", "hub", "uploading to the Hugging Face Hub") from error
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        try:
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if api.file_exists(repo_id, README):
                (Path(folder) / README).unlink()
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
        except Exception as error:  # of the network, of the hub and of its checks: no class covers them
            raise OutputError(f"{repo_id}: not uploaded to the Hugging Face Hub ({_line(error)})") from error


def _from_hub(repo_id: str, names: tuple[str, ...], revision: str | None, token: str | None) -> Path:
    """The first of these files that the repository has."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingPackage("huggingface-hub", "hub", "downloading from the Hugging Face Hub") from error
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
