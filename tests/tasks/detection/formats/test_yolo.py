"""YOLO annotations."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaformer.errors import DataError
from metaformer.tasks.detection.check import check_objects
from metaformer.tasks.detection.dataset import open_detection
from toys import ErrorsOf, Write


@pytest.fixture
def yolo(write: Write, tmp_path: Path) -> Path:
    """Three images: two boxes, one outline, and nothing."""
    for stem in ("a", "b", "deep/c"):
        write(f"images/train/{stem}.png", np.zeros((10, 20, 3), dtype=np.uint8))
    write("labels/train/a.txt", "1 0.5 0.5 1 1\n\n0 0.25 0.5 0.1 0.2\n")
    write("labels/train/deep/c.txt", "0 0.1 0.2 0.6 0.2 0.6 0.8 0.1 0.8\n")
    write("labels/train/classes.txt", "cat\ndog\n")
    write("data.yaml", "path: elsewhere\nnames:\n  0: cat\n  1: dog\n")
    return tmp_path / "data"


def test_boxes_and_outlines_become_pixels(yolo: Path, write: Write) -> None:
    folder = open_detection(yolo, "train")
    assert (folder.layout, len(folder), folder.classes) == ("yolo", 3, ("cat", "dog"))
    dog, cat = folder.instances(0)
    assert (dog.box, dog.label, dog.area) == ((0, 0, 20, 10), 1, 200)
    assert cat.box == pytest.approx((4, 4, 6, 6))
    assert folder.instances(1) == ()
    (outlined,) = folder.instances(2)
    assert outlined.box == pytest.approx((2, 2, 12, 8)) and outlined.area == pytest.approx(60)
    assert outlined.segmentation is None and not folder.has_masks
    with pytest.raises(DataError, match=r"a\.txt: line 1: is a box, no polygon"):
        open_detection(yolo, "train", masks=True)
    write("labels/train/a.txt", "")
    folder = open_detection(yolo, "train", masks=True)
    masks = folder.example(2, masks=True)[1].masks
    assert folder.has_masks and masks is not None and masks.sum() == 60


def test_names_are_those_of_the_data_set_or_given(yolo: Path, write: Write) -> None:
    assert open_detection(yolo, "train", classes=["cat", "dog"]).classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"its 2 classes are not the 2 of .*data\.yaml in their order"):
        open_detection(yolo, "train", classes=["dog", "cat"])
    for text, error in (
        ("names: [cat, cat]", r"data\.yaml: names: .*'cat'"),
        ("names: {0: cat, dog: dog}", "names is no list of classes, nor numbers from 0"),
        ("names: [[cat, dog]]", "names is no list of classes, nor numbers from 0"),
        ("names: {1: cat}", "names is no list of classes, nor numbers from 0"),
        ("names: cat", "names is no list"),
        ("cat", "names is no list"),
        ("names: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.system [true]", "cannot be read as YAML"),
        ("a: " + "[" * 5000, "nested more than 20 levels"),
        ("#" * 1_000_001, "is larger than"),
    ):
        write("data.yaml", text)
        with pytest.raises(DataError, match=error):
            open_detection(yolo, "train")
    (yolo / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"data\.yaml: no such file: name the classes in it"):
        open_detection(yolo, "train")
    assert open_detection(yolo, "train", classes=["x", "y", "z"]).classes == ("x", "y", "z")
    write("classes.txt", "emu\nant\n")
    assert open_detection(yolo, "train").classes == ("emu", "ant")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("2 0.5 0.5 1 1", "class 2 is not among the 2, counted from 0"),
        ("-1 0.5 0.5 1 1", "class -1 is not among the 2"),
        ("0.5 0.5 0.5 1 1", "class 0.5 is not among the 2"),
        ("nan 0.5 0.5 1 1", "class nan is not among the 2"),
        ("0 0.5 0.5 0 1", "the box is 0 wide and 10 high: both must be above 0"),
        ("0 0.5 0.5 -1 1", "the box is -20 wide"),
        ("0 0.5 nan 1 1", "holds a number that is not finite"),
        ("0 0.5 0.5 1.2 1", "exceeds its image, which is 20x10 (clip it"),
        ("0 9 4 5 5", "exceeds its image"),
        ("0 0.5 0.5 1", "holds 4 numbers: class, x and y of the center, width and height; or class and"),
        ("0 0.5 0.5 1 1 0.9", "holds 6 numbers"),
        ("0 0.1 0.1 0.2 0.1 0.2 7", "a polygon exceeds its image"),
        ("0 0.1 0.1 0.2 0.1 0.3 0.1", "the box is 4 wide and 0 high"),
        ("dog 0.5 0.5 1 1", "'dog 0.5 0.5 1 1' holds no numbers: class, x and y"),
    ],
)
def test_errors_are_named_with_their_line(
    line: str, error: str, yolo: Path, write: Write, errors_of: ErrorsOf
) -> None:
    file = write("labels/train/a.txt", f"1 0.5 0.5 1 1\n{line}\n")
    message, (finding, *_) = errors_of(yolo)
    assert message.startswith(f"{file}: line 2: ") and error in message
    assert finding.grade == "error" and finding.text == message


def test_objects_over_the_border_are_clipped_on_request(yolo: Path, write: Write) -> None:
    file = write("labels/train/a.txt", "1 1 0.5 0.5 1\n0 -0.2 0.2 0.2 0.2 0.2 0.6 -0.2 0.6\n")
    with pytest.raises(DataError, match=r"line 1: .*detect\.clip_boxes"):
        open_detection(yolo, "train")
    folder = open_detection(yolo, "train", masks=None, clip_boxes=True)
    box, polygon = folder.instances(0)
    assert (box.box, box.area) == ((15, 0, 20, 10), 50)
    assert (polygon.box, polygon.area) == (pytest.approx((0, 2, 4, 6)), pytest.approx(16))
    assert folder.objects.masks(folder.objects.of(0), (10, 20))[1].sum() == 16
    assert [one.text.split(": ")[:2] for one in folder.annotations.oddities if one.kind == "border"] == [
        [str(file), "line 1"],
        [str(file), "line 2"],
    ]
    write("labels/train/a.txt", "0 9 4 5 5")
    with pytest.raises(DataError, match=r"line 1: .*exceeds its image"):
        open_detection(yolo, "train", clip_boxes=True)


def test_files_without_a_partner(yolo: Path, write: Write) -> None:
    write("labels/train/over.txt", "0 0.5 0.5 1 1")
    write("labels/train/b.txt", b"\xff\xfe\xff")
    findings = check_objects(yolo, ["train"], workers=1, progress=False).findings
    assert any("b.txt: cannot be read" in one.text and one.grade == "error" for one in findings)
    assert any(one.text == f"{yolo}/labels/train/over.txt: annotations without image" for one in findings)
    write("labels/val/over.txt", "0 0.5 0.5 1 1")
    write("images/val/a.png", np.zeros((4, 4, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="labels/val: none of its 1 files has the name of an image"):
        open_detection(yolo, "val")
    write("images/val/a.png", b"junk")
    with pytest.raises(DataError, match=r"images/val/a\.png: not a JPEG"):
        open_detection(yolo, "val")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(max_size=40)
    | st.lists(st.floats() | st.integers(0, 2), max_size=9).map(lambda n: " ".join(map(str, n)))
)
def test_any_text_is_objects_or_an_error(yolo: Path, text: str) -> None:
    (yolo / "labels/train/a.txt").write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        folder = open_detection(yolo, "train")
    except DataError as error:
        assert "a.txt" in str(error)
    else:
        folder.example(0)


def test_two_images_of_a_name_are_refused(yolo: Path, write: Write) -> None:
    write("images/train/a.jpg", np.zeros((10, 20, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"a\.png: .*a\.jpg has the same name.*: rename one"):
        open_detection(yolo, "train")


KEYPOINTS = {2: "0.3 0.3 0.6 0.4 0.4 0.7 0.5 0.5", 3: "0.3 0.3 2 0.6 0.4 1 0 0 0 0.5 0.5 2"}


@pytest.mark.parametrize("each", KEYPOINTS)
def test_keypoints_behind_a_box_are_no_outline(each: int, yolo: Path, write: Write) -> None:
    write("data.yaml", f"names: [cat, dog]\nkpt_shape: [4, {each}]\n")
    write("labels/train/a.txt", f"1 0.5 0.5 0.4 0.6 {KEYPOINTS[each]}\n0 0.25 0.5 0.1 0.2\n")
    write("labels/train/deep/c.txt", "")
    for masks in (False, None):
        folder = open_detection(yolo, "train", masks=masks)
        pose, box = folder.instances(0)
        assert pose.box == pytest.approx((6, 2, 14, 8)) and pose.area == pytest.approx(48)
        assert pose.segmentation is None and box.box == pytest.approx((4, 4, 6, 6))
    with pytest.raises(DataError, match=r"a\.txt: line 1: is a box, no polygon to make a mask of"):
        open_detection(yolo, "train", masks=True)


@pytest.mark.parametrize(
    ("shape", "line", "error"),
    [
        ("[4, 3]", f"1 0.5 0.5 0.4 0.6 {KEYPOINTS[2]}", "holds 13 numbers: class, 4 of the box and 12 of"),
        ("[4, 3]", "0 0.1 0.2 0.6 0.2 0.6 0.8", "holds 7 numbers: class, 4 of the box and 12"),
        ("[4, 4]", "", "kpt_shape is [4, 4]: write the number of keypoints, and 2 or 3"),
        ("many", "", "kpt_shape is 'many'"),
        (
            "null",
            f"1 0.5 0.5 0.4 0.6 {KEYPOINTS[3]}",
            "holds a box with keypoints, not a polygon: write kpt_shape: [4, 3] into data.yaml",
        ),
    ],
)
def test_keypoints_of_another_number(
    shape: str, line: str, error: str, yolo: Path, write: Write, errors_of: ErrorsOf
) -> None:
    write("data.yaml", f"names: [cat, dog]\nkpt_shape: {shape}\n")
    write("labels/train/a.txt", line)
    write("labels/train/deep/c.txt", "")
    message, findings = errors_of(yolo)
    assert error in message and any(error in finding.text for finding in findings)


def test_the_outline_of_a_whole_image_is_a_polygon(yolo: Path, write: Write) -> None:
    write("labels/train/a.txt", "0 0 0 1 0 1 1 0 1 0 0\n1 1 1 0 1 0 0 1 0 1 1\n")
    first, second = open_detection(yolo, "train", masks=None).instances(0)
    assert first.box == second.box == (0, 0, 20, 10) and first.segmentation


@pytest.mark.parametrize("extension", [".tif", ".TIFF", ".heic", ".ppm"])
def test_images_of_formats_that_are_not_read(extension: str, yolo: Path, errors_of: ErrorsOf) -> None:
    image = yolo / "images/train/a.png"
    image = image.rename(image.with_suffix(extension))
    message, (finding, *_) = errors_of(yolo)
    assert message == f"{image}: {extension.lower()} images are not read: convert it to PNG or JPEG"
    assert (finding.kind, finding.text) == ("image", message)
    (yolo / "images/train/a.jpg").write_bytes((yolo / "images/train/b.png").read_bytes())
    assert len(open_detection(yolo, "train").instances(0)) == 2, "the raw form of an image is no error"
