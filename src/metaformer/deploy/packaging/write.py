"""Packages: a network compiled ahead of time by AOTInductor into one file that needs no compiler to run."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from metaformer.backbones.metaformer import MetaFormer
from metaformer.deploy.optimize import TOLERANCE, named_tensors, network_outputs, optimize
from metaformer.deploy.packaging.input_limits import InputLimits, Range, Sizes, limits_for
from metaformer.deploy.packaging.load import FORMAT, KEY, SUFFIX, Packaged, load_package, machine_metadata
from metaformer.errors import ConfigError, OptimizeError, OutputError
from metaformer.report.readable import Readable
from metaformer.storage import as_path, atomic_path, check_replaceable

TYPICAL_BATCH: Final = 8
"""Batch size that the compiler optimizes loops for, within the limits."""
Trial = tuple[Tensor, dict[str, Tensor]]
"""Images and the network's outputs for them, by name."""
ROUNDINGS: Final = 16
"""Machine epsilons by which outputs in a half type may differ, relative to the largest."""


@dataclass(frozen=True, repr=False)
class Written(Readable):
    """A written package."""

    path: Path
    difference: float
    """Largest difference from the network, relative to the largest output."""
    limits: InputLimits
    """Images that it takes."""

    def text(self) -> str:
        """The file, what it takes, and how far its outputs are from the network's."""
        return f"{self.path}: takes {self.limits}; largest difference from the network {self.difference:.1e}"


class OutputTuple(nn.Module):
    """A network with its output tensors as a tuple, for export."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, C, H, W) to one or more tensors."""
        return tuple(network_outputs(self.network, images).values())


def package(
    model: nn.Module,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    batch: Range = (1, 64),
    size: Sizes = None,
    sample: Tensor | None = None,
    notes: Mapping[str, Any] | None = None,
    on_step: Callable[[str], object] = lambda step: None,
) -> Written:
    """Compile a network's inference form into one file; it takes a minute or so, and a C++ compiler.

    A classifier returns its logits, a segmenter or detector what its `forward_head` returns. The package is
    loaded and compared with the network on two batches, of two sizes where sizes may vary. It runs on
    machines of the same kind, with the same version of PyTorch.

    Args:
        model: what `optimize` takes, on the device where the package is to run.
        path: the file to write, NAME.pt2.
        dtype: type of weights and images; the model's own by default.
        batch: smallest and largest batch size.
        size: smallest and largest height and width in pixels, `dynamic` for all up to 4096, or None for the
            size of `sample`, which by default is the backbone's.
        sample: images (B, in_chans, H, W) to compare on; random ones by default.
        notes: further metadata, as JSON takes it, such as classes and preprocessing.
        on_step: called with a line of text before each step.

    Raises:
        ConfigError: a network that cannot be packaged, invalid limits, or no C++ compiler.
        SizeError: an image size that the network does not take.
        OptimizeError: the compiled code does not compute what the network does.
        OutputError: `path` cannot be written.
    """
    path = as_path(path, "path", OutputError)
    check_possible(path)
    on_step("folding the network, and comparing the two")
    network = _optimized(model, dtype, sample)
    limits = limits_for(network, batch, size, sample)
    tensors = OutputTuple(network)
    on_step(f"running it on {limits}")
    with torch.no_grad():
        trials = [
            (images, network_outputs(network, images)) for images in trial_batches(network, limits, sample)
        ]
        on_step("tracing its graph")
        program = _exported(tensors, limits)
    card = _card(network, limits, list(trials[0][1]), notes or {})
    with tempfile.TemporaryDirectory(prefix="metaformer-package-") as folder:
        file = Path(folder) / f"network{SUFFIX}"
        on_step("compiling, which takes a minute or so")
        _compile(program, file, card)
        on_step("loading the package, and comparing it with the network")
        difference = compare(load_package(file, trusted=True), trials)
        with atomic_path(path) as temporary:
            shutil.copyfile(file, temporary)
    return Written(path, difference, limits)


def check_possible(path: Path) -> None:
    """Check that a package can be compiled here and written to `path`, before anything takes long.

    Raises:
        ConfigError: a suffix other than .pt2, or no C++ compiler.
        OutputError: `path` exists and is no ordinary file.
    """
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path}: a package's name ends in {SUFFIX}")
    check_replaceable(path)
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "a package is compiled, and there is no C++ compiler here: install g++ (Debian, Ubuntu: apt "
            "install g++), or name one in the environment as CXX; loading a package needs none"
        ) from error


