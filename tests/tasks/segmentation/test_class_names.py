from pathlib import Path

import pytest

from metaformer.data.class_lists import class_list, read_class_list
from metaformer.errors import ConfigError, DataError
from metaformer.tasks.segmentation.class_names import name_classes
from metaformer.tasks.segmentation.layouts import LAYOUTS, Numbers

ADE, FOLDERS, VOC = LAYOUTS["ade20k"], LAYOUTS["folders"], LAYOUTS["voc"]
SHORT = class_list("ade20k").names


def object_info(home: Path, *names: str) -> None:
    rows = [f"{number} \t0.1\t10\t2\t{name}" for number, name in enumerate(names, start=1)]
    (home / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")


def test_a_class_list_is_one_name_a_line(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffsky\r\n tall grass \r\nroad\n\n".encode())
    assert read_class_list(file) == ("sky", "tall grass", "road")
    for text, told in (
        ("a\n\nb", r"names\.txt: line 2 is empty"),
        ("a\nb\na\n", r"names\.txt: 'a' stands in line 1 and in line 3"),
        ("\n", r"names\.txt: names no class"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=told):
            read_class_list(file)
    file.write_bytes(b"\xff\xfe")
    for bad in (file, tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match=f"{bad}: cannot be read"):
            read_class_list(bad)


def test_ade20k_is_named_by_its_table_or_the_published_list(tmp_path: Path) -> None:
    assert name_classes(ADE, tmp_path, None, None).names == SHORT
    object_info(tmp_path, *(f"{name}, another word" for name in SHORT))
    assert name_classes(ADE, tmp_path, None, None).names == SHORT
    object_info(tmp_path, "bed ", "sofa, couch")
    naming = name_classes(ADE, tmp_path, None, None)
    assert naming.names == ("bed", "sofa, couch") and naming.zero
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n1\tbed\n3\tsofa\n")
    with pytest.raises(DataError, match=r"objectInfo150\.txt: line 3 is not class 2"):
        name_classes(ADE, tmp_path, None, None)


def test_where_0_is_kept_it_is_the_background(tmp_path: Path) -> None:
    object_info(tmp_path, "bed", "sofa")
    naming = name_classes(ADE, tmp_path, None, False)
    assert naming.names == ("background", "bed", "sofa") and not naming.zero
    assert naming == name_classes(ADE, tmp_path, ("background", "bed", "sofa"), None)
    assert name_classes(ADE, tmp_path, ("bed", "sofa"), None).zero
    with pytest.raises(DataError, match=r"names 3 classes, .*objectInfo150\.txt 2"):
        name_classes(ADE, tmp_path, ("background", "bed", "sofa"), True)


def test_lists_that_differ_are_told_with_their_files(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    other = tmp_path / "other.txt"
    other.write_text("sky\nroad\nsea\n")
    with pytest.raises(DataError) as caught:
        name_classes(FOLDERS, tmp_path, other, None)
    assert str(caught.value) == f"{other}: names 3 classes, {tmp_path}/classes.txt 2: they must agree"
    with pytest.raises(DataError, match=r"class list: class 1 is 'sea', in .*classes\.txt 'road'"):
        name_classes(FOLDERS, tmp_path, ["sky", "sea"], None)
    with pytest.raises(DataError, match=r"the class list: names 20 classes, .*of layout voc, 21"):
        name_classes(VOC, tmp_path, [str(i) for i in range(20)], None)
    renamed = tuple(str(i) for i in range(21))
    assert name_classes(VOC, tmp_path, renamed, None).names == renamed


def test_somebody_must_name_the_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.txt: no such file: name the classes"):
        name_classes(FOLDERS, tmp_path, None, None)
    naming = name_classes(FOLDERS, tmp_path, ("a", "b"), True)
    assert naming.zero
    table = naming.table(Numbers(""), None)
    assert (table.numbers, table.ignored) == ((1, 2), (0, 255))


def test_only_some_layouts_have_a_zero_that_is_no_class(tmp_path: Path) -> None:
    assert not name_classes(VOC, tmp_path, None, False).zero
    with pytest.raises(ConfigError, match="reduce_zero_label is true: in the layout voc label 0 is a class"):
        name_classes(VOC, tmp_path, None, True)


def test_another_number_can_be_ignored(tmp_path: Path) -> None:
    naming = name_classes(FOLDERS, tmp_path, ("a", "b"), None)
    assert naming.table(Numbers(""), 9).ignored == (9,)
    with pytest.raises(ConfigError, match="ignore_index is -1"):
        naming.table(Numbers(""), -1)
