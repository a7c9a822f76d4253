"""The contract of token mixers: checks for the tests of this library, and for mixers from anywhere."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import log
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from metaformer.backbones.block import build_mixer
from metaformer.bench.counts import count
from metaformer.bench.timing import measure
from metaformer.deploy.export.write import export
from metaformer.errors import ConfigError, GridError, MetaFormerError, MissingPackage
from metaformer.factory import create_model
from metaformer.layers.drop_path import DropPath
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.process import one_line
from metaformer.registry import parse
from metaformer.report.readable import Readable

DIM: Final = 24
"""Channels of the inputs."""
GRID: Final = (6, 5)
"""Height and width of the inputs, and the grid of mixers that have one."""
SIDES: Final = (1, 2, 3, 7, 8, 17)
"""Heights and widths that are tried with each other."""
COST_SIDES: Final = (32, 64)
"""Sides of the square inputs between which the growth of costs is taken."""
PIXEL_GROWTH: Final = (COST_SIDES[1] / COST_SIDES[0]) ** 2
"""Ratio of their numbers of pixels."""
UNCOUNTED: Final = frozenset(
    f"aten.{name}" for name in ("_fft_r2c", "_fft_c2c", "_fft_c2r", "_cdist_forward", "grid_sampler_2d")
)
"""PyTorch's operations whose arithmetic `metaformer.bench.counts` does not see."""
_CLOSE: Final = 1e-4
"""Difference that is rounding, relative to the largest value."""
_BF16_CLOSE: Final = 0.05
"""The same of bfloat16, which has 8 bits."""
_MOST_GROWTH: Final = 2.2
"""Exponent of the number of pixels up to which costs may grow: quadratic, and what rounding adds."""
_HIDDEN_GROWTH: Final = 2.5
"""Times as fast as the counted costs that the measured time may grow: caches and other programs add some."""
_LONGEST: Final = 200
"""Characters of a reason."""
_OF_MIXERS: Final = (Exception, SystemExit)
"""What a stranger's mixer may raise: the report is for that, and one that exits must not pass for checked."""
Step = Callable[[str], object]


class CheckFailed(Exception):
    """A promise that a mixer does not keep."""


@dataclass(frozen=True)
class MixerCase:
    """A mixer by name, with what is needed to try it."""

    mixer: str
    """Registered name, perhaps with options, as in `"pooling(size=5)"`."""
    dim: int = DIM
    grid: tuple[int, int] = GRID

    def __post_init__(self) -> None:
        for name, value in (("dim", self.dim), ("grid", min(self.grid))):
            if value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1")

    @property
    def fixed_grid(self) -> bool:
        """Whether it works on one grid only."""
        return MIXERS.fixed_grid(parse(self.mixer)[0])

    def build(
        self, *, seed: int = 0, grid: tuple[int, int] | None = None, grid_mode: str = "strict"
    ) -> nn.Module:
        """Build the mixer with the values that a seed gives."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_mixer(self.mixer, self.dim, grid or self.grid, grid_mode)

    def input(self, *size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random features (B, C, H, W), channels-last in memory."""
        random = torch.Generator().manual_seed(1)
        x = torch.randn(batch, self.dim, *(size or self.grid), dtype=dtype, generator=random)
        return x.to(memory_format=torch.channels_last)


Run = Callable[[MixerCase], str | None]
"""Raises CheckFailed, or any error of the mixer; may return a note."""


@dataclass(frozen=True)
class Check:
    """One promise of the contract."""

    name: str
    remedy: str
    """What to do where it is not kept."""
    run: Run
    slow: bool
    """Takes seconds, or measures time."""


CHECKS: Final[dict[str, Check]] = {}
"""The contract, by name."""


