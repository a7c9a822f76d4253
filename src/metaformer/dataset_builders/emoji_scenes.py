"""Scenes of emoji on photographs, with exact masks, for every task; some artists are held out."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.data.demo import SPLITS, DemoSize, SceneGenerator, Square
from metaformer.data.divide import hold_out
from metaformer.dataset_builders.drawing import Renderer
from metaformer.dataset_builders.iconify import (
    ATTRIBUTION,
    PERMISSIVE,
    SetInfo,
    attribution,
    package_settings,
    read_sets,
    slug,
)
from metaformer.errors import ConfigError, DataError
from metaformer.storage import as_path, write_text
from metaformer.tasks.demo import write_scenes

LICENSES: Final = PERMISSIVE | {"CC-BY-4.0"}
"""Licenses of sets that are used: none asks for scenes to be shared alike."""
VAL_SHARE: Final = 0.25
_SIDE: Final = 96
"""Height and width of the rendered drawings: those in scenes have at most 60 pixels."""
_VARIANTS: Final = ("skin-tone", "flag", "keycap")
"""Parts of names of emoji that differ from others in color or letters alone."""


class EmojiScenes(SceneGenerator):
    """Scenes of emoji.

    Args:
        seed: the scenes are a pure function of it.
        classes: names.
        drawings: RGBA images of height and width `_SIDE`.
        labels: class of each drawing.
        sources: indices of the drawings by split.
    """

    kind = "emoji"
    about = "Emoji of several artists (npm package @iconify/json) on photographs (scikit-learn's samples)"

    def __init__(
        self,
        seed: int,
        classes: Sequence[str],
        drawings: Sequence[Image.Image],
        labels: Sequence[int],
        sources: Mapping[str, Sequence[int]],
    ) -> None:
        super().__init__(seed, labels, sources)
        self.classes, self.drawings = classes, drawings

    def paint(
        self, source: int, box: Square, size: int, random: np.random.RandomState
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        left, top, side = box
        # with premultiplied colors transparent pixels give none to their neighbors
        small = self.drawings[source].convert("RGBa").resize((side, side), Image.Resampling.BOX)
        canvas = Image.new("RGBa", (size, size))
        canvas.paste(small, (left, top))
        pixels = np.asarray(canvas.convert("RGBA"), dtype=np.float64)
        return pixels[..., 3] / 255, pixels[..., :3]


def write_emoji_scenes(
    out: str | Path,
    *,
    source: str | Path,
    classes: int = 20,
    copies: int = 4,
    scenes: tuple[int, int] = (600, 150),
    seed: int = 0,
    progress: bool = True,
) -> dict[Path, int]:
    """Write scenes of emoji on photographs for each task, as `metaformer data demo` does of digits.

    Emoji of about a quarter of the artists appear in validation only.

    Args:
        out: a new or empty folder, or one that this function wrote with the same arguments.
        source: the npm package @iconify/json, as `npm pack @iconify/json` fetches it.
        classes: how many kinds of emoji: those that most artists drew, chosen among equals by the seed.
        copies: images per training drawing of classification; validation drawings are used once.
        scenes: training and validation images of the other tasks.
        seed: everything random is a function of it.
        progress: show bars on stderr.

    Returns:
        The data sets' folders, with how many images they hold.

    Raises:
        ConfigError: a number out of range.
        DataError: no such package, a damaged one, a drawing that takes too long or too much memory, or
            too few artists.
        MissingPackage: resvg-py or scikit-learn is not installed.
        OutputError: the folder holds something else, or cannot be written to.
    """
    if not 2 <= classes <= 200:
        raise ConfigError(f"classes is {classes}: it must lie between 2 and 200")
    size = DemoSize(copies, scenes)
    target, tarball = (as_path(path, "path", DataError, expand=True) for path in (out, source))
    drawings, labels, prefixes, infos = [], [], [], {}
    with Renderer() as renderer:
        names = _most_drawn(tarball, classes, seed)
        for one in read_sets(tarball, _is_used):
            infos[one.prefix] = one.info
            for label, name in enumerate(names):
                if name not in one.icons:
                    continue
                image = renderer.render(one.drawing(name), _SIDE, f"{one.prefix}:{name}")
                if image is not None and image.getchannel("A").getextrema()[1] == 255:
                    drawings.append(image)
                    labels.append(label)
                    prefixes.append(one.prefix)
    sources = _held_out([slug(infos[prefix].author.name) for prefix in prefixes], labels, seed)
    settings = {
        **package_settings(tarball),
        "seed": seed,
        "classes": names,
        "copies": copies,
        "scenes": list(scenes),
    }
    generator = EmojiScenes(seed, names, drawings, labels, sources)
    images = write_scenes(target, generator, size, settings, progress=progress)
    write_text(target / ATTRIBUTION, attribution(infos, prefixes))
    return images


def _is_used(info: SetInfo) -> bool:
    return info.category.startswith("Emoji") and info.palette and info.license.spdx in LICENSES


def _most_drawn(tarball: Path, count: int, seed: int) -> list[str]:
    """Names of the emoji that most artists drew.

    Raises:
        DataError: there are not as many that three artists drew.
    """
    artists: defaultdict[str, set[str]] = defaultdict(set)
    for one in read_sets(tarball, _is_used):
        for name in one.names():
            if not any(part in name for part in _VARIANTS):
                artists[name].add(slug(one.info.author.name))
    shared = [name for name, drawn in artists.items() if len(drawn) > 2]
    if len(shared) < count:
        raise DataError(
            f"{tarball}: three artists drew {len(shared)} emoji of one name, not {count} (classes)"
        )
    rank = {name: hashlib.sha256(f"{seed} {name}".encode()).digest() for name in shared}
    return sorted(sorted(shared, key=lambda name: (-len(artists[name]), rank[name]))[:count])


def _held_out(artists: Sequence[str], labels: Sequence[int], seed: int) -> dict[str, list[int]]:
    """Indices of drawings by split; no artist is in both."""
    paths = [f"{artist}/{index}" for index, artist in enumerate(artists)]
    held = hold_out(paths, labels, VAL_SHARE, seed, group=r"^([^/]+)/")
    sources: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, out in enumerate(held):
        sources["val" if out else "train"].append(index)
    return sources
