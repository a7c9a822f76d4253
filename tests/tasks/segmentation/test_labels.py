import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from metaformer.data.class_lists import class_list, read_class_list
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.tasks.segmentation import labels as labels_module
from metaformer.tasks.segmentation.labels import (
    LabelTable,
    count_values,
    default_ignore_index,
    read_label_map,
    resolve_class_names,
)
from metaformer.tasks.segmentation.layouts import LAYOUTS, LabelEncoding

VALUES = np.array([[0, 1, 2], [7, 200, 255]], dtype=np.uint8)
ADE, FOLDERS, VOC = LAYOUTS["ade20k"], LAYOUTS["folders"], LAYOUTS["voc"]
SHORT = class_list("ade20k").names


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, "PNG", **options)
    return path


def palette_image(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([channel for i in range(256) for channel in (255 - i, i, 9)])
    return image


SMALL = np.arange(12, dtype=np.uint8).reshape(3, 4)
WIDE = np.array([[0, 255, 256], [1000, 40_000, 65535]], dtype=np.uint16)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.fromarray(VALUES), {}, VALUES),
        (palette_image(VALUES), {}, VALUES),
        (palette_image(VALUES), {"transparency": 7}, VALUES),
        (palette_image(SMALL % 2), {"bits": 1}, SMALL % 2),
        (palette_image(SMALL % 4), {"bits": 2}, SMALL % 4),
        (palette_image(SMALL), {"bits": 4}, SMALL),
        (Image.fromarray(SMALL % 2 * 255).convert("1"), {}, SMALL % 2),
        (Image.fromarray(WIDE), {}, WIDE),
    ],
)
def test_values_are_gray_levels_or_palette_indices(
    image: Image.Image, options: dict[str, int], expected: np.ndarray, tmp_path: Path
) -> None:
    values = read_label_map(saved(tmp_path / "x.png", image, **options))
    assert values.dtype == expected.dtype and np.array_equal(values, expected)


def gray_of_few_bits(bits: int) -> bytes:
    """A gray PNG of 2 or 4 bits, which Pillow does not write."""
    stream = io.BytesIO()
    palette_image(np.zeros((2, 8), np.uint8)).save(stream, "PNG", bits=bits)
    content = bytearray(stream.getvalue())
    at = content.index(b"IHDR")
    content[at + 13] = 0  # color type: gray
    content[at + 17 : at + 21] = zlib.crc32(content[at : at + 17]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image", "is not a PNG"),
        (Image.new("L", (8, 8)), "is not a PNG"),  # as JPEG
        (Image.new("RGB", (4, 3)), "is an RGB image"),
        (Image.new("RGBA", (4, 3)), "is an RGBA image"),
        (Image.new("LA", (4, 3)), "is an LA image"),
        (gray_of_few_bits(2), "is gray of 2 bits.*save 8 bits"),
        (gray_of_few_bits(4), "is gray of 4 bits.*save 8 bits"),
        (None, "no such file"),
    ],
)
def test_files_that_are_not_label_maps_are_named(
    content: bytes | Image.Image | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.save(path, "JPEG" if content.mode == "L" else "PNG")
    with pytest.raises(BadImage, match=rf"x\.png: {reason}"):
        read_label_map(path)


def test_damaged_and_too_large_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.RandomState(0).randint(0, 9, (90, 90), "uint8")
    path = saved(tmp_path / "x.png", Image.fromarray(noise))
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadImage, match=r"cut\.png: .*truncated"):
        read_label_map(tmp_path / "cut.png")
    with pytest.raises(BadImage, match=rf"{tmp_path}: is no ordinary file"):
        read_label_map(tmp_path)
    monkeypatch.setattr(labels_module, "MAX_PIXELS", 8000)
    with pytest.raises(BadImage, match=r"x\.png: 90x90 .* 8,000 pixels"):
        read_label_map(path)


def test_label_table() -> None:
    table = LabelTable(values=(1, 2, 7), ignored=(0, 255))
    labels = table.to_classes(VALUES[:, :1], "x")
    assert labels.dtype == np.uint8 and labels.tolist() == [[255], [2]]
    with pytest.raises(BadImage) as caught:
        table.to_classes(VALUES, "far.png")
    message = "far.png: label 200 (1 pixel): classes are 1 to 2, 7, ignored 0, 255"
    assert str(caught.value) == message