def _check(name: str, remedy: str, *, slow: bool = False) -> Callable[[Run], Run]:
    """Enter the decorated function as a check."""

    def enter(run: Run) -> Run:
        CHECKS[name] = Check(name, remedy, run, slow)
        return run

    return enter


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check."""

    check: str
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""
    """Why it failed or was skipped; of a passed one what it measured."""
    remedy: str = ""


@dataclass(frozen=True, repr=False)
class MixerReport(Readable):
    """Outcome of the contract."""

    mixer: str
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(result for result in self.results if result.status == "failed")

    def text(self) -> str:
        """A table of the checks, then the remedies."""
        width = max(len(result.check) for result in self.results)
        lines = [
            f"{result.check:<{width}}  {result.status:<7}  {one_line(result.reason)}".rstrip()
            for result in self.results
        ]
        lines += [f"\n{result.check}: {result.remedy}" for result in self.failed]
        if len(self.failed) > 1:
            lines.append("\nmend the first one first: others may follow from it")
        passed = sum(result.status == "passed" for result in self.results)
        return "\n".join([*lines, f"\n{self.mixer}: {passed} of {len(self.results)} checks passed"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"mixer": self.mixer, "ok": self.ok, "checks": [asdict(result) for result in self.results]}


def check_mixer(
    mixer: str,
    *,
    dim: int = DIM,
    grid: tuple[int, int] = GRID,
    fast: bool = False,
    on_step: Step = lambda step: None,
) -> MixerReport:
    """Check that a registered mixer keeps the contract on which the rest of the library relies.

    A mixer that never returns is waited for; the command `metaformer check-mixer` has a limit.

    Args:
        mixer: registered name, perhaps with options, as in `"pooling(size=5)"`.
        dim: channels of the inputs.
        grid: height and width of the inputs.
        fast: leave out the checks that compile code, export files or measure time.
        on_step: called with the name of each check before it runs.

    Raises:
        ConfigError: an unknown name or option, or a mixer that cannot be built.
    """
    case = MixerCase(mixer, dim, grid)
    try:
        case.build()
    except MetaFormerError:
        raise
    except _OF_MIXERS as error:
        raise ConfigError(f"mixer {mixer!r} cannot be built ({_reason(error)})") from error
    results = []
    for check in CHECKS.values():
        if not (fast and check.slow):
            on_step(check.name)
            results.append(_result(check, case))
    return MixerReport(mixer, tuple(results))


def _result(check: Check, case: MixerCase) -> CheckResult:
    try:
        return CheckResult(check.name, "passed", check.run(case) or "")
    except MissingPackage as error:
        return CheckResult(check.name, "skipped", str(error))
    except _OF_MIXERS as error:
        return CheckResult(check.name, "failed", _reason(error), check.remedy)


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    line = text.splitlines()[0] if text else ""
    kind = "" if isinstance(error, CheckFailed) else type(error).__name__
    return ": ".join(part for part in (kind, line) if part)[:_LONGEST]


def _need(holds: bool, reason: str) -> None:
    if not holds:
        raise CheckFailed(reason)


def _need_close(found: Tensor, expected: Tensor, what: str, close: float = _CLOSE) -> None:
    """Require equal shapes, and values that differ by rounding alone."""
    shapes = tuple(found.shape), tuple(expected.shape)
    _need(shapes[0] == shapes[1], f"{what}: {shapes[0]} in place of {shapes[1]}")
    difference = (found.double() - expected.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    # written so that NaN fails
    _need(
        difference <= close * max(largest, 0.1),
        f"{what}: differs by {difference:.2g}, where the largest value is {largest:.2g}",
    )


# What every call keeps


@_check("shape", "return a tensor of the input's shape and type: tokens go back to (B, C, H, W)")
def _shape(case: MixerCase) -> None:
    mixer, x = case.build(), case.input()
    for mode in (mixer.train(), mixer.eval()):
        y = mode(x)
        _need(isinstance(y, Tensor), f"gives {type(y).__name__} and no tensor")
        _need(y.shape == x.shape, f"gives {tuple(y.shape)} for {tuple(x.shape)}")
        _need(y.dtype == x.dtype, f"gives {y.dtype} for {x.dtype}")
        _need(bool(y.isfinite().all()), "gives values that are not finite")


@_check(
    "sizes",
    "pad and crop where windows or strides do not divide the size; for one grid, derive from FixedGrid",
)
def _sizes(case: MixerCase) -> None:
    mixer = case.build(grid_mode="interpolate").eval()
    for size in product(SIDES, repeat=2):
        x = case.input(*size)
        try:
            y = mixer(x)
        except _OF_MIXERS as error:
            raise CheckFailed(f"{size[0]}×{size[1]}: {_reason(error)}") from error
        _need(y.shape == x.shape, f"{size[0]}×{size[1]}: gives {tuple(y.shape)} for {tuple(x.shape)}")


@_check("grid", "register it with fixed_grid=True, and derive from FixedGrid, which raises GridError")
def _grid(case: MixerCase) -> str | None:
    if not case.fixed_grid:
        return "any size"
    height, width = case.grid
    try:
        case.build().eval()(case.input(height + 1, width + 2))
    except GridError as error:
        _need(f"{height}×{width}" in str(error), f"GridError does not name the grid {height}×{width}")
        return f"{height}×{width} only"
    raise CheckFailed(f"is made for {height}×{width} and takes another size without a word")


@_check("in place", "do not write into the input (x += …, inplace=True): the residual adds it afterwards")
def _in_place(case: MixerCase) -> None:
    for mode in ("eval", "train"):
        mixer, x = case.build().train(mode == "train"), case.input()
        before = x.clone()
        with torch.set_grad_enabled(mode == "train"):
            mixer(x)
        _need(torch.equal(x, before), f"changes its input ({mode} mode)")


@_check("samples", "mix positions of one image: no operation may reach over the batch dimension")
def _samples(case: MixerCase) -> None:
    mixer, x = case.build().eval(), case.input()
    _need_close(mixer(x)[1:], mixer(x[1:]), "an image alone, and the same beside another")


@_check("determinism", "draw random values in __init__ alone, or in training mode from torch's generator")
def _determinism(case: MixerCase) -> None:
    mixer, x = case.build().eval(), case.input()
    _need(torch.equal(mixer(x), mixer(x)), "gives other values for the same input in evaluation mode")
    again = case.build().state_dict()
    for name, value in mixer.state_dict().items():
        _need(torch.equal(value, again[name]), f"{name} begins with other values though the seed is the same")
    mixer.train()
    outputs = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append(copy.deepcopy(mixer)(x))
    _need(torch.equal(*outputs), "gives other values in training though the seed is the same")


@_check("state", "keep tensors as nn.Parameter or register_buffer, so that a checkpoint holds them")
def _state(case: MixerCase) -> None:
    one, other, x = case.build().eval(), case.build(seed=1).eval(), case.input()
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    other.load_state_dict(one.state_dict())
    _need_close(other(x), one(x), "loaded from its state_dict")
    _need_close(copy.deepcopy(one)(x), one(x), "copied")


# Gradients and number formats


@_check(
    "gradients",
    "look for .data, detach() and in-place writes; a backward of your own must be the derivative",
)
def _gradients(case: MixerCase) -> None:
    mixer = case.build().double()
    x = case.input(dtype=torch.float64).requires_grad_()
    y = mixer.train()(x)
    (y * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))).sum().backward()
    learned = {name: value for name, value in mixer.named_parameters() if value.requires_grad}
    for name, tensor in {"the input": x, **learned}.items():
        _need(tensor.grad is not None, f"no gradient reaches {name}")
        assert tensor.grad is not None
        _need(bool(tensor.grad.isfinite().all()), f"the gradient of {name} is not finite")
    assert x.grad is not None
    _need(bool(x.grad.abs().sum() > 0), "the gradient of the input is zero")
    mixer.eval()

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(mixer, dict(zip(learned, values, strict=True)), (x,))

    inputs = (x.detach()[:1].clone().requires_grad_(), *learned.values())
    try:
        gradcheck(forward, inputs, fast_mode=True, nondet_tol=1e-9)
    except GradcheckError as error:
        raise CheckFailed(f"is not the derivative by finite differences ({_reason(error)})") from error


@_check("bf16", "compute what bfloat16 lacks in float32 (x.float()), and give back x.dtype")
def _bf16(case: MixerCase) -> None:
    mixer, x = case.build().eval(), case.input()
    expected = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        _need_close(mixer(x), expected, "under autocast", _BF16_CLOSE)
    y = mixer.bfloat16()(x.bfloat16())
    _need(y.dtype == torch.bfloat16, f"gives {y.dtype} for torch.bfloat16")
    _need_close(y, expected, "weights and input in bfloat16", _BF16_CLOSE)


# Memory layout, and the forms of a mixer


@_check("layout", "work on x.permute(0, 2, 3, 1), or end with .contiguous(memory_format=torch.channels_last)")
def _layout(case: MixerCase) -> None:
    mixer, x = case.build().eval(), case.input()
    y = mixer(x)
    kept = y.is_contiguous(memory_format=torch.channels_last)
    _need(kept or case.fixed_grid, "gives another memory layout than channels-last for a channels-last input")
    _need_close(mixer(x.contiguous()), y, "contiguous and channels-last input")


@_check("fused", "fused(x, norm, scale) is scale(self(norm(x))), fused_residual x + drop_path(…) of that")
def _fused(case: MixerCase) -> str | None:
    mixer = case.build().eval()
    forms = [name for name in ("fused", "fused_residual") if hasattr(mixer, name)]
    for name in NORMS if forms else ():
        norm, scale = NORMS.build(name, case.dim).eval(), Scale(case.dim, 0.5)
        learned = [p for module in (mixer, norm, scale) for p in module.parameters() if p.requires_grad]
        for form in forms:
            _compare_fused(form, mixer, norm, scale, case.input().requires_grad_(), learned)
    return ", ".join(forms) or "none"


def _compare_fused(
    form: str, mixer: Any, norm: nn.Module, scale: nn.Module, x: Tensor, learned: Sequence[Tensor]
) -> None:
    """Compare a fused form with the modules one after another, and the gradients of both."""
    what, eps = f"{form} with {type(norm).__name__}", 1e-5
    expected = scale(mixer(norm(x)))
    if form == "fused":
        found = mixer.fused(x, norm, scale)
        with torch.no_grad():
            _need_close(mixer.fused(x, norm, scale), expected, f"{what} without gradients")
    else:
        result = mixer.fused_residual(x, norm, scale, DropPath(0.0), eps)
        if result is None:
            return
        expected, (found, moments) = x + expected, result
        mean, variance = found.mean((1, 2, 3)), found.var((1, 2, 3), correction=0)
        _need_close(moments, torch.stack([mean, (variance + eps).rsqrt()], 1), f"moments of {what}")
    _need_close(found, expected, what)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    found_grads, expected_grads = (
        torch.autograd.grad((y * weights).sum(), (x, *learned), allow_unused=True) for y in (found, expected)
    )
    for ours, theirs in zip(found_grads, expected_grads, strict=True):
        if theirs is not None:
            _need(ours is not None, f"{what}: gives no gradient")
            _need_close(ours, theirs, f"gradients of {what}", 10 * _CLOSE)


# Compilation and export


@_check("compile", "no data-dependent if, .item() or numpy in forward: it must trace into one graph")
def _compile(case: MixerCase) -> None:
    _compare_compiled(case, backend="aot_eager")


@_check("inductor", "torch.compile must compute the same: a custom operation needs a fake", slow=True)
def _inductor(case: MixerCase) -> None:
    _compare_compiled(case, backend="inductor")


def _compare_compiled(case: MixerCase, backend: str) -> None:
    mixer, x = case.build(), case.input().requires_grad_()
    torch.compiler.reset()
    y = torch.compile(mixer.eval(), backend=backend, fullgraph=True)(x)
    _need_close(y, mixer(x), f"compiled by {backend}", 10 * _CLOSE)
    y.sum().backward()


@_check("export", "torch.export follows tensors alone: shapes may be read, values not")
def _export(case: MixerCase) -> None:
    mixer, x = case.build().eval(), case.input()
    _need_close(torch.export.export(mixer, (x,)).module()(x), mixer(x), "exported by torch.export")


@_check("onnx", "use operations that ONNX has; metaformer export names the one that it lacks", slow=True)
def _onnx(case: MixerCase) -> str:
    side = 64
    network = create_model(
        "poolformer_n",
        num_classes=3,
        depths=(1,) * 4,
        dims=(case.dim,) * 4,
        mixers=(case.mixer,) * 4,
        image_size=(side, side),
    )
    with tempfile.TemporaryDirectory(prefix="metaformer-check-") as folder:
        size = side if case.fixed_grid else None
        written = export(network.eval(), Path(folder, "network.onnx"), image_size=size)
    worst = max(written.card.parity.values())
    _need(worst <= _CLOSE, f"the file's results differ by {worst:.1e}")
    return f"differs by {worst:.0e}"


# Costs


@_check("macs", "define macs(height, width): the multiply-adds of one image, as the paper counts them")
def _macs(case: MixerCase) -> str:
    mixer = case.build()
    hook = getattr(mixer, "macs", None)
    if not callable(hook):
        unseen = _uncounted(mixer, case)
        _need(not unseen, f"{', '.join(unseen)}: arithmetic that is not counted, and no macs(height, width)")
        return f"{_count(mixer, case.grid, case.dim):,} at {case.grid[0]}×{case.grid[1]}"
    height, width = case.grid
    macs = hook(height, width)
    _need(isinstance(macs, int) and macs >= 0, f"macs({height}, {width}) gives {macs!r}, no natural number")
    seen = copy.deepcopy(mixer)  # whose operations are counted in place of what it says
    seen.macs = None  # type: ignore[assignment]
    counted = _count(seen, case.grid, case.dim)
    _need(macs >= 0.99 * counted, f"macs({height}, {width}) says {macs:,}, but {counted:,} are counted")
    return f"{macs:,} at {height}×{width} by macs()"


def _count(mixer: nn.Module, size: tuple[int, int], dim: int) -> int:
    """Multiply-adds of an image; averages and maxima count as well."""
    counts = count(mixer, size, dim)
    return counts.macs + counts.pooling


class _Operations(TorchDispatchMode):
    """The operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.add(func._overloadpacket)
        return func(*args, **(kwargs or {}))


