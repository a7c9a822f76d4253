"""A group of named tensors on disk: one safetensors file, or a folder with a file of shards for each rank."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from metaformer.distributed import is_sharded, local, rank
from metaformer.errors import WeightsError


@dataclass(frozen=True)
class Spec:
    """What is known of a stored tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class TensorStore:
    """The tensors `model`, `ema`, `optimizer` or `random` of a checkpoint directory."""

    directory: Path
    name: str

    @property
    def file(self) -> Path:
        """Where they are, if one process had them all."""
        return self.directory / f"{self.name}.safetensors"

    @property
    def folder(self) -> Path:
        """Where they are, if each rank had a part."""
        return self.directory / self.name

    def exists(self) -> bool:
        """Tell whether they are there in either form."""
        return self.file.is_file() or self.folder.is_dir()

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write them, where parts are among them together with all ranks.

        Raises:
            OSError: it cannot be done; of parts, on all ranks.
        """
        if has_shards(tensors):
            _write_parts(self.folder, tensors)
        elif rank() == 0:
            whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            try:
                save_file(whole, self.file, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def specs(self) -> dict[str, Spec]:
        """Shape and type of each.

        Raises:
            WeightsError: they are not there, or damaged.
        """
        self._need()
        try:
            if self.folder.is_dir():
                stored = _reader(self.folder).read_metadata().state_dict_metadata
                return {key: Spec(tuple(one.size), one.properties.dtype) for key, one in stored.items()}
            # one that is mapped tells its type without being read
            return {key: Spec(tuple(one.shape), one.dtype) for key, one in load_file(self.file).items()}
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def read(self) -> dict[str, Tensor]:
        """All of them, whole.

        Raises:
            WeightsError: they are not there, or damaged.
        """
        self._need()
        if self.folder.is_dir():
            tensors = {key: torch.empty(spec.shape, dtype=spec.dtype) for key, spec in self.specs().items()}
            self.fill(tensors)
            return tensors
        try:
            return load_file(self.file)
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Read into tensors of the same names and shapes; of one that is shared out, this rank's part alone.

        Raises:
            WeightsError: they are not there, or damaged.
        """
        self._need()
        try:
            if self.folder.is_dir():
                _read_parts(self.folder, tensors)
                return
            with safe_open(self.file, framework="pt") as file:
                for key, tensor in tensors.items():
                    if not is_sharded(tensor):
                        tensor.copy_(file.get_tensor(key))
                    elif local(tensor).numel():
                        local(tensor).copy_(file.get_slice(key)[_place(tensor)])
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def _need(self) -> None:
        if not self.exists():
            raise WeightsError(f"{self.directory}: holds no {self.file.name}")

    def _damaged(self, error: Exception) -> WeightsError:
        return WeightsError(f"{self.folder if self.folder.is_dir() else self.file}: damaged ({error})")


def has_shards(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether ranks hold parts of these tensors, so that all must write."""
    return any(map(is_sharded, tensors.values()))


def _write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as failure:  # no Exception
        number, (error, _) = min(failure.failures.items(), key=lambda item: item[0])
        if isinstance(error, OSError) and error.strerror:
            raise OSError(error.errno, f"{error.strerror}, rank {number}") from failure
        raise OSError(f"{error!r}, rank {number}") from failure


def _read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():
            # that each process reads for itself is meant, so that none waits for one that failed
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(dict(tensors), storage_reader=_reader(folder), no_dist=True)
    except CheckpointException as failure:
        raise OSError("; ".join(repr(error) for error, _ in failure.failures.values())) from failure


def _reader(folder: Path) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(folder))


def _place(part: Any) -> tuple[slice, ...]:
    """Where a rank's part lies in the whole tensor."""
    (chunk,) = part.__create_chunk_list__()
    return tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
