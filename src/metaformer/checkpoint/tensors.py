"""State dicts on disk: one safetensors file, or a folder with the shards of each rank."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from metaformer.distributed import is_sharded, local, rank
from metaformer.errors import WeightsError
from metaformer.storage import need_regular


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class TensorStore:
    """One state dict of a checkpoint directory: `model`, `ema`, `optimizer` or `random`."""

    directory: Path
    name: str

    @property
    def file(self) -> Path:
        """The file, if one process had all tensors."""
        return self.directory / f"{self.name}.safetensors"

    @property
    def folder(self) -> Path:
        """The folder, if tensors were sharded."""
        return self.directory / self.name

    def exists(self) -> bool:
        """Whether it is there in either form."""
        return self.file.is_file() or self.folder.is_dir()

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors; all ranks together if some are sharded.

        Raises:
            OSError: it failed; of shards, on all ranks.
        """
        if has_shards(tensors):
            _write_shards(self.folder, tensors)
        elif rank() == 0:
            whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            try:
                save_file(whole, self.file, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def specs(self) -> dict[str, TensorSpec]:
        """Shapes and types of the tensors.

        Raises:
            WeightsError: they are missing or damaged.
        """
        self._require()
        try:
            if self.folder.is_dir():
                return self._sharded_specs()
            need_regular(self.file, WeightsError)
            # a memory-mapped tensor has its type without being read
            return {key: TensorSpec(tuple(one.shape), one.dtype) for key, one in load_file(self.file).items()}
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def read(self) -> dict[str, Tensor]:
        """All tensors, whole.

        Raises:
            WeightsError: they are missing or damaged.
        """
        self._require()
        if self.folder.is_dir():
            tensors = {key: torch.empty(spec.shape, dtype=spec.dtype) for key, spec in self.specs().items()}
            self.fill(tensors)
            return tensors
        try:
            need_regular(self.file, WeightsError)
            return load_file(self.file)
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Read into tensors of the same names and shapes; of a sharded one, this rank's shard.

        Raises:
            WeightsError: they are missing or damaged.
        """
        self._require()
        try:
            if self.folder.is_dir():
                _read_shards(self.folder, tensors)
                return
            with safe_open(self.file, framework="pt") as file:
                for key, tensor in tensors.items():
                    if not is_sharded(tensor):
                        tensor.copy_(file.get_tensor(key))
                    elif local(tensor).numel():
                        local(tensor).copy_(file.get_slice(key)[_shard_slices(tensor)])
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def _sharded_specs(self) -> dict[str, TensorSpec]:
        """Shapes and types in the shards' headers, which may not claim more than the files hold."""
        try:
            stored = _reader(self.folder).read_metadata().state_dict_metadata
            specs = {key: TensorSpec(tuple(one.size), one.properties.dtype) for key, one in stored.items()}
            needed = sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs.values())
        except Exception as error:  # PyTorch's reader checks no types
            raise self._damaged(error) from error
        if needed > (there := sum(file.stat().st_size for file in self.folder.iterdir())):
            raise WeightsError(f"{self.folder}: damaged ({needed:,} bytes of tensors in files of {there:,})")
        return specs

    def _require(self) -> None:
        if not self.exists():
            raise WeightsError(f"{self.directory}: holds no {self.file.name}")

    def _damaged(self, error: Exception) -> WeightsError:
        return WeightsError(f"{self.folder if self.folder.is_dir() else self.file}: damaged ({error})")


def has_shards(tensors: Mapping[str, Tensor]) -> bool:
    """Whether some tensors are sharded, so that all ranks must write."""
    return any(map(is_sharded, tensors.values()))


def _write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as failure:  # a BaseException
        number, (error, _) = min(failure.failures.items(), key=lambda item: item[0])
        if isinstance(error, OSError) and error.strerror:
            raise OSError(error.errno, f"{error.strerror}, rank {number}") from failure
        raise OSError(f"{error!r}, rank {number}") from failure


def _read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():
            # each process reads for itself on purpose, so that none waits for one that failed
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(dict(tensors), storage_reader=_reader(folder), no_dist=True)
    except CheckpointException as failure:
        raise OSError("; ".join(repr(error) for error, _ in failure.failures.values())) from failure


def _reader(folder: Path) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(folder))


def _shard_slices(tensor: Any) -> tuple[slice, ...]:
    """Slices of a rank's shard in the whole tensor."""
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
