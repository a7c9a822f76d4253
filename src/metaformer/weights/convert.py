"""Rewrite a checkpoint from one published format to another."""

from dataclasses import dataclass
from pathlib import Path

from metaformer.backbones.variants import VARIANTS
from metaformer.errors import OutputError, UnknownName, WeightsError
from metaformer.report.readable import Readable
from metaformer.storage import as_path
from metaformer.weights.formats import FORMATS
from metaformer.weights.infer import candidates
from metaformer.weights.io import read_state, write_state
from metaformer.weights.keymap import from_ours, to_ours
from metaformer.weights.saved import find_saved
from metaformer.weights.sources import split_name


@dataclass(frozen=True, repr=False)
class Conversion(Readable):
    """Result of a conversion."""

    source: Path
    """The file read."""
    target: Path
    """The file written."""
    source_format: str
    """Its format, as recognized."""
    target_format: str
    """The format asked for."""
    model: str
    """The variant, if it is a published one; else empty."""
    tensors: int
    """How many were written."""

    def text(self) -> str:
        """Both files and their formats, in a line."""
        of = f" of {self.model}" if self.model else ""
        names = f"{FORMATS[self.source_format].title} -> {FORMATS[self.target_format].title}"
        return f"{self.source} -> {self.target}: {self.tensors} tensors{of}, {names}"


def convert(
    source: str | Path, target: str | Path, to: str, model: str | None = None, ema: bool | None = None
) -> Conversion:
    """Rewrite a checkpoint of any format in another; the suffix of `target` decides the kind of file.

    Args:
        source: safetensors or a file of `torch.save`, in any format of `FORMATS`; or a run, a checkpoint
            or what `save_pretrained` wrote.
        target: safetensors, or `torch.save` where it ends in .pth, .pt, .bin or .tar.
        to: key of `FORMATS`.
        model: the variant, where the tensors may be of several.
        ema: of raw and averaged weights in a file take the averaged ones, or with False the raw ones.

    Raises:
        UnknownName: no such format or model.
        WeightsError: an unreadable file, tensors that the format has no place for, or an ambiguous model.
        OutputError: the target cannot be written, or is the source.
    """
    source = as_path(source, "source", WeightsError)
    target = as_path(target, "target", OutputError)
    if to not in FORMATS:
        raise UnknownName("checkpoint format", to, FORMATS)
    file, saved = read_state(source, ema), find_saved(source)
    if target.exists() and target.samefile(source if saved is None else saved.weights):
        raise OutputError(f"{target}: is the file to read: choose another name")
    try:
        renamed = to_ours(file.tensors)
        if renamed.unknown:
            raise WeightsError(f"{', '.join(renamed.unknown[:10])}: not of the format {renamed.format!r}")
        found = candidates(renamed.backbone().state)
        if model is None and saved is not None and saved.variant in found:
            model = saved.variant
        name = _model(found, model, renamed.format, to)
        state = from_ours(renamed.state, to)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    notes = {"metaformer_format": to, **({"architecture": name} if name else {})}
    write_state(target, state, notes, FORMATS[to].wrapper)
    return Conversion(source, target, renamed.format, to, name, len(state))


def _model(found: list[str], asked: str | None, source: str, to: str) -> str:
    """The variant of the tensors, if the format has only some."""
    if asked is not None:
        asked, _ = split_name(asked)
        if asked not in VARIANTS:
            raise UnknownName("model", asked, VARIANTS)
        if asked not in found:
            raise WeightsError(f"not of {asked}; it is of {' or '.join(found) or 'no published model'}")
        found = [asked]
    possible = [name for name in found if name.startswith(FORMATS[source].families or ("",))]
    allowed = [name for name in possible if name.startswith(FORMATS[to].families or ("",))]
    if possible and not allowed:
        raise WeightsError(f"{FORMATS[to].title} has no {' or '.join(possible)}")
    if len(possible) > 1 and len(allowed) < len(possible):
        raise WeightsError(
            f"the file may be of {' or '.join(possible)}, which differ in nothing stored: name one "
            "(model=, --model)"
        )
    return allowed[0] if len(allowed) == 1 else ""
