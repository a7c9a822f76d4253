import torch
from torch import Tensor

from metaformer.tasks.classifier import average_views


def left(images: Tensor) -> Tensor:
    """Logits that tell left from right: the first column's means."""
    return images[..., 0].mean(dim=2)


def test_one_view_is_the_plain_forward() -> None:
    images = torch.randn(2, 3, 4, 5)
    assert torch.equal(average_views(left, images), left(images))


def test_flip_averages_with_the_mirror() -> None:
    images = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(
        average_views(left, images, True), (left(images) + images[..., -1].mean(2)) / 2
    )


def test_crops_are_averaged_by_image() -> None:
    images = torch.randn(2, 5, 3, 4, 5)
    expected = torch.stack([left(images[i]).mean(0) for i in range(2)])
    torch.testing.assert_close(average_views(left, images), expected)
