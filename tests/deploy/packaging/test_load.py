"""Packages that are loaded: trusted, whole, of this format and machine."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metaformer
from metaformer.deploy.packaging.input_limits import InputLimits
from metaformer.deploy.packaging.load import FORMAT, KEY, Packaged, machine_metadata, read_metadata
from metaformer.errors import ConfigError, SizeError, VersionError, WeightsError

INPUTS = {
    "batch": [1, 4],
    "channels": 3,
    "height": [64, 64],
    "width": [64, 64],
    "dtype": "float32",
    "device": "cpu",
}
METADATA: dict[str, Any] = {
    "format": FORMAT,
    "name": "net",
    "inputs": INPUTS,
    "outputs": ["output"],
    "metaformer": "0.1.0",
    "torch": "2.0",
    **machine_metadata(),
}
"""As version 0.1.0 wrote it: a package of format 1 stays readable."""


def written(path: Path, metadata: Any) -> Path:
    """A package's metadata without its code."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        entry = json.dumps({KEY: json.dumps(metadata)})
        archive.writestr("net/data/aotinductor/model/x_metadata.json", entry)
    return path


def test_metadata_of_format_1_is_read(tmp_path: Path) -> None:
    metadata = read_metadata(written(tmp_path / "net.pt2", {**METADATA, "format": 1}))
    assert metadata["name"] == "net"
    network = Packaged(metadata, lambda images: [images])
    assert network.limits == InputLimits((1, 4), 3, (64, 64), (64, 64), "float32", "cpu")


@pytest.mark.parametrize(("version", "writer"), [("9.0", r"metaformer 9\.0"), (None, "development version")])
def test_another_format_is_refused_with_the_version_that_wrote_it(
    tmp_path: Path, version: str | None, writer: str
) -> None:
    path = written(tmp_path / "net.pt2", {**METADATA, "format": FORMAT + 1, "metaformer": version})
    with pytest.raises(VersionError, match=rf"net\.pt2: package format {FORMAT + 1} of .*{writer}"):
        metaformer.load_package(path, trusted=True)


def test_code_is_run_only_where_its_maker_is_trusted(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt2", METADATA)
    with pytest.raises(ConfigError, match="trusted=True"):
        metaformer.load_package(path)
    with pytest.raises(WeightsError, match=r"PyTorch 2\.0"):
        metaformer.load_package(path, trusted=True)


def test_code_for_another_machine(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt2", {**METADATA, "machine": "abacus"})
    with pytest.raises(ConfigError, match="abacus"):
        metaformer.load_package(path, trusted=True)


def test_code_with_newer_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "net.pt2", {**METADATA, "processor": "AVX512"})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(ConfigError, match=r"AVX512.* AVX2"):
        metaformer.load_package(path, trusted=True)


def test_what_is_no_package(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with pytest.raises(WeightsError, match="cannot be read"):
        metaformer.load_package(path, trusted=True)
    path.write_bytes(b"PK nothing of the kind")
    with pytest.raises(WeightsError, match="no package of metaformer"):
        metaformer.load_package(path, trusted=True)
    for metadata in ({}, [], {**METADATA, "inputs": {}}, {**METADATA, "torch": 2}):
        with pytest.raises(WeightsError, match="no package of metaformer"):
            metaformer.load_package(written(path, metadata), trusted=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("state/data.pkl", "")
    with pytest.raises(WeightsError, match="no package of metaformer"):
        metaformer.load_package(path, trusted=True)


def test_images_are_checked_and_laid_out() -> None:
    seen: list[Tensor] = []

    def code(images: Tensor) -> list[Tensor]:
        seen.append(images)
        return [images.sum((1, 2, 3))]

    network = Packaged(METADATA, code)
    network(torch.zeros(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    assert seen[0].is_contiguous()
    with pytest.raises(SizeError, match="batch of 5"):
        network(torch.zeros(5, 3, 64, 64))
    assert len(seen) == 1
    named = Packaged({**METADATA, "outputs": ["logits.0", "deltas.0"]}, lambda images: [images, images])
    assert list(named(torch.zeros(1, 3, 64, 64))) == ["logits.0", "deltas.0"]
