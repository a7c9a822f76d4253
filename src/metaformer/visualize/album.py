"""Annotated images written to a folder; frames of a video or animation are also joined again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from PIL import Image

from metaformer.errors import ConfigError, MissingPackage
from metaformer.storage import FileNames, atomic_bytes
from metaformer.visualize.video import is_video

FOLDER: Final = "images"
QUALITY: Final = 92
_MAX_WEBP: Final = 16383
"""Largest width and height of WebP, in pixels."""


class Frame(Protocol):
    """A still image or a frame, with what is drawn on it."""

    @property
    def path(self) -> str:
        """File of the image or video."""

    @property
    def frame(self) -> int | None:
        """Frame number; None for a still image."""

    @property
    def milliseconds(self) -> int:
        """Duration of the frame."""


@dataclass
class _Animation:
    file: Path
    frames: list[Path] = field(default_factory=list)
    milliseconds: list[int] = field(default_factory=list)


@contextmanager
def album_writer(
    root: Path, draw: Callable[[Any, bool], Image.Image], fps: float | None = None
) -> Iterator[Callable[[str, Frame], None]]:
    """Write ROOT/images/NAME.jpg one by one, and at the end an animation of each video.

    Args:
        root: where the folder is made.
        draw: draws a frame's annotations; its second argument says that it is one of an animation.
        fps: frames per second, if all images are frames of one animation.

    Raises:
        ConfigError: frames of different sizes.
        OutputError: the folder cannot be written to.
    """
    folder, animations, names = root / FOLDER, dict[str, _Animation](), FileNames()

    def write(name: str, frame: Frame) -> None:
        moving = frame.frame is not None or fps is not None
        file = folder / f"{name}.jpg"
        with atomic_bytes(file) as stream:
            draw(frame, moving).save(stream, "JPEG", quality=QUALITY)
        if not moving:
            return
        source = frame.path if frame.frame is not None else "animation"
        if source not in animations:
            suffix = "mp4" if is_video(source) else "webp"
            animations[source] = _Animation(folder / f"{names.of(source)}.{suffix}")
        animations[source].frames.append(file)
        animations[source].milliseconds.append(frame.milliseconds if fps is None else round(1000 / fps))

    yield write
    for animation in animations.values():
        write_animation(animation.frames, animation.milliseconds, animation.file)


def write_animation(files: Sequence[Path], milliseconds: Sequence[int], path: Path) -> Path:
    """Join images of one size to WebP or MP4, with one image at a time in memory.

    Args:
        files: the images, in order.
        milliseconds: duration of each.
        path: ends in .webp or .mp4; in MP4 every image has the median duration.

    Raises:
        ConfigError: images of different sizes, or too large.
        OutputError: the file cannot be written.
        MissingPackage: MP4 needs PyAV.
    """
    images = _ImageSequence(files)
    if max(images.size) > _MAX_WEBP:
        raise ConfigError(f"{path}: an animation is at most {_MAX_WEBP} pixels wide and high")
    with atomic_bytes(path) as stream:
        if path.suffix == ".mp4":
            _write_mp4(images, sorted(milliseconds)[len(milliseconds) // 2], stream)
        else:
            images.save(stream, "WEBP", save_all=True, duration=list(milliseconds), quality=80)
    return path


class _ImageSequence(Image.Image):
    """Image files as the frames of one image, as Pillow's writers take them."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._files, self._frame, self.n_frames = files, 0, len(files)
        self.seek(0)

    def seek(self, frame: int) -> None:
        with Image.open(self._files[frame]) as image:
            rgb = image.convert("RGB")
        if frame and rgb.size != self.size:
            first, other = self._files[0].name, self._files[frame].name
            raise ConfigError(
                f"all frames of an animation must have one size: {first} is {self.width}×{self.height}, "
                f"{other} {rgb.width}×{rgb.height}"
            )
        vars(self).update(vars(rgb))
        self._frame = frame

    def tell(self) -> int:
        return self._frame


def _write_mp4(images: _ImageSequence, milliseconds: int, stream: BinaryIO) -> None:
    try:
        import av
    except ImportError as error:
        raise MissingPackage("PyAV", "video", "writing MP4") from error
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=Fraction(1000, milliseconds))
        video.width, video.height = images.width // 2 * 2, images.height // 2 * 2  # yuv420p halves the chroma
        video.pix_fmt = "yuv420p"
        for number in range(images.n_frames):
            images.seek(number)
            frame = av.VideoFrame.from_image(images.crop((0, 0, video.width, video.height)))
            container.mux(video.encode(frame))
        container.mux(video.encode())
