"""Icons by designer: what an icon shows, drawn by designers of whom some are held out."""

import csv
import io
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from metaformer.data.demo import encode
from metaformer.data.divide import SPLITS, Division, assign_splits
from metaformer.dataset_builders.drawing import Renderer
from metaformer.dataset_builders.iconify import (
    ATTRIBUTION,
    PERMISSIVE,
    IconSet,
    SetInfo,
    attribution,
    package_settings,
    read_sets,
    slug,
)
from metaformer.errors import ConfigError, DataError
from metaformer.storage import as_path, atomic_folder

STYLES: Final = {
    *("outline", "outlined", "line", "linear", "fill", "filled", "solid", "bold", "regular", "light", "thin"),
    *("rounded", "round", "sharp", "duotone", "twotone", "broken", "12", "16", "20", "24", "28", "32", "48"),
}
"""Last words of a name that say how an icon is drawn, not what it shows."""
VAL_SHARE: Final = 0.15
TEST_SHARE: Final = 0.25
_HASH_SIDE: Final = 32
_NEAR: Final = 16
"""Pixels, of the 1,024 of a small black-and-white image, in which another may differ and be the same."""
_RELATED: Final = 0.25
"""Share of a set's images that are another's too, from which on both count as of one designer."""
_FEWEST_SHARED: Final = 5
"""Images that they share at least: an arrow and a cross look alike whoever draws them."""
MANIFEST: Final = "manifest.csv"
SETTINGS: Final = "dataset.json"
DESIGNER: Final = "/(.+?)--"
"""Regular expression for the designer in an image's path."""


@dataclass(frozen=True)
class Icon:
    """A rendered icon."""

    concept: str
    prefix: str
    """Its set."""
    name: str
    image: Image.Image
    bits: NDArray[np.bool_]
    """The image as 32×32 black or white pixels, flat."""

    def file(self, designer: str) -> str:
        """Name of its file, with its designer, set and name."""
        return f"{designer}--{self.prefix}--{self.name}.png"


def concept(name: str) -> str:
    """What an icon shows, by its name: `arrow-left` for `arrow-left-bold` and `arrow-left-fill-24`."""
    words = name.split("-")
    while len(words) > 1 and words[-1] in STYLES:
        words.pop()
    return "-".join(words)


def write_icons(
    out: str | Path,
    *,
    source: str | Path,
    min_sets: int = 40,
    size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Division:
    """Write icons as an image folder, `train`, `val` and `test`, whose classes are what they show.

    Taken are sets of one color under permissive licenses, and of them what at least `min_sets` sets show. An
    image that is nearly another of its class is left out, and one that stands for several classes. No
    designer is in two splits: sets of one author, and sets that share drawings, stay together.

    Args:
        out: where to: a new or empty folder.
        source: the npm package @iconify/json, as `npm pack @iconify/json` fetches it.
        min_sets: sets that must show what becomes a class.
        size: height and width of the images, in pixels.
        seed: designers are divided by it.
        progress: show bars on stderr.

    Raises:
        ConfigError: a number out of range.
        DataError: no such package, a damaged one, a drawing that takes too long or too much memory, or
            no class that enough sets show.
        MissingPackage: resvg-py is not installed.
        OutputError: the folder cannot be written, or is not empty.
    """
    for name, value, low, high in (("min_sets", min_sets, 1, 10_000), ("size", size, 16, 1024)):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}: it must lie between {low} and {high}")
    target, tarball = (as_path(path, "path", DataError, expand=True) for path in (out, source))
    with Renderer() as renderer, atomic_folder(target) as temporary:
        wanted = _shared_concepts(tarball, min_sets)
        if not wanted:
            raise DataError(f"{tarball}: no name is in {min_sets} of its sets: ask for fewer (min_sets)")
        infos: dict[str, SetInfo] = {}
        icons: list[Icon] = []
        sets = tqdm(
            read_sets(tarball, _is_used), "icons", unit=" sets", file=sys.stderr, disable=not progress
        )
        for one in sets:
            infos[one.prefix] = one.info
            icons += _rendered(renderer, one, wanted, size)
        drawn = Counter(icon.prefix for icon in icons)
        icons, twins = _without_copies(icons)
        clusters = _clusters(infos, twins, drawn)
        icons, place = _placed(icons, clusters, seed)
        _write(temporary, icons, place, clusters, infos)
        settings = {**package_settings(tarball), "min_sets": min_sets, "size": size, "seed": seed}
        (temporary / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    classes = sorted({icon.concept for icon in icons})
    index = {name: number for number, name in enumerate(classes)}
    return Division.of(target, classes, [index[icon.concept] for icon in icons], place)


def _is_used(info: SetInfo) -> bool:
    return info.license.spdx in PERMISSIVE and not info.palette


def _shared_concepts(tarball: Path, min_sets: int) -> set[str]:
    """What enough sets show."""
    count: Counter[str] = Counter()
    for one in read_sets(tarball, _is_used):
        count.update({concept(name) for name in one.names()})
    return {name for name, sets in count.items() if sets >= min_sets}


def _rendered(renderer: Renderer, one: IconSet, wanted: set[str], size: int) -> Iterator[Icon]:
    """The icons of a set that show something wanted and can be rendered, black on white."""
    for name in one.names():
        if (shown := concept(name)) in wanted:
            drawn = renderer.render(one.drawing(name), size, f"{one.prefix}:{name}")
            if drawn is None:
                continue
            image = Image.new("L", drawn.size, 255)
            image.paste(drawn.convert("L"), mask=drawn.getchannel("A"))
            small = np.asarray(image.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX))
            bits = (small < 128).ravel()
            if bits.any() and not bits.all():
                yield Icon(shown, one.prefix, name, image, bits)


