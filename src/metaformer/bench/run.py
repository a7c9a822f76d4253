"""Benchmark of models by name: parameters, multiply-adds and speed, as a table and as JSON."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from metaformer.backbones.block import Block
from metaformer.bench.counts import By, Counts, count
from metaformer.bench.timing import Machine, Timing, TrainingStep, agreed_ratio, measure, ratios
from metaformer.deploy.optimize import optimize
from metaformer.distributed import find_device
from metaformer.errors import ConfigError, MissingPackage, UnknownName
from metaformer.factory import create_network
from metaformer.models.build import DETECTOR, kind_of
from metaformer.report.readable import Readable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMP_CLASSES = 150
"""Classes of segmentation_models_pytorch's networks: this library's default."""
COUNT_HEAD = ("model", "size", "params", "GMACs", "conv", "product", "attention", "Mact", "pool M", "norm M")
PART_HEAD = ("part", "params", "%", "MMACs", "%", "Mact", "pool M", "norm M")
TIME_HEAD = ("model", "images/s", "median ms", "min ms", "peak MiB")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Conditions of a benchmark."""

    batch: int = 1
    """Images per forward pass."""
    size: int | None = None
    """Height and width of the images; each model's own by default."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type of weights and images."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Layout of weights and images."""
    compile: bool = False
    """Run through torch.compile; compilation is not timed."""
    optimize: bool = False
    """Measure this library's networks in their inference form."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""
    rounds: int = 10
    """Measurements of each model."""
    warmup: int = 3
    """Forward passes before the first measurement."""
    speed: bool = True
    """Measure time, or only count."""
    train: bool = False
    """Measure forward pass, cross-entropy and backward pass in training mode instead of inference."""

    def __post_init__(self) -> None:
        for name in ("batch", "size", "threads", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} must be at least 1")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype: {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.optimize and self.train:
            raise ConfigError("optimize: the inference form is not trained: leave train or optimize out")


@dataclass(frozen=True)
class Row:
    """Counts and times of a model."""

    name: str
    image_size: tuple[int, int]
    counts: Counts
    timing: Timing | None = None


@dataclass(frozen=True, repr=False)
class BenchReport(Readable):
    """Result of a benchmark."""

    rows: tuple[Row, ...]
    machine: Machine
    settings: Mapping[str, Any]
    ratios: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Speed of each model relative to `settings["against"]`, round by round."""

    def text(self, by: By | None = None) -> str:
        """The report as text."""
        lines = [*table(COUNT_HEAD, [_count_cells(row) for row in self.rows])]
        if by:
            for row in self.rows:
                lines += ["", f"{row.name} by {by}", *table(PART_HEAD, _part_cells(row.counts, by))]
        timed = [row for row in self.rows if row.timing is not None]
        if timed:
            lines += ["", self._conditions(), *table(TIME_HEAD, [_time_cells(row) for row in timed])]
        for name, values in self.ratios.items():
            pairs = " ".join(f"{value:.2f}" for value in values)
            ratio, other = self._ratio(name), self.settings["against"]
            if ratio is None:
                lines += ["", f"{name}: rounds disagree on how many times as fast as {other} it is"]
                lines += [f"(the machine is busy; {len(values)} pairs: {pairs})"]
            else:
                lines += ["", f"{name} is {ratio:.2f} times as fast as {other}"]
                lines += [f"(median of {len(values)} pairs: {pairs})"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "machine": asdict(self.machine),
            "settings": dict(self.settings),
            "models": [_row_dict(row) for row in self.rows],
            "ratios": {
                name: {"median": self._ratio(name), "pairs": list(v)} for name, v in self.ratios.items()
            },
        }

    def _ratio(self, name: str) -> float | None:
        """Relative speed of a model; None where the rounds disagree."""
        timings = {row.name: row.timing for row in self.rows}
        timing, other = timings[name], self.rows[-1].timing
        return None if timing is None or other is None else agreed_ratio(timing, other)

    def _conditions(self) -> str:
        how = "compiled" if self.settings["compile"] else "eager"
        if self.settings["optimize"]:
            how += ", ours optimized"
        if self.settings["train"]:
            how += ", forward and backward"
        machine = self.machine
        return (
            f"{machine.device}; {machine.threads} thread{'s' * (machine.threads != 1)}; "
            f"PyTorch {machine.pytorch}; operations: {machine.operations}; "
            f"batch {self.settings['batch']}; {self.settings['dtype']}, "
            f"{self.settings['memory_format']}, {how}"
        )


