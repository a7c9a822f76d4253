"""Packaged networks."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import metaformer
from metaformer.deploy.optimize import named_tensors, network_outputs
from metaformer.deploy.packaging.input_limits import InputLimits, limits_for
from metaformer.deploy.packaging.load import FORMAT, KEY, Packaged, machine_metadata, read_metadata
from metaformer.deploy.packaging.write import OutputTuple, _exported, compare, package, trial_batches
from metaformer.errors import (
    ConfigError,
    GridError,
    OptimizeError,
    OutputError,
    SizeError,
    VersionError,
    WeightsError,
)

INPUT_LIMITS = InputLimits((2, 4), 3, (64, 96), (64, 64), "float32", "cpu")
TINY_LIMITED = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (64, 64), "num_classes": 5}


def test_what_fits_is_let_in() -> None:
    for shape in ((2, 3, 64, 64), (4, 3, 96, 64)):
        INPUT_LIMITS.check(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ((1, 3, 64, 64), "batch of 1"),
        ((5, 3, 64, 64), "batch of 5"),
        ((2, 3, 97, 64), "height of 97"),
        ((2, 3, 64, 63), "width of 63"),
        ((2, 1, 64, 64), r"got \(2, 1, 64, 64\)"),
        ((3, 64, 64), r"got \(3, 64, 64\)"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], field: str) -> None:
    with pytest.raises(SizeError, match=f"{field}.*2…4 images of 64…96×64 pixels, float32 on cpu"):
        INPUT_LIMITS.check(torch.zeros(shape))


def test_another_type_or_device() -> None:
    images = torch.zeros(2, 3, 64, 64)
    with pytest.raises(ConfigError, match=r"torch.bfloat16 on cpu: the package takes"):
        INPUT_LIMITS.check(images.bfloat16())
    with pytest.raises(ConfigError, match=r"on meta: the package takes"):
        INPUT_LIMITS.check(images.to("meta"))


def test_limits_there_and_back() -> None:
    assert InputLimits.from_dict(INPUT_LIMITS.to_dict()) == INPUT_LIMITS
    with pytest.raises(ConfigError, match="height is 9 … 8"):
        replace(INPUT_LIMITS, height=(9, 8))
    with pytest.raises(ConfigError, match="dtype"):
        _ = replace(INPUT_LIMITS, dtype="load").torch_dtype


def test_limits_of_a_network() -> None:
    model = metaformer.create_model("poolformer_s12", **TINY_LIMITED)
    assert limits_for(model, (1, 8), None, None).height == (64, 64)
    assert limits_for(model, (1, 8), None, torch.zeros(1, 3, 64, 96)).width == (96, 96)
    assert limits_for(model, (1, 8), "dynamic", None).height == (35, 4096)
    assert limits_for(model, (1, 8), (35, 70), None).width == (35, 70)
    with pytest.raises(ConfigError, match=r"size 34 … 70.* 35 pixels"):
        limits_for(model, (1, 8), (34, 70), None)
    with pytest.raises(ConfigError, match="batch is 0 … 8"):
        limits_for(model, (0, 8), None, None)


def test_a_detector_begins_where_its_coarsest_level_has_two_positions() -> None:
    backbone = metaformer.create_model("poolformer_s12", **TINY_LIMITED).config
    detector = metaformer.create_detector("retinanet", backbone, num_classes=3, fpn_dim=8)
    least, _ = limits_for(detector, (1, 8), "dynamic", None).height
    with torch.no_grad():
        assert detector.eval().forward_head(torch.zeros(1, 3, least, least)).logits[-1].shape[2:] == (2, 2)
        assert detector.forward_head(torch.zeros(1, 3, least - 1, least)).logits[-1].shape[2:] == (1, 2)


TINY = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "image_size": (64, 64), "num_classes": 5}
LIMITS = InputLimits((1, 8), 3, (64, 512), (64, 512), "float32", "cpu")


def network_of(kind: str) -> nn.Module:
    torch.manual_seed(1)
    if kind not in ("semantic_fpn", "retinanet"):
        return metaformer.create_model(kind, **TINY).eval()
    config = metaformer.create_model("poolformer_s12", **TINY).config
    if kind == "retinanet":
        return metaformer.create_detector(kind, config, num_classes=3, fpn_dim=8).eval()
    return metaformer.create_segmenter(kind, config, num_classes=3, fpn_dim=8, head_dim=8).eval()


class Outputs(NamedTuple):
    logits: tuple[Tensor, ...]
    sizes: list[dict[str, Tensor]]


def test_outputs_are_named_by_their_path() -> None:
    a, b, c = torch.zeros(3, 1)
    found = dict(named_tensors(Outputs((a, b), [{"wide": c}])))
    assert list(found) == ["logits.0", "logits.1", "sizes.0.wide"] and found["logits.1"] is b
    assert list(dict(named_tensors(a))) == ["output"]
    x = torch.zeros(1, 3, 64, 64)
    assert network_outputs(network_of("semantic_fpn"), x)["output"].shape == (1, 3, 16, 16)
    names = list(network_outputs(network_of("retinanet"), x))
    assert names == [f"{kind}.{level}" for kind in ("logits", "deltas") for level in range(5)]
    assert len(OutputTuple(network_of("retinanet"))(x)) == len(names)


def test_trials_are_two_batches_of_two_sizes() -> None:
    network = nn.Conv2d(3, 4, 1)
    for sample, first in (
        (None, (1, 3, 64, 64)),
        (torch.ones(20, 3, 128, 64), (8, 3, 128, 64)),
        (torch.ones(2, 3, 32, 32), (1, 3, 64, 64)),  # a sample outside the limits
    ):
        shapes = [tuple(images.shape) for images in trial_batches(network, LIMITS, sample)]
        assert shapes == [first, (3, 3, 69, 101)]


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 5e-5), (torch.bfloat16, 0.06)])
def test_a_difference_beyond_rounding_is_refused(dtype: torch.dtype, rounding: float) -> None:
    images = torch.randn(2, 3, 64, 64)
    expected = {"output": nn.Conv2d(3, 4, 1)(images).detach().to(dtype)}
    largest = expected["output"].abs().max()

    def packaged(factor: float) -> Packaged:
        metadata = {"format": FORMAT, "inputs": LIMITS.to_dict(), "outputs": ["output"]}
        return Packaged(metadata, lambda _: [expected["output"] + factor * largest])

    assert compare(packaged(rounding), [(images, expected)]) == pytest.approx(rounding, rel=0.2)
    for factor in (4 * rounding, float("nan")):
        with pytest.raises(OptimizeError, match="output on images"):
            compare(packaged(factor), [(images, expected)])


SLOW = ("poolformer_s12", "caformer_s18", "semantic_fpn", "retinanet")


@pytest.mark.parametrize(
    "kind", ["cyclemlp_b1", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def test_one_graph_for_batches_and_sizes(kind: str) -> None:
    network = metaformer.optimize(network_of(kind), sample=torch.randn(2, 3, 160, 160))
    limits = limits_for(network, (1, 16), (160, 512), None)
    with torch.no_grad():
        graph = _exported(OutputTuple(network), limits).module()
        for shape in ((1, 3, 160, 160), (5, 3, 163, 258)):
            images = torch.randn(shape)
            for ours, theirs in zip(graph(images), network_outputs(network, images).values(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_refused_before_the_work(tmp_path: Path) -> None:
    model, path, folder = network_of("poolformer_s12"), tmp_path / "net.pt2", tmp_path / "folder.pt2"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"net\.so"):
        package(model, tmp_path / "net.so")
    with pytest.raises(OutputError, match=r"folder\.pt2"):
        package(model, folder)
    with pytest.raises(ConfigError, match="compiled already"):
        package(metaformer.optimize(model, compile=True), path)
    with pytest.raises(ConfigError, match=r"torch.bfloat16, .* torch.float32"):
        package(metaformer.optimize(model), path, dtype=torch.bfloat16)
    with pytest.raises(SizeError):
        package(model, path, sample=torch.zeros(1, 4, 64, 64))
    with pytest.raises(GridError, match="RandomMixing"):
        package(network_of("randformer_s12"), path, size=(64, 128))
    assert not path.exists()


def test_no_compiler(tmp_path: Path) -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(ConfigError, match=r"g\+\+"):
        package(network_of("poolformer_s12"), tmp_path / "net.pt2")


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    model, path, steps = network_of("poolformer_s12"), tmp_path / "net.pt2", list[str]()
    notes = {"classes": ["é", '"b"', "c", "d", "e"]}
    written = metaformer.package(model, path, batch=(1, 8), size=(64, 256), notes=notes, on_step=steps.append)
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
    model = network_of("retinanet")
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
    with pytest.raises(OptimizeError, match="package differs"):
        package(network_of("poolformer_s12"), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


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