def _without_copies(icons: Sequence[Icon]) -> tuple[list[Icon], Counter[tuple[str, str]]]:
    """Icons of which none is nearly another of its concept, or stands for two concepts.

    Returns:
        The icons, and how many of them each two sets had in common.
    """
    concepts: defaultdict[bytes, set[str]] = defaultdict(set)
    groups: defaultdict[str, list[Icon]] = defaultdict(list)
    for icon in icons:
        concepts[icon.bits.tobytes()].add(icon.concept)
        groups[icon.concept].append(icon)
    kept: list[Icon] = []
    twins: Counter[tuple[str, str]] = Counter()
    for group in groups.values():
        own: list[Icon] = []
        for icon in group:
            different = [np.count_nonzero(icon.bits != other.bits) for other in own]
            near = [other for other, pixels in zip(own, different, strict=True) if pixels <= _NEAR]
            twins.update({(other.prefix, icon.prefix) for other in near if other.prefix != icon.prefix})
            if not near and len(concepts[icon.bits.tobytes()]) == 1:
                own.append(icon)
        kept += own
    return kept, twins


def _clusters(
    infos: Mapping[str, SetInfo], twins: Counter[tuple[str, str]], drawn: Mapping[str, int]
) -> dict[str, str]:
    """The designer of each set: its author, and one for all whose sets share drawings."""
    designer = {prefix: slug(info.author.name) for prefix, info in infos.items()}
    for (one, other), count in sorted(twins.items()):
        if count >= max(_FEWEST_SHARED, _RELATED * min(drawn[one], drawn[other])):
            joined, replaced = designer[one], designer[other]
            designer = {prefix: joined if name == replaced else name for prefix, name in designer.items()}
    return designer


def _placed(icons: Sequence[Icon], clusters: Mapping[str, str], seed: int) -> tuple[list[Icon], list[str]]:
    """The icons whose concepts are in every split, and their splits; designers are not divided."""
    paths = [f"{icon.concept}/{icon.file(clusters[icon.prefix])}" for icon in icons]
    index = {name: number for number, name in enumerate(sorted({icon.concept for icon in icons}))}
    labels = [index[icon.concept] for icon in icons]
    place = assign_splits(paths, labels, VAL_SHARE, TEST_SHARE, seed, group=DESIGNER)
    there: defaultdict[str, set[str]] = defaultdict(set)
    for icon, split in zip(icons, place, strict=True):
        there[icon.concept].add(split)
    kept = [i for i, icon in enumerate(icons) if len(there[icon.concept]) == len(SPLITS)]
    if not kept:
        raise DataError("too few designers for three splits: ask for fewer sets of a class (min_sets)")
    return [icons[i] for i in kept], [place[i] for i in kept]


def _write(
    folder: Path,
    icons: Sequence[Icon],
    place: Sequence[str],
    clusters: Mapping[str, str],
    infos: Mapping[str, SetInfo],
) -> None:
    """Write the images, the manifest, and whom to thank for them."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file", "split", "class", "set", "icon", "designer", "license", "sha256"])
    for icon, split in zip(icons, place, strict=True):
        designer = clusters[icon.prefix]
        file = folder / split / icon.concept / icon.file(designer)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = encode(icon.image, file.name)
        file.write_bytes(content)
        spdx = infos[icon.prefix].license.spdx
        path = file.relative_to(folder).as_posix()
        digest = sha256(content).hexdigest()
        rows.writerow([path, split, icon.concept, icon.prefix, icon.name, designer, spdx, digest])
    (folder / MANIFEST).write_text(table.getvalue(), encoding="utf-8")
    text = attribution(infos, [icon.prefix for icon in icons])
    (folder / ATTRIBUTION).write_text(text, encoding="utf-8")
