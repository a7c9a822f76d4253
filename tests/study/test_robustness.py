"""Perturbations of images: what each does to pixels whose result is known."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from metaformer.study.robustness import (
    CORRUPTIONS,
    SEVERITIES,
    Perturbation,
    gaussian_noise,
    perturbations,
    resize,
    rotate,
    shift,
)

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
INDICES = torch.tensor([4, 7])


def corrupt(name: str, images: Tensor, severity: int) -> Tensor:
    return Perturbation("corruption", name, severity).apply(images, torch.arange(len(images)))


def test_a_shift_moves_and_repeats_the_edge() -> None:
    moved = shift(IMAGES, 3)
    assert torch.equal(moved[..., 3:, 3:], IMAGES[..., :-3, :-3])
    assert torch.equal(moved[..., 0, 5], IMAGES[..., 0, 2]) and moved.shape == IMAGES.shape
    assert shift(IMAGES, 0) is IMAGES


def test_a_quarter_turn_is_one_and_none_is_none() -> None:
    assert torch.allclose(rotate(IMAGES, 0), IMAGES, atol=1e-5)
    assert torch.allclose(rotate(IMAGES, 90), IMAGES.rot90(dims=(2, 3)), atol=1e-4)


def test_a_resized_flat_image_stays_flat() -> None:
    assert torch.allclose(resize(torch.full((1, 3, 16, 16), 0.3), 24), torch.full((1, 3, 24, 24), 0.3))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_with_severity_and_are_the_same_each_time(name: str) -> None:
    found = [corrupt(name, IMAGES, severity) for severity in SEVERITIES]
    errors = [float((one - IMAGES).square().mean()) for one in found]
    assert errors == sorted(errors) and errors[0] > 1e-4
    assert all(one.min() >= 0 and one.max() <= 1 and one.shape == IMAGES.shape for one in found)
    assert torch.equal(found[0], corrupt(name, IMAGES, SEVERITIES[0]))


def test_noise_is_that_of_the_image_whatever_its_batch() -> None:
    gray = torch.full((2, 3, 32, 32), 0.5)
    both = gaussian_noise(gray, 1, INDICES)
    assert torch.equal(both[1:], gaussian_noise(gray[1:], 1, INDICES[1:]))
    for other in (both[1], gaussian_noise(gray[:1], 3, INDICES[:1])[0]):
        pair = torch.stack([both[0].flatten(), other.flatten()]) - 0.5
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.1


def test_contrast_keeps_the_mean_and_noise_has_its_deviation() -> None:
    faint = corrupt("contrast", IMAGES, 5)
    assert torch.allclose(faint.mean((2, 3)), IMAGES.mean((2, 3)), atol=1e-6)
    assert torch.allclose(faint.std((2, 3)), 0.05 * IMAGES.std((2, 3)), rtol=1e-3)
    noise = corrupt("gaussian_noise", torch.full((8, 3, 32, 32), 0.5), 1) - 0.5
    assert float(noise.std()) == pytest.approx(0.08, rel=0.03)


def test_pixels_are_those_of_pillows_box_filter() -> None:
    """To a level of 255: Pillow rounds twice."""
    pixels = (255 * IMAGES[0]).byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    for severity, factor in ((1, 0.6), (3, 0.4), (5, 0.25)):
        small = image.resize((int(32 * factor),) * 2, Image.Resampling.BOX)
        expected = np.asarray(small.resize((32, 32), Image.Resampling.NEAREST)).astype(float)
        found = 255 * corrupt("pixelate", pixels[None] / 255, severity)[0].permute(1, 2, 0)
        assert np.abs(found.numpy() - expected).max() <= 1.01


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.4), (5, 1.0)])
def test_the_blur_is_scipys(severity: int, sigma: float) -> None:
    """Which scikit-image calls, by which ImageNet-C was made."""
    found = corrupt("gaussian_blur", IMAGES, severity)
    expected = gaussian_filter(IMAGES.double().numpy(), sigma, mode="nearest", truncate=4, axes=(2, 3))
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_only_what_is_asked_for_is_done() -> None:
    assert {one.kind for one in perturbations(("shift", "size"), 32)} == {"shift", "size"}
    assert perturbations((), 32) == []
    assert [one.level for one in perturbations(("size",), 32)] == [16, 24, 40, 48, 64]
