"""Checkpoints on disk: safetensors and JSON under a sha256 manifest; nothing in them can run code."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.checkpoint.manifest import recover, remove_directory, verify, write_directory
from metaformer.checkpoint.tensors import Spec, TensorStore, has_shards
from metaformer.distributed import rank
from metaformer.errors import VersionError, WeightsError
from metaformer.weights.report import LoadReport

FORMAT = 2
"""Of the saved configuration and tensors; it changes with the names of options."""
STEP = "step_"
STATE = "state.json"
HUB_CARD = "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    directory: Path
    state: dict[str, Any]
    """Everything but tensors: `card`, `config`, `step`, `metrics`, …"""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One group of tensors, whole: `model`, `ema` or `optimizer`.

        Raises:
            WeightsError: it is not there, or damaged.
        """
        return TensorStore(self.directory, name).read()

    def load(self, model: nn.Module, name: str = "model") -> None:
        """Fill a model with one group of tensors, all of them and nothing else.

        Raises:
            WeightsError: they do not fit.
        """
        group, own = TensorStore(self.directory, name), model.state_dict()
        stored = group.specs()
        report = LoadReport(
            missing=[key for key in own if key not in stored],
            unexpected=[key for key in stored if key not in own],
            misshaped=[
                (key, stored[key].shape, tuple(value.shape))
                for key, value in own.items()
                if key in stored and stored[key].shape != tuple(value.shape)
            ],
        )
        if not report.complete:
            raise WeightsError(
                f"{self.directory}: is of another model: go on with the run's own settings, or begin anew in "
                f"another place ({'; '.join(report.problems())})"
            )
        group.fill(own)

    def has(self, name: str) -> bool:
        """Tell whether this group of tensors is there."""
        return TensorStore(self.directory, name).exists()


def write_checkpoint(
    target: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    hub_card: Mapping[str, Any] | None = None,
) -> Path:
    """Write groups of tensors and a state of plain values as one directory.

    With a `hub_card` it also is a directory that `metaformer.from_pretrained` reads. Where tensors are shared
    out over ranks, all ranks must call this, on a disk that they share; else one rank does.

    Raises:
        OutputError: the place cannot be written to; earlier checkpoints are untouched.
    """
    together = any(map(has_shards, groups.values()))

    def fill(directory: Path) -> None:
        # what all do together comes first: no rank waits for one that has failed on its own
        for name, tensors in sorted(groups.items(), key=lambda item: not has_shards(item[1])):
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
        directory: where it lies.
        verified: it has just been read whole by another process of this run.

    Raises:
        VersionError: it is in the format of another version.
        WeightsError: it is missing, unfinished or damaged.
    """
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such checkpoint directory")
    verify(directory, contents=not verified)
    return Checkpoint(directory, read_state(directory))


def write_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Write `state.json`: the format, the version that wrote it, and a checkpoint's plain values."""
    _write_json(directory / STATE, {"format": FORMAT, "version": metadata.version("metaformer"), **state})


def read_state(directory: Path) -> dict[str, Any]:
    """Read `state.json`.

    Raises:
        VersionError: it is in the format of another version.
        WeightsError: it is missing or damaged.
    """
    file = directory / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: damaged ({error})") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise WeightsError(f"{file}: damaged (no checkpoint format)")
    if state["format"] != FORMAT:
        versions = state["format"], state.get("version"), FORMAT
        if "int8" in (state.get("card") or {}):
            raise VersionError(directory, *versions, kind="int8 network", remedy="quantize the network again")
        raise VersionError(directory, *versions)
    return state


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def checkpoints(folder: Path) -> list[Path]:
    """Step directories of a run, newest first."""
    named = [path for path in folder.glob(f"{STEP}*") if path.name.isascii()]
    found = [path for path in named if path.name[len(STEP) :].isdigit()]
    return sorted(found, key=_step, reverse=True)


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Open the newest checkpoint that is whole; each damaged one that is passed over is said in a line.

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
            say(f"passed over a damaged checkpoint: {error}")
    return None


def recover_all(folder: Path) -> None:
    """Clear away what a killed process left half written."""
    for leftover in folder.glob(".*-*"):
        recover(folder / leftover.name.split("-", 1)[1])


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` step directories."""
    for directory in checkpoints(folder)[keep:]:
        remove_directory(directory)


def step_directory(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step belongs."""
    return folder / f"{STEP}{step}"


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors, named after parameters, and plain values."""
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


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Checkpoint) -> None:
    """Put back what `pack_optimizer` took; each moment lies in memory as its parameter does.

    Raises:
        WeightsError: the optimizer has other groups than the saved one.
    """
    plain, group = saved.state["optimizer"], TensorStore(saved.directory, "optimizer")
    names = [group["names"] for group in optimizer.param_groups]
    if names != [group["names"] for group in plain["groups"]]:
        raise WeightsError(
            "the checkpoint's optimizer holds other parameter groups: resume with the run's own settings"
        )
    parameters = {n: p for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)}
    fused = {n for g in optimizer.param_groups if g.get("fused") for n in g["names"]}
    entries: dict[str, Tensor] = {}
    for key, spec in group.specs().items():
        name, _, entry = key.rpartition("/")
        if name:
            entries[key] = _room(spec, parameters[name], name in fused)
            optimizer.state[parameters[name]][entry] = entries[key]
        else:
            number, _, entry = key.removeprefix("group.").partition(".")
            entries[key] = torch.empty(spec.shape, dtype=spec.dtype)
            optimizer.param_groups[int(number)][entry] = entries[key]
    group.fill(entries)
    for own, told in zip(optimizer.param_groups, plain["groups"], strict=True):
        own.update({key: _plain(value) for key, value in told.items() if key not in ("state", "names")})
        for name, values in told["state"].items():
            optimizer.state[parameters[name]].update(values)


def _room(spec: Spec, parameter: Tensor, fused: bool) -> Tensor:
    """Memory for a moment, like its parameter's; a step count lies beside it for fused kernels only."""
    if spec.shape != tuple(parameter.shape):
        return torch.empty(spec.shape, dtype=spec.dtype, device=parameter.device if fused else "cpu")
    return torch.empty_like(parameter, dtype=spec.dtype).detach()


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _step(directory: Path) -> int:
    return int(directory.name[len(STEP) :])
