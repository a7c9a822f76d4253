"""Images in files joined to an animation: WebP, or MP4 through PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Final

from PIL import Image

from metaformer.errors import ConfigError, MissingPackage
from metaformer.storage import whole_bytes

_LARGEST: Final = 16383
"""Pixels of the longer side that WebP can hold."""


def write_animation(files: Sequence[Path], milliseconds: Sequence[int], path: Path) -> Path:
    """Join images of one size; of them one at a time is in memory.

    Args:
        files: the images, in order.
        milliseconds: for each how long it is shown.
        path: ends in .webp or .mp4; in the second all are shown for as long as the middle one.

    Raises:
        ConfigError: the images are of different sizes, or too large.
        OutputError: the file cannot be written.
        MissingPackage: MP4 is wanted, and PyAV is not installed.
    """
    reel = _Reel(files)
    if max(reel.size) > _LARGEST:
        raise ConfigError(f"{path}: an animation is at most {_LARGEST} pixels wide and high")
    with whole_bytes(path) as stream:
        if path.suffix == ".mp4":
            _write_mp4(reel, sorted(milliseconds)[len(milliseconds) // 2], stream)
        else:
            reel.save(stream, "WEBP", save_all=True, duration=list(milliseconds), quality=80)
    return path


class _Reel(Image.Image):
    """Images in files as the frames of one image, as Pillow's writers take them."""

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
                f"an animation has one size, but {first} is {self.width}×{self.height} and {other} "
                f"{rgb.width}×{rgb.height}"
            )
        vars(self).update(vars(rgb))
        self._frame = frame

    def tell(self) -> int:
        return self._frame


def _write_mp4(reel: _Reel, milliseconds: int, stream: BinaryIO) -> None:
    try:
        import av
    except ImportError as error:
        raise MissingPackage("PyAV", "video", "writing MP4") from error
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=Fraction(1000, milliseconds))
        video.width, video.height = reel.width // 2 * 2, reel.height // 2 * 2  # what the format can hold
        video.pix_fmt = "yuv420p"
        for number in range(reel.n_frames):
            reel.seek(number)
            frame = av.VideoFrame.from_image(reel.crop((0, 0, video.width, video.height)))
            container.mux(video.encode(frame))
        container.mux(video.encode())
