"""Fill a model from a checkpoint of any published format."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from metaformer.errors import ConfigError, WeightsError
from metaformer.weights.fit import Classifier as Classifier
from metaformer.weights.fit import Fit, GridPolicy
from metaformer.weights.io import StateFile, read_state, unwrap
from metaformer.weights.keymap import Renamed, to_ours
from metaformer.weights.positions import BACKBONE
from metaformer.weights.report import LoadReport

CLASSIFIERS, GRIDS = ("keep", "reset", "map_21k"), ("strict", "interpolate")


def load_weights(
    model: nn.Module,
    path_or_state: str | Path | Mapping[str, Tensor],
    strict: bool = True,
    *,
    classifier: Classifier = "keep",
    grid: GridPolicy = "strict",
) -> LoadReport:
    """Fill a model of this library from a checkpoint of any published format, recognized by its keys.

    A stem for RGB is fitted to a model with other input channels; a model without classifier takes none. A
    file of a backbone goes under a segmenter's or detector's neck and heads, which stay fresh; a file of such
    a network gives its backbone where a backbone is asked for.

    Args:
        model: `MetaFormer`, `MetaFormerFeatures`, `Segmenter` or `Detector`; nothing in it changes unless all
            goes well.
        path_or_state: a file (or a directory with one), or tensors by name.
        strict: raise where anything does not fit; False loads what fits and reports the rest.
        classifier: `keep` the file's; `reset` it where the number of classes differs; `map_21k` takes the
            1,000 classes out of a 21,841-class one.
        grid: `strict`, or `interpolate` what belongs to the positions of another grid.

    Returns:
        what was loaded, what was not, and what was changed on the way.

    Raises:
        WeightsError: an unreadable file, an unknown format, or a mismatch; it lists names with both shapes.
        ConfigError: an unknown choice.
    """
    for name, value, known in (("classifier", classifier, CLASSIFIERS), ("grid", grid, GRIDS)):
        if value not in known:
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(map(repr, known))}")
    model = _inner(model)
    source, file = _read(path_or_state)
    try:
        renamed = to_ours(file.tensors)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    inner = getattr(model, "backbone", None)
    if not isinstance(inner, nn.Module):
        return _fitted(model, renamed.backbone(), source, strict, classifier, grid)
    if renamed.dense:
        return _fitted(model, renamed, source, strict, classifier, grid)
    return _under_heads(model, _fitted(inner, renamed, source, strict, classifier, grid))


def _fitted(
    model: nn.Module,
    renamed: Renamed,
    source: str,
    strict: bool,
    classifier: Classifier,
    grid: GridPolicy,
) -> LoadReport:
    """Fill a model from tensors by the names of its own kind."""
    fit = Fit(model, renamed, LoadReport(renamed.format, source))
    fit.check_arithmetic()
    fit.leave_out()
    fit.fit_stem()
    fit.fit_classifier(classifier)
    if grid == "interpolate" or strict:
        fit.fit_grids(grid)
    return fit.load(strict)


def _under_heads(model: nn.Module, report: LoadReport) -> LoadReport:
    """Say of the whole model what came of loading its backbone."""
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


def _read(path_or_state: str | Path | Mapping[str, Tensor]) -> tuple[str, StateFile]:
    if isinstance(path_or_state, Mapping):
        return "state dict", unwrap(path_or_state, "state dict")
    return str(path_or_state), read_state(path_or_state)
