from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import BadImage, ConfigError
from metaformer.tasks.segmentation.check import LabelInfo, check_segmentation, read_labels, read_pair
from metaformer.tasks.segmentation.dataset import open_segmentation


def check(root: Path, **options: object) -> None:
    check_segmentation(open_segmentation(root, "train"), workers=1, progress=False, **options)  # type: ignore[arg-type]


def test_good_label_maps_pass(labeled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check(labeled)
    assert not capfd.readouterr().err
    check_segmentation(open_segmentation(labeled, "val"), workers=1)
    assert "label maps of val: 100%" in capfd.readouterr().err


def test_the_first_bad_one_is_named_and_the_others_counted(labeled: Path) -> None:
    folder = labeled / "annotations/train"
    Image.new("L", (24, 21), 77).save(folder / "1.png")
    Image.new("L", (30, 22)).save(folder / "2.png")
    Image.new("RGB", (24, 23)).save(folder / "3.png")
    with pytest.raises(BadImage) as caught:
        check(labeled)
    told = f"{folder}/1.png: label 77 (504 pixels): classes are 0 to 2, ignored 255"
    assert str(caught.value) == f"{told} (and 2 more bad files; metaformer data check tells all)"
    (folder / "1.png").unlink()
    (labeled / "images/train/1.png").unlink()
    with pytest.raises(BadImage, match=r"2\.png: is 30x22 and its image .*2\.png 24x22: both must have one"):
        check(labeled)


def test_an_image_without_a_header_is_told_too(labeled: Path) -> None:
    (labeled / "images/train/2.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"images/train/2\.png: not a JPEG"):
        check(labeled)


def test_each_process_looks_at_its_share(labeled: Path) -> None:
    Image.new("L", (24, 22), 9).save(labeled / "annotations/train/2.png")
    check(labeled, part=(1, 2))
    with pytest.raises(BadImage, match=r"2\.png: label 9"):
        check(labeled, part=(0, 2))
    check(labeled, part=(5, 6))
    with pytest.raises(ConfigError, match="part is"):
        check(labeled, part=(2, 2))


def test_a_few_may_pass_where_they_are_left_out_anyway(
    labeled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (24, 22), 9).save(labeled / "annotations/train/2.png")
    with pytest.raises(BadImage, match=r"2\.png"):
        check(labeled, skip_bad=True)  # one in four are not few
    monkeypatch.setattr("metaformer.data.scan.BAD_SHARE", 0.25)
    check(labeled, skip_bad=True)
    with pytest.raises(BadImage, match=r"2\.png"):
        check(labeled)


def test_what_is_seen_of_a_pair(labeled: Path) -> None:
    numbers = np.zeros((20, 24), dtype=np.uint8)
    numbers[0], numbers[1, :4] = 2, 255
    Image.fromarray(numbers).save(labeled / "annotations/train/0.png")
    folder = open_segmentation(labeled, "train")
    seen = read_pair(folder, 0)
    assert (seen.width, seen.height, seen.error, seen.label_error) == (24, 20, "", "")
    assert isinstance(seen.labels, LabelInfo)
    assert (seen.labels.pixels, seen.labels.ignored) == ({0: 480 - 28, 2: 24}, 4)
    assert read_labels(folder, 0).labels is None
    Image.fromarray(np.full((5, 5), 7, dtype=np.uint8)).save(labeled / "annotations/train/0.png")
    told = read_pair(folder, 0).label_error
    assert told.startswith("label 7 (25 pixels): ") and "; is 5x5 and its image" in told
