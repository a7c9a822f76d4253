"""Changes of images: what each does to pixels whose result is known."""

import pytest
import torch

from metaformer.study.mechanism import CHANGES, CORRUPTIONS, SEVERITIES, changes, resize, rotate, shift

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("name", [one.__name__ for one in CORRUPTIONS])
def test_corruptions_grow_with_severity_and_are_the_same_each_time(name: str) -> None:
    found = [CHANGES[name](IMAGES, severity) for severity in SEVERITIES]
    errors = [float((one - IMAGES).square().mean()) for one in found]
    assert errors == sorted(errors) and errors[0] > 1e-4
    assert all(one.min() >= 0 and one.max() <= 1 and one.shape == IMAGES.shape for one in found)
    assert torch.equal(found[0], CHANGES[name](IMAGES, SEVERITIES[0]))


def test_contrast_keeps_the_mean_and_noise_has_its_deviation() -> None:
    faint = CHANGES["contrast"](IMAGES, 5)
    assert torch.allclose(faint.mean((2, 3)), IMAGES.mean((2, 3)), atol=1e-6)
    assert torch.allclose(faint.std((2, 3)), 0.05 * IMAGES.std((2, 3)), rtol=1e-3)
    noise = CHANGES["gaussian_noise"](torch.full((8, 3, 32, 32), 0.5), 1) - 0.5
    assert float(noise.std()) == pytest.approx(0.08, rel=0.03)


def test_only_what_is_asked_for_is_changed() -> None:
    assert {change.probe for change in changes(("shift", "size", "receptive_field"), 32)} == {"shift", "size"}
    assert changes((), 32) == []
    levels = [change.level for change in changes(("size",), 32)]
    assert levels == [16, 24, 40, 48, 64]
