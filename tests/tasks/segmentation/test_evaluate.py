import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.distributed import join
from metaformer.errors import BadImage, DataError, RankError, TrainingError
from metaformer.tasks.segmentation.dataset import SegmentationFolder, open_segmentation
from metaformer.tasks.segmentation.evaluate import SegmentationEvaluation
from metaformer.tasks.segmentation.predict import InferenceConfig, predict_label_map

CLASSES = ("sky", "sea", "sand")
SIZES = [(40, 30), (64, 64), (1, 1), (33, 70), (50, 20), (31, 31), (90, 41)]
IGNORED = 4
"""The image without a labeled pixel."""
FITTED = DensePreprocess(long_side=128, short_side=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
ORIGINAL = DensePreprocess(None, None, size_divisor=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def beach(tmp_path: Path) -> SegmentationFolder:
    """Seven images with a gray for each class, some ignored pixels, and more noise from image to image."""
    draw = np.random.default_rng(0)
    for kind in ("images", "annotations"):
        (tmp_path / kind / "val").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for i, (width, height) in enumerate(SIZES):
        labels = np.repeat(np.arange(height) * 3 // height, width).reshape(height, width).astype(np.uint8)
        gray = labels * 80 + 40 + draw.integers(-12 * i, 12 * i + 1, labels.shape)
        labels[draw.random(labels.shape) < (0.1 if i != 2 else 0)] = 255
        if i == IGNORED:
            labels[:] = 255
        image = np.clip(gray, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
        Image.fromarray(image).save(tmp_path / "images" / "val" / f"{i}.png")
        Image.fromarray(labels).save(tmp_path / "annotations" / "val" / f"{i}.png")
    return open_segmentation(tmp_path, "val", "folders")


def by_gray(images: Tensor) -> Tensor:
    """Logits at the input's resolution."""
    bounds = torch.tensor([40.0, 120.0, 200.0]) / 255
    return -(images.mean(dim=1, keepdim=True) - bounds[:, None, None]).abs()


def coarse(images: Tensor) -> Tensor:
    """Logits at stride 4."""
    return by_gray(nn.functional.avg_pool2d(images, 4, ceil_mode=True))


def counted(
    folder: SegmentationFolder, inference: InferenceConfig, preprocess: DensePreprocess
) -> np.ndarray:
    """Confusion matrix, counted pixel by pixel."""
    table = np.zeros((3, 3), dtype=np.int64)
    for i in range(len(folder)):
        guess = predict_label_map(coarse, folder.image(i), inference, preprocess).numpy()
        labels = folder.label_map(i)
        for truth, predicted in zip(labels[labels != 255], guess[labels != 255], strict=True):
            table[truth, predicted] += 1
    return table


@pytest.mark.parametrize("preprocess", [FITTED, ORIGINAL])
@pytest.mark.parametrize(
    "inference",
    [
        InferenceConfig(),
        InferenceConfig("slide", window=(32, 32), stride=(16, 16)),
        InferenceConfig(scales=(0.75, 1.0, 1.5), flip=True),
    ],
)
def test_every_pixel_counts_once_at_its_own_size(
    beach: SegmentationFolder, inference: InferenceConfig, preprocess: DensePreprocess
) -> None:
    evaluation = SegmentationEvaluation(beach, preprocess, inference=inference)
    report, table = evaluation.run(coarse), counted(beach, inference, preprocess)
    assert report.images == 7 and report.confusion.tolist() == table.tolist()
    both = table.diagonal()
    assert report.figures.miou == (both / (table.sum(0) + table.sum(1) - both)).mean()
    assert report.metrics["aacc"] == both.sum() / table.sum()
    assert report.metrics["macc"] == (both / table.sum(1)).mean()
    assert evaluation.run(coarse).metrics == report.metrics
    evaluation.close()


def test_workers_change_nothing(beach: SegmentationFolder) -> None:
    for inference in (InferenceConfig(), InferenceConfig(scales=(0.5, 1.0))):
        evaluation = SegmentationEvaluation(beach, FITTED, inference=inference, workers=2)
        alone = SegmentationEvaluation(beach, FITTED, inference=inference).run(coarse)
        assert evaluation.run(coarse).to_dict() == alone.to_dict()
        evaluation.close()


def test_examples_are_the_worst_and_the_best(beach: SegmentationFolder) -> None:
    report = SegmentationEvaluation(beach, ORIGINAL).run(by_gray)
    names = [Path(example.path).stem for example in report.examples]
    assert sorted(names) == ["0", "1", "2", "3", "5", "6"]  # no mIoU without labeled pixels
    scores = [example.miou for example in report.examples]
    assert scores == sorted(scores) and names[0] == "6"
    worst = report.examples[0]
    truth, predicted = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in (worst.truth, worst.predicted)
    )
    assert np.array_equal(truth, beach.label_map(6)) and predicted.shape == truth.shape
    assert worst.index == 6 and set(worst.labels) == {0, 1, 2}


def test_six_examples_of_each_kind(tmp_path: Path) -> None:
    for kind in ("images", "annotations"):
        (tmp_path / kind / "val").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for i in range(20):
        labels = np.ones((20, 20), dtype=np.uint8)
        labels[: (i * 7) % 20] = 0
        Image.new("RGB", (20, 20), (40, 40, 40)).save(tmp_path / "images" / "val" / f"{i:02d}.png")
        Image.fromarray(labels).save(tmp_path / "annotations" / "val" / f"{i:02d}.png")
    report = SegmentationEvaluation(open_segmentation(tmp_path, "val", "folders"), ORIGINAL).run(by_gray)
    scores = [example.miou for example in report.examples]
    assert scores == [i / 40 for i in (*range(6), *range(19, 13, -1))]


def test_data_without_a_labeled_pixel(beach: SegmentationFolder) -> None:
    for file in (beach.folder.parent.parent / "annotations" / "val").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(file)), 255)).save(file)
    report = SegmentationEvaluation(beach, FITTED).run(coarse)
    assert report.metrics == {"miou": 0.0, "aacc": 0.0, "macc": 0.0} and not report.examples
    assert "no labeled pixels" in report.text() and json.loads(json.dumps(report.to_dict()))["pixels"] == 0