def test_many_unknown_values_are_abbreviated() -> None:
    message = LabelTable(range(3), (255,)).unknown_values(dict.fromkeys(range(20), 4))
    assert message.startswith("label 3 (4 pixels), 4 (4 pixels), ")
    assert "and 12 more: classes are 0 to 2" in message


def test_more_than_255_classes_are_uint16() -> None:
    assert default_ignore_index(255) == 255 and default_ignore_index(256) == 65535
    table = LabelTable(range(300), (65535,))
    values = np.array([[0, 255, 299, 65535]], dtype=np.uint16)
    labels = table.to_classes(values, "x")
    assert labels.dtype == np.uint16 and np.array_equal(labels, values)
    with pytest.raises(BadImage, match="label 300"):
        table.to_classes(values + np.uint16(1), "x")


@settings(deadline=None)
@given(
    values=arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    known=st.lists(st.integers(0, 254), min_size=1, max_size=60, unique=True),
)
def test_label_table_is_invertible_and_refuses_unknown_values(values: np.ndarray, known: list[int]) -> None:
    table = LabelTable(known, (255,))
    unknown = set(values.ravel().tolist()) - {*known, 255}
    counts = count_values(values)
    assert sum(counts.values()) == values.size
    assert bool(table.unknown_values(counts)) == bool(unknown)
    if unknown:
        with pytest.raises(BadImage):
            table.to_classes(values, "x")
        return
    labels = table.to_classes(values, "x")
    assert np.array_equal(np.array([*known, *[255] * (256 - len(known))])[labels], values)
    pixels, ignored = table.class_pixels(counts)
    assert pixels == [int((labels == label).sum()) for label in range(len(known))]
    assert ignored == int((labels == 255).sum())


