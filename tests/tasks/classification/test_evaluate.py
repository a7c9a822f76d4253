import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.errors import DataError, TrainingError
from metaformer.tasks.classification.evaluate import ClassificationEvaluation, read_class_subset

PREPROCESS = Preprocess(image_size=8, crop=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def by_gray(images: Tensor) -> Tensor:
    """Logits that are wrong for one image: bee0 (80) is taken for an ant."""
    gray = images.mean(dim=(1, 2, 3)) * 255
    bounds = torch.tensor([20.0, 100.0, 170.0])
    return -(gray[:, None] - bounds).abs()


def test_every_image_counts_once(folder: ImageFolder) -> None:
    def with_a_mistake(images: Tensor) -> Tensor:
        logits = by_gray(images)
        logits[(images.mean(dim=(1, 2, 3)) * 255).round() == 80] = torch.tensor([5.0, 0.0, 0.0])
        return logits

    report = ClassificationEvaluation(folder, PREPROCESS, batch_size=3).run(with_a_mistake)
    assert report.images == 7 and report.top1 == 6 / 7 and report.k == 3
    assert report.confusion.tolist() == [[3, 0, 0], [1, 1, 0], [0, 0, 2]]
    assert [(e.label, e.predicted) for e in report.examples if not e.right] == [("bee", "ant")]
    wrong = next(e for e in report.examples if not e.right)
    assert wrong.path.endswith("bee0.png")
    assert wrong.score == pytest.approx(math.exp(5) / (math.exp(5) + 2))


def test_class_subset_excludes_other_images_and_logits(folder: ImageFolder) -> None:
    report = ClassificationEvaluation(folder, PREPROCESS, batch_size=3, class_subset=["cat", "ant"]).run(
        lambda images: by_gray(images) + torch.tensor([0.0, 1e6, 0.0])  # bee, which is not in the subset
    )
    assert report.classes == ["ant", "cat"] and report.images == 5 and report.top1 == 1.0


def test_logits_that_are_not_finite_name_the_image(folder: ImageFolder) -> None:
    def broken(images: Tensor) -> Tensor:
        logits = by_gray(images)
        logits[(images.mean(dim=(1, 2, 3)) * 255).round() == 100] = float("nan")
        return logits

    with pytest.raises(TrainingError, match=r"bee1\.png: .*not finite"):
        ClassificationEvaluation(folder, PREPROCESS, batch_size=3).run(broken)


def test_evaluation_can_be_repeated(folder: ImageFolder) -> None:
    evaluation = ClassificationEvaluation(folder, PREPROCESS, batch_size=3)
    assert evaluation.run(by_gray).metrics == evaluation.run(by_gray).metrics


def test_a_subset_without_images_is_refused(folder: ImageFolder) -> None:
    wider = ImageFolder(folder.folder.parent, "val", [*folder.classes, "dog"], allow_missing=True)
    with pytest.raises(DataError, match="val"):
        ClassificationEvaluation(wider, PREPROCESS, class_subset=["dog"]).run(
            lambda images: torch.zeros(len(images), 4)
        )


def test_a_class_subset_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    assert read_class_subset(None, ("a",)) is None
    file.write_text("b\n\n a \n")
    assert read_class_subset(str(file), ("a", "b")) == ["b", "a"]
    for text, named in (("c\n", r"names\.txt: 'c'"), ("\n", r"names\.txt")):
        file.write_text(text)
        with pytest.raises(DataError, match=named):
            read_class_subset(str(file), ("a", "b"))
