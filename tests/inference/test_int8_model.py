import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from metaformer.errors import ConfigError, MissingPackage, SizeError, WeightsError
from metaformer.inference.int8_model import MAX_COMPILED, Int8Network, load_openvino, without_telemetry


class Written(NamedTuple):
    network: nn.Module
    file: Path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A network and its graph in a file; in which types the graph stores its weights does not matter here."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    openvino: Any = load_openvino()
    graph = openvino.convert_model(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)))
    graph.reshape([-1, 3, 8, 8])
    file = tmp_path_factory.mktemp("int8") / "network.xml"
    openvino.save_model(graph, file, compress_to_fp16=False)
    return Written(network, file)


def test_every_batch_size(written: Written) -> None:
    network = Int8Network(written.file)
    assert (network.in_chans, network.image_size, network.num_classes) == (3, (8, 8), 4)
    assert network.float_dtype in ("bfloat16", "float16", "float32")
    results = []
    for batch in (*range(MAX_COMPILED + 3), 1):
        images = torch.randn(batch, 3, 8, 8).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            results.append((network(images), written.network(images)))
    for logits, expected in results:  # a later call leaves earlier results alone
        assert logits.shape == expected.shape and logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05)
    assert len(network._compiled) == MAX_COMPILED


def test_other_sizes_and_autocast_are_refused(written: Written) -> None:
    network = Int8Network(written.file)
    with pytest.raises(SizeError, match=r"\(3, 8, 9\).*\(3, 8, 8\)"):
        network(torch.zeros(1, 3, 8, 9))
    with torch.autocast("cpu"), pytest.raises(ConfigError, match="amp"):
        network(torch.zeros(1, 3, 8, 8))


def test_a_damaged_file_is_refused(written: Written, tmp_path: Path) -> None:
    (tmp_path / "network.xml").write_text(written.file.read_text()[:500])
    with pytest.raises(WeightsError, match=r"network\.xml"):
        Int8Network(tmp_path / "network.xml")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[int8\]"):
        load_openvino()


def test_telemetry_is_off_and_the_environment_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "false")
    monkeypatch.delenv("NNCF_CI", raising=False)
    with without_telemetry():
        assert os.environ["CI"] == os.environ["NNCF_CI"] == "true"
    assert os.environ["CI"] == "false" and "NNCF_CI" not in os.environ
