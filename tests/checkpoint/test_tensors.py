from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaformer.checkpoint.tensors import Spec, TensorStore
from metaformer.errors import WeightsError


def tensors() -> dict[str, Tensor]:
    return {
        "half": torch.randn(3, 5).bfloat16(),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
    }


def test_what_was_written_is_told_and_read(tmp_path: Path) -> None:
    group, own = TensorStore(tmp_path, "model"), tensors()
    assert not group.exists()
    group.write(own)
    assert group.exists() and [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert group.specs() == {name: Spec(tuple(value.shape), value.dtype) for name, value in own.items()}
    read = group.read()
    assert all(torch.equal(read[name], value) for name, value in own.items())


def test_tensors_are_filled_where_they_lie(tmp_path: Path) -> None:
    group, own = TensorStore(tmp_path, "model"), tensors()
    group.write(own)
    room = {name: torch.zeros_like(value).requires_grad_(name == "last") for name, value in own.items()}
    group.fill({"last": room["last"], "half": room["half"]})
    assert torch.equal(room["last"], own["last"]) and torch.equal(room["half"], own["half"])
    assert room["last"].is_contiguous(memory_format=torch.channels_last) and int(room["count"]) == 0


def test_a_group_that_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    group = TensorStore(tmp_path, "ema")
    for use in (group.read, group.specs, lambda: group.fill({})):
        with pytest.raises(WeightsError, match=r"holds no ema\.safetensors"):
            use()
    group.file.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    for use in (group.read, group.specs, lambda: group.fill({"x": torch.empty(1)})):
        with pytest.raises(WeightsError, match=r"ema\.safetensors: damaged"):
            use()


def test_shards_that_are_damaged_are_told(tmp_path: Path) -> None:
    group = TensorStore(tmp_path, "ema")
    group.folder.mkdir()
    (group.folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"nonsense")
    for use in (group.read, group.specs, lambda: group.fill({"x": torch.empty(1)})):
        with pytest.raises(WeightsError, match=r"ema: damaged"):
            use()
