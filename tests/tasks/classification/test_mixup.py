import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.data.sampler import hash64
from metaformer.errors import ConfigError
from metaformer.tasks.classification.mixup import Mixup


def batch(size: int = 6, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, side, side, generator=generator), torch.arange(size) % 5


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_equals_timms_mixup(mixup: float, cutmix: float, probability: float) -> None:
    from timm.data import Mixup as TimmMixup

    theirs = TimmMixup(mixup, cutmix, prob=probability, switch_prob=0.5, label_smoothing=0.1, num_classes=5)
    ours = Mixup(5, mixup=mixup, cutmix=cutmix, probability=probability, seed=7)
    images, labels = batch()
    for step in range(40):
        seed = hash64(7, step, 0)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        expected = theirs(images.clone(), labels)
        got = ours(images, labels, step)
        assert torch.allclose(got[0], expected[0], atol=1e-6)
        assert torch.allclose(got[1], expected[1], atol=1e-6)


def test_depends_on_seed_step_and_part_alone() -> None:
    images, labels = batch()
    kept = images.clone()
    results = {
        (seed, step, part): Mixup(5, seed=seed)(images, labels, step, part=part)
        for seed in (0, 1)
        for step in (0, 1, 2)
        for part in (0, 1)
    }
    assert torch.equal(images, kept)
    for (seed, step, part), (mixed, targets) in results.items():
        np.random.seed(99)
        torch.manual_seed(99)
        again = Mixup(5, seed=seed)(images, labels, step, part=part)
        assert torch.equal(again[0], mixed) and torch.equal(again[1], targets)
    outcomes = [mixed for mixed, _ in results.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(outcomes) for b in outcomes[:i])


def test_does_not_touch_global_random_states() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(()).item()
    np.random.seed(0)
    torch.manual_seed(0)
    Mixup(5)(*batch(), 0)
    assert (np.random.rand(), torch.rand(()).item()) == expected


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 9),
    side=st.integers(1, 20),
    step=st.integers(0, 10**6),
    mixup=st.sampled_from([0.0, 0.2, 0.8]),
    cutmix=st.sampled_from([0.0, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_targets_are_the_shares_of_the_images(
    size: int, side: int, step: int, mixup: float, cutmix: float, smoothing: float
) -> None:
    labels = torch.arange(size)
    images = torch.nn.functional.one_hot(labels, size).float()[:, :, None, None].expand(-1, -1, side, side)
    mixed, targets = Mixup(size, mixup=mixup, cutmix=cutmix, smoothing=smoothing)(images, labels, step)
    share = mixed.mean((2, 3))  # of each class's image, since image i is 1 in channel i alone
    assert torch.allclose(targets, share * (1 - smoothing) + smoothing / size, atol=1e-5)
    assert torch.allclose(targets.sum(1), torch.ones(size), atol=1e-5)


def test_off_returns_images_and_smoothed_targets() -> None:
    images, labels = batch()
    expected = torch.nn.functional.one_hot(labels, 5) * 0.9 + 0.02
    for mix, active in [
        (Mixup(5, mixup=0, cutmix=0), True),
        (Mixup(5), False),
        (Mixup(5, probability=0), True),
    ]:
        mixed, targets = mix(images, labels, 3, active=active)
        assert torch.equal(mixed, images)
        assert torch.allclose(targets, expected)


def test_switch_chooses_mixup_or_cutmix() -> None:
    images, labels = batch(size=2)
    for switch, cut in [(0.0, 0), (1.0, 30)]:
        mix = Mixup(5, switch=switch)
        exact = 0
        for step in range(30):
            mixed, _ = mix(images, labels, step)
            exact += bool(((mixed == images) | (mixed == images.flip(0))).all())
        assert exact == cut


def test_keeps_bfloat16_and_channels_last() -> None:
    images, labels = batch()
    images = images.bfloat16().to(memory_format=torch.channels_last)
    for step in range(6):
        mixed, targets = Mixup(5)(images, labels, step)
        assert mixed.dtype == torch.bfloat16 and targets.dtype == torch.float32
        assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "options", [{"mixup": -1}, {"cutmix": -0.1}, {"probability": 2}, {"switch": -1}, {"smoothing": 3}]
)
def test_invalid_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Mixup(5, **options)
