"""Fill a model from a checkpoint of any published format, and report what was loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import Trunk
from metaformer.errors import ConfigError, WeightsError
from metaformer.report.readable import Readable
from metaformer.weights.adapt import (
    adapt_stem,
    class_count,
    class_layers,
    map_21k_to_1k,
    refuse_torchvision,
    resample_grid,
)
from metaformer.weights.infer import candidates
from metaformer.weights.io import StateFile, read_state, unwrap
from metaformer.weights.keymap import BACKBONE, Renamed, State, to_ours

Classifier = Literal["keep", "reset", "map_21k"]
GridPolicy = Literal["strict", "interpolate"]
STEM, AUXILIARY = "stem.conv.weight", "auxiliary."
RGB = 3
Shape = tuple[int, ...]
SHOWN = 10
"""Names in a line of a report, at most."""


@dataclass(repr=False)
class LoadReport(Readable):
    """Tensors of a checkpoint that were loaded into a model, and those that were not."""

    format: str = ""
    """The checkpoint's format, a key of `metaformer.weights.formats.FORMATS`."""
    source: str = ""
    """The file, or `state dict`."""
    loaded: list[str] = field(default_factory=list)
    """The model's tensors that were filled from the checkpoint."""
    missing: list[str] = field(default_factory=list)
    """The model's tensors that the checkpoint lacks; they stay as they were."""
    unexpected: list[str] = field(default_factory=list)
    """The checkpoint's tensors, by its names, that the model lacks."""
    misshaped: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    """Name in the model, shape in the checkpoint, shape in the model; these stay as they were."""
    fresh: list[str] = field(default_factory=list)
    """The model's tensors that were to stay as initialized: a new classifier, fresh pyramid norms."""
    dropped: list[str] = field(default_factory=list)
    """The checkpoint's tensors that were dropped on purpose: a replaced classifier, a head, fixed offsets."""
    adapted: list[str] = field(default_factory=list)
    """Descriptions of what was changed."""
    fraction: float = 0.0
    """Share of the model's values that came from the checkpoint."""

    @property
    def complete(self) -> bool:
        """Whether checkpoint and model matched, apart from what was asked for."""
        return not (self.missing or self.unexpected or self.misshaped)

    def problems(self) -> list[str]:
        """One line for each kind of mismatch, with up to ten names and the total."""
        shapes = [
            f"{name} {_shape(theirs)} in the file, {_shape(ours)} here"
            for name, theirs, ours in self.misshaped
        ]
        kinds = (
            ("missing in the file", self.missing),
            ("unknown to the model", self.unexpected),
            ("misshaped", shapes),
        )
        return [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]

    def text(self) -> str:
        """What was loaded, and a line for each kind of what was not."""
        share = f"{len(self.loaded)} tensors, {self.fraction:.1%} of the model"
        notes = [
            f"{len(n)} {what}: {_some(n)}"
            for what, n in (("fresh", self.fresh), ("left out", self.dropped))
            if n
        ]
        return "\n  ".join(
            [f"{self.source}: {self.format} format, {share}", *self.adapted, *notes, *self.problems()]
        )


def load_weights(
    model: nn.Module,
    path_or_state: str | Path | Mapping[str, Tensor],
    strict: bool = True,
    *,
    classifier: Classifier = "keep",
    grid: GridPolicy = "strict",
    ema: bool | None = None,
) -> LoadReport:
    """Load a checkpoint of any published format, recognized by its keys, into a model of this library.

    An RGB stem is adapted to other input channels; a classifier is dropped for a model without one. A file of
    a backbone fills the backbone of a segmenter or detector, whose neck and heads stay as they are; a file of
    such a network fills a backbone with its own.

    Args:
        model: `MetaFormer`, `MetaFormerFeatures`, `Segmenter` or `Detector`; unchanged if an error is
            raised.
        path_or_state: a file (or a directory with one), or tensors by name.
        strict: raise where anything does not fit; False loads what fits and reports the rest.
        classifier: `keep` the file's; `reset` it where the number of classes differs; `map_21k` takes the
            1,000 classes out of a 21,841-class one.
        grid: `strict`, or `interpolate` tensors of another grid.
        ema: of a file with raw and averaged weights take the averaged ones, or with False the raw ones, which
            are the default for files of other projects.

    Returns:
        Which tensors were loaded, adapted or not loaded.

    Raises:
        WeightsError: an unreadable file, an unknown format, or a mismatch; it lists names with both shapes.
        ConfigError: an unknown choice.
    """
    for name, value, choices in (("classifier", classifier, Classifier), ("grid", grid, GridPolicy)):
        if value not in get_args(choices):
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(map(repr, get_args(choices)))}")
    model = _inner(model)
    source, file = _read(path_or_state, ema)
    inner = getattr(model, "backbone", None)
    try:
        renamed = to_ours(file.tensors)
        if isinstance(inner, nn.Module):
            refuse_torchvision(renamed.state)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    if not isinstance(inner, nn.Module):
        return _fitted(model, renamed.backbone(), source, strict, classifier, grid)
    if renamed.dense:
        return _fitted(model, renamed, source, strict, classifier, grid)
    return _under_heads(model, _fitted(inner, renamed, source, strict, classifier, grid))


