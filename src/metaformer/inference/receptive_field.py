"""The effective receptive field of a network, before and after its training."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from metaformer.attribution.receptive_field import SHARES, ReceptiveField, receptive_field
from metaformer.attribution.stages import trunk_of
from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import Trunk
from metaformer.data.preprocess import Normalize
from metaformer.distributed import find_device
from metaformer.errors import ConfigError, OutputError
from metaformer.inference.explain import refuse_exported
from metaformer.inference.model import input_size, load_model
from metaformer.models.build import build_network, check_pass
from metaformer.report.readable import Readable
from metaformer.storage import as_path, atomic_bytes, check_writable
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.stream import ImageInput, ImageList
from metaformer.visualize.canvas import INK
from metaformer.visualize.heat import color_map
from metaformer.visualize.sheet import Tile, TileRow, draw_sheet, fit

_log = logging.getLogger(__name__)
ENLARGED: Final = 4
"""Input sides for one of training: at that of training the fields of all networks fill the frame."""
SIDE: Final = 400
"""Side of the image of a field, in pixels."""
FAINTEST: Final = 1e-3
"""Score that is black in it."""
UNTRAINED, TRAINED = "random weights", "trained weights"


@dataclass(frozen=True, repr=False)
class ReceptiveFields(Readable):
    """Effective receptive fields of one network by its weights, at one size."""

    name: str
    """The network's."""
    trained_at: int
    """Shorter side of its input in training, in pixels."""
    side: int
    """Side of the input here."""
    images: int
    noise: bool
    """Whether these are noise."""
    fields: dict[str, ReceptiveField]
    """By the weights: random, trained."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        squares = {name: [one._asdict() for one in field.squares()] for name, field in self.fields.items()}
        return {
            "name": self.name, "trained_at": self.trained_at, "side": self.side, "images": self.images,
            "noise": self.noise, "squares": squares,
        }  # fmt: skip

    def text(self) -> str:
        """The sides of the squares in pixels, and their shares of the input's area, as a table."""
        kind = "images of noise" if self.noise else "images"
        lines = [
            f"{self.name} at {self.side}×{self.side}, trained at {self.trained_at}; {self.images} {kind}",
            "side in pixels, and share of the area, of the centered square that holds",
            " " * 16 + "".join(f"{share:>16.0%}" for share in SHARES),
        ]
        for name, field in self.fields.items():
            cells = [f"{one.side} ({one.ratio:.1%})" for one in field.squares()]
            lines.append(f"{name:<16}" + "".join(f"{cell:>16}" for cell in cells))
        return "\n".join(lines)

    def _images(self) -> Iterable[Image.Image]:
        return [self.plot()]

    def plot(self) -> Image.Image:
        """The fields as images, with the squares of each share."""
        tiles = [
            Tile(_field_image(field), f"{name}: half in {field.squares((0.5,))[0].side} pixels")
            for name, field in self.fields.items()
        ]
        title = (
            f"{self.name} at {self.side}×{self.side}: squares of {', '.join(f'{one:.0%}' for one in SHARES)}"
        )
        return draw_sheet([TileRow(title, tiles)], SIDE)

    def save(self, path: str | Path) -> Path:
        """Write `plot` as PNG.

        Raises:
            OutputError: it cannot be written.
        """
        with atomic_bytes(Path(path)) as stream:
            self.plot().save(stream, "PNG")
        return Path(path)


