"""Pascal VOC annotations."""

import os
from pathlib import Path

import numpy as np
import pytest

from metaformer.data.class_lists import class_list
from metaformer.errors import DataError
from metaformer.tasks.detection.dataset import open_detection
from metaformer.tasks.detection.formats.voc import read_xml
from toys import ErrorsOf, Write

SIZE = "<size><width>20</width><height>10</height><depth>3</depth></size>"
DOG = (
    "<object><name>dog</name><difficult>0</difficult>"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>9.5</ymax></bndbox>"
    "<part><name>head</name><bndbox><xmin>900</xmin></bndbox></part></object>"
)
HARD = DOG.replace("dog", "cat").replace("<difficult>0", "<difficult>1").replace(">20<", ">5<")


@pytest.fixture
def voc(write: Write, tmp_path: Path) -> Path:
    """Two images: a dog and a difficult cat, and nothing."""
    for stem in ("a", "b"):
        write(f"JPEGImages/{stem}.jpg", np.zeros((10, 20, 3), dtype=np.uint8))
    write("Annotations/a.xml", f"<annotation>{SIZE}{DOG}{HARD}</annotation>")
    write("Annotations/b.xml", "<annotation/>")
    write("ImageSets/Main/train.txt", "a\nb  1\n\n")
    return tmp_path / "data"


def test_boxes_are_counted_from_0_and_the_difficult_are_crowds(voc: Path) -> None:
    folder = open_detection(voc, "train")
    assert (folder.layout, len(folder), folder.classes) == ("voc", 2, class_list("voc").names[1:])
    dog, cat = folder.instances(0)
    assert (dog.box, dog.crowd, folder.classes[dog.label], dog.id) == ((0, 1, 20, 9.5), False, "dog", 1)
    assert (cat.box, cat.crowd, folder.classes[cat.label], cat.id) == ((0, 1, 5, 9.5), True, "cat", 2)
    assert folder.instances(1) == () and folder.size(1) == (20, 10)
    image, targets = folder.example(0)
    assert image.size == (20, 10) and targets.boxes.tolist() == [[0, 1, 20, 9.5], [0, 1, 5, 9.5]]
    assert [folder.image_id(index) for index in range(2)] == [1, 2]
    assert not folder.has_masks
    with pytest.raises(DataError, match="no masks"):
        open_detection(voc, "train", masks=True)


def test_classes_of_the_data_set_or_given(voc: Path, write: Write) -> None:
    write("classes.txt", "cat\ndog\n")
    assert open_detection(voc, "train").classes == ("cat", "dog")
    assert open_detection(voc, "train", classes=["dog", "emu", "cat"]).instances(0)[1].label == 2


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("dog", "cactus", "object 1: name 'cactus' is not among the 20 classes"),
        (">20</xmax", ">0</xmax", "bndbox xmin 1 ymin 2 xmax 0 ymax 9.5 is 0 wide and 8.5 high"),
        (">20</xmax", ">40</xmax", "exceeds its image, which is 20x10"),
        (">20</xmax", ">nan</xmax", "holds a number that is not finite"),
        (">20</xmax", ">wide</xmax", "bndbox xmin 1 ymin 2 xmax wide ymax 9.5: it must be four numbers"),
        ("<xmax>20</xmax>", "", "bndbox xmin 1 ymin 2 xmax ? ymax 9.5: it must be four numbers"),
        ("<width>20", "<width>-20", "a.xml: size is -20 x 10, not an image's"),
        ("<width>20", "<width>two", "a.xml: size is two x 10, not an image's"),
        ("</annotation>", "", "a.xml: cannot be read as XML (no element found"),
        ("<annotation>", "<?xml version='1.0' encoding='klingon'?><annotation>", "cannot be read as XML"),
    ],
)
def test_errors_are_named_in_training_and_by_the_check(
    old: str, new: str, error: str, voc: Path, errors_of: ErrorsOf
) -> None:
    file = voc / "Annotations/a.xml"
    file.write_text(file.read_text().replace(old, new, 1))
    message, findings = errors_of(voc)
    assert message.startswith(str(file)) and error in message
    assert [error in finding.text for finding in findings].count(True) == 1


def test_boxes_over_the_border_are_clipped_on_request(voc: Path) -> None:
    file = voc / "Annotations/a.xml"
    file.write_text(file.read_text().replace(">20</xmax", ">40</xmax", 1))
    with pytest.raises(DataError, match=r"object 1: .*detect\.clip_boxes"):
        open_detection(voc, "train")
    folder = open_detection(voc, "train", clip_boxes=True)
    assert [one.box for one in folder.instances(0)] == [(0, 1, 20, 9.5), (0, 1, 5, 9.5)]
    assert folder.instances(0)[0].area == 20 * 8.5
    (oddity,) = folder.annotations.oddities
    assert oddity.kind == "border" and oddity.text.startswith(f"{file}: object 1: ")


