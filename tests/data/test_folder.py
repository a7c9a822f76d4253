import os
import shutil
from pathlib import Path

import pytest

from metaformer.data.folder import ImageFolder
from metaformer.data.split import need_two_classes
from metaformer.errors import BadImage, DataError


def test_reads_classes_images_and_labels(own_pets: Path) -> None:
    train = ImageFolder(own_pets, "train")
    assert train.classes == ("ant", "bee", "cat")
    assert len(train) == 12
    assert train.labels == [0] * 4 + [1] * 4 + [2] * 4
    assert train.paths == sorted(train.paths) == [train.path(i) for i in range(12)]
    assert train.image(1).size == (50, 43)
    need_two_classes(train)


def test_nested_hidden_and_other_files(own_pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    (own_pets / "train/ant/deep/er").mkdir(parents=True)
    shutil.move(own_pets / "train/ant/0.png", own_pets / "train/ant/deep/er/0.PNG")
    (own_pets / "train/ant/.hidden.png").write_bytes(b"")
    (own_pets / "train/.cache").mkdir()
    (own_pets / "train/ant/notes.txt").write_text("x")
    (own_pets / "train/bee/LICENSE").write_text("x")
    (own_pets / "train/loose.png").write_bytes(b"")
    train = ImageFolder(own_pets, "train")
    assert [p.relative_to(own_pets / "train").as_posix() for p in train.paths[:4]] == [
        "ant/1.png",
        "ant/2.png",
        "ant/3.png",
        "ant/deep/er/0.PNG",
    ]
    assert train.ignored == {".txt": 1, "without extension": 1}
    assert "1 .txt" in caplog.text and "1 file(s) that lie in no class folder" in caplog.text


def test_order_does_not_depend_on_the_file_system(own_pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ImageFolder(own_pets, "train").paths
    for name in ("ant", "bee", "cat"):  # new directory entries in another order
        folder = own_pets / "train" / name
        for file in sorted(folder.iterdir(), reverse=True):
            shutil.copy(file, own_pets / "spare")
            file.unlink()
            shutil.move(own_pets / "spare", file)
    assert ImageFolder(own_pets, "train").paths == expected


def test_missing_folders(own_pets: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder"):
        ImageFolder(own_pets / "none", "train")
    with pytest.raises(DataError, match="is a file"):
        ImageFolder(own_pets / "train/ant/0.png", "train")
    with pytest.raises(DataError, match="no folder 'test'; it holds train, val"):
        ImageFolder(own_pets, "test")
    (own_pets / "empty").mkdir()
    with pytest.raises(DataError, match="holds no folders"):
        ImageFolder(own_pets / "empty", "train")


def test_no_class_folders(own_pets: Path) -> None:
    with pytest.raises(DataError, match=r"no class folders.*holds 4 other"):
        ImageFolder(own_pets / "train", "ant")


def test_empty_class(own_pets: Path) -> None:
    shutil.rmtree(own_pets / "train/bee")
    (own_pets / "train/bee").mkdir()
    (own_pets / "train/bee/list.txt").write_text("")
    with pytest.raises(DataError, match=r"bee: no images in this class folder \(it holds 1 other"):
        ImageFolder(own_pets, "train")


def test_one_class_is_enough_to_evaluate_but_not_to_train(own_pets: Path) -> None:
    for name in ("bee", "cat"):
        shutil.rmtree(own_pets / "train" / name)
    train = ImageFolder(own_pets, "train")
    with pytest.raises(DataError, match="only one class, 'ant'"):
        need_two_classes(train)


def test_val_must_hold_the_classes_of_train(own_pets: Path) -> None:
    classes = ImageFolder(own_pets, "train").classes
    shutil.rmtree(own_pets / "val/bee")
    with pytest.raises(DataError, match="val: no folder for 'bee'"):
        ImageFolder(own_pets, "val", classes)
    part = ImageFolder(own_pets, "val", classes, allow_missing=True)
    assert part.classes == classes and set(part.labels) == {0, 2}
    (own_pets / "val/dog").mkdir()
    for allow in (False, True):
        with pytest.raises(DataError, match="'dog' not among the 3 known classes"):
            ImageFolder(own_pets, "val", classes, allow_missing=allow)
    with pytest.raises(DataError, match="'ant' more than once"):
        ImageFolder(own_pets, "val", ["ant", "ant", "bee"])


def test_images_that_cannot_be_read_are_errors(own_pets: Path) -> None:
    (own_pets / "train/ant/0.png").write_bytes(b"junk")
    train = ImageFolder(own_pets, "train")
    assert len(train) == 12
    with pytest.raises(BadImage, match=r"ant/0\.png"):
        train.image(0)
    (own_pets / "train/ant/scan.tiff").write_bytes(b"")
    with pytest.raises(DataError, match=r"scan\.tiff: \.tiff images are not read"):
        ImageFolder(own_pets, "train")


def test_links_are_followed_but_not_in_circles(own_pets: Path) -> None:
    os.symlink(own_pets / "train/ant", own_pets / "train/wasp")
    assert len(ImageFolder(own_pets, "train")) == 16
    os.symlink(own_pets / "train/cat", own_pets / "train/cat/again")
    with pytest.raises(DataError, match="again: is a link to a folder that holds it"):
        ImageFolder(own_pets, "train")


def test_all_errors_can_be_collected(own_pets: Path) -> None:
    (own_pets / "train/ant/scan.heic").write_bytes(b"")
    shutil.rmtree(own_pets / "train/bee")
    (own_pets / "train/bee").mkdir()
    (own_pets / "train/cat/again").symlink_to(own_pets / "train/cat")
    (own_pets / "train/dog").mkdir()
    shutil.copy(own_pets / "train/ant/0.png", own_pets / "train/dog/0.png")
    errors: list[DataError] = []
    folder = ImageFolder(own_pets, "train", classes=["ant", "bee", "cat", "wasp"], on_error=errors.append)
    assert [str(error).removeprefix(f"{own_pets}/train").partition(";")[0] for error in errors] == [
        ": 'dog' not among the 4 known classes ('ant', 'bee', 'cat', 'wasp')",
        ": no folder for 'wasp'",
        "/ant/scan.heic: .heic images are not read: convert it to PNG or JPEG",
        "/bee: no images in this class folder",
        "/cat/again: is a link to a folder that holds it",
    ]
    assert folder.classes == ("ant", "bee", "cat", "wasp", "dog")
    assert folder.labels == [0] * 4 + [2] * 4 + [4]