def measure_receptive_field(
    source: str | Path,
    images: ImageInput | Sequence[ImageInput] = (),
    out: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    side: int | None = None,
    samples: int = 10,
    device: str = "auto",
    ema: bool = False,
    raw: bool = False,
) -> ReceptiveFields:
    """Effective receptive field of a network's features with random and with its trained weights.

    The rule is that of RepLKNet: the positive gradients of the central position's features with respect to
    the input, summed over channels, their mean over images, log10(x + 1).

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        images: a file, a folder, a glob, an image, or a list of these; none for noise.
        out: a file for the image, which ends in .png.
        checkpoint: weights for a model name, in any published format (default: its published ones).
        side: height and width of the input, in pixels (default: four times those of training).
        samples: how many of the images are used, at most, evenly over all.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        ema: of raw and averaged weights, take the averaged ones.
        raw: of raw and averaged weights, take the raw ones.

    Raises:
        ConfigError: an exported file, or a value out of range.
        DataError: nothing found, or an image that cannot be read.
        OutputError: the image cannot be written.
        SizeError: an input that the network cannot take.
    """
    if samples < 1:
        raise ConfigError(f"samples is {samples}: it must be at least 1")
    target = None if out is None else as_path(out, "out", OutputError)
    if target is not None:
        check_writable(target)
    place = find_device(device)
    model = load_model(source, checkpoint, ema=ema, raw=raw)
    refuse_exported(model)
    model = model.to(place, "none")
    trained = trunk_of(model.model)
    known = _training_side(model, trained.config)
    side = _side(model, trained.config, trained.min_size, known, side)
    check_pass(model.model, (side, side))
    nothing = isinstance(images, Sequence) and not len(images)
    listed = None if nothing else ImageList(images)
    count = samples if listed is None else min(samples, len(listed))
    fields = {}
    for name, trunk in ((UNTRAINED, _untrained(model)), (TRAINED, trained)):
        inputs = _inputs(model, trunk, listed, count, side)
        fields[name] = receptive_field(trunk.forward_features, inputs)
    result = ReceptiveFields(model.name, known, side, count, listed is None, fields)
    if target is not None:
        result.save(target)
    return result


def _training_side(model: LoadedModel, config: MetaFormerConfig) -> int:
    return min(input_size(model.preprocess) or config.image_size)


def _side(model: LoadedModel, config: MetaFormerConfig, least: int, known: int, side: int | None) -> int:
    """Side of the input: what was asked for, or by the size of training."""
    if side is None:
        side = known if config.fixed_size else ENLARGED * known
    if side < least:
        raise ConfigError(f"side is {side}: {model.name} needs at least {least} pixels")
    if side < ENLARGED * known:
        why = ", and takes no other size" if config.fixed_size else ""
        _log.warning("%s: at %d×%d%s: its field may fill the frame", model.name, side, side, why)
    return side


def _untrained(model: LoadedModel) -> Trunk:
    """The same network with random weights, from the seed of its run."""
    config: Any = model.model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.config.seed if model.config else 0)
        network = build_network(config)
    return trunk_of(network.to(model.device, memory_format=torch.channels_last).eval())


def _inputs(
    model: LoadedModel, trunk: Trunk, images: ImageList | None, count: int, side: int
) -> Iterator[Tensor]:
    """Squares (1, C, side, side) of the images, or of noise."""
    if images is None:
        random = torch.Generator().manual_seed(0)
        for _ in range(count):
            yield torch.randn(1, trunk.in_chans, side, side, generator=random).to(model.device)
        return
    normalize = Normalize(model.preprocess.mean, model.preprocess.std)
    for index in np.linspace(0, len(images) - 1, count).round().astype(int).tolist():
        image = images.image(index, model.preprocess.background)
        square = image.resize((side, side), Image.Resampling.BICUBIC)
        yield normalize(square)[None].to(model.device)


def _field_image(field: ReceptiveField) -> Image.Image:
    """Scores in colors, on a logarithmic scale from 1 down to FAINTEST, with the square of each share."""
    values = field.scores.clamp(min=FAINTEST).log10() / -np.log10(FAINTEST) + 1
    image = fit(color_map(values.numpy()), SIDE)
    draw, scale = ImageDraw.Draw(image), SIDE / len(values)
    middle = (len(values) // 2 + 0.5) * scale
    for square in field.squares():
        half = square.side / 2 * scale
        draw.rectangle((middle - half, middle - half, middle + half, middle + half), outline=INK)
    return image
