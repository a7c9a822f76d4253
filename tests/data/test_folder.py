import os
import shutil
from pathlib import Path

import pytest

from metaformer.data.folder import ImageFolder
from metaformer.data.split import need_two_classes
from metaformer.errors import BadImage, DataError


def test_reads_classes_pictures_and_labels(pets: Path) -> None:
    train = ImageFolder(pets, "train")
    assert train.classes == ("ant", "bee", "cat")
    assert len(train) == 12
    assert train.labels == [0] * 4 + [1] * 4 + [2] * 4
    assert train.paths == sorted(train.paths) == [train.path(i) for i in range(12)]
    assert train.image(1).size == (50, 43)
    need_two_classes(train)


def test_nested_hidden_and_other_files(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pets / "train/ant/deep/er").mkdir(parents=True)
    shutil.move(pets / "train/ant/0.png", pets / "train/ant/deep/er/0.PNG")
    (pets / "train/ant/.hidden.png").write_bytes(b"")
    (pets / "train/.cache").mkdir()
    (pets / "train/ant/notes.txt").write_text("x")
    (pets / "train/bee/LICENSE").write_text("x")
    (pets / "train/loose.png").write_bytes(b"")
    train = ImageFolder(pets, "train")
    assert [p.relative_to(pets / "train").as_posix() for p in train.paths[:4]] == [
        "ant/1.png",
        "ant/2.png",
        "ant/3.png",
        "ant/deep/er/0.PNG",
    ]
    assert train.ignored == {".txt": 1, "without extension": 1}
    assert "1 .txt" in caplog.text and "1 file(s) that lie in no class folder" in caplog.text


def test_order_does_not_depend_on_the_file_system(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ImageFolder(pets, "train").paths
    for name in ("ant", "bee", "cat"):  # new directory entries in another order
        folder = pets / "train" / name
        for file in sorted(folder.iterdir(), reverse=True):
            shutil.copy(file, pets / "spare")
            file.unlink()
            shutil.move(pets / "spare", file)
    assert ImageFolder(pets, "train").paths == expected


def test_labels_follow_the_given_classes(pets: Path) -> None:
    val = ImageFolder(pets, "val", classes=["cat", "ant", "bee"])
    assert val.classes == ("cat", "ant", "bee")
    assert {p.parent.name: label for p, label in zip(val.paths, val.labels, strict=True)} == {
        "cat": 0,
        "ant": 1,
        "bee": 2,
    }


def test_missing_places_are_named(pets: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder"):
        ImageFolder(pets / "none", "train")
    with pytest.raises(DataError, match="is a file"):
        ImageFolder(pets / "train/ant/0.png", "train")
    with pytest.raises(DataError, match="no folder 'test'; it holds train, val"):
        ImageFolder(pets, "test")
    (pets / "empty").mkdir()
    with pytest.raises(DataError, match="holds no folders"):
        ImageFolder(pets / "empty", "train")


def test_no_class_folders(pets: Path) -> None:
    with pytest.raises(DataError, match=r"no class folders.*holds 4 other"):
        ImageFolder(pets / "train", "ant")


def test_empty_class(pets: Path) -> None:
    shutil.rmtree(pets / "train/bee")
    (pets / "train/bee").mkdir()
    (pets / "train/bee/list.txt").write_text("")
    with pytest.raises(DataError, match=r"bee: no pictures in this class folder \(it holds 1 other"):
        ImageFolder(pets, "train")


def test_one_class_is_enough_to_evaluate_but_not_to_train(pets: Path) -> None:
    for name in ("bee", "cat"):
        shutil.rmtree(pets / "train" / name)
    train = ImageFolder(pets, "train")
    with pytest.raises(DataError, match="only one class, 'ant'"):
        need_two_classes(train)


def test_val_must_hold_the_classes_of_train(pets: Path) -> None:
    classes = ImageFolder(pets, "train").classes
    shutil.rmtree(pets / "val/bee")
    with pytest.raises(DataError, match="val: no folder for 'bee'"):
        ImageFolder(pets, "val", classes)
    part = ImageFolder(pets, "val", classes, allow_missing=True)
    assert part.classes == classes and set(part.labels) == {0, 2}
    (pets / "val/dog").mkdir()
    for allow in (False, True):
        with pytest.raises(DataError, match="'dog' not among the 3 known classes"):
            ImageFolder(pets, "val", classes, allow_missing=allow)
    with pytest.raises(DataError, match="'ant' more than once"):
        ImageFolder(pets, "val", ["ant", "ant", "bee"])


def test_pictures_that_cannot_be_read_are_errors(pets: Path) -> None:
    (pets / "train/ant/0.png").write_bytes(b"junk")
    train = ImageFolder(pets, "train")
    assert len(train) == 12
    with pytest.raises(BadImage, match=r"ant/0\.png"):
        train.image(0)
    (pets / "train/ant/scan.tiff").write_bytes(b"")
    with pytest.raises(DataError, match=r"scan\.tiff: \.tiff pictures are not read"):
        ImageFolder(pets, "train")


def test_links_are_followed_but_not_in_circles(pets: Path) -> None:
    os.symlink(pets / "train/ant", pets / "train/wasp")
    assert len(ImageFolder(pets, "train")) == 16
    os.symlink(pets / "train/cat", pets / "train/cat/again")
    with pytest.raises(DataError, match="again: is a link to a folder that holds it"):
        ImageFolder(pets, "train")


def test_all_faults_can_be_told_at_once(pets: Path) -> None:
    (pets / "train/ant/scan.heic").write_bytes(b"")
    shutil.rmtree(pets / "train/bee")
    (pets / "train/bee").mkdir()
    (pets / "train/cat/again").symlink_to(pets / "train/cat")
    (pets / "train/dog").mkdir()
    shutil.copy(pets / "train/ant/0.png", pets / "train/dog/0.png")
    told: list[DataError] = []
    folder = ImageFolder(pets, "train", classes=["ant", "bee", "cat", "wasp"], tell=told.append)
    assert [str(fault).removeprefix(f"{pets}/train").partition(";")[0] for fault in told] == [
        ": 'dog' not among the 4 known classes ('ant', 'bee', 'cat', 'wasp')",
        ": no folder for 'wasp'",
        "/ant/scan.heic: .heic pictures are not read: convert it to PNG or JPEG",
        "/bee: no pictures in this class folder",
        "/cat/again: is a link to a folder that holds it",
    ]
    assert folder.classes == ("ant", "bee", "cat", "wasp", "dog")
    assert folder.labels == [0] * 4 + [2] * 4 + [4]
