"""Networks on disk that bring their configuration: runs, checkpoints, and what `save_pretrained` wrote."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.errors import ConfigError, MetaFormerError, WeightsError
from metaformer.models.build import NetworkConfig
from metaformer.serialize import Text, decode
from metaformer.storage import as_path, read_json
from metaformer.weights.card import read_config
from metaformer.weights.sources import split_name

_log = logging.getLogger(__name__)
CONFIG, STATE = "config.json", "state.json"
STEPS, STEP = "checkpoints", "step_"
BEST = "best"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files with a network's weights in its directory, the first that is there."""
AVERAGE = "ema.safetensors"
RUN_FILES = (".lock", "metrics.jsonl", STEPS)
"""What a run has, before its first checkpoint, too."""


@dataclass(frozen=True)
class SavedNetwork:
    """A network on disk: what it is, and where its weights are."""

    path: Path
    """The directory or file that was named."""
    weights: Path
    """The file of its weights."""
    card: Mapping[str, Any]
    """Content of its `config.json`, or what that of a checkpoint would hold."""
    config: NetworkConfig
    """The network."""

    @property
    def name(self) -> str:
        """Name of its architecture."""
        return decode(Text, self.card.get("architecture", "metaformer"), "architecture")

    @property
    def backbone(self) -> MetaFormerConfig | None:
        """Configuration of the backbone: of a classifier its own; None for one that is a module."""
        return self.config if isinstance(self.config, MetaFormerConfig) else self.config.backbone

    @property
    def variant(self) -> str:
        """The variant that the backbone is, or the one that it differs least from."""
        name = split_name(self.name)[0]
        parts = (name, name.partition("_")[2], name.split("_", 2)[-1])
        return next((part for part in parts if part in VARIANTS), "") or min(
            VARIANTS, key=lambda name: len(self.changes(name))
        )

    def changes(self, variant: str, but: tuple[str, ...] = ()) -> dict[str, Any]:
        """Fields of the backbone that differ from a variant's, as plain values, leaving some out."""
        own, theirs = ({} if one is None else one.to_dict() for one in (self.backbone, VARIANTS[variant]))
        return {key: value for key, value in own.items() if key not in but and value != theirs[key]}

    @property
    def notes(self) -> dict[str, Any]:
        """Its `pretrained_cfg`: preprocessing, names of classes."""
        given = decode(dict[str, Any] | None, self.card.get("pretrained_cfg"), "pretrained_cfg")
        notes = dict(given or {})
        if not notes.get("label_names") and (names := label_names(self.card, self.config.num_classes)):
            notes["label_names"] = names
        if isinstance(self.config, MetaFormerConfig) and "task" in self.card:  # such as multilabel
            notes["task"] = self.card["task"]
        return {key: tuple(value) if isinstance(value, list) else value for key, value in notes.items()}


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint directories in a folder, newest first."""
    named = [path for path in folder.glob(f"{STEP}*") if path.name.isascii()]
    numbered = [path for path in named if path.name[len(STEP) :].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name[len(STEP) :]), reverse=True)


def find_checkpoint(source: Path) -> Path:
    """The checkpoint of a path: itself, or of a run its best, else its newest."""
    if (source / BEST).is_dir():
        return source / BEST
    steps = checkpoints(source / STEPS)
    return steps[0] if steps else source


def weight_file(directory: Path, ema: bool | None = None) -> Path:
    """The file with the weights of a directory: a run, a checkpoint, or any with one of `WEIGHT_FILES`.

    Of a checkpoint with raw and averaged weights `ema` chooses; by default it is those that were evaluated.

    Raises:
        WeightsError: there is none.
    """
    found = find_checkpoint(directory)
    has_average = (found / AVERAGE).is_file()
    if has_average and (_evaluates_average(found) if ema is None else ema):
        return found / AVERAGE
    if ema and not has_average and not (found.name == BEST and _evaluates_average(found)):
        raise WeightsError(f"{found}: holds no averaged weights")
    file = next((found / name for name in WEIGHT_FILES if (found / name).is_file()), None)
    if file is not None:
        return file
    if (found / "model").is_dir():
        raise WeightsError(f"{found}: its weights are in parts, one for each process: name the run's best")
    if any((directory / name).exists() for name in RUN_FILES):
        raise WeightsError(f"{directory}: this run has no checkpoint yet")
    raise WeightsError(f"{found}: no weights in this directory (looked for {', '.join(WEIGHT_FILES)})")


def read_card(path: Path) -> dict[str, Any] | None:
    """The card of a network's directory, or of the directory that a file of weights lies in.

    It is `config.json`, or what that of a checkpoint would hold; None where there is neither.

    Raises:
        WeightsError: it cannot be read.
    """
    directory = find_checkpoint(path) if path.is_dir() else path.parent
    card = _read(directory / CONFIG)
    if card is not None and ("config" in card or "architecture" in card or "model_type" in card):
        return card
    state = _read(directory / STATE)
    own = (state or {}).get("card")
    if isinstance(own, Mapping) and isinstance(own.get("model"), Mapping):
        return _hub_card(own)
    return None


def find_saved(path: str | Path) -> SavedNetwork | None:
    """The network of a run, a checkpoint or a `save_pretrained` directory, or of a file in one.

    None where the path has weights alone, or none.

    Raises:
        WeightsError: it lacks weights.
    """
    path = as_path(path, "checkpoint", WeightsError, expand=True)
    try:
        card = read_card(path) if path.exists() else None
    except WeightsError:
        card = None  # a file of something else, by chance beside the weights
    if card is None:
        if path.is_dir() and any((path / name).exists() for name in RUN_FILES):
            weight_file(path)  # says what the run lacks
        return None
    try:
        config = read_config(card)
    except MetaFormerError as error:  # of another library: the weights may still be
        if "config" in card:
            _log.warning("%s: its weights alone are read, not what lies beside them: %s", path, error)
        return None
    return SavedNetwork(path, path if path.is_file() else weight_file(path), card, config)


def need_saved(path: str | Path) -> SavedNetwork:
    """The same where a network is asked for by its directory.

    Raises:
        WeightsError: no configuration there, or none that can be read.
        ConfigError: one that is none of ours.
    """
    path = as_path(path, "directory", WeightsError, expand=True)
    card, file = read_card(path), find_checkpoint(path) / CONFIG
    if card is None and any((path / name).exists() for name in RUN_FILES):
        weight_file(path)  # says what the run lacks
    if card is None:
        raise WeightsError(f"{file}: no configuration of a network")
    try:
        config = read_config(card)
    except MetaFormerError as error:
        raise ConfigError(f"{file}: {error}") from error
    return SavedNetwork(path, weight_file(path), card, config)


def label_names(card: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """Class names in a card of transformers (`id2label`) or of timm (`label_names`).

    None where it has no names, or only transformers' placeholders.

    Raises:
        ConfigError: not a name for each class.
    """
    names, table = card.get("label_names"), card.get("id2label")
    if names is None and isinstance(table, Mapping):
        numbers = {str(number): name for number, name in table.items()}
        names = [numbers.get(str(number)) for number in range(len(numbers))]
        if names == [f"LABEL_{number}" for number in range(len(numbers))]:
            return None
    if not names:
        return None
    if not isinstance(names, list) or len(names) != count or not all(isinstance(n, str) and n for n in names):
        field = "id2label" if card.get("label_names") is None else "label_names"
        raise ConfigError(f"{field}: must hold a name for each of {count} classes, from 0 to {count - 1}")
    return tuple(names)


def fitting(saved: SavedNetwork, variant: str, wanted: MetaFormerConfig) -> MetaFormerConfig | None:
    """The backbone of saved weights, where it is the variant asked for; None where both have one shape.

    Args:
        saved: the weights' network.
        variant: the name asked for.
        wanted: its configuration.

    Raises:
        ConfigError: the weights are of a network of other depths or widths.
    """
    own = saved.backbone
    if own is None or saved.variant == variant:
        return own
    if (own.depths, own.dims) == (wanted.depths, wanted.dims):
        return None
    raise ConfigError(
        f"{saved.path}: holds {saved.name}, not {variant}: give this path itself as the network's name, "
        f"or weights of {variant}"
    )


def _hub_card(own: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a checkpoint in the form of `config.json`."""
    cfg = {key: value for key, value in own.items() if key not in ("task", "name", "model", "classes")}
    classes, preprocess = own.get("classes"), own.get("preprocess")
    if isinstance(classes, list):
        cfg |= {"num_classes": len(classes), "label_names": classes}
    if isinstance(preprocess, Mapping):
        shared = ("mean", "std", "interpolation", "background")
        cfg |= {key: preprocess[key] for key in shared if key in preprocess}
        if "crop" in preprocess:  # of whole images, in timm's terms
            size = preprocess.get("image_size")
            cfg |= {"crop_pct": preprocess["crop"], "input_size": [3, size, size]}
            del cfg["preprocess"]
    return {
        "task": own.get("task"),
        "architecture": own.get("name"),
        "config": own["model"],
        "pretrained_cfg": cfg,
    }


def _evaluates_average(directory: Path) -> bool:
    config = (_read(directory / STATE) or {}).get("config")
    ema = config.get("ema") if isinstance(config, Mapping) else None
    return isinstance(ema, Mapping) and ema.get("decay") is not None and ema.get("evaluate") is not False


def _read(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    card = read_json(file, WeightsError)
    if not isinstance(card, dict):
        raise WeightsError(f"{file}: no readable configuration (not an object)")
    return card