def test_missing_files_are_named(voc: Path, write: Write) -> None:
    (voc / "Annotations/b.xml").unlink()
    write("ImageSets/Main/val.txt", "a\nz\n")
    with pytest.raises(DataError, match=r"Annotations/b\.xml: cannot be read"):
        open_detection(voc, "train")
    with pytest.raises(DataError, match=r"no such image .*JPEGImages/z\.jpg"):
        open_detection(voc, "val")
    with pytest.raises(DataError, match=r"Main/test\.txt: cannot be read"):
        open_detection(voc, "test")


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a>&l9;</a>', "declares a document type"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "declares a document type"),
        ('<!DOCTYPE a SYSTEM "http://example.invalid/a.dtd"><a/>', "declares a document type"),
        ("<a>&x;</a>", "cannot be read as XML"),
        ("<a>" * 100_000 + "</a>" * 100_000, "nested more than 20 deep"),
        ("<a>" + " " * 10_000_000 + "</a>", "is larger than"),
        ("", "cannot be read as XML"),
    ],
)
def test_hostile_files_are_refused(text: str, error: str, tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    for encoding in ("utf-8", "utf-16"):
        file.write_text(text, encoding=encoding)
        with pytest.raises(DataError, match=error if len(text) < 10_000_000 else "is larger than"):
            read_xml(file)


def test_a_missing_image_is_named_with_its_list(voc: Path, write: Write) -> None:
    write("ImageSets/Main/train.txt", "a\nnone\n")
    with pytest.raises(DataError, match=r"train\.txt: none: no such image .*none\.jpg"):
        open_detection(voc, "train")


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.xml")
    with pytest.raises(DataError, match=r"a\.xml: cannot be read \(it is no ordinary file"):
        read_xml(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("files", "lines", "names"),
    [
        (["IMG a (0)", "IMG a (1)"], ["IMG a (0)", "IMG a (1)"], ["IMG a (0)", "IMG a (1)"]),
        (["a", "a (1)", "a (2)"], ["a", "a (1)", "a (2)"], ["a", "a (1)", "a (2)"]),
        (["b 1", "b 0", "b"], ["b 1", "b 0", "b"], ["b 1", "b 0", "b"]),
        (["c d", "e"], ["c d  1", "e\t-1"], ["c d", "e"]),
        (["f g", "h 1"], ["f g 0", "h 1 -1"], ["f g", "h 1"]),
        ([" i "], [" i "], [" i "]),
    ],
)
def test_names_of_several_words(files: list[str], lines: list[str], names: list[str], write: Write) -> None:
    for stem in files:
        write(f"JPEGImages/{stem}.jpg", np.zeros((10, 20, 3), dtype=np.uint8))
        write(f"Annotations/{stem}.xml", f"<annotation>{SIZE}{DOG}</annotation>")
    root = write("ImageSets/Main/train.txt", "\n".join(lines) + "\n").parents[2]
    folder = open_detection(root, "train")
    assert [folder.path(index).stem for index in range(len(folder))] == names
    assert [len(folder.instances(index)) for index in range(len(folder))] == [1] * len(names)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("a\nb\na\n", "line 3: 'a' is in line 1 already"),
        ("a 1\nb\na -1\n", "line 3: 'a' is in line 1 already"),
        ("a b\n", "a b: no such image"),
        ("a 2\n", "a 2: no such image"),
    ],
)
def test_lines_that_name_no_image_of_their_own(
    lines: str, error: str, voc: Path, write: Write, errors_of: ErrorsOf
) -> None:
    file = write("ImageSets/Main/train.txt", lines)
    message, findings = errors_of(voc)
    assert message.startswith(f"{file}: {error}")
    assert any(finding.grade == "error" and error in finding.text for finding in findings)


def test_two_images_of_one_name(voc: Path, write: Write, errors_of: ErrorsOf) -> None:
    write("JPEGImages/a.png", np.zeros((10, 20, 3), dtype=np.uint8))
    message, _ = errors_of(voc)
    assert message.startswith(f"{voc}/JPEGImages/a.png: has the name of {voc}/JPEGImages/a.jpg")


def test_images_of_formats_that_are_not_read(voc: Path, errors_of: ErrorsOf) -> None:
    image = (voc / "JPEGImages/b.jpg").rename(voc / "JPEGImages/b.tif")
    message, (finding, *_) = errors_of(voc)
    assert message == finding.text == f"{image}: .tif images are not read: convert it to PNG or JPEG"
    (voc / "JPEGImages/b.jpg").write_bytes((voc / "JPEGImages/a.jpg").read_bytes())
    assert len(open_detection(voc, "train")) == 2, "the raw form of an image is no error"
