from pathlib import Path

from metaformer.data.demo import SPLITS
from metaformer.data.folder import ImageFolder


def source(path: Path) -> int:
    return int(path.stem.split("_")[0].removeprefix("digit"))


def test_an_image_folder_with_disjoint_digits(demo: Path) -> None:
    train = ImageFolder(demo / "classify", "train")
    val = ImageFolder(demo / "classify", "val", train.classes)
    assert train.classes == tuple("0123456789")
    sources = [{source(path) for path in folder.paths} for folder in (train, val)]
    assert not sources[0] & sources[1]
    assert sources[0] | sources[1] == set(range(1797))
    assert len(val) == len(sources[1]) and 0.18 < len(val) / 1797 < 0.2
    assert len(train) == len(sources[0])
    for folder in (train, val):
        assert not folder.ignored
        for i in range(0, len(folder), 40):
            assert folder.image(i).size == (64, 64)


def test_labels_are_the_digits(demo: Path) -> None:
    from sklearn.datasets import load_digits

    truth = load_digits().target
    for split in SPLITS:
        folder = ImageFolder(demo / "classify", split)
        assert all(truth[source(p)] == label for p, label in zip(folder.paths, folder.labels, strict=True))
