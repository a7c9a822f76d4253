"""What is on the sheet of an explained image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from metaformer.attribution.attention import attention_received
from metaformer.attribution.features import pca_colors, stage_features
from metaformer.attribution.receptive_field import token_gradient
from metaformer.attribution.stages import trunk_of
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.explain import deepest_map, heat_map
from metaformer.tasks.heat import Heat, Input, Subject
from metaformer.visualize.heat import draw_circle, heat_tile
from metaformer.visualize.sheet import Tile, TileRow


def sheet_rows(
    model: LoadedModel, image: Image.Image, subjects: Sequence[Subject], stage: int | None = None
) -> list[TileRow]:
    """What is drawn of an RGB image: maps of the subjects, then stage by stage what the network sees.

    Args:
        model: the network.
        image: the image.
        subjects: what is explained; the further rows are of the first.
        stage: whose features explain all of them; None for the last whose map is not 0.
    """
    given = model.spec.explain.input(model, image)
    levels = stage_features(model.model, given.images)
    stages = range(len(levels))
    tiles, place = _found(model, image, given, subjects, stage)
    rows = [TileRow("What it finds, and where", tiles)]
    for first in subjects[:1]:
        maps = [heat_map(model, image, first.index, first.box, number) for number in stages]
        drawn = [heat_tile(image, one, first.box) for one in maps]
        rows.append(TileRow(f"{first.label}, by the features of each stage", _by_stage(drawn, levels)))
    colors = [_colors(given, pca_colors(level[0])) for level in levels]
    rows.append(TileRow("Features: three principal components as colors", _by_stage(colors, levels)))
    looks = [_look(model, image, given, number, levels[number], place) for number in stages]
    rows.append(TileRow("What one position (the circle) of each stage looks at", _by_stage(looks, levels)))
    attention = {number: attention_received(model.model, given.images, number) for number in stages}
    attended = {number: one for number, one in attention.items() if one is not None}
    if attended:
        drawn = [heat_tile(image, _scaled(given.placed(one))) for one in attended.values()]
        rows.append(TileRow("What all positions attend to", _by_stage(drawn, levels, list(attended))))
    return rows


def caption(subject: Subject) -> str:
    """A subject in words."""
    return f"{subject.label}: {subject.score:.0%}"


def _found(
    model: LoadedModel, image: Image.Image, given: Input, subjects: Sequence[Subject], stage: int | None
) -> tuple[list[Tile], tuple[float, float]]:
    """The image and the subjects' maps; row and column, in parts of the input, of the first one's maximum."""
    height, width = given.images.shape[2:]
    place = (
        given.size[0] / height / 2,
        given.size[1] / width / 2,
    )  # the middle of the image, for an empty map
    tiles = [Tile(image, f"{image.width}×{image.height} pixels")]
    last = len(trunk_of(model.model).stages) - 1
    for one in subjects:
        if stage is None:
            heat, used = deepest_map(model, image, one.index, one.box)
        else:
            heat, used = heat_map(model, image, one.index, one.box, stage), stage
        note = "" if used == last or stage is not None else f" (stage {used})"
        if len(tiles) == 1 and heat.any():
            place = _strongest(given, heat)
        tiles.append(Tile(heat_tile(image, heat, one.box), caption(one) + note))
    return tiles, place


def _look(
    model: LoadedModel,
    image: Image.Image,
    given: Input,
    stage: int,
    level: Tensor,
    place: tuple[float, float],
) -> Image.Image:
    """What the position of a stage at a place, in parts of the input's sides, looks at."""
    row, column = (
        min(int(share * side), side - 1) for share, side in zip(place, level.shape[2:], strict=True)
    )
    gradient = token_gradient(model.model, given.images, stage, (row, column))
    # from a hundredth of the largest on, as the residual connection outshines what is around it
    scores = (gradient / gradient.max().clamp(min=1e-30) * 99 + 1).log10() / 2
    tile = heat_tile(image, _scaled(given.placed(scores)))
    x, y = given.original_place((column + 0.5) / level.shape[3], (row + 0.5) / level.shape[2])
    return draw_circle(tile, x / image.width, y / image.height)


def _by_stage(
    images: Sequence[Image.Image], levels: Sequence[Tensor], stages: Sequence[int] = ()
) -> list[Tile]:
    """Images of stages, with the size of their features."""
    numbers = stages or range(len(levels))
    sizes = [levels[number].shape[2:] for number in numbers]
    captions = [f"stage {number}: {size[0]}×{size[1]}" for number, size in zip(numbers, sizes, strict=True)]
    return [Tile(*one) for one in zip(images, captions, strict=True)]


def _scaled(values: Heat) -> Heat:
    """A map divided by its largest value."""
    scaled: Heat = values / max(values.max(), np.finfo(np.float32).tiny)
    return scaled


def _colors(given: Input, colors: Tensor) -> Image.Image:
    """Colors (3, h, w) at the image's size."""
    pixels = np.stack([given.placed(channel) for channel in colors], axis=-1)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def _strongest(given: Input, heat: Heat) -> tuple[float, float]:
    """Row and column, as parts of the padded input, where a map of the image is strongest."""
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    left, top, _, _ = given.scaled((float(column), float(row), column + 1.0, row + 1.0))
    height, width = given.images.shape[2:]
    return min(max(top / height, 0.0), 1.0), min(max(left / width, 0.0), 1.0)
