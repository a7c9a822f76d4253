from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaformer.checkpoint.tensors import TensorSpec, TensorStore
from metaformer.errors import WeightsError


def tensors() -> dict[str, Tensor]:
    return {
        "half": torch.randn(3, 5).bfloat16(),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
    }


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store, own = TensorStore(tmp_path, "model"), tensors()
    assert not store.exists()
    store.write(own)
    assert store.exists() and [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert store.specs() == {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in own.items()}
    read = store.read()
    assert all(torch.equal(read[name], value) for name, value in own.items())


def test_tensors_are_filled_where_they_lie(tmp_path: Path) -> None:
    store, own = TensorStore(tmp_path, "model"), tensors()
    store.write(own)
    target = {name: torch.zeros_like(value).requires_grad_(name == "last") for name, value in own.items()}
    store.fill({"last": target["last"], "half": target["half"]})
    assert torch.equal(target["last"], own["last"]) and torch.equal(target["half"], own["half"])
    assert target["last"].is_contiguous(memory_format=torch.channels_last) and int(target["count"]) == 0


def test_missing_or_damaged_tensors_are_refused(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "ema")
    for use in (store.read, store.specs, lambda: store.fill({})):
        with pytest.raises(WeightsError, match=r"holds no ema\.safetensors"):
            use()
    store.file.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    for use in (store.read, store.specs, lambda: store.fill({"x": torch.empty(1)})):
        with pytest.raises(WeightsError, match=r"ema\.safetensors: damaged"):
            use()


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "ema")
    store.folder.mkdir()
    (store.folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"nonsense")
    for use in (store.read, store.specs, lambda: store.fill({"x": torch.empty(1)})):
        with pytest.raises(WeightsError, match=r"ema: damaged"):
            use()
