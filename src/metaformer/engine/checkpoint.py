"""Checkpoints on disk: safetensors and JSON under a sha256 manifest; nothing in them can run code."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metaformer.engine.manifest import recover, remove_directory, verify, write_directory
from metaformer.errors import WeightsError
from metaformer.weights.report import LoadReport

FORMAT = 1
STEP = "step_"
STATE = "state.json"
HUB_CARD = "config.json"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    directory: Path
    state: dict[str, Any]
    """Everything but tensors: `card`, `config`, `step`, `metrics`, …"""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One group of tensors: `model`, `ema` or `optimizer`.

        Raises:
            WeightsError: it is not there, or damaged.
        """
        file = self.directory / f"{name}.safetensors"
        if not file.is_file():
            raise WeightsError(f"{self.directory}: holds no {name}.safetensors")
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file}: damaged ({error})") from error

    def load(self, model: nn.Module, name: str = "model") -> None:
        """Fill a model with one group of tensors, all of them and nothing else.

        Raises:
            WeightsError: they do not fit.
        """
        tensors, own = self.tensors(name), model.state_dict()
        report = LoadReport(
            missing=[key for key in own if key not in tensors],
            unexpected=[key for key in tensors if key not in own],
            misshaped=[
                (key, tuple(tensors[key].shape), tuple(value.shape))
                for key, value in own.items()
                if key in tensors and tensors[key].shape != value.shape
            ],
        )
        if not report.complete:
            raise WeightsError(
                f"{self.directory}: is of another model: go on with the run's own settings, or begin anew in "
                f"another place ({'; '.join(report.problems())})"
            )
        model.load_state_dict(tensors)

    def has(self, name: str) -> bool:
        """Tell whether this group of tensors is there."""
        return (self.directory / f"{name}.safetensors").is_file()


def write_checkpoint(
    target: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    hub_card: Mapping[str, Any] | None = None,
) -> Path:
    """Write groups of tensors and a state of plain values as one directory.

    With a `hub_card` it also is a directory that `metaformer.from_pretrained` reads.

    Raises:
        OutputError: the place cannot be written to; earlier checkpoints are untouched.
    """

    def fill(directory: Path) -> None:
        for name, tensors in groups.items():
            whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            try:
                save_file(whole, directory / f"{name}.safetensors", metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(str(error)) from error
        files = {STATE: {"format": FORMAT, **state}}
        if hub_card is not None:
            files[HUB_CARD] = dict(hub_card)
        for name, values in files.items():
            text = json.dumps(values, indent=1, ensure_ascii=False)
            (directory / name).write_text(text + "\n", encoding="utf-8")

    return write_directory(target, fill)


def read_checkpoint(directory: Path) -> Saved:
    """Verify a checkpoint and open it.

    Raises:
        WeightsError: it is missing, unfinished, damaged, or of a later version of the format.
    """
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such checkpoint directory")
    verify(directory)
    try:
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{directory / STATE}: damaged ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(
            f"{directory / STATE}: not in checkpoint format {FORMAT}; use the version that wrote it"
        )
    return Saved(directory, state)


def checkpoints(folder: Path) -> list[Path]:
    """Step directories of a run, newest first."""
    found = [path for path in folder.glob(f"{STEP}*") if path.name[len(STEP) :].isdigit()]
    return sorted(found, key=_step, reverse=True)


def newest(folder: Path, say: Callable[[str], None]) -> Saved | None:
    """Open the newest checkpoint that is whole; each damaged one that is passed over is said in a line."""
    recover_all(folder)
    for directory in checkpoints(folder):
        try:
            return read_checkpoint(directory)
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
    """Split an optimiser's state into tensors, named after parameters, and plain values."""
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


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Put back what `pack_optimizer` took; each moment lies in memory as its parameter does.

    Raises:
        WeightsError: the optimiser has other groups than the saved one.
    """
    names = [group["names"] for group in optimizer.param_groups]
    if names != [group["names"] for group in plain["groups"]]:
        raise WeightsError(
            "the checkpoint's optimiser holds other parameter groups: resume with the run's own settings"
        )
    parameters = {n: p for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)}
    fused = {n for g in optimizer.param_groups if g.get("fused") for n in g["names"]}
    for number, (group, saved) in enumerate(zip(optimizer.param_groups, plain["groups"], strict=True)):
        prefix = f"group.{number}."
        group.update({key: _plain(value) for key, value in saved.items() if key not in ("state", "names")})
        group.update(
            {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        )
        for name, values in saved["state"].items():
            optimizer.state[parameters[name]].update(values)
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        if name:
            optimizer.state[parameters[name]][entry] = _placed(tensor, parameters[name], name in fused)


def _placed(tensor: Tensor, parameter: Tensor, fused: bool) -> Tensor:
    """A moment with its parameter's strides and device; a step count follows it for fused kernels only."""
    if tensor.shape != parameter.shape:
        return tensor.to(parameter.device, copy=True) if fused else tensor.clone()
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor).detach()


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _step(directory: Path) -> int:
    return int(directory.name[len(STEP) :])
