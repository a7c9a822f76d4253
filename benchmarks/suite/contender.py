"""Contenders: a name such as `ours optimized bf16` made into a module that can be timed."""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.suite import dense
from benchmarks.suite.ceilings import CEILINGS, Replay
from benchmarks.suite.rows import Row
from metaformer.bench.run import DTYPES
from metaformer.bench.timing import TrainingStep
from metaformer.errors import ConfigError, UnknownName

TOLERANCE = {"fp32": 1e-2, "bf16": 0.1, "fp16": 0.1}
"""Largest difference of logits, relative to the largest: far above rounding, far below another network's."""

COMPARED = 8
"""Images of a batch whose logits are compared."""

WITHOUT_LOGITS = ("convolutions", "fastest_convolutions")
"""Forms that return nothing."""


@dataclass(frozen=True)
class Form:
    """A network and its images; each form takes what the one before it returned."""

    network: nn.Module
    images: Tensor


def eager(form: Form) -> Form:
    """As created."""
    return form


def channels_last(form: Form) -> Form:
    """Weights and images channels-last."""
    layout = torch.channels_last
    return Form(form.network.to(memory_format=layout), form.images.contiguous(memory_format=layout))


def optimized(form: Form) -> Form:
    """This library's inference form, made in float32 and converted to the images' type."""
    from metaformer.deploy.optimize import optimize

    images = form.images.contiguous(memory_format=torch.channels_last)
    return Form(optimize(form.network.eval(), dtype=images.dtype, compile=False), images)


def recompute_mlp(form: Form) -> Form:
    """This library's networks recomputing the hidden activations of their MLPs in the backward pass."""
    network: Any = form.network
    network.set_grad_checkpointing("mlp")
    return form


def autocast(form: Form) -> Form:
    """Under bfloat16 autocast, as training in mixed precision runs."""
    return replace(form, network=_Autocast(form.network))


def compiled(form: Form) -> Form:
    """By `torch.compile`, for one shape."""
    return _compiled(form)


def graphs(form: Form) -> Form:
    """By `torch.compile` with CUDA graphs."""
    return _compiled(form, mode="reduce-overhead")


def autotuned(form: Form) -> Form:
    """By `torch.compile` with autotuned kernels and CUDA graphs."""
    return _compiled(form, mode="max-autotune")


def frozen(form: Form) -> Form:
    """By `torch.compile` with the weights as constants, as `optimize(compile=True)` does it."""
    from metaformer.deploy.optimize import compile_frozen

    return replace(form, network=_Function(compile_frozen(form.network.forward)))


def aoti(form: Form) -> Form:
    """Compiled ahead of time into a package, on CPUs with the weights as constants."""
    import torch._inductor as inductor

    file = Path(tempfile.mkdtemp(prefix="aoti-")) / "network.pt2"
    options = {"freezing": not form.images.is_cuda}
    with torch.no_grad():  # with gradients Inductor silently freezes nothing
        program = torch.export.export(form.network, (form.images,))
        inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
    return replace(form, network=_Function(inductor.aoti_load_package(str(file))))


def openvino(form: Form) -> Form:
    """By OpenVINO, with PyTorch's number of threads and the row's precision."""
    try:
        ov: Any = importlib.import_module("openvino")
    except ImportError as error:
        raise ConfigError("openvino is not installed: pip install openvino") from error
    if form.images.is_cuda:
        raise ConfigError("openvino is measured on the CPU only")
    network, images = form.network.float(), form.images.float()
    graph = ov.convert_model(torch.export.export(network, (images,)))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch, as PyTorch
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if form.images.dtype == torch.bfloat16 else "f32",
    }
    request = ov.compile_model(graph, "CPU", settings)
    return Form(_Function(lambda x: torch.from_numpy(request(x.numpy())[0])), images)


def convolutions(form: Form) -> Form:
    """Only the convolutions and products, back to back."""
    return replace(form, network=Replay(form.network, form.images))


def fastest_convolutions(form: Form) -> Form:
    """The same, each by the operation that is fastest here."""
    return replace(form, network=Replay(form.network, form.images, fastest=True))


def _compiled(form: Form, **options: Any) -> Form:
    return replace(form, network=cast(nn.Module, torch.compile(form.network, dynamic=False, **options)))