def _uncounted(mixer: nn.Module, case: MixerCase) -> list[str]:
    """Operations of a mixer whose arithmetic the counter does not see: some of PyTorch's, all of others'."""
    with torch.no_grad(), _Operations() as operations:
        mixer.eval()(case.input())
    counted = FlopCounterMode(display=False).flop_registry
    names = {str(packet) for packet in operations.seen if packet not in counted}
    return sorted(name for name in names if name in UNCOUNTED or not name.startswith(("aten.", "prim")))


@_check("cost", "mix along rows or in windows: faster than the square of the pixels, no image is affordable")
def _cost(case: MixerCase) -> str:
    small, large = (_count(case.build(grid=(side, side)), (side, side), case.dim) for side in COST_SIDES)
    if not small:
        return "no multiply-adds"
    exponent = log(large / small, PIXEL_GROWTH)
    _need(exponent <= _MOST_GROWTH, f"grows with the number of pixels to the power {exponent:.1f}")
    word = {1: "linear", 2: "quadratic"}.get(round(exponent), "")
    return f"{word} in pixels: {large / small:.1f} times for {PIXEL_GROWTH:.0f} times as many".strip()


@_check("time", "something takes time that is not counted: say so by macs(height, width)", slow=True)
def _time(case: MixerCase) -> str:
    mixers = [case.build(grid=(side, side)).eval() for side in COST_SIDES]
    counted = [_count(mixer, (side, side), case.dim) for mixer, side in zip(mixers, COST_SIDES, strict=True)]
    growth = max(counted[1] / counted[0] if counted[0] else 0.0, PIXEL_GROWTH)
    small, large = measure(mixers, [case.input(side, side, batch=1) for side in COST_SIDES], rounds=6)
    measured = large.minimum / small.minimum
    figures = f"{measured:.1f} times the time for {PIXEL_GROWTH:.0f} times the pixels"
    _need(measured <= _HIDDEN_GROWTH * growth, f"{figures}, but {growth:.1f} times the operations")
    return figures