@dataclass
class Loading:
    """The tensors of one checkpoint, adapted to one model step by step."""

    model: nn.Module
    renamed: Renamed
    report: LoadReport
    target: Mapping[str, Tensor] = field(init=False)
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.target = self.model.state_dict()
        self.state = dict(self.renamed.state)
        self.report.dropped += self.renamed.ignored
        self.report.unexpected += self.renamed.unknown

    def drop(self, name: str) -> None:
        """Leave out one of the checkpoint's tensors on purpose."""
        del self.state[name]
        self.report.dropped.append(self.renamed.origin[name])

    def drop_unused(self) -> None:
        """Drop what the model has no part for: a classifier's head, norms of unused levels."""
        if self.has(BACKBONE):
            self._drop_auxiliary()
            self._skip_unused_norms()
            return
        if not self.has("head."):
            self._drop_late_stages()
            self._take_final_norm()
            for name in [name for name in self.state if name.startswith("head.")]:
                self.drop(name)
            self.report.fresh += [n for n in self.target if n.startswith("norms.") and n not in self.state]
        elif not self.has("head.fc."):
            for name in [name for name in self.state if name.startswith("head.fc.")]:
                self.drop(name)
        if self.has("head.") or self.has("norms."):  # a level that is not asked for needs no norm
            for name in [n for n in self.state if n.startswith("norms.") and n not in self.target]:
                self.drop(name)

    def _drop_late_stages(self) -> None:
        """Drop the stages behind a pyramid's last level."""
        kept = len(self.model.stages) if isinstance(self.model, Trunk) else 0
        for name in [name for name in self.state if name.startswith("stages.")]:
            if kept and int(name.split(".")[1]) >= kept:
                self.drop(name)

    def _drop_auxiliary(self) -> None:
        """Only training needs the auxiliary head: file and model may each lack it."""
        theirs, ours = (
            [name for name in names if name.startswith(AUXILIARY)] for names in (self.state, self.target)
        )
        if not ours:
            for name in theirs:
                self.drop(name)
        elif not theirs:
            self.report.fresh += ours

    def _skip_unused_norms(self) -> None:
        """Norms of levels that RetinaNet does not use may be missing, as in the published files."""
        for level in range(getattr(self.model, "first_level", 0)):
            unused = f"{BACKBONE}norms.{level}."
            self.report.fresh += [n for n in self.target if n.startswith(unused) and n not in self.state]

    def has(self, prefix: str) -> bool:
        """Whether the model has tensors with this prefix."""
        return any(name.startswith(prefix) for name in self.target)

    def _take_final_norm(self) -> None:
        """With feature_norm="head" the last level has the norm of the classifier's head."""
        config = getattr(self.model, "config", None)
        if not isinstance(config, MetaFormerConfig) or config.feature_norm != "head":
            return
        for part in ("weight", "bias"):
            name, level = f"head.norm.{part}", f"norms.{config.stages - 1}.{part}"
            if name in self.state and level in self.target and level not in self.state:
                self.state[level], self.renamed.origin[level] = (
                    self.state.pop(name),
                    self.renamed.origin[name],
                )
                self.report.adapted.append(f"{level}: the classifier's {self.renamed.origin[name]}")

    def adapt_stem(self) -> None:
        """Adapt an RGB stem to other input channels."""
        for stem in (STEM, BACKBONE + STEM):
            if stem in self.state and stem in self.target and self.state[stem].ndim == 4:
                theirs, ours = self.state[stem].shape[1], self.target[stem].shape[1]
                if theirs == RGB and ours != RGB:
                    self.state[stem] = adapt_stem(self.state[stem], ours)
                    self.report.adapted.append(f"{stem}: fitted from {theirs} input channels to {ours}")

    def adapt_classifier(self, choice: Classifier) -> None:
        """Map or replace a classifier of other classes, where that was asked for."""
        last = class_layers(self.state, self.target)
        if choice == "keep" or not last:
            return
        theirs, ours = class_count(self.state), class_count(self.target)
        if choice == "map_21k":
            for name in last:
                self.state[name] = map_21k_to_1k(self.state[name])
            self.report.adapted.append(f"classifier: {theirs} classes mapped to 1000")
        elif theirs != ours:
            for name in last:
                self.drop(name)
            self.report.fresh += last
            self.report.adapted.append(f"classifier: reset, {ours} classes; the file's has {theirs}")

    def adapt_grids(self, policy: GridPolicy) -> None:
        """Resample tensors of another grid, or refuse them."""
        for name in [name for name in self.state if name in self.target]:
            theirs, ours = self.state[name].shape, self.target[name].shape
            grid = self._grid(name) if theirs != ours else None
            if grid is None:
                continue
            if policy == "strict":
                raise WeightsError(
                    f"{self.report.source}: {name} belongs to another grid: {tuple(theirs)} in the file, "
                    f"{tuple(ours)} for this model's {grid[0]}×{grid[1]} positions. Build the model with the "
                    "image_size of the file (and grid_mode='interpolate' for other images), or pass "
                    "grid='interpolate' to load_weights"
                )
            fitted = resample_grid(self.state[name], ours, grid)
            if fitted is not None:
                self.state[name] = fitted
                self.report.adapted.append(f"{name}: resampled to {grid[0]}×{grid[1]} positions")

    def load(self, strict: bool) -> LoadReport:
        """Compare names and shapes, and copy.

        Raises:
            WeightsError: they differ, and `strict`; or nothing fits.
        """
        report, fitting = self.report, State()
        for name, value in self.state.items():
            if name not in self.target:
                report.unexpected.append(self.renamed.origin[name])
                continue
            value = _reshaped(value, self.target[name])
            if self.target[name].is_floating_point() and not value.is_floating_point():
                raise WeightsError(
                    f"{report.source}: {self.renamed.origin[name]} holds {value.dtype}, where the model has "
                    f"{self.target[name].dtype}: save it as floating-point numbers"
                )
            if value.shape == self.target[name].shape:
                fitting[name] = value
            else:
                report.misshaped.append((name, tuple(value.shape), tuple(self.target[name].shape)))
        report.missing += [
            name for name in self.target if name not in self.state and name not in report.fresh
        ]
        report.loaded = list(fitting)
        total = sum(value.numel() for value in self.target.values())
        report.fraction = sum(value.numel() for value in fitting.values()) / max(1, total)
        if not report.complete and (strict or not fitting):
            raise WeightsError(self._explain())
        self.model.load_state_dict(fitting, strict=False)
        return report

    def _explain(self) -> str:
        report, last = self.report, class_layers(self.state, self.target)
        if (
            last
            and not report.missing
            and not report.unexpected
            and {n for n, *_ in report.misshaped} == set(last)
        ):
            theirs, ours = class_count(self.state), class_count(self.target)
            return (
                f"{report.source}: its classifier has {theirs} classes, the model {ours}: build the model "
                f"with num_classes={theirs}, or pass classifier='reset' to train a new one "
                f"({'; '.join(report.problems())})"
            )
        fits = candidates(self.renamed.backbone().state)
        hint = f"; the file is of {' or '.join(fits)}" if fits else ""
        lines = "\n  ".join(report.problems())
        return (
            f"{report.source} ({report.format} format) does not fit the model{hint}\n  {lines}\n"
            "  strict=False loads what fits"
        )

    def _grid(self, name: str) -> tuple[int, int] | None:
        """The fixed grid of the module that a tensor belongs to, if it has one."""
        parts = name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            grid = getattr(self.model.get_submodule(".".join(parts[:length])), "grid", None)
            if isinstance(grid, tuple):
                return grid
        return None


