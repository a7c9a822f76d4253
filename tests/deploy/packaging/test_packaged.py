import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metaformer
from metaformer.deploy.packaging.input_limits import InputLimits
from metaformer.deploy.packaging.packaged import FORMAT, KEY, Packaged, machine_notes, read_metadata
from metaformer.errors import ConfigError, SizeError, WeightsError

INPUTS = InputLimits((1, 4), 3, (64, 64), (64, 64), "float32", "cpu").to_dict()
NOTES: dict[str, Any] = {"format": FORMAT, "name": "net", "inputs": INPUTS, "outputs": ["output"]}
NOTES |= {"torch": "2.0", **machine_notes()}


def written(path: Path, notes: Any) -> Path:
    """A package's metadata without its code."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/aotinductor/model/x_metadata.json", json.dumps({KEY: json.dumps(notes)}))
    return path


def test_code_is_run_only_where_its_maker_is_trusted(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt2", NOTES)
    assert read_metadata(path)["name"] == "net"
    with pytest.raises(
        ConfigError, match=r"compiled code, and loading runs it: load_package\(path, trusted=True"
    ):
        metaformer.load_package(path)
    with pytest.raises(WeightsError, match=r"made by PyTorch 2.0, and PyTorch .* package the network again"):
        metaformer.load_package(path, trusted=True)


def test_code_for_another_machine(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt2", {**NOTES, "machine": "abacus"})
    with pytest.raises(ConfigError, match=r"compiled for abacus .*, and this is"):
        metaformer.load_package(path, trusted=True)


def test_code_with_newer_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "net.pt2", {**NOTES, "processor": "AVX512"})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(ConfigError, match=r"AVX512, and this is \w+ AVX2"):
        metaformer.load_package(path, trusted=True)


def test_what_is_no_package(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with pytest.raises(WeightsError, match="cannot be read"):
        metaformer.load_package(path, trusted=True)
    path.write_bytes(b"PK nothing of the kind")
    with pytest.raises(WeightsError, match="no package of metaformer"):
        metaformer.load_package(path, trusted=True)
    for notes in ({**NOTES, "format": FORMAT + 1}, {}, []):
        with pytest.raises(WeightsError, match="no package of metaformer"):
            metaformer.load_package(written(path, notes), trusted=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("state/data.pkl", "")
    with pytest.raises(WeightsError, match="no package of metaformer"):
        metaformer.load_package(path, trusted=True)


def test_images_are_checked_and_laid_out() -> None:
    seen: list[Tensor] = []

    def code(images: Tensor) -> list[Tensor]:
        seen.append(images)
        return [images.sum((1, 2, 3))]

    network = Packaged(NOTES, code)
    network(torch.zeros(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    assert seen[0].is_contiguous()
    with pytest.raises(SizeError, match="batch of 5"):
        network(torch.zeros(5, 3, 64, 64))
    assert len(seen) == 1
    named = Packaged({**NOTES, "outputs": ["logits.0", "deltas.0"]}, lambda images: [images, images])
    assert list(named(torch.zeros(1, 3, 64, 64))) == ["logits.0", "deltas.0"]
