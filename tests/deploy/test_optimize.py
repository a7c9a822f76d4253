"""Inference forms compute what the networks do, and are refused where they do not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import metaformer
from metaformer.backbones.block import Block
from metaformer.backbones.variants import VARIANTS, family
from metaformer.deploy.dtype import computed_dtype, fastest_dtype
from metaformer.deploy.folded.block import FoldedBlock
from metaformer.deploy.optimize import TOLERANCE, compile_frozen, network_outputs, optimize
from metaformer.errors import ConfigError, OptimizeError
from metaformer.factory import model_config
from metaformer.models.build import DENSE_KINDS, SEGMENTER
from metaformer.ops import onednn

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "image_size": (64, 64), "num_classes": 5}
FAMILIES = sorted({family(name): name for name in VARIANTS}.values())


def trained(model: nn.Module) -> nn.Module:
    """Scales of the size of trained ones: the initial LayerScale hides most of a block."""
    torch.manual_seed(1)
    for value in model.parameters():
        if value.requires_grad and value.ndim < 2:
            nn.init.uniform_(value.data, 0.2, 1.0)
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str) -> None:
    model = trained(metaformer.create_model(name, **TINY))
    before = copy.deepcopy(model.state_dict())
    network = optimize(model)
    assert not any(isinstance(module, Block) for module in network.modules())
    assert sum(isinstance(module, FoldedBlock) for module in network.modules()) == 4
    x = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)
        half = optimize(model, dtype=torch.bfloat16)
        assert half(x.bfloat16()).dtype == computed_dtype(torch.bfloat16, x.device)
        torch.testing.assert_close(half(x.bfloat16()).float(), model(x), rtol=0.1, atol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(value.requires_grad for value in network.parameters())


def test_dense_networks_and_backbones() -> None:
    sizes = {key: TINY[key] for key in ("depths", "dims")}
    backbone = trained(
        metaformer.create_model("poolformer_s12", features_only=True, feature_norm="fresh", **sizes)
    )
    segmenter = trained(
        metaformer.create_segmenter("semantic_fpn", backbone, num_classes=3, fpn_dim=8, head_dim=8)
    )
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for ours, theirs in zip(optimize(backbone)(x), backbone(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(optimize(segmenter)(x), segmenter(x), rtol=1e-4, atol=1e-5)
        backbone = trained(metaformer.create_model("poolformer_s12", features_only=True, **sizes))
        detector = trained(metaformer.create_detector("retinanet", backbone, num_classes=3, fpn_dim=8))
        network = optimize(detector, sample=x)
        assert len(network(x)) == 1
        for ours, theirs in zip(network.forward_head(x), detector.forward_head(x), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


DENSE = [head for kind in DENSE_KINDS for head in kind.heads]
PAIRS = [
    *((head, "poolformer_s12") for head in DENSE),
    *((DENSE[i % len(DENSE)], family) for i, family in enumerate(FAMILIES)),
]
"""Every head and every family of backbones."""


def dense(head: str, backbone: str) -> nn.Module:
    """A small dense network; the statistics of its batch norms are those of a trained one."""
    sizes = {key: TINY[key] for key in ("depths", "dims", "image_size")}
    config = model_config(backbone, **sizes)
    create = metaformer.create_segmenter if head in SEGMENTER.heads else metaformer.create_detector
    options = {"auxiliary": True} if create is metaformer.create_segmenter else {"box_fc_dim": 32}
    model = trained(create(head, config, num_classes=3, fpn_dim=16, head_dim=16, **options))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(("head", "backbone"), PAIRS)
def test_every_dense_network(head: str, backbone: str) -> None:
    model = dense(head, backbone)
    network = optimize(model)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) for module in network.modules())
    assert not any(type(module) is nn.Conv2d for module in network.modules()), "each packs its weight"
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network_outputs(model, x)
        for _ in range(3):  # as it comes, packed, replayed
            found = network_outputs(network, x)
            for name, theirs in expected.items():
                assert (found[name] - theirs).abs().max() <= TOLERANCE * theirs.abs().max(), name
        results, others = network.predict(x), model.predict(x)
    for ours, theirs in zip(results, others, strict=True):
        if isinstance(ours, Tensor):
            assert (ours == theirs).float().mean() > 0.99, "label maps"
        else:
            assert len(ours.boxes) == len(theirs.boxes)
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("change", ["hook", "norm"])
def test_unknown_norms_stay_as_they_are(change: str) -> None:
    model: Any = dense("upernet", "poolformer_s12")
    if change == "hook":
        model.head.fusion.norm.register_forward_hook(lambda module, args, output: 2 * output)
    else:
        model.head.fusion.norm = nn.GroupNorm(1, 16)
    network: Any = optimize(model)
    assert type(network.head.fusion.norm) is type(model.head.fusion.norm)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-4)


def test_an_optimized_network_is_returned_as_it_is() -> None:
    network = optimize(metaformer.create_model("poolformer_s12", **TINY))
    assert optimize(network) is network
    other = copy.deepcopy(network)
    assert optimize(other) is other
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(other(x), network(x))


def test_the_fastest_dtype_is_chosen_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = trained(metaformer.create_model("poolformer_s12", **TINY))
    with caplog.at_level("INFO"):
        network = optimize(model, dtype="auto")
    dtype, reason = fastest_dtype(torch.device("cpu"))
    assert next(network.parameters()).dtype == dtype and reason in caplog.text
    assert str(dtype).removeprefix("torch.") in reason
    with pytest.raises(ConfigError, match="dtype 'half'"):
        optimize(model, dtype="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("has", [True, False])
def test_the_fastest_dtype_by_instructions(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaformer.deploy.dtype._CPU", {torch.bfloat16: (("ABACUS", lambda: has),)})
    dtype, reason = fastest_dtype(torch.device("cpu"))
    assert dtype == (torch.bfloat16 if has else torch.float32) and ("ABACUS" in reason) == has
    assert "int8" not in reason


def test_int8_is_named_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaformer.deploy.dtype._CPU", {torch.int8: (("ABACUS", lambda: True),)})
    dtype, reason = fastest_dtype(torch.device("cpu"))
    assert dtype == torch.float32, "int8 needs images"
    assert "int8, by ABACUS" in reason and "metaformer quantize" in reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_what_an_x86_processor_cannot_multiply_is_computed_in_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("metaformer.deploy.dtype._CPU", {})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    classifier = trained(metaformer.create_model("caformer_s18", **TINY))
    segmenter = dense("semantic_fpn", "poolformer_s12")
    images = torch.randn(2, 3, 64, 64).to(dtype)
    for model in (classifier, segmenter):
        caplog.clear()
        network = optimize(model, dtype=dtype)
        assert f"float32 instead of {str(dtype).removeprefix('torch.')}" in caplog.text
        for _ in range(3):  # as it comes, packed, replayed
            for x in (images, images.float()):
                found = network(x)
                assert found.dtype == torch.float32
                torch.testing.assert_close(found, model(x.float()), rtol=1e-4, atol=1e-4)
    features = optimize(classifier, dtype=dtype).forward_features(images)
    torch.testing.assert_close(features, classifier.forward_features(images.float()), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert computed_dtype(dtype, torch.device("cpu")) == dtype, "of which nothing is known"


def test_any_image_size() -> None:
    model = trained(metaformer.create_model("cyclemlp_b1", **TINY))
    network = optimize(model)
    with torch.inference_mode():
        for size in ((33, 70), (224, 96)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_in_one_piece(name: str) -> None:
    model = trained(metaformer.create_model(name, **TINY))
    network = optimize(model, compile=True)
    assert optimize(network, compile=True) is network
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["graph_break"].total()
    for x in (torch.randn(1, 3, 64, 64), torch.randn(3, 3, 64, 64)):
        torch.testing.assert_close(network(x), model(x).detach(), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["graph_break"].total() == before


def test_one_graph_on_the_same_modules() -> None:
    network = optimize(trained(metaformer.create_model("poolformer_s12", **TINY)))
    explained = torch._dynamo.explain(network)(torch.randn(1, 3, 64, 64))
    assert explained.graph_count == 1 and not explained.break_reasons
    again = optimize(network, compile=True)
    assert again is not network and again.stages is network.stages


@pytest.mark.slow
def test_a_compiled_segmenter_is_a_segmenter() -> None:
    sizes = {key: TINY[key] for key in ("depths", "dims")}
    backbone = trained(metaformer.create_model("poolformer_s12", features_only=True, **sizes))
    model = trained(
        metaformer.create_segmenter("semantic_fpn", backbone, num_classes=3, fpn_dim=8, head_dim=8)
    )
    network, x = optimize(model, compile=True), torch.randn(1, 3, 64, 96)
    assert type(network) is type(model)
    torch.testing.assert_close(network(x), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_compiled_by_default_on_cuda() -> None:
    model = trained(metaformer.create_model("poolformer_s12", **TINY)).cuda()
    network, x = optimize(model), torch.randn(2, 3, 64, 64, device="cuda")
    assert network.compiled and not hasattr(optimize(model, compile=False), "compiled")
    with torch.inference_mode():
        torch.testing.assert_close(network(x), model(x), rtol=1e-3, atol=1e-3)


def test_export() -> None:
    model = trained(metaformer.create_model("convformer_s18", **TINY))
    x = torch.randn(2, 3, 64, 64)
    program = torch.export.export(optimize(model), (x,))
    assert not any("metaformer" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_reference_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(metaformer.create_model("poolformer_s12", **TINY))
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    x = torch.randn(1, 3, 64, 64)
    monkeypatch.setattr(onednn, "linear", None)  # calling it would fail
    with torch.inference_mode():
        torch.testing.assert_close(optimize(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_mismatch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FoldedBlock.forward
    monkeypatch.setattr(FoldedBlock, "forward", lambda self, x: right(self, x) + 0.01)
    with pytest.raises(OptimizeError, match="output of the optimized MetaFormer"):
        optimize(metaformer.create_model("poolformer_s12", **TINY))


class Silent(nn.Module):
    """A network that returns no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = metaformer.create_model("poolformer_s12", **TINY)

    def forward(self, x: torch.Tensor) -> str:
        return str(self.trunk(x).argmax())