def bench(
    models: Sequence[str | nn.Module],
    config: BenchConfig | None = None,
    *,
    against: str | nn.Module | None = None,
    mixers: Sequence[str] | None = None,
) -> BenchReport:
    """Count and time models, and compare them with another one in the same rounds.

    Args:
        models: names of this library's models, segmenters and detectors (their `forward_head`), `timm:NAME`
            for timm's, `smp:KIND/ENCODER` for segmentation_models_pytorch's, or modules.
        config: the conditions.
        against: the model to compare with.
        mixers: other token mixers for this library's models, one for all or one per stage.

    Raises:
        UnknownName: no such model.
        MissingPackage: `timm:` without timm, `smp:` without segmentation_models_pytorch.
        ConfigError: a device that is not there, or a batch that does not fit.
    """
    config = config or BenchConfig()
    if not models:
        raise ConfigError("bench: name at least one model")
    device = find_device(config.device)
    entries = [_Entry.of(model, config.size, mixers) for model in models]
    if against is not None:
        entries.append(_Entry.of(against, config.size or entries[0].image_size[0], None))
    counts = [count(entry.model, entry.image_size, entry.in_chans) for entry in entries]
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        timings = _timed(entries, config, device) if config.speed else [None] * len(entries)
        machine = Machine.here(device)
    finally:
        torch.set_num_threads(before)
    rows = tuple(
        Row(entry.name, entry.image_size, counted, timing)
        for entry, counted, timing in zip(entries, counts, timings, strict=True)
    )
    settings = {**vars(config), "against": None if against is None else rows[-1].name}
    return BenchReport(rows, machine, settings, {} if against is None else _compared(rows))


