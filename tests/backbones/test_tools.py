"""What other tools do with a network: compile, transform, trace, extract features."""

import io

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.mixers import MIXERS
from metaformer.ops.cycle import shift_channels
from metaformer.ops.pool import pool_minus_self

LEVELS = ((0,), (0, 1), (1, 2), (0, 3), (-1,))
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit",
    "ignore::torch.jit.TracerWarning",
    "ignore:.*ONNX",
    "ignore:The feature will be removed",
)


@pytest.fixture(params=MIXERS)
def net(request: pytest.FixtureRequest) -> MetaFormer:
    torch.manual_seed(0)
    config = MetaFormerConfig(
        depths=(1, 1), dims=(8, 12), mlp_ratios=(2, 2), mixers=(request.param, "identity"),
        pos_embed=(True, False), layer_scale=(0.5, 0.5), res_scale=(None, 1.0), downsamples=(True,),
        image_size=(32, 48), num_classes=3,
    )  # fmt: skip
    return MetaFormer(config)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 32, 48)


@pytest.fixture(params=["pool", "shift width", "shift height"])
def operation(request: pytest.FixtureRequest) -> nn.Module:
    class Operation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if request.param == "pool":
                return pool_minus_self(x, 3)
            return shift_channels(x, 3, 3 if request.param == "shift width" else 2)

    return Operation()


def test_compiles_in_one_graph_with_gradients(net: MetaFormer, x: Tensor) -> None:
    net(x).square().sum().backward()
    wanted = {name: value.grad for name, value in net.named_parameters() if value.requires_grad}
    net.zero_grad()
    torch.compiler.reset()  # the networks share their code, which is compiled a limited number of times
    torch.compile(net, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(net.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-4)


def test_gradients_of_each_sample(net: MetaFormer, x: Tensor) -> None:
    net.eval()
    parameters = {name: value.detach() for name, value in net.named_parameters() if value.requires_grad}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        output: Tensor = functional_call(net, parameters, (image[None],))
        return output.square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, image in enumerate(x):
        net.zero_grad()
        net(image[None]).square().sum().backward()
        for name, gradients in each.items():
            torch.testing.assert_close(gradients[i], net.get_parameter(name).grad, rtol=1e-3, atol=1e-4)


def test_directional_derivatives(net: MetaFormer, x: Tensor) -> None:
    net.eval().double()
    x, step = x.double(), torch.randn_like(x, dtype=torch.float64)
    wanted = (net(x + 1e-6 * step) - net(x - 1e-6 * step)) / 2e-6
    torch.testing.assert_close(jvp(net, (x,), (step,))[1], wanted, rtol=1e-4, atol=1e-6)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(net(forward_ad.make_dual(x, step))).tangent
    torch.testing.assert_close(tangent, wanted, rtol=1e-4, atol=1e-6)


def test_symbolic_trace(net: MetaFormer, x: Tensor) -> None:
    graph = torch.fx.symbolic_trace(net.eval())
    torch.testing.assert_close(graph(x), net(x))
    torch.testing.assert_close(torch.jit.script(graph)(x), net(x))


def saved(network: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(network, file)
    file.seek(0)
    return torch.jit.load(file)


def test_torchscript(net: MetaFormer, x: Tensor) -> None:
    net.eval()
    other = x.flip(3)
    with torch.no_grad():
        for network in (torch.jit.trace(net, x), torch.jit.script(net)):
            torch.testing.assert_close(saved(network)(other), net(other), rtol=1e-4, atol=1e-5)


def test_tracing_onnx_exporter(net: MetaFormer, x: Tensor) -> None:
    net.eval()
    file, other = io.BytesIO(), x.flip(3)
    torch.onnx.export(net, (x,), file, dynamo=False, input_names=["x"])
    graph = ReferenceEvaluator(onnx.load_from_string(file.getvalue()))
    (output,) = graph.run(None, {"x": other.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), net(other), rtol=1e-3, atol=1e-4)


def test_flops_are_counted_in_training(net: MetaFormer, x: Tensor) -> None:
    with FlopCounterMode(display=False) as training:
        net(x)
    with FlopCounterMode(display=False) as inference, torch.no_grad():
        net.eval()(x)
    assert training.get_total_flops() == inference.get_total_flops() > 0


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (5, 1)])
def test_operations_are_the_same_under_a_tracer(operation: nn.Module, size: tuple[int, int]) -> None:
    x = torch.randn(2, 7, *size)
    torch.testing.assert_close(torch.fx.symbolic_trace(operation)(x), operation(x))
    torch.testing.assert_close(torch.jit.trace(operation, x)(x), operation(x))
    torch.testing.assert_close(vmap(operation)(x[:, None])[:, 0], operation(x))


@pytest.mark.parametrize("out_indices", LEVELS)
def test_pyramids_have_no_unused_parameter(out_indices: tuple[int, ...]) -> None:
    config = MetaFormerConfig(depths=(1,) * 4, dims=(8,) * 4, image_size=(64, 64), feature_norm="fresh")
    net = MetaFormerFeatures(config, out_indices)
    sum(level.square().sum() for level in net(torch.randn(1, 3, 64, 64))).backward()
    assert not [name for name, value in net.named_parameters() if value.grad is None]


@pytest.mark.parametrize("out_indices", LEVELS)
def test_pruned_networks_end_at_the_last_level(out_indices: tuple[int, ...]) -> None:
    config = MetaFormerConfig(depths=(1,) * 4, dims=(8, 12, 16, 20), image_size=(64, 64), num_classes=3)
    net, x = MetaFormer(config).eval(), torch.randn(1, 3, 64, 64)
    wanted = net.forward_intermediates(x, out_indices, intermediates_only=True)
    kept = net.prune_intermediate_layers(out_indices, prune_norm=True)
    assert kept == sorted(i % 4 for i in out_indices) and len(net.stages) == kept[-1] + 1
    for ours, theirs in zip(net.forward_intermediates(x, kept, intermediates_only=True), wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(net.forward_features(x), wanted[-1]) and net.num_features == wanted[-1].shape[1]
    assert net(x).shape == wanted[-1].shape
    net.reset_classifier(0, "avg")
    torch.testing.assert_close(net(x), wanted[-1].mean((2, 3)))


def test_a_new_classifier_is_where_the_network_is() -> None:
    config = MetaFormerConfig(image_size=(32, 32), head="pool_norm_mlp")
    net = MetaFormer(config).to("meta", torch.float64).eval()
    net.reset_classifier(2)
    assert {(p.device.type, p.dtype) for p in net.parameters()} == {("meta", torch.float64)}
    assert not any(module.training for module in net.modules())
