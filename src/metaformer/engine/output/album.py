"""Pictures with what was found drawn on them; those of clips also joined to animations."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from metaformer.engine.output import boxes, overlay
from metaformer.engine.output.animation import write_animation
from metaformer.engine.output.clip import is_video
from metaformer.engine.output.file_names import FileNames
from metaformer.engine.output.sink import Seen, Sink
from metaformer.engine.whole_file import whole_bytes
from metaformer.tasks.detect_results import DetectedObjects

FOLDER = "pictures"
QUALITY = 92


@dataclass
class _Clip:
    """Frames to be joined."""

    file: Path
    frames: list[Path] = field(default_factory=list)
    milliseconds: list[int] = field(default_factory=list)


@contextmanager
def album_sink(place: Path, fps: float | None = None) -> Iterator[Sink]:
    """Write PLACE/pictures/NAME.jpg as results come, and an animation of each clip at the end.

    Args:
        place: where to.
        fps: pictures a second, where all pictures together are one clip.

    Raises:
        ConfigError: pictures of different sizes that are to be one clip.
        OutputError: they cannot be written.
    """
    folder, clips, names = place / FOLDER, dict[str, _Clip](), FileNames()

    def add(name: str, seen: Seen) -> None:
        moving = seen.frame is not None or fps is not None
        file = folder / f"{name}.jpg"
        with whole_bytes(file) as stream:
            _drawn(seen, moving).save(stream, "JPEG", quality=QUALITY)
        if not moving:
            return
        source = seen.result.path if seen.frame is not None else "animation"
        if source not in clips:
            ending = "mp4" if is_video(source) else "webp"
            clips[source] = _Clip(folder / f"{names.of(source)}.{ending}")
        clips[source].frames.append(file)
        clips[source].milliseconds.append(seen.milliseconds if fps is None else round(1000 / fps))

    yield add
    for clip in clips.values():
        write_animation(clip.frames, clip.milliseconds, clip.file)


def _drawn(seen: Seen, moving: bool) -> Image.Image:
    if isinstance(seen.result, DetectedObjects):
        return boxes.annotate(seen.picture, seen.result)
    return overlay.annotate(seen.picture, seen.result, moving)
