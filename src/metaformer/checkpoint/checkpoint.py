"""Checkpoints on disk: safetensors and JSON under a sha256 manifest; nothing in them can run code."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from metaformer.checkpoint.manifest import recover, remove_directory, verify, write_directory
from metaformer.checkpoint.tensors import TensorSpec, TensorStore, has_shards
from metaformer.distributed import rank
from metaformer.errors import MetaFormerError, VersionError, WeightsError
from metaformer.serialize import NATURAL, NUMBER, POSITIVE_INT, Fields, Text, decode, parse_json, shown
from metaformer.storage import read_bytes
from metaformer.weights.load import LoadReport
from metaformer.weights.saved import STATE, STEP, checkpoints

FORMAT = 2
"""Version of the layout; it changes with the names of options, too."""
HUB_CARD = "config.json"
Natural = Annotated[int, NATURAL]
Count = Annotated[int, POSITIVE_INT]
_LARGEST: Final = 1 << 30
"""Bytes of `state.json`; an evaluation of many classes, with its examples, has some megabytes."""
_HYPERPARAMETER: Final = bool | int | float | tuple[float, ...] | Text | None
TYPES: Final[Mapping[str, Any]] = {
    "format": int,
    "version": Text | None,
    "card": dict[str, Any],
    "config": dict[str, Any] | None,
    "step": Natural,
    "total": Natural | None,
    "epoch": Natural,
    "position": Natural,
    "metric": Text | None,
    "metrics": dict[Text, Annotated[Any, NUMBER]],
    "best": dict[Text, Annotated[Any, NUMBER]] | None,
    "bad_images": list[Natural],
    "skipped_steps": Natural,
    "evaluation_pending": bool,
    "evaluation": dict[str, Any],
    "world_size": Count,
    "threads": Count,
    "operations": Text,
    "optimizer": dict[str, Any],
    "scaler": dict[str, Any],
}
"""Types of the values in `state.json`, where they are there."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory: plain values, and the state dicts `model`, `ema`, `optimizer` and `random`."""

    directory: Path
    state: dict[str, Any]
    """All but tensors: `card`, `config`, `step`, `metrics`, …"""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One state dict, whole.

        Raises:
            WeightsError: it is missing or damaged.
        """
        return TensorStore(self.directory, name).read()

    def load(self, model: nn.Module, name: str = "model") -> None:
        """Load one state dict into a model, all of it and nothing else.

        Raises:
            WeightsError: it does not fit.
        """
        self.check(model, name)
        TensorStore(self.directory, name).fill(model.state_dict())

    def check(self, model: nn.Module, name: str = "model") -> None:
        """Compare one state dict with a model, which may be on the meta device.

        Raises:
            WeightsError: it does not fit.
        """
        own, specs = model.state_dict(), TensorStore(self.directory, name).specs()
        report = LoadReport(
            missing=[key for key in own if key not in specs],
            unexpected=[key for key in specs if key not in own],
            misshaped=[
                (key, specs[key].shape, tuple(value.shape))
                for key, value in own.items()
                if key in specs and specs[key].shape != tuple(value.shape)
            ],
        )
        if not report.complete:
            raise WeightsError(
                f"{self.directory}: is of another model: resume with the run's settings, or start anew in "
                f"another directory ({'; '.join(report.problems())})"
            )

    def has(self, name: str) -> bool:
        """Whether the checkpoint has this state dict."""
        return TensorStore(self.directory, name).exists()


def write_checkpoint(
    target: Path,
    state_dicts: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    hub_card: Mapping[str, Any] | None = None,
) -> Path:
    """Write state dicts and plain values as one directory.

    With a `hub_card` `metaformer.from_pretrained` reads it, too. If tensors are sharded, all ranks must call
    this, on a shared disk; else one rank does.

    Raises:
        OutputError: it cannot be written; earlier checkpoints are untouched.
    """
    together = any(map(has_shards, state_dicts.values()))

    def fill(directory: Path) -> None:
        # collective writes come first: no rank waits for one that has failed on its own
        for name, tensors in sorted(state_dicts.items(), key=lambda item: not has_shards(item[1])):
            TensorStore(directory, name).write(tensors)
        if together and rank() != 0:
            return
        write_state(directory, state)
        if hub_card is not None:
            _write_json(directory / HUB_CARD, hub_card)

    return write_directory(target, fill, together)


def read_checkpoint(directory: Path, verified: bool = False) -> Checkpoint:
    """Verify a checkpoint and open it.

    Args:
        directory: the checkpoint.
        verified: another process of this run has just read all of it.

    Raises:
        VersionError: it is in the format of another version.
        WeightsError: it is missing, unfinished or damaged.
    """
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such checkpoint directory")
    verify(directory, contents=not verified)
    return Checkpoint(directory, read_state(directory))


def write_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Write `state.json`: the format, the version of this library, and plain values."""
    _write_json(directory / STATE, {"format": FORMAT, "version": metadata.version("metaformer"), **state})


