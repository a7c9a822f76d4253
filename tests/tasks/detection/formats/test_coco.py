"""COCO annotations: what is read, and that any error is named in training and by the check."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaformer.errors import DataError
from metaformer.tasks.check import warnings_of
from metaformer.tasks.detection.check import check_objects, object_findings
from metaformer.tasks.detection.dataset import open_detection
from metaformer.tasks.detection.formats.annotations import Annotations
from metaformer.tasks.detection.formats.coco import read_coco
from metaformer.tasks.detection.formats.layouts import SplitPaths, find_layout, find_split
from metaformer.tasks.detection.metrics import ground_truth
from toys import ErrorsOf

Change = Callable[[dict[str, Any]], object]


def edit(root: Path, change: Change) -> Path:
    """Change the annotations; `change` may give a document in place of the one it was given."""
    file = root / "annotations/instances_train2017.json"
    document = json.loads(file.read_text())
    new = change(document)
    file.write_text(json.dumps(document if new is None else new))
    return file


def paths(root: Path) -> SplitPaths:
    return find_split(*find_layout(root, "coco"), "train")


def read(root: Path, masks: bool | None = True) -> Annotations:
    return read_coco(paths(root), None, masks)


def first(**fields: object) -> Change:
    return lambda document: document["annotations"][0].update(fields)


def image(**fields: object) -> Change:
    return lambda document: document["images"][0].update(fields)


BOX, BORDER, SEGMENTATION = "box", "border", "segmentation"


def outline(value: object) -> Change:
    return first(segmentation=value)


def runs(counts: object, *size: int) -> Change:
    return outline({"size": list(size) or [16, 24], "counts": counts})


BAD: dict[str, tuple[Change, str, str]] = {
    "zero box": (first(bbox=[1, 2, 0, 6]), BOX, "bbox [1, 2, 0, 6] is 0 wide and 6 high"),
    "negative box": (first(bbox=[1, 2, 5, -6]), BOX, "is 5 wide and -6 high"),
    "NaN box": (first(bbox=[1, math.nan, 5, 6]), BOX, "not finite"),
    "endless box": (first(bbox=[1, 2, math.inf, 6]), BOX, "not finite"),
    "outside box": (first(bbox=[20, 2, 9, 6]), BORDER, "exceeds its image, which is 24x16"),
    "string box": (first(bbox=["1", 2, 5, 6]), BOX, "not left, top, width and height"),
    "text for a box": (first(bbox="1 2 5 6"), BOX, "not left, top, width and height"),
    "no box": (first(bbox=None), BOX, "bbox is None"),
    "huge box": (first(bbox=[10**400, 2, 5, 6]), BOX, "too large"),
    "missing image": (first(image_id=77), "image", "image_id is 77"),
    "image of no number": (first(image_id=[1]), "image", "image_id is [1]"),
    "unknown category": (first(category_id=4), "category", "category_id is 4"),
    "duplicate ids": (lambda d: d["annotations"].append(dict(d["annotations"][0])), "id", "has this id"),
    "no polygon": (outline([]), SEGMENTATION, "has no segmentation"),
    "half a crowd": (first(iscrowd=2), "annotation", "iscrowd is 2"),
    "no area": (first(area="big"), "annotation", "area is 'big'"),
}
BROKEN: dict[str, tuple[Change, str, str]] = {
    "2-point polygon": (outline([[1, 2, 3, 4]]), SEGMENTATION, "a polygon of 4 numbers"),
    "odd polygon": (outline([[1, 2, 3, 4, 5, 6, 7]]), SEGMENTATION, "a polygon of 7 numbers"),
    "empty polygon": (outline([[]]), SEGMENTATION, "a polygon of 0 numbers"),
    "flat polygon": (outline([1, 2, 3, 4, 5, 6]), SEGMENTATION, "a polygon is 1"),
    "polygon of text": (outline([["1"] * 6]), SEGMENTATION, "a polygon is ['1', '1'"),
    "NaN polygon": (outline([[math.nan] * 6]), SEGMENTATION, "not finite"),
    "outside polygon": (outline([[1, 2, 3, 4, 5e9, 6]]), SEGMENTATION, "a polygon exceeds its image"),
    "bad RLE": (runs("~~no~~"), SEGMENTATION, "characters"),
    "negative RLE": (runs([400, -16]), SEGMENTATION, "below 0"),
    "RLE of wrong sum": (runs([100, 20]), SEGMENTATION, "add up to 120 pixels, but 24×16 are 384"),
    "RLE-size mismatch": (runs([384], 24, 16), SEGMENTATION, "size [24, 16]"),
    "text for a segmentation": (outline("none"), SEGMENTATION, "segmentation is 'none'"),
}
"""Outlines that cannot be used."""
BAD_IMAGES: dict[str, tuple[Change, str, str]] = {
    "missing file": (image(file_name="9.png"), "image", "no such image "),
    "file elsewhere": (image(file_name="../train2017/1.png"), "image", "'../train2017/1.png' does not lie"),
    "absolute file": (image(file_name="/etc/passwd"), "image", "'/etc/passwd' does not lie in"),
    "unprintable file": (image(file_name="\ud800"), "image", r"file_name is '\ud800'"),
    "no file": (image(file_name=None), "image", "file_name is None"),
    "negative width": (image(width=-3), "image", "width -3"),
    "text for a width": (image(width="24"), "image", "width '24'"),
    "half a width": (image(width=23.5), "image", "whole numbers"),
    "too large": (image(width=10_000, height=10_000), "image", "10000x10000"),
    "two of one id": (lambda d: d["images"].append(dict(d["images"][0])), "id", "images[5] has an id"),
    "no id": (lambda d: d["images"].append({}), "id", "images[5]: has no whole number as id"),
}
BAD_FILES: dict[str, tuple[Change, str]] = {
    "list root": (lambda document: document["annotations"], "results are no annotations"),
    "text root": (lambda document: "text", "holds no object with images"),
    "no categories": (lambda document: document.pop("categories") and None, "no categories"),
    "empty categories": (lambda document: document.update(categories=[]), "categories is empty"),
    "no annotations": (lambda document: document.pop("annotations") and None, "no annotations"),
    "images by name": (lambda document: document.update(images={}), "images is no list"),
    "nameless category": (lambda d: d["categories"].append({"id": 1}), "categories[2] has no whole"),
    "two categories of a name": (
        lambda d: d["categories"].append({"id": 9, "name": "ant"}), "categories[2] has the id or name"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_annotation_is_named_in_training_and_by_the_check(
    case: str, objects: Path, errors_of: ErrorsOf
) -> None:
    change, kind, error = BAD[case]
    file = edit(objects, change)
    message, findings = errors_of(objects, masks=True)
    start = f"{file}: annotation 1"
    assert message.startswith(start) and error in message
    assert any(one.kind == kind and error in one.text and one.text.startswith(start) for one in findings)


def test_objects_over_the_border_are_clipped_on_request(objects: Path) -> None:
    def over(document: dict[str, Any]) -> None:
        one, two, beside, *_ = document["annotations"]
        one.update(
            bbox=[-4, 2, 8, 6], area=48, segmentation=[[-4, 2, 4, 2, 4, 8, -4, 8], [-9, 2, -5, 2, -5, 8]]
        )
        two.update(bbox=[20, 4, 9, 50], area=450, segmentation=[[20, 4, 29, 4, 29, 54, 20, 54]])
        beside.update(bbox=[60, 2, 5, 5])

    file = edit(objects, over)
    with pytest.raises(DataError, match=r"annotation 3 .*exceeds its image"):  # wholly outside
        open_detection(objects, "train", clip_boxes=True)
    edit(objects, lambda document: document["annotations"].pop(2) and None)
    with pytest.raises(DataError, match=r"exceeds its image, .*detect\.clip_boxes"):
        open_detection(objects, "train")
    folder = open_detection(objects, "train", masks=True, clip_boxes=True)
    one, two = folder.instances(0)
    assert (one.box, one.area, two.box, two.area) == ((0, 2, 4, 8), 24, (20, 4, 24, 16), 48)
    masks = folder.example(0, masks=True)[1].masks
    assert masks is not None and masks[0, 2:8, :4].all() and masks[1, 4:, 20:].all()
    assert masks.sum() == 24 + 48
    lines = [finding.text for finding in object_findings(folder, True) if finding.kind == BORDER]
    assert [line.split(": ")[1] for line in lines] == ["annotation 1 of 1.png", "annotation 2 of 1.png"]
    assert ground_truth(folder.annotations, masks=False)["annotations"][0]["bbox"] == [0, 2, 4, 6]
    report = check_objects(objects, ["train"], workers=1, progress=False)
    assert [one.kind for one in report.findings if one.grade == "error"] == [BORDER, BORDER]
    assert "2 over the border would be clipped by detect.clip_boxes" in report.text()
    report = check_objects(objects, ["train"], workers=1, progress=False, clip_boxes=True)
    assert report.ok and "2 over the border are clipped" in report.text() and str(file) in report.text()


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_outline_is_an_error_for_masks_alone(case: str, objects: Path) -> None:
    change, kind, error = BROKEN[case]
    file = edit(objects, change)
    start = f"{file}: annotation 1 of 1.png: "
    with pytest.raises(DataError) as caught:
        open_detection(objects, "train", masks=True)
    assert str(caught.value).startswith(start) and error in str(caught.value)
    folder = open_detection(objects, "train")
    assert len(folder.objects) == 8 and folder.instances(0)[0].box == (1, 2, 6, 8)
    report = check_objects(objects, ["train"], workers=1, progress=False)
    (finding,) = report.findings
    assert (finding.grade, finding.kind) == ("warning", kind)
    assert finding.text.startswith(start) and error in finding.text
    assert warnings_of(object_findings(folder, training=True)) == [finding.text]


def test_a_broken_ring_goes_and_not_the_object(objects: Path) -> None:
    ring = [1, 2, 6, 2, 6, 8, 1, 8]
    whole = open_detection(objects, "train", masks=True).instances(0)
    file = edit(objects, outline([[3, 3], ring, [], [1, 2, 3, 4], [math.nan] * 6, [1, 2, 3, 4, 5e9, 6]]))
    folder = open_detection(objects, "train", masks=True)
    assert folder.has_masks and folder.instances(0) == whole
    assert whole[0].segmentation == [ring]
    (line,) = warnings_of(object_findings(folder, training=True))
    assert line == (
        f"{file}: annotation 1 of 1.png: a polygon of 2 numbers: it needs x and y of at least 3 points: "
        "this outline is not used"
    )
    assert check_objects(objects, ["train"], workers=1, progress=False).ok


@pytest.mark.parametrize("masks", [True, False])
def test_null_is_no_value(masks: bool, objects: Path) -> None:
    whole = open_detection(objects, "train", masks=masks).instances(0)
    edit(objects, first(area=None, iscrowd=None))
    assert open_detection(objects, "train", masks=masks).instances(0) == whole


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_named_in_training_and_by_the_check(
    case: str, objects: Path, errors_of: ErrorsOf
) -> None:
    change, kind, error = BAD_IMAGES[case]
    file = edit(objects, change)
    message, (first_finding, *others) = errors_of(objects)
    assert message.startswith(f"{file}: image") and error in message
    assert first_finding.kind == kind and error in first_finding.text
    assert all(one.grade == "warning" for one in others), "objects of a bad image are not reported"


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_in_training_and_by_the_check(
    case: str, objects: Path, errors_of: ErrorsOf
) -> None:
    change, error = BAD_FILES[case]
    file = edit(objects, change)
    message, (finding,) = errors_of(objects)
    assert message.startswith(f"{file}: ") and error in message
    assert (finding.grade, finding.kind) == ("error", "layout") and error in finding.text


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"images": 1' + "0" * 5000 + "}", "\x00"])
def test_damaged_json_is_refused(text: str, objects: Path) -> None:
    paths(objects).labels.write_text(text)
    with pytest.raises(DataError, match="cannot be read"):
        read(objects)


def test_the_first_error_is_named_the_others_counted_and_a_few_skipped(
    objects: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(document: dict[str, Any]) -> None:
        document["annotations"][1]["bbox"] = [0, 0, 0, 0]
        document["annotations"][3] = 5

    file = edit(objects, two)
    error = r"annotation 2 of 1\.png: bbox \[0, 0, 0, 0\] .* \(1 more such; metaformer data check lists all\)"
    with pytest.raises(DataError, match=error):
        open_detection(objects, "train")
    with pytest.raises(DataError, match=error):
        open_detection(objects, "train", on_bad="skip")  # a quarter are not few
    monkeypatch.setattr("metaformer.tasks.detection.dataset._BAD_SHARE", 0.25)
    folder = open_detection(objects, "train", on_bad="skip")
    assert [len(folder.instances(index)) for index in range(5)] == [1, 1, 0, 2, 2]
    assert f"left out: {file}: annotations[3]: is 5, no object" in caplog.text
    assert "annotation 2 of 1.png" in caplog.text


def test_crowds_and_optional_fields(objects: Path) -> None:
    def bare(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            del annotation["area"], annotation["segmentation"]
            if not annotation["iscrowd"]:
                del annotation["iscrowd"]

    table = read(objects).objects
    assert table.crowd.tolist() == [False] * 5 + [True] + [False] * 2 and table.outlined.all()
    assert table.masks(table.of(3), (10, 40)).sum(axis=(1, 2)).tolist() == [30, 10]
    edit(objects, bare)
    found = read(objects, masks=None)
    assert not found.faults and not found.objects.outlined.any()
    assert found.objects.instance(0).area == 30 and found.objects.crowd.sum() == 1


def test_boxes_a_pixel_over_the_edge_are_clipped_but_for_evaluation(objects: Path) -> None:
    edit(objects, first(bbox=[-0.4, -1, 25.2, 17.5]))
    folder = open_detection(objects, "train")
    assert folder.instances(0)[0].box == (0, 0, 24, 16)
    document = ground_truth(folder.annotations, masks=False)
    assert document["annotations"][0]["bbox"] == [-0.4, -1, 25.2, 17.5]


def test_classes_are_ordered_by_id_or_as_given(objects: Path) -> None:
    edit(objects, lambda document: document["categories"].reverse())
    found = read(objects)
    assert (found.classes, found.category_ids) == (("ant", "bee"), (3, 7))
    found = read_coco(paths(objects), ("cat", "bee", "ant"), False)
    assert (found.classes, found.category_ids) == (("cat", "bee", "ant"), (8, 7, 3))
    assert found.objects.labels.tolist()[:2] == [2, 1]
    with pytest.raises(DataError, match="category 'bee' is not among the 1 of the class list"):
        read_coco(paths(objects), ["ant"], False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    counts=st.one_of(
        st.text(st.characters(min_codepoint=40, max_codepoint=115), max_size=300),
        st.lists(st.integers(-1, 384), max_size=9),
        st.lists(st.integers() | st.floats() | st.none() | st.text(max_size=2), max_size=5),
    ),
    size=st.sampled_from([[16, 24], [24, 16], [0, 0], [384, 1], [16], "16", None, [2**40, 2**40]]),
)
def test_random_run_lengths_are_masks_or_errors(objects: Path, counts: object, size: object) -> None:
    edit(objects, first(segmentation={"size": size, "counts": counts}))
    try:
        folder = open_detection(objects, "train", masks=True)
    except DataError as error:
        assert "annotation 1 of 1.png: " in str(error)
    else:
        masks = folder.example(0, masks=True)[1].masks
        assert masks is not None and masks.shape == (2, 16, 24)
        assert np.array_equal(masks[0].numpy(), folder.objects.masks(np.array([0]), (16, 24))[0])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    where=st.sampled_from(["images", "annotations", "categories"]),
    key=st.sampled_from(
        [
            "id",
            "image_id",
            "category_id",
            "bbox",
            "segmentation",
            "area",
            "iscrowd",
            "name",
            "width",
            "file_name",
        ]
    ),
    value=VALUES,
)
def test_any_value_of_a_field_is_valid_or_an_error(
    objects: Path, where: str, key: str, value: object
) -> None:
    before = paths(objects).labels.read_bytes()
    try:
        edit(objects, lambda document: document[where][1].update({key: value}))
        try:
            folder = open_detection(objects, "train", masks=True)
        except DataError as error:
            str(error).encode()
        else:
            folder.example(0, masks=True)
            json.dumps(ground_truth(folder.annotations, masks=True))
    finally:
        paths(objects).labels.write_bytes(before)


LONG = "y" * 100_000


OF_OBJECTS = ("id", "image_id", "category_id", "iscrowd", "area", "bbox")
OF_IMAGES = ("width", "file_name", "id")


@pytest.mark.parametrize(
    "change",
    [*(first(**{key: LONG}) for key in OF_OBJECTS), *(image(**{key: LONG}) for key in OF_IMAGES)],
)
def test_messages_of_long_values_are_short(change: Change, objects: Path) -> None:
    file = edit(objects, change)
    with pytest.raises(DataError) as caught:
        open_detection(objects, "train")
    assert len(str(caught.value)) < 1000 and str(caught.value).startswith(str(file))


@pytest.mark.parametrize("value", [LONG, [LONG], {"size": LONG, "counts": [1]}])
def test_messages_of_long_outlines_are_short(value: object, objects: Path) -> None:
    edit(objects, first(segmentation=value))
    (oddity,) = read(objects, None).oddities
    assert len(oddity.text) < 1000


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": None}, {"height": 0}, {}])
def test_sizes_that_are_not_given_are_those_of_the_files(size: dict[str, object], objects: Path) -> None:
    whole = open_detection(objects, "train", masks=True)

    def without(document: dict[str, Any]) -> None:
        for row in document["images"][:3]:
            del row["width"], row["height"]
            row.update(size)

    file = edit(objects, without)
    folder = open_detection(objects, "train", masks=True)
    assert [folder.size(i) for i in range(5)] == [whole.size(i) for i in range(5)]
    assert folder.instances(0) == whole.instances(0)
    text = f"{file}: 3 image(s) without width and height: those of their files count"
    assert warnings_of(object_findings(folder, training=True)) == [text]
    report = check_objects(objects, ["train"], workers=1, progress=False)
    assert report.ok and [finding.text for finding in report.findings] == [text]
    (objects / "train2017/2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"image 2: .*2\.png: .*empty|image 2: .*2\.png: not a JPEG"):
        open_detection(objects, "train")


@pytest.mark.parametrize(
    "form", ["train2017\\{}", "train2017/{}", "{root}/train2017/{}", ".\\{}", "D:\\my\\data\\train2017\\{}"]
)
def test_names_with_other_separators_or_from_the_root(form: str, objects: Path) -> None:
    whole = open_detection(objects, "train")

    def rename(document: dict[str, Any]) -> None:
        for row in document["images"]:
            row["file_name"] = form.replace("{root}", str(objects)).format(row["file_name"])

    edit(objects, rename)
    folder = open_detection(objects, "train")
    assert [folder.path(i) for i in range(5)] == [whole.path(i) for i in range(5)]
    assert folder.annotations.unused == () and folder.example(0)[0].size == (24, 16)
