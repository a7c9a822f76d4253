from pathlib import Path

import pytest
import torch
from torch import nn

import metaformer
from metaformer.deploy.optimize import network_outputs
from metaformer.deploy.packaging.input_limits import limits_for
from metaformer.deploy.packaging.package import OutputTuple, _exported, package
from metaformer.deploy.packaging.packaged import Packaged, read_metadata
from metaformer.errors import ConfigError, GridError, OptimizeError, OutputError, SizeError

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "image_size": (64, 64), "num_classes": 5}


def made(kind: str) -> nn.Module:
    torch.manual_seed(1)
    if kind in ("semantic_fpn", "retinanet"):
        config = metaformer.create_model("poolformer_s12", **TINY).config
        if kind == "retinanet":
            return metaformer.create_detector(kind, config, num_classes=3, fpn_dim=8).eval()
        return metaformer.create_segmenter(kind, config, num_classes=3, fpn_dim=8, head_dim=8).eval()
    return metaformer.create_model(kind, **TINY).eval()


SLOW = ("poolformer_s12", "caformer_s18", "semantic_fpn", "retinanet")


@pytest.mark.parametrize(
    "kind", ["cyclemlp_b1", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def test_one_graph_for_batches_and_sizes(kind: str) -> None:
    network = metaformer.optimize(made(kind), sample=torch.randn(2, 3, 160, 160))
    limits = limits_for(network, (1, 16), (160, 512), None)
    with torch.no_grad():
        graph = _exported(OutputTuple(network), limits).module()
        for shape in ((1, 3, 160, 160), (5, 3, 163, 258)):
            images = torch.randn(shape)
            for ours, theirs in zip(graph(images), network_outputs(network, images).values(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_refused_before_the_work(tmp_path: Path) -> None:
    model, path = made("poolformer_s12"), tmp_path / "net.pt2"
    with pytest.raises(ConfigError, match=r"net.so: a package's name ends in .pt2"):
        package(model, tmp_path / "net.so")
    with pytest.raises(OutputError, match="no ordinary file"):
        folder = tmp_path / "folder.pt2"
        folder.mkdir()
        package(model, folder)
    with pytest.raises(ConfigError, match="MetaFormer is compiled already"):
        package(metaformer.optimize(model, compile=True), path)
    with pytest.raises(
        ConfigError, match=r"dtype is torch.bfloat16, but the network was optimized in torch.float32"
    ):
        package(metaformer.optimize(model), path, dtype=torch.bfloat16)
    with pytest.raises(SizeError, match="got"):
        package(model, path, sample=torch.zeros(1, 4, 64, 64))
    with pytest.raises(GridError, match="RandomMixing"):
        package(made("randformer_s12"), path, size=(64, 128))
    assert not path.exists()


def test_no_compiler(tmp_path: Path) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ConfigError, match=r"no C\+\+ compiler here: install g\+\+"),
    ):
        package(made("poolformer_s12"), tmp_path / "net.pt2")


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    model, path, steps = made("poolformer_s12"), tmp_path / "net.pt2", list[str]()
    notes = {"classes": ["é", '"b"', "c", "d", "e"]}
    written = metaformer.package(model, path, batch=(1, 8), size=(64, 256), notes=notes, tell=steps.append)
    assert written.path == path and written.difference < 1e-4 and any("compiling" in step for step in steps)
    network = metaformer.load_package(path, trusted=True)
    assert isinstance(network, Packaged) and network.metadata == read_metadata(path)
    assert network.metadata["classes"] == notes["classes"]
    assert metaformer.MetaFormerConfig.from_dict(network.metadata["config"]) == model.config
    with torch.inference_mode():
        for shape in ((1, 3, 64, 64), (8, 3, 100, 81), (4, 3, 256, 224)):
            images = torch.randn(shape)
            for layout in (torch.contiguous_format, torch.channels_last):
                logits = network(images.contiguous(memory_format=layout))
                torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
    for shape in ((9, 3, 64, 64), (1, 3, 64, 257), (0, 3, 64, 64)):
        with pytest.raises(SizeError):
            network(torch.zeros(shape))


@pytest.mark.slow
def test_a_detector_in_half_precision(tmp_path: Path) -> None:
    model = made("retinanet")
    images = torch.randn(2, 3, 160, 192)
    path = metaformer.package(model, tmp_path / "net.pt2", dtype=torch.bfloat16, sample=images).path
    outputs = metaformer.load_package(path, trusted=True)(images.bfloat16())
    for name, theirs in network_outputs(model, images).items():
        assert outputs[name].dtype == torch.bfloat16
        torch.testing.assert_close(outputs[name].float(), theirs, rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_a_mismatch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Packaged.forward
    monkeypatch.setattr(Packaged, "forward", lambda self, x: right(self, x) + 1)
    with pytest.raises(OptimizeError, match="the package differs from the network by"):
        package(made("poolformer_s12"), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())