def _optimized(model: nn.Module, dtype: torch.dtype | None, sample: Tensor | None) -> nn.Module:
    if getattr(model, "compiled", False) or isinstance(model, torch._dynamo.OptimizedModule):
        raise ConfigError(
            f"{type(model).__name__} is compiled already: package the network before compilation"
        )
    network = optimize(model, dtype=dtype, compile=False, sample=sample)
    own = next(network.parameters()).dtype
    if network is model and dtype not in (None, own):
        raise ConfigError(f"dtype is {dtype}, but the network was optimized in {own}: leave one of them out")
    return network


def _exported(tensors: nn.Module, limits: InputLimits) -> ExportedProgram:
    named = {0: ("batch", limits.batch), 2: ("height", limits.height), 3: ("width", limits.width)}
    varying = {axis: Dim(name, min=a, max=b) for axis, (name, (a, b)) in named.items() if a < b}
    first = next(tensors.parameters())
    # unequal sizes: export would take equal ones for a single dimension
    count = max(limits.batch[0], min(limits.batch[1], TYPICAL_BATCH))
    sides = min(limits.height[1], limits.height[0] + 64), min(limits.width[1], limits.width[0] + 96)
    images = torch.zeros((count, limits.channels, *sides), dtype=first.dtype, device=first.device)
    try:
        return torch.export.export(tensors, (images,), dynamic_shapes=((varying or None),), strict=True)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ConfigError(f"the network has no graph for {limits}: {_first_lines(error)}") from error


def _compile(program: ExportedProgram, file: Path, card: dict[str, Any]) -> None:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError

    on_cpu = card["inputs"]["device"] == "cpu"
    # frozen weights are packed for oneDNN; MKL's products are slower
    options = {"aot_inductor.metadata": {KEY: json.dumps(card)}, "freezing": on_cpu}
    try:
        with torch.no_grad():  # with gradients Inductor silently freezes nothing
            aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
    except (torch._dynamo.exc.TorchDynamoException, CppCompileError) as error:
        raise ConfigError(f"the network's graph could not be compiled: {_first_lines(error)}") from error


def _first_lines(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines()[:4] if line.strip())


def _card(
    network: nn.Module, limits: InputLimits, outputs: list[str], notes: Mapping[str, Any]
) -> dict[str, Any]:
    cfg: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    config: Any = getattr(network, "config", None)
    try:
        fields = None if config is None else config.to_dict()
    except ConfigError:  # a mixer without a registered name; the package does not need it
        fields = None
    return {
        "format": FORMAT,
        "name": cfg.get("architecture", type(network).__name__),
        "network": "MetaFormer" if isinstance(network, MetaFormer) else type(network).__name__,
        "config": fields,
        "pretrained_cfg": cfg,
        "num_classes": getattr(network, "num_classes", None),
        "inputs": limits.to_dict(),
        "outputs": outputs,
        "metaformer": version("metaformer"),
        "torch": torch.__version__,
        **machine_metadata(),
        **notes,
    }


def trial_batches(network: nn.Module, limits: InputLimits, sample: Tensor | None) -> list[Tensor]:
    """Two batches to compare on: the sample or the smallest one, and another size where sizes may vary."""
    first = next(network.parameters())
    generator = torch.Generator().manual_seed(0)

    def noise(count: int, height: int, width: int) -> Tensor:
        images = torch.randn((count, limits.channels, height, width), generator=generator)
        return images.to(first.device, first.dtype)

    smallest, largest = limits.batch
    (low, high), (left, right) = limits.height, limits.width
    other = noise(min(largest, smallest + 2), min(high, low + 5), min(right, left + 37))
    if sample is not None:
        sample = sample.to(first.device, first.dtype)[:largest]
        if low <= sample.shape[2] <= high and left <= sample.shape[3] <= right and len(sample) >= smallest:
            return [sample, other]
    return [noise(smallest, low, left), other]


def compare(packaged: Packaged, trials: list[Trial]) -> float:
    """The largest difference on any batch, relative to the largest output.

    Raises:
        OptimizeError: it is more than rounding.
    """
    largest = 0.0
    for images, expected in trials:
        with torch.no_grad():
            outputs = dict(named_tensors(packaged(images)))
        for name, theirs in expected.items():
            scale = theirs.float().abs().max().clamp(min=1e-12)
            difference = ((outputs[name].float() - theirs.float()).abs().max() / scale).item()
            if not difference <= max(TOLERANCE, ROUNDINGS * torch.finfo(theirs.dtype).eps):
                raise OptimizeError(
                    f"the package differs from the network by {difference:.1e} of the largest {name} on "
                    f"images {tuple(images.shape)}: nothing was written; please report the model"
                )
            largest = max(largest, difference)
    return largest
