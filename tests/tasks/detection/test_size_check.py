from pathlib import Path

import pytest
from PIL import Image

from metaformer.errors import BadImage
from metaformer.tasks.detection.check import check_sizes
from metaformer.tasks.detection.dataset import open_detection


def test_images_that_are_not_what_was_annotated_are_told(objects: Path) -> None:
    folder = open_detection(objects, "train")
    check_sizes(folder, workers=1, progress=False)
    Image.new("RGB", (12, 8)).save(objects / "train2017/1.png")
    (objects / "train2017/2.png").write_bytes(b"junk")
    told = r"1\.png: is 12x8, but 24x16 as .* \(and 1 more bad files; metaformer data check lists all\)"
    with pytest.raises(BadImage, match=told):
        check_sizes(folder, workers=1, progress=False)
    with pytest.raises(BadImage, match=r"2\.png: not a JPEG"):
        check_sizes(folder, part=(1, 5), workers=1, progress=False)
    check_sizes(folder, part=(2, 5), workers=1, progress=False)
