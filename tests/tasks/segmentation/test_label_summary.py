from metaformer.data.scan import ImageInfo
from metaformer.tasks.segmentation.check import ClassSummary, LabelInfo, summarize


def test_a_split_is_summed_up() -> None:
    seen = [
        ImageInfo(0, 10, 20, labels=LabelInfo(b"", {0: 150, 2: 30}, 20)),
        ImageInfo(1, 30, 10, labels=LabelInfo(b"", {2: 300}, 0)),
        ImageInfo(2, 5, 5, label_error="is empty"),
        ImageInfo(3, error="no image"),
    ]
    summary = summarize("train", ("sky", "sea", "road"), seen)
    assert summary.per_class == {
        "sky": ClassSummary(150, 1),
        "sea": ClassSummary(0, 0),
        "road": ClassSummary(330, 2),
    }
    assert (summary.images, summary.unreadable, summary.ignored) == (4, 2, 0.04)
    assert (summary.narrowest, summary.median, summary.widest) == ((5, 5), (10, 20), (30, 10))
    assert summary.text() == (
        "train: 4 images (2 unusable) with label maps of 2 of 3 classes; 4.0 % of the pixels ignored; "
        "sizes 5x5 to 30x10, median 10x20"
    )


def test_nothing_can_be_summed_up() -> None:
    summary = summarize("val", ("sky",), [ImageInfo(0, error="no image")])
    assert (summary.ignored, summary.widest) == (0.0, (0, 0))