def object_info(root: Path, *names: str) -> None:
    rows = [f"{number} \t0.1\t10\t2\t{name}" for number, name in enumerate(names, start=1)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")


def test_class_list_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffsky\r\n tall grass \r\nroad\n\n".encode())
    assert read_class_list(file) == ("sky", "tall grass", "road")
    for text, error in (
        ("a\n\nb", "line 2 is empty"),
        ("a\nb\na\n", "'a' .*line 1 .*line 3"),
        ("\n", "no class"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=rf"names\.txt: .*{error}"):
            read_class_list(file)
    file.write_bytes(b"caf\xe9")
    for bad in (file, tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match=f"{bad}: cannot be read"):
            read_class_list(bad)


def test_names_of_ade20k_are_those_of_its_table_or_the_published_list(tmp_path: Path) -> None:
    assert resolve_class_names(ADE, tmp_path, None, None).names == SHORT
    object_info(tmp_path, *(f"{name}, another word" for name in SHORT))
    assert resolve_class_names(ADE, tmp_path, None, None).names == SHORT
    object_info(tmp_path, "bed ", "sofa, couch")
    names = resolve_class_names(ADE, tmp_path, None, None)
    assert names.names == ("bed", "sofa, couch") and names.reduce_zero_label
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n1\tbed\n3\tsofa\n")
    with pytest.raises(DataError, match=r"objectInfo150\.txt: line 3 is not class 2"):
        resolve_class_names(ADE, tmp_path, None, None)


def test_without_reduce_zero_label_the_first_class_is_the_background(tmp_path: Path) -> None:
    object_info(tmp_path, "bed", "sofa")
    three = ("background", "bed", "sofa")
    names = resolve_class_names(ADE, tmp_path, None, False)
    assert names.names == three and not names.reduce_zero_label
    assert names == resolve_class_names(ADE, tmp_path, three, None)
    assert resolve_class_names(ADE, tmp_path, three[1:], None).reduce_zero_label
    with pytest.raises(DataError, match=r"3 classes, .*objectInfo150\.txt 2"):
        resolve_class_names(ADE, tmp_path, three, True)


def test_different_lists_are_named(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    other = tmp_path / "other.txt"
    other.write_text("sky\nroad\nsea\n")
    with pytest.raises(DataError, match=rf"{other}: 3 classes, {tmp_path}/classes\.txt 2"):
        resolve_class_names(FOLDERS, tmp_path, other, None)
    with pytest.raises(DataError, match=r"class list: class 1 is 'sea', in .*classes\.txt 'road'"):
        resolve_class_names(FOLDERS, tmp_path, ["sky", "sea"], None)


@pytest.mark.parametrize("layout", ["voc", "ade20k", "cityscapes", "coco_stuff"])
def test_own_classes_in_a_published_layout(layout: str, tmp_path: Path) -> None:
    published = resolve_class_names(LAYOUTS[layout], tmp_path, None, None).names
    assert published == class_list(layout).names
    own = ("road", "crack")
    given = resolve_class_names(LAYOUTS[layout], tmp_path, own, None)
    assert (given.names, given.reduce_zero_label) == (own, layout == "ade20k")
    (tmp_path / "classes.txt").write_text("road\ncrack\n")
    assert resolve_class_names(LAYOUTS[layout], tmp_path, None, None) == given
    with pytest.raises(DataError, match=rf"class list: 21 classes, {tmp_path}/classes\.txt 2"):
        resolve_class_names(LAYOUTS[layout], tmp_path, [str(i) for i in range(21)], None)
    encodings = LAYOUTS[layout].encodings
    first, plain = encodings[0], encodings[-1]
    if first.values is not None:
        with pytest.raises(DataError, match=r"2 class names, but label maps \*.* hold \d+ published classes"):
            given.table(first, None)
    assert plain.values or given.table(plain, None).values == ((1, 2) if layout == "ade20k" else (0, 1))


def test_own_classes_with_a_background_in_the_layout_of_ade20k(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("background\ncrack\n")
    names = resolve_class_names(ADE, tmp_path, None, None)
    assert (names.names, names.reduce_zero_label) == (("background", "crack"), False)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a:0,0,0::\n# b\n\nc:1,2::\n", "line 4: color '1,2'"),
        ("a:0,0,256::\n", "line 1: color '0,0,256'"),
        ("a:0,0,x::\n", "line 1: color '0,0,x'"),
        ("# x\na:0,0,0::\na:1,1,1::\n", "line 3: 'a'"),
        ("a:0,0,0::\nb:0,0,0::\n", "'b' has the color of 'a'"),
        ("a:0,0,0::\nb:::\n", "'b' has no color"),
        ("# nothing\n", "no class"),
    ],
)
def test_wrong_labelmaps_are_named(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=rf"labelmap\.txt: .*{error}"):
        resolve_class_names(VOC, tmp_path, None, None)


def test_colors_leave_no_label_out(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text("a:0,0,0::\nb:1,1,1::\n")
    assert resolve_class_names(FOLDERS, tmp_path, None, None).colors == ((0, 0, 0), (1, 1, 1))
    with pytest.raises(ConfigError, match=r"reduce_zero_label .*labelmap\.txt"):
        resolve_class_names(FOLDERS, tmp_path, None, True)
    assert resolve_class_names(ADE, tmp_path, None, None).names == SHORT
    (tmp_path / "labelmap.txt").write_text("a\nb\n")
    assert resolve_class_names(FOLDERS, tmp_path, None, None).colors == ()


def test_tables_of_class_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.txt: no such file"):
        resolve_class_names(FOLDERS, tmp_path, None, None)
    reduced = resolve_class_names(FOLDERS, tmp_path, ("a", "b"), True).table(LabelEncoding(""), None)
    assert (reduced.values, reduced.ignored) == ((1, 2), (0, 255))
    names = resolve_class_names(FOLDERS, tmp_path, ("a", "b"), None)
    assert names.table(LabelEncoding(""), 9).ignored == (9,)
    with pytest.raises(ConfigError, match="ignore_index is -1"):
        names.table(LabelEncoding(""), -1)


def test_reduce_zero_label_in_other_layouts(tmp_path: Path) -> None:
    assert not resolve_class_names(VOC, tmp_path, None, False).reduce_zero_label
    with pytest.raises(ConfigError, match=r"reduce_zero_label .* voc"):
        resolve_class_names(VOC, tmp_path, None, True)