def test_outputs_without_tensors_are_refused() -> None:
    with pytest.raises(OptimizeError, match="Silent"):
        optimize(Silent())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear"):
        optimize(nn.Linear(2, 2))


@pytest.mark.slow
def test_frozen_weights_are_constants_at_every_shape() -> None:
    layer = nn.Conv2d(3, 4, 1)
    call = compile_frozen(layer.forward)
    for size in (2, 5):
        x = torch.randn(1, 3, size, size)
        expected = layer(x).detach()
        torch.testing.assert_close(call(x), expected)
        with torch.no_grad():
            layer.weight.mul_(2)
        torch.testing.assert_close(call(x), expected)  # as when this shape was compiled
        assert not call(x).requires_grad


class LowRank(nn.Module):
    """A LoRA layer around a linear layer, whose weight and bias it shows as its own."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias
        self.down, self.up = nn.Conv2d(base.in_channels, 2, 1), nn.Conv2d(2, base.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


def wrap(block: Any) -> None:
    block.mlp.fc1 = LowRank(block.mlp.fc1)


def parametrize(block: Any) -> None:
    nn.utils.parametrizations.weight_norm(block.mlp.fc1)


def prune(block: Any) -> None:
    nn.utils.prune.l1_unstructured(block.mlp.fc1, "weight", 0.5)


def hook(block: Any) -> None:
    block.mlp.fc1.register_forward_hook(lambda module, args, output: 2 * output)


def replace_mlp(block: Any) -> None:
    block.mlp = nn.Conv2d(block.mlp.fc1.in_channels, block.mlp.fc2.out_channels, 1)


def subclass_norm(block: Any) -> None:
    class Doubled(type(block.norm2)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    block.norm2.__class__ = Doubled


@pytest.mark.parametrize("change", [wrap, parametrize, prune, hook, replace_mlp, subclass_norm])
@pytest.mark.parametrize("name", ["poolformer_s12", "caformer_s18"])
def test_blocks_with_unknown_layers_stay_as_they_are(name: str, change: Callable[[Any], None]) -> None:
    model = trained(metaformer.create_model(name, **TINY))
    change(model.stages[1].blocks[0])
    x = torch.randn(2, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"stages\.1\.blocks\.0\.(mlp|norm2)") as warnings:
        network = optimize(model)
    assert len(warnings) == 1
    assert sum(isinstance(module, FoldedBlock) for module in network.modules()) == 3
    with torch.inference_mode():
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_parametrized_convolution_stays_as_it_is() -> None:
    model = trained(metaformer.create_model("poolformer_s12", **TINY))
    nn.utils.parametrizations.weight_norm(model.stem.conv)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(optimize(model)(x), model(x), rtol=1e-4, atol=1e-5)
