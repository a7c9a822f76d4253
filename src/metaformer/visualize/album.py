"""Images with what was found drawn on them; those of clips also joined to animations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from metaformer.storage import FileNames, whole_bytes
from metaformer.visualize.animation import write_animation
from metaformer.visualize.video import is_video

FOLDER = "images"
QUALITY = 92


@dataclass
class _Clip:
    """Frames to be joined."""

    file: Path
    frames: list[Path] = field(default_factory=list)
    milliseconds: list[int] = field(default_factory=list)


class Shown(Protocol):
    """A prediction, of an image or of a clip's frame."""

    @property
    def path(self) -> str: ...

    @property
    def frame(self) -> int | None: ...

    @property
    def milliseconds(self) -> int: ...


@contextmanager
def album_sink(
    place: Path, draw: Callable[[Any, bool], Image.Image], fps: float | None = None
) -> Iterator[Callable[[str, Shown], None]]:
    """Write PLACE/images/NAME.jpg as results come, and an animation of each clip at the end.

    Args:
        place: where to.
        draw: draws a prediction on its image; told whether it is a frame of many.
        fps: images a second, where all images together are one clip.

    Raises:
        ConfigError: images of different sizes that are to be one clip.
        OutputError: they cannot be written.
    """
    folder, clips, names = place / FOLDER, dict[str, _Clip](), FileNames()

    def add(name: str, seen: Shown) -> None:
        moving = seen.frame is not None or fps is not None
        file = folder / f"{name}.jpg"
        with whole_bytes(file) as stream:
            draw(seen, moving).save(stream, "JPEG", quality=QUALITY)
        if not moving:
            return
        source = seen.path if seen.frame is not None else "animation"
        if source not in clips:
            ending = "mp4" if is_video(source) else "webp"
            clips[source] = _Clip(folder / f"{names.of(source)}.{ending}")
        clips[source].frames.append(file)
        clips[source].milliseconds.append(seen.milliseconds if fps is None else round(1000 / fps))

    yield add
    for clip in clips.values():
        write_animation(clip.frames, clip.milliseconds, clip.file)
