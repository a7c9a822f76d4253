import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from metaformer.data.folder import ImageFolder
from metaformer.data.scan import DEADLY, ImageInfo, scan


class Deadly:
    """Images of which some kill the process that reads them, as a fault in a decoder would."""

    def __init__(self, count: int, *killers: int) -> None:
        self.labels, self.killers = [0] * count, killers

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return f"image {index}"

    def image(self, index: int) -> Image.Image:
        if index in self.killers:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.new("RGB", (index + 1, 3), (index % 256, 0, 0))


def test_every_image_is_read_once_and_in_order(own_pets: Path) -> None:
    folder = ImageFolder(own_pets, "train")
    (own_pets / "train/bee/1.png").write_bytes(b"junk")
    Image.open(own_pets / "train/ant/0.png").save(own_pets / "train/cat/3.bmp")
    for workers in (1, 3):
        images = scan(folder, workers=workers, progress=False)
        assert [image.index for image in images] == list(range(12))
        assert [image.index for image in images if image.error] == [5]
        assert "not a JPEG" in images[5].error
        assert (images[3].width, images[3].height) == (50, 49)
        assert len({image.digest for image in images}) == 12


def test_the_digest_is_that_of_the_pixels(own_pets: Path) -> None:
    Image.open(own_pets / "train/ant/0.png").save(own_pets / "train/cat/9.bmp")
    images = scan(ImageFolder(own_pets, "train"), progress=False)
    assert images[0].digest == images[12].digest


@pytest.mark.parametrize("killers", [(0,), (70,), (3, 4, 150, 199)])
def test_images_that_kill_their_reader(killers: tuple[int, ...]) -> None:
    images = scan(Deadly(200, *killers), workers=2, progress=False)
    assert [image.index for image in images] == list(range(200))
    assert {image.index: image.error for image in images if image.error} == dict.fromkeys(killers, DEADLY)


def _width(source: ImageFolder, index: int) -> ImageInfo:
    return ImageInfo(index, source.image(index).width)


def test_another_reader_of_some_images() -> None:
    images = scan(Deadly(200, 5), workers=2, progress=False, read=_width, indices=range(5, 200, 3))
    assert [image.index for image in images] == list(range(5, 200, 3))
    assert images[0].error == DEADLY
    assert all((image.width, image.height) == (image.index + 1, 0) for image in images[1:])


def test_progress_is_shown(own_pets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scan(ImageFolder(own_pets, "train"), workers=1, label="train")
    assert "train: 100%" in capfd.readouterr().err


SLOW = """
import signal, time
from PIL import Image
from metaformer.data.scan import scan

class Slow:
    labels = [0] * 3000
    def __len__(self): return 3000
    def path(self, index): return str(index)
    def image(self, index):
        time.sleep(0.01)
        return Image.new("RGB", (2, 2))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins without
print("begun", flush=True)
scan(Slow(), workers=2, progress=False)
"""


def test_an_interrupt_ends_it_soon() -> None:
    args = [sys.executable, "-c", SLOW]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=30)
        assert time.monotonic() - began < 5
        assert output.count("KeyboardInterrupt") == 1, output  # of the main process, none of the workers