def read_state(directory: Path) -> dict[str, Any]:
    """Read `state.json`.

    Raises:
        VersionError: it is in the format of another version.
        WeightsError: it is missing or damaged.
    """
    file = directory / STATE
    values = parse_json(read_bytes(file, WeightsError, largest=_LARGEST), f"{file}: damaged", WeightsError)
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise WeightsError(f"{file}: damaged (no checkpoint format)")
    state = Fields.read(values, TYPES, file, WeightsError)
    if "card" in state:
        state["card"] = Fields(state["card"], f"{file}: card", WeightsError)
    if "int8" in (state.get("card") or {}):
        raise WeightsError(
            f"{directory}: a folder with an int8 network, as an earlier version wrote it: quantize the "
            "network again, to a file (metaformer quantize RUN --out FILE.xml)"
        )
    if state["format"] != FORMAT:
        raise VersionError(directory, state["format"], state.get("version"), FORMAT)
    return state


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def step_directory(folder: Path, step: int) -> Path:
    """The checkpoint directory of a step."""
    return folder / f"{STEP}{step}"


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Open the newest checkpoint that is not damaged; `say` gets a line for each that is skipped.

    Raises:
        VersionError: it is in the format of another version.
    """
    recover_all(folder)
    for directory in checkpoints(folder):
        try:
            return read_checkpoint(directory)
        except VersionError:
            raise
        except WeightsError as error:
            say(f"skipped a damaged checkpoint: {error}")
    return None


def recover_all(folder: Path) -> None:
    """Remove or complete what a killed process left half written."""
    for leftover in folder.glob(".*-*"):
        recover(folder / leftover.name.split("-", 1)[1])


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for directory in checkpoints(folder)[keep:]:
        remove_directory(directory)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors, named by parameter, and plain values."""
    tensors: dict[str, Tensor] = {}
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        plain: dict[str, Any] = {"state": {}}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group.{number}.{key}"] = value
            elif key != "params":
                plain[key] = value
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
                else:
                    plain["state"].setdefault(name, {})[key] = value
        groups.append(plain)
    return tensors, {"groups": groups}


@contextmanager
def restoring(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what goes wrong with values that do not fit together into an error that names the checkpoint.

    Raises:
        WeightsError: the state is of another run, or damaged.
    """
    try:
        yield
    except MetaFormerError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = shown(str(error), quote=False) or type(error).__name__
        raise WeightsError(f"{checkpoint.directory}: its state does not fit this run ({reason})") from error


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Inverse of `pack_optimizer`; moments get the memory format of their parameter.

    Raises:
        WeightsError: the optimizer has other groups than the saved one.
    """
    plain, store = checkpoint.state["optimizer"], TensorStore(checkpoint.directory, "optimizer")
    names = [group["names"] for group in optimizer.param_groups]
    if names != [group["names"] for group in plain["groups"]]:
        raise WeightsError(
            "the checkpoint's optimizer has other parameter groups: resume with the run's own settings"
        )
    parameters = {n: p for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)}
    fused = {n for g in optimizer.param_groups if g.get("fused") for n in g["names"]}
    entries: dict[str, Tensor] = {}
    for key, spec in store.specs().items():
        name, _, entry = key.rpartition("/")
        if name:
            entries[key] = _empty_moment(spec, parameters[name], name in fused)
            optimizer.state[parameters[name]][entry] = entries[key]
        else:
            number, _, entry = key.removeprefix("group.").partition(".")
            entries[key] = torch.empty(spec.shape, dtype=spec.dtype)
            optimizer.param_groups[int(number)][entry] = entries[key]
    store.fill(entries)
    for group, saved in zip(optimizer.param_groups, plain["groups"], strict=True):
        for key in saved.keys() - {"state", "names"}:
            group[key] = decode(_HYPERPARAMETER, saved[key], f"optimizer.{shown(key, quote=False)}")
        for name, state in saved["state"].items():
            optimizer.state[parameters[name]].update(state)


def _empty_moment(spec: TensorSpec, parameter: Tensor, fused: bool) -> Tensor:
    """Memory for a moment, like its parameter's; step counts are on its device for fused kernels only."""
    if spec.shape != tuple(parameter.shape):
        return torch.empty(spec.shape, dtype=spec.dtype, device=parameter.device if fused else "cpu")
    return torch.empty_like(parameter, dtype=spec.dtype).detach()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States of the generators of `random`, `numpy.random` and torch, on the CPU and on a CUDA device."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([position, has_gauss, *map(int, keys)], dtype=torch.int64),
        "numpy.gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Context after which the generators of `random_state` are as before it."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Inverse of `random_state`."""
    version, *internal = state["python"].tolist()
    gauss = state["python.gauss"].tolist()
    random.setstate((version, tuple(internal), gauss[0] if gauss else None))
    position, has_gauss, *keys = state["numpy"].tolist()
    cached = float(state["numpy.gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
