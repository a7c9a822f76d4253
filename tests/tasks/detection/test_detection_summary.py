from pathlib import Path

from metaformer.data.scan import ImageInfo
from metaformer.tasks.detection.check import ObjectCount, summarize
from metaformer.tasks.detection.dataset import open_detection


def test_objects_and_images_are_counted_without_crowds(objects: Path) -> None:
    folder = open_detection(objects, "train", masks=True)
    seen = [ImageInfo(index, *folder.size(index)) for index in range(4)] + [ImageInfo(4, error="damaged")]
    summary = summarize("train", folder, seen)
    assert (summary.images, summary.unreadable, summary.empty) == (5, 1, 1)
    assert (summary.objects, summary.crowds, summary.outlined) == (8, 1, 8)
    assert summary.per_class == {"ant": ObjectCount(4, 4), "bee": ObjectCount(3, 3)}
    assert (summary.smallest, summary.median, summary.largest) == ((24, 16), (20, 20), (40, 10))
    assert "train: 5 images (1 unusable), 1 of them empty, with 8 objects" in summary.text()