def test_logits_that_are_not_finite_name_the_image(beach: SegmentationFolder) -> None:
    def broken(images: Tensor) -> Tensor:
        return by_gray(images) / (images.shape[-1] != 33)

    with pytest.raises(TrainingError, match=r"3\.png: .*not finite"):
        SegmentationEvaluation(beach, ORIGINAL).run(broken)


def test_mismatched_files_are_named(beach: SegmentationFolder) -> None:
    with pytest.raises(DataError, match=r"annotations.*0\.png: prediction: 4 is not a class"):
        SegmentationEvaluation(beach, ORIGINAL).run(
            lambda x: by_gray(x)[:, [0] * 4 + [1]] + torch.eye(5)[4][:, None, None]
        )
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(beach.label_path(1))
    with pytest.raises(BadImage, match=r"1\.png: .*5x5"):
        SegmentationEvaluation(beach, ORIGINAL).run(by_gray)


def evaluate_rank(root: str) -> None:
    """What each of two ranks runs."""
    torch.set_num_threads(1)
    join("cpu")
    folder = open_segmentation(root, "val", "folders")
    evaluation = SegmentationEvaluation(folder, FITTED)
    print(json.dumps(evaluation.run(coarse).to_dict()))
    with pytest.raises((RankError, TrainingError), match=r"3\.png: .*not finite"):
        SegmentationEvaluation(folder, ORIGINAL).run(lambda images: coarse(images) / (images.shape[-1] != 33))
    (Path(root) / "annotations" / "val" / "1.png").write_bytes(b"")
    with pytest.raises((BadImage, RankError), match=r"1\.png: the file is empty"):
        evaluation.run(coarse)


def test_two_ranks_give_the_same_report(
    beach: SegmentationFolder, two_ranks: Callable[..., list[str]]
) -> None:
    alone = json.loads(json.dumps(SegmentationEvaluation(beach, FITTED).run(coarse).to_dict()))
    printed = two_ranks(evaluate_rank, str(beach.folder.parent.parent))
    assert [json.loads(out) for out in printed] == [alone, alone]