class _Autocast(nn.Module):
    """A network whose forward pass runs under autocast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.network(images)


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


FORMS: dict[str, Callable[[Form], Form]] = {
    form.__name__: form
    for form in (
        eager,
        channels_last,
        optimized,
        recompute_mlp,
        autocast,
        compiled,
        graphs,
        autotuned,
        frozen,
        aoti,
        openvino,
        convolutions,
        fastest_convolutions,
    )
}

COMPILERS = ("compiled", "graphs", "autotuned", "frozen", "aoti", "openvino")
"""Forms whose operations the profiler cannot tell apart."""

Side = Callable[[str, int], nn.Module]
"""From a model's name and the images' height to a new network in float32 on the CPU."""


def _ours(model: str, size: int) -> nn.Module:
    from metaformer.factory import create_model

    if not dense.is_dense(model):
        return _perturbed(create_model(model, image_size=(size, size)))
    network = _perturbed(dense.ours(model))
    dense.spread_scores(network)
    return network


def _timm(model: str, size: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("timm is not installed: pip install timm") from error
    if not timm.is_model(model):
        raise ConfigError(f"timm has no {model}")
    return _perturbed(timm.create_model(model))


def _original(form: str) -> Side:
    def make(model: str, size: int) -> nn.Module:
        from benchmarks.original_cyclemlp import original
        from metaformer.factory import create_model

        network: Any = create_model(model, image_size=(size, size))
        return _perturbed(original(network, form))

    return make


SIDES: dict[str, Side] = {
    "ours": _ours,
    "timm": _timm,
    "deformable": _original("deformable"),
    "padded": _original("padded"),
    "smp": lambda model, size: _perturbed(dense.smp(model)),
    "smp_published": lambda model, size: _perturbed(dense.smp_published(model)),
    "torchvision": lambda model, size: dense.torchvision(_ours(model, size)),
}


def build(side: str, model: str, size: int) -> nn.Module:
    """Build a side's network, its weights drawn from one seed.

    Raises:
        UnknownName: no such side, or no such model on it.
        ConfigError: a package is missing.
    """
    if side not in SIDES:
        raise UnknownName("side of a contender", side, SIDES)
    torch.manual_seed(0)
    return SIDES[side](model, size)


def _perturbed(network: nn.Module) -> nn.Module:
    """Move scales and biases away from their initial values: LayerScale of 1e-5 hides a block's errors."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.5 * torch.rand_like(parameter))
    return network


@dataclass(frozen=True)
class Contender:
    """A network's side, its forms in order, and its conditions."""

    side: str
    forms: tuple[str, ...]
    dtype: str
    size: int

    @classmethod
    def read(cls, name: str, row: Row) -> "Contender":
        """Parse `SIDE FORM … [DTYPE] [SIZE]`; dtype and size are the row's by default.

        Raises:
            UnknownName: an unknown side or form.
        """
        side, *parts = name.split()
        if side not in SIDES:
            raise UnknownName("side of a contender", side, SIDES)
        forms, dtype, size = [], row.dtype, row.size
        for part in parts:
            if part in DTYPES:
                dtype = part
            elif part.isdecimal():
                size = int(part)
            elif part in FORMS:
                forms.append(part)
            else:
                raise UnknownName("form of a contender", part, [*FORMS, *DTYPES])
        return cls(side, tuple(forms), dtype, size)

    @property
    def multiplies(self) -> str:
        """Type that its products are computed in."""
        return "bf16" if "autocast" in self.forms else self.dtype

    def image_size(self, row: Row) -> tuple[int, int]:
        """Height and width of its images."""
        return self.size, row.width or self.size


@dataclass(frozen=True)
class Ready:
    """A module that is timed, and its images."""

    module: nn.Module
    images: Tensor
    difference: float | None = None
    """Largest difference of its logits from the plain network's in float32, relative to the largest."""


def prepare(name: str, row: Row) -> Ready:
    """Build and compile a contender, run it once, and check that it computes what its network does.

    Raises:
        ConfigError: its logits differ, or a package is missing.
        Exception: whatever compilers and other libraries raise.
    """
    device = torch.device(row.device)
    if name.rpartition(" ")[0] in CEILINGS:
        kind, _, dtype = name.rpartition(" ")
        return Ready(CEILINGS[kind](device, DTYPES[dtype]), torch.empty(1, device=device))
    contender = Contender.read(name, row)
    form = _build_form(contender, row, device)
    if row.mode == "training":
        step = TrainingStep(form.network)
        step(form.images)
        return Ready(step, form.images)
    with torch.inference_mode():
        outputs = form.network(form.images)
    if set(contender.forms) & set(WITHOUT_LOGITS):
        return Ready(form.network, form.images)
    return Ready(form.network, form.images, _difference(_compared(outputs), contender, row))


def _build_form(contender: Contender, row: Row, device: torch.device) -> Form:
    dtype = DTYPES[contender.dtype]
    network = build(contender.side, row.model, contender.size).train(row.mode == "training")
    network = network.to(device) if "optimized" in contender.forms else network.to(device, dtype)
    form = Form(network, _images(row.batch, *contender.image_size(row)).to(device, dtype))
    for name in contender.forms:
        form = FORMS[name](form)
    return form


def _images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def _compared(outputs: Any) -> Tensor:
    """What is compared: logits, or the scores of a detector's detections."""
    return outputs if isinstance(outputs, Tensor) else dense.scores(outputs)


def _difference(logits: Tensor, contender: Contender, row: Row) -> float:
    plain = _plain_logits(contender.side, row.model, row.batch, *contender.image_size(row))
    difference = float((logits[:COMPARED].float().cpu() - plain).abs().max() / plain.abs().max())
    if not difference <= TOLERANCE[contender.dtype]:
        raise ConfigError(f"its logits differ by {difference:.1%} of the largest from the network's")
    return difference


@cache
def _plain_logits(side: str, model: str, batch: int, height: int, width: int) -> Tensor:
    """Logits of a batch's first images by the network as created, on the CPU in float32."""
    network = build(side, model, height).eval()
    with torch.inference_mode():
        return _compared(network(_images(batch, height, width)[:COMPARED]))
