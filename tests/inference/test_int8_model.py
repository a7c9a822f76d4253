import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metaformer.errors import ConfigError, MissingPackage, SizeError, WeightsError
from metaformer.inference.int8_model import SHAPES, Int8Network, load_openvino, uncounted


def write(place: Path) -> nn.Module:
    """A graph as a file, and the network that it is of; what its products are stored in is not looked at."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    openvino: Any = load_openvino()
    graph = openvino.convert_model(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)))
    graph.reshape([-1, 3, 8, 8])
    openvino.save_model(graph, place, compress_to_fp16=False)
    return network


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("int8") / "network.xml"
    write(file)
    return file


def test_every_size_of_batch(place: Path) -> None:
    network, small = write(place), Int8Network(place)
    assert (small.in_chans, small.image_size, small.num_classes) == (3, (8, 8), 4)
    assert small.rest in ("bfloat16", "float16", "float32")
    kept = {}
    for batch in (*range(SHAPES + 3), 1):
        images = torch.randn(batch, 3, 8, 8).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            kept[batch] = small(images), network(images)
    for found, wanted in kept.values():  # a later call leaves earlier answers alone
        assert found.shape == wanted.shape and found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
    assert len(small._compiled) == SHAPES


def test_what_it_cannot_take_is_refused(place: Path) -> None:
    small = Int8Network(place)
    with pytest.raises(SizeError, match=r"images are \(3, 8, 9\), .* made for \(3, 8, 8\)"):
        small(torch.zeros(1, 3, 8, 9))
    with torch.autocast("cpu"), pytest.raises(ConfigError, match="leave amp out"):
        small(torch.zeros(1, 3, 8, 8))


def test_a_damaged_file(place: Path, tmp_path: Path) -> None:
    (tmp_path / "network.xml").write_text(place.read_text()[:500])
    with pytest.raises(WeightsError, match=r"network\.xml: OpenVINO cannot read it"):
        Int8Network(tmp_path / "network.xml")


def test_openvino_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackage, match=r"pip install 'metaformer\[int8\]'"):
        load_openvino()


def test_nothing_is_reported_and_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "false")
    monkeypatch.delenv("NNCF_CI", raising=False)
    with uncounted():
        assert os.environ["CI"] == os.environ["NNCF_CI"] == "true"
    assert os.environ["CI"] == "false" and "NNCF_CI" not in os.environ
