"""What is done to a network before it is measured; each form takes what the one before it gave."""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.suite.convolutions import Replay
from metaformer.errors import ConfigError


@dataclass(frozen=True)
class Form:
    """A network and its images, on their device, in their type and layout."""

    network: nn.Module
    images: Tensor


def eager(form: Form) -> Form:
    """As it was created; images as a loader gives them."""
    return form


def channels_last(form: Form) -> Form:
    """Weights and images channels-last."""
    layout = torch.channels_last
    return Form(form.network.to(memory_format=layout), form.images.contiguous(memory_format=layout))


def optimized(form: Form) -> Form:
    """The exact inference form of this library's networks; made in float32, then of the images' type."""
    from metaformer.deploy.optimize import optimize

    images = form.images.contiguous(memory_format=torch.channels_last)
    return Form(optimize(form.network.eval(), dtype=images.dtype), images)


def lean(form: Form) -> Form:
    """This library's networks keeping no wide map of their MLPs for the backward pass."""
    network: Any = form.network
    network.set_grad_checkpointing("mlp")
    return form


def compiled(form: Form) -> Form:
    """By `torch.compile` as it comes; each shape for itself, whatever else this process compiles."""
    return _compiled(form)


def graphs(form: Form) -> Form:
    """Compiled, and launched as CUDA graphs."""
    return _compiled(form, mode="reduce-overhead")


def autotuned(form: Form) -> Form:
    """Compiled with every kernel tried out, and launched as CUDA graphs."""
    return _compiled(form, mode="max-autotune")


def frozen(form: Form) -> Form:
    """Compiled with the weights as constants, as this library's `optimize(compile=True)` does it."""
    from metaformer.deploy.optimize import compile_frozen

    return replace(form, network=_Call(compile_frozen(form.network.forward)))


def aoti(form: Form) -> Form:
    """Compiled ahead of time into a package, on CPUs with the weights as constants, and loaded from it."""
    import torch._inductor as inductor

    place = Path(tempfile.mkdtemp(prefix="aoti-")) / "network.pt2"
    options = {"freezing": not form.images.is_cuda}
    with torch.no_grad():  # where a gradient may be wanted Inductor freezes nothing, and does not say so
        program = torch.export.export(form.network, (form.images,))
        inductor.aoti_compile_and_package(program, package_path=str(place), inductor_configs=options)
    return replace(form, network=_Call(inductor.aoti_load_package(str(place))))


def openvino(form: Form) -> Form:
    """OpenVINO on the network's graph, with PyTorch's number of threads and the row's precision."""
    try:
        ov: Any = importlib.import_module("openvino")
    except ImportError as error:
        raise ConfigError("openvino is not installed: pip install openvino") from error
    if form.images.is_cuda:
        raise ConfigError("openvino is measured on the CPU only")
    network, images = form.network.float(), form.images.float()
    graph = ov.convert_model(torch.export.export(network, (images,)))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch, as PyTorch has them
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if form.images.dtype == torch.bfloat16 else "f32",
    }
    request = ov.compile_model(graph, "CPU", settings)
    return Form(_Call(lambda x: torch.from_numpy(request(x.numpy())[0])), images)


def convolutions(form: Form) -> Form:
    """Only its convolutions and products over channels, back to back."""
    return replace(form, network=Replay(form.network, form.images))


def quickest_convolutions(form: Form) -> Form:
    """The same, each as the operation that is quickest here, with packed weights where there are any."""
    return replace(form, network=Replay(form.network, form.images, quickest=True))


FORMS: dict[str, Callable[[Form], Form]] = {
    form.__name__: form
    for form in (
        eager,
        channels_last,
        optimized,
        lean,
        compiled,
        graphs,
        autotuned,
        frozen,
        aoti,
        openvino,
        convolutions,
        quickest_convolutions,
    )
}

COMPILERS = ("compiled", "graphs", "autotuned", "frozen", "aoti", "openvino")
"""Forms of which a profiler sees little."""


class _Call(nn.Module):
    """A callable that is no module, as one."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def _compiled(form: Form, **how: Any) -> Form:
    return replace(form, network=cast(nn.Module, torch.compile(form.network, dynamic=False, **how)))
