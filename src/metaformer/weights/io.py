"""Read weights from files of any kind safely, and write them atomically."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metaformer.errors import OutputError, WeightsError
from metaformer.serialize import LINE, shown
from metaformer.storage import apply_umask, as_path, atomic_bytes, atomic_path, need_regular, open_regular
from metaformer.weights.saved import weight_file
from metaformer.weights.unpickle import load_pickled

RAW = ("state_dict", "model", "model_state_dict", "net")
AVERAGED = ("state_dict_ema", "model_ema", "ema")
"""Keys of the tensors in training files, raw and averaged; raw ones come first, as published."""
_log = logging.getLogger(__name__)


PICKLED_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")


NO_CHECKPOINTS = (
    (b"<", "a web page, not weights: the download went to a page instead of the file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves: run git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
)


_DIGITS, _DIMENSIONS = 4, 8
"""Largest number of digits in a part of a tensor's name, and of its dimensions."""


@dataclass(frozen=True)
class StateFile:
    """Tensors of a file by name."""

    tensors: dict[str, Tensor]
    """Tensors by name."""
    wrapper: str = ""
    """Key of the file under which they are; empty if it holds nothing else."""


def read_state(path: str | Path, ema: bool | None = None) -> StateFile:
    """Read the tensors of a checkpoint: safetensors, or PyTorch's zip or older form, or a directory with one.

    Of a run it is the best, else the newest checkpoint.

    No code in the file is run, see `load_pickled`.

    Args:
        path: the file or directory.
        ema: of raw and averaged weights take the averaged ones, or with False the raw ones. By default those
            of a checkpoint that its run evaluated, else the raw ones, and one line says so.

    Raises:
        WeightsError: no such file, or no such weights in it; or one that is empty, cut short, no checkpoint,
            or with code in it.
    """
    path = as_path(path, "checkpoint", WeightsError, expand=True)
    if path.is_dir():
        path = weight_file(path, ema)
    with open_regular(path, WeightsError) as file:
        head = file.read(64)
    if not head:
        raise WeightsError(f"{path}: empty file; fetch it again")
    if head[8:9] == b"{":
        return StateFile(_checked(_read_safetensors(path), str(path)))
    for magic, what in NO_CHECKPOINTS:
        if head.lstrip().startswith(magic):
            raise WeightsError(f"{path}: {what}")
    pickled = head.startswith((b"PK\x03\x04", b"\x80")) or b"ustar" in head
    if not pickled or path.suffix == ".safetensors":
        raise WeightsError(f"{path}: not a checkpoint, neither safetensors nor of torch.save; fetch it again")
    return unwrap(load_pickled(path), str(path), ema)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata of a safetensors file; empty for other files."""
    try:
        need_regular(path, WeightsError)
        with safe_open(Path(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, WeightsError):
        return {}


def unwrap(loaded: Any, where: str, ema: bool | None = None) -> StateFile:
    """Find the tensors in what `torch.save` wrote; `ema` as for `read_state`.

    Raises:
        WeightsError: there are none.
    """
    wrapper, averaged = "", False
    outer: list[Any] = []  # a hostile file's dictionary may hold itself
    while isinstance(loaded, Mapping) and not any(loaded is one for one in outer):
        outer.append(loaded)
        raw, average = (
            next((name for name in names if isinstance(loaded.get(name), Mapping)), None)
            for names in (RAW, AVERAGED)
        )
        inner = (average or raw) if ema else (raw or average)
        if inner is None:
            break
        averaged |= inner == average
        if ema is None and raw and average:
            _log.warning(
                "%s: took the raw weights (%s), not the averaged (%s): ema=True, --ema takes those, "
                "ema=False, --raw says that these are meant",
                where,
                raw,
                average,
            )
        loaded, wrapper = loaded[inner], f"{wrapper}.{inner}".lstrip(".")
    tensors: dict[str, Tensor] = {}
    if isinstance(loaded, Mapping):
        tensors = {k: v.detach() for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        what = (
            f"entries {', '.join(map(shown, list(loaded)[:5]))}"
            if isinstance(loaded, Mapping)
            else type(loaded).__name__
        )
        raise WeightsError(f"{where}: holds no named tensors ({what})")
    if ema is not None and ema != averaged and (ema or wrapper):
        held = "raw" if ema else "averaged"
        raise WeightsError(
            f"{where}: holds {held} weights alone; leave the choice of weights out to take them"
        )
    return StateFile(_checked(tensors, where), wrapper)


def _checked(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Refuse tensors and names that no network has, so that what follows can count on them.

    Raises:
        WeightsError: the first such tensor.
    """
    for name, value in tensors.items():
        long = any(part.isdecimal() and len(part) > _DIGITS for part in name.split("."))
        if long or name not in LINE or value.ndim > _DIMENSIONS:
            raise WeightsError(f"{where}: {shown(name)} is no name of a tensor, or has too many dimensions")
        if value.is_sparse or value.is_quantized or value.is_meta or not _holds_its_size(value):
            raise WeightsError(f"{where}: {name} is not an ordinary tensor with all its numbers in the file")
    return tensors


def write_state(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    wrapper: str = "",
) -> None:
    """Write tensors: safetensors, or `torch.save` where the name ends in .pth, .pt, .bin or .tar.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(path)
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        if path.suffix in PICKLED_SUFFIXES:
            with atomic_bytes(path) as stream:
                torch.save({wrapper: plain} if wrapper else plain, stream)
        else:
            with atomic_path(path) as temporary:
                save_file(plain, temporary, metadata={"format": "pt", **(metadata or {})})
                apply_umask(temporary)
    except (SafetensorError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot write ({error})") from error


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, in order."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); fetch it again") from error


def _holds_its_size(value: Tensor) -> bool:
    """Whether a tensor's storage holds all its values, rather than one of them expanded."""
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