def _compared(rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """Speed of all rows relative to the last one."""
    *models, other = rows
    return {
        row.name: ratios(row.timing, other.timing)
        for row in models
        if row.timing is not None and other.timing is not None
    }


@dataclass
class _Entry:
    """A model with its name and input size."""

    name: str
    model: nn.Module
    image_size: tuple[int, int]
    in_chans: int = 3

    @classmethod
    def of(cls, model: str | nn.Module, size: int | None, mixers: Sequence[str] | None) -> "_Entry":
        if isinstance(model, nn.Module):
            own = getattr(getattr(model, "config", None), "image_size", (224, 224))
            entry = cls(type(model).__name__, copy.deepcopy(model).eval(), own)
        elif model.startswith("timm:"):
            entry = _from_timm(model)
        elif model.startswith("smp:"):
            entry = _from_smp(model)
        else:
            entry = _from_here(model, size, mixers)
        entry.image_size = (size, size) if size else entry.image_size
        return entry


def _from_here(name: str, size: int | None, mixers: Sequence[str] | None) -> _Entry:
    overrides: dict[str, Any] = {}
    if size:
        overrides["image_size"] = (size, size)
    if mixers:
        overrides["mixers"] = mixers[0] if len(mixers) == 1 else tuple(mixers)
    model = create_network(name, **overrides).eval()
    channels, height, width = model.pretrained_cfg["input_size"]
    if kind_of(model.config) is DETECTOR:
        model, width = _DenseOutputs(model), height
    return _Entry(name, model, (height, width), channels)


class _DenseOutputs(nn.Module):
    """A detector up to its dense outputs; decoding depends on the objects in an image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        forward_head: Any = self.model.forward_head
        return forward_head(images)


def _from_smp(name: str) -> _Entry:
    """A network of segmentation_models_pytorch with an encoder of its own or of timm."""
    try:
        import segmentation_models_pytorch as smp
        import timm
    except ImportError as error:
        raise MissingPackage("segmentation-models-pytorch", "peers", f"{name!r}") from error
    kind, slash, encoder = name.removeprefix("smp:").partition("/")
    if not slash or not encoder:
        raise ConfigError(f"{name}: write smp:KIND/ENCODER, as in smp:fpn/poolformer_s12")
    if kind not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise UnknownName("smp architecture", kind, smp.MODEL_ARCHITECTURES_MAPPING)
    own = smp.encoders.get_encoder_names()
    if encoder not in own:
        if not timm.is_model(encoder):
            raise UnknownName("smp encoder", encoder, [*own, *timm.list_models()])
        encoder = f"tu-{encoder}"
    model = smp.create_model(kind, encoder_name=encoder, encoder_weights=None, classes=SMP_CLASSES).eval()
    return _Entry(name, model, (512, 512))


def _from_timm(name: str) -> _Entry:
    try:
        import timm
    except ImportError as error:
        raise MissingPackage("timm", None, f"{name!r}") from error
    bare = name.removeprefix("timm:")
    if not timm.is_model(bare):
        raise UnknownName("timm model", bare, timm.list_models())
    model = timm.create_model(bare).eval()
    channels, height, width = model.default_cfg["input_size"]
    return _Entry(name, model, (height, width), channels)


def _timed(entries: Sequence[_Entry], config: BenchConfig, device: torch.device) -> list[Any]:
    dtype = DTYPES[config.dtype]
    layout = torch.channels_last if config.memory_format == "channels_last" else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    models: list[nn.Module] = []
    images: list[Tensor] = []
    try:
        for entry in entries:
            if config.train and isinstance(entry.model, _DenseOutputs):
                raise ConfigError(
                    f"{entry.name}: a detector's training step is not timed here: leave --train out"
                )
            model = _prepared(entry.model.to(device), config).to(memory_format=layout)
            model = cast(nn.Module, torch.compile(model)) if config.compile else model
            models.append(TrainingStep(model) if config.train else model)
            shape = (config.batch, entry.in_chans, *entry.image_size)
            image = torch.randn(shape, generator=generator)
            images.append(image.to(device=device, dtype=dtype, memory_format=layout))
        return measure(models, images, rounds=config.rounds, warmup=config.warmup, gradients=config.train)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"batch: {config.batch} images do not fit into the memory of {device}") from error


def _prepared(model: nn.Module, config: BenchConfig) -> nn.Module:
    dtype = DTYPES[config.dtype]
    if config.optimize and any(isinstance(module, Block) for module in model.modules()):
        return optimize(model, dtype=dtype, compile=False if config.compile else None)
    return model.to(dtype).train(config.train)


def _count_cells(row: Row) -> list[str]:
    counts = row.counts
    giga = (counts.macs, counts.convolutions, counts.products, counts.attention)
    mega = (counts.activations, counts.pooling, counts.norms)
    height, width = row.image_size
    return [
        row.name,
        f"{height}×{width}",
        f"{counts.params:,}",
        *(f"{value / 1e9:.3f}" for value in giga),
        *(f"{value / 1e6:.2f}" for value in mega),
    ]


def _part_cells(counts: Counts, by: By) -> list[list[str]]:
    cells = []
    for name, part in counts.by(by).items():
        macs = sum(part.get(kind, 0) for kind in ("convolutions", "products", "attention"))
        params = part.get("params", 0)
        cells.append(
            [
                name,
                f"{params:,}",
                f"{100 * params / max(1, counts.params):.1f}",
                f"{macs / 1e6:.2f}",
                f"{100 * macs / max(1, counts.macs):.1f}",
                *(f"{part.get(kind, 0) / 1e6:.2f}" for kind in ("activations", "pooling", "norms")),
            ]
        )
    return cells


def _time_cells(row: Row) -> list[str]:
    timing = row.timing
    assert timing is not None
    peak = "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:.0f}"
    speed = f"{timing.images_per_second:.1f}"
    return [row.name, speed, f"{1e3 * timing.median:.2f}", f"{1e3 * timing.minimum:.2f}", peak]


def _row_dict(row: Row) -> dict[str, Any]:
    values: dict[str, Any] = {"model": row.name, "image_size": list(row.image_size), **row.counts.to_dict()}
    values["by_stage"] = row.counts.by("stage")
    values["by_mixer"] = row.counts.by("mixer")
    if row.timing is not None:
        values["seconds_per_batch"] = list(row.timing.seconds)
        values["median_ms"] = 1e3 * row.timing.median
        values["min_ms"] = 1e3 * row.timing.minimum
        values["images_per_second"] = row.timing.images_per_second
        values["peak_bytes"] = row.timing.peak_bytes
    return values


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *rows)
    ]