def _fitted(
    model: nn.Module,
    renamed: Renamed,
    source: str,
    strict: bool,
    classifier: Classifier,
    grid: GridPolicy,
) -> LoadReport:
    """Fill a model from tensors by its own names."""
    loading = Loading(model, renamed, LoadReport(renamed.format, source))
    loading.drop_unused()
    loading.adapt_stem()
    loading.adapt_classifier(classifier)
    if grid == "interpolate" or strict:
        loading.adapt_grids(grid)
    return loading.load(strict)


def _under_heads(model: nn.Module, report: LoadReport) -> LoadReport:
    """Report of a whole model whose backbone was loaded."""
    whole = model.state_dict()
    for names in (report.loaded, report.missing, report.fresh):
        names[:] = [BACKBONE + name for name in names]
    report.misshaped = [(BACKBONE + name, theirs, ours) for name, theirs, ours in report.misshaped]
    report.fresh += [name for name in whole if not name.startswith(BACKBONE)]
    total = sum(value.numel() for value in whole.values())
    report.fraction = sum(whole[name].numel() for name in report.loaded) / max(1, total)
    return report


def _inner(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    for attribute in ("_orig_mod", "module"):
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module):
            return _inner(inner)
    return model


def _read(path_or_state: str | Path | Mapping[str, Tensor], ema: bool | None) -> tuple[str, StateFile]:
    if isinstance(path_or_state, Mapping):
        return "state dict", unwrap(path_or_state, "state dict", ema)
    file = read_state(path_or_state, ema)
    return f"{path_or_state} ({file.wrapper})" if file.wrapper else str(path_or_state), file


def _reshaped(value: Tensor, target: Tensor) -> Tensor:
    """Add or take trailing dimensions of one, by which the formats' products over channels differ."""
    short, long = sorted((value.shape, target.shape), key=len)
    if short != long and long[: len(short)] == short and set(long[len(short) :]) == {1}:
        return value.reshape(target.shape)
    return value


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a number"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
