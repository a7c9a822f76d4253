"""Label files, and the images that they name."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.errors import ConfigError, DataError
from metaformer.tasks.multilabel.dataset import MultilabelFolder, open_multilabel
from metaformer.tasks.multilabel.formats import find_label_file, read_labels
from metaformer.tasks.multilabel.results import MultilabelResult
from toys import Write

PIXELS = np.zeros((8, 9, 3), np.uint8)


@pytest.fixture
def root(write: Write) -> Path:
    """Three images in images/train, without labels."""
    for name in "abc":
        write(f"images/train/{name}.png", PIXELS)
    return write("images/notes.txt", "").parents[1]


def labels_of(folder: MultilabelFolder) -> dict[str, set[str]]:
    rows = [row.nonzero().flatten().tolist() for row in folder.labels]
    return {folder.path(i).stem: {folder.classes[k] for k in row} for i, row in enumerate(rows)}


SAME = {"a": {"cat", "dog"}, "b": set(), "c": {"dog"}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.csv", "image,labels\na.png,cat dog\nb.png,\nc.png,dog\n"),
        ("labels/train.csv", "\ufefffilename;tags\r\na.png;dog  cat\r\nb.png;\r\n\r\nc.png;dog\r\n"),
        ("train/labels.csv", "path,cat,dog\na.png,1,1\nb.png,0,0\nc.png,0,true\n"),
        ("train.csv", "file\tcat\tdog\na.png\t1.0\t1\nb.png\tFalse\t0\nc.png\t0\t1\n"),
        ("train.jsonl", '{"image": "a.png", "labels": ["dog", "cat"]}\n\n{"image": "b.png", "labels": []}\n'
         '{"image": "c.png", "labels": ["dog"]}\n'),
    ],
)  # fmt: skip
def test_every_form_says_the_same(root: Path, write: Write, name: str, text: str) -> None:
    write(name, text)
    folder = open_multilabel(root, "train")
    assert folder.classes == ("cat", "dog") and labels_of(folder) == SAME
    assert folder.folder == root / "images/train" and folder.image(0).size == (9, 8)


def test_a_coco_file_gives_the_classes_of_its_objects(objects: Path) -> None:
    folder = open_multilabel(objects, "train", "coco")
    assert folder.classes == ("ant", "bee") and len(folder) == 5
    assert [set(row) for row in labels_of(folder).values()].count(set()) == 1, "the third image holds nothing"
    assert labels_of(folder)["1"] == {"ant", "bee"}
    assert labels_of(open_multilabel(objects, "train")) == labels_of(folder), "found without being named"


def test_class_names_give_the_order_and_may_be_more(root: Path, write: Write) -> None:
    write("train.csv", "image,labels\na.png,dog\n")
    folder = open_multilabel(root, "train", class_names=["owl", "dog", "cat"])
    assert folder.classes == ("owl", "dog", "cat") and folder.labels.tolist() == [[0, 1, 0]]
    assert [path.name for path in folder.unlabeled] == ["b.png", "c.png"]
    with pytest.raises(DataError, match=r"train\.csv: 'dog'"):
        open_multilabel(root, "train", class_names=["cat"])


def test_a_separator_lets_names_hold_spaces(root: Path, write: Write) -> None:
    write("train.csv", "image,labels\na.png,red fox|owl\n")
    assert open_multilabel(root, "train", separator="|").classes == ("owl", "red fox")


@pytest.mark.parametrize(
    ("name", "text", "noun"),
    [
        ("train.csv", "a.png,cat\n", r"train\.csv: line 1.*'a\.png'"),
        ("train.csv", "", "line 1"),
        ("train.csv", "image\na.png\n", "second column"),
        ("train.csv", "image,cat,cat\na.png,1,0\n", "'cat'"),
        ("train.csv", "image,cat,dog\na.png,1,yes\n", "line 2: dog is 'yes'"),
        ("train.csv", "image,cat,dog\na.png,1\n", "line 2: 2 cells"),
        ("train.csv", "image,labels\na.png,cat\na.png,dog\n", r"line 3: a\.png .* line 2"),
        ("train.csv", "image,labels\na.png,cat cat\n", "line 2.*'cat'"),
        ("train.csv", "image,labels\n,cat\n", "line 2: no image"),
        ("train.csv", 'image,labels\n"a.png,cat\n', "not CSV"),
        ("train.csv", "image,labels\n", "no images"),
        ("train.csv", b"image,labels\n\xff.png,cat\n", "UTF-8"),
        ("train.csv", "image,labels\na.png,cat\nz.png,dog\n", r"z\.png"),
        ("train.csv", "image,labels\nz.png,dog\n", r"z\.png.*none of"),
        ("train.jsonl", '{"image": "a.png"}\n', r"train\.jsonl: line 1"),
        ("train.jsonl", '{"image": "a.png", "labels": [1]}\n', "line 1"),
        ("train.jsonl", "a.png cat\n", "line 1: cannot be read as JSON"),
    ],
)
def test_errors_name_file_and_line(root: Path, write: Write, name: str, text: object, noun: str) -> None:
    write(name, text)
    with pytest.raises(DataError, match=noun):
        open_multilabel(root, "train")


def test_no_label_file_and_two_of_them(root: Path, write: Write) -> None:
    with pytest.raises(DataError, match=r"train\.csv"):
        open_multilabel(root, "train")
    with pytest.raises(DataError, match=r"train\.jsonl"):
        open_multilabel(root, "train", "jsonl")
    write("train.csv", "image,labels\na.png,cat\n")
    write("labels/train.jsonl", '{"image": "a.png", "labels": ["dog"]}\n')
    with pytest.raises(DataError, match=r"train\.csv.*train\.jsonl"):
        find_label_file(root, "train")
    assert open_multilabel(root, "train", "jsonl").classes == ("dog",)


@given(st.lists(st.sets(st.sampled_from(["a", "b", "c d", "é"])), min_size=1, max_size=6))
def test_json_lines_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[set[str]]) -> None:
    file = tmp_path_factory.mktemp("labels") / "x.jsonl"
    lines = [{"image": f"{i}.png", "labels": sorted(row)} for i, row in enumerate(rows)]
    file.write_text("\n".join(map(json.dumps, lines)))
    read = read_labels(file)
    assert [set(row) for row in read.labels] == rows and read.images == tuple(
        f"{i}.png" for i in range(len(rows))
    )


def test_separators_of_windows(root: Path, write: Write) -> None:
    write(
        "train.csv",
        "image,labels\nimages\\train\\a.png,cat dog\nimages\\train\\b.png,\nimages/train/c.png,dog\n",
    )
    assert labels_of(open_multilabel(root, "train")) == SAME
    write("images/train/d\\e.png", PIXELS)
    write("train.csv", "image,labels\nd\\e.png,cat\na.png,dog\n")
    assert labels_of(open_multilabel(root, "train")) == {"d\\e": {"cat"}, "a": {"dog"}}


@pytest.mark.parametrize("same", ["./a.png", "b/../a.png", ".\\a.png"])
def test_an_image_stands_in_one_row_however_it_is_written(root: Path, write: Write, same: str) -> None:
    write("train.csv", f"image,labels\na.png,cat\n{same},dog\nb.png,\n")
    with pytest.raises(DataError, match=r"train\.csv: line 3: .* line 2"):
        open_multilabel(root, "train")


@pytest.mark.parametrize("other", [",", ";", "|", ", "])
def test_another_separator_is_told(root: Path, write: Write, other: str) -> None:
    rows = "".join(
        f'{name}.png,"{other.join(labels)}"\n'
        for name, labels in zip("abc", ("xy", "xz", "xyz"), strict=True)
    )
    write("train.csv", "image,labels\n" + rows)
    with pytest.raises(DataError, match=r"train\.csv: .*--multilabel\.separator"):
        open_multilabel(root, "train")
    assert open_multilabel(root, "train", separator=other.strip()).classes == ("x", "y", "z")
    with pytest.raises(ConfigError, match="separator"):
        open_multilabel(root, "train", separator="")


def test_labels_of_json_lines_have_no_margins(root: Path, write: Write) -> None:
    lines = [{"image": "a.png", "labels": [" x", "y\u2028"]}, {"image": "b.png", "labels": ["x"]}]
    write("train.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert open_multilabel(root, "train").classes == ("x", "y")
    write("train.jsonl", '{"image": "a.png", "labels": [" "]}')
    with pytest.raises(DataError, match="line 1"):
        open_multilabel(root, "train")


def test_one_list_elsewhere_is_told(root: Path, write: Write) -> None:
    write("labels.csv", "image,labels\na.png,cat\n")
    with pytest.raises(DataError, match=r"labels\.csv.*data\.train"):
        open_multilabel(root, "train")


def test_columns_of_scores_hide_no_others() -> None:
    found = MultilabelResult("a.png", ("path", "labels", "cat"), (0.9, 0.1, 0.8), (0.5, 0.5, 0.5))
    row = found.to_row()
    assert (row["path"], row["labels"], row["score path"], row["cat"]) == (
        "a.png",
        "path cat",
        "0.900000",
        "0.800000",
    )
