"""The effective receptive field against RepLKNet's published rule, written anew, and against openerf."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metaformer.attribution.receptive_field import (
    SHARES,
    ReceptiveField,
    receptive_field,
    smallest_square,
    token_gradient,
)
from metaformer.factory import create_model


def published_square(scores: np.ndarray, share: float) -> tuple[int, float] | None:
    """Grow a square around the center, two pixels a step, until it holds more than the share."""
    height, width = scores.shape
    for i in range(1, height // 2):
        part = scores[height // 2 - i : height // 2 + i + 1, width // 2 - i : width // 2 + i + 1]
        if part.sum() / scores.sum() > share:
            return 2 * i + 1, (2 * i + 1) / height * (2 * i + 1) / width
    return None


def published_field(features: Callable[[Tensor], Tensor], images: list[Tensor]) -> np.ndarray:
    """Mean over images of the positive gradients, summed over channels; log10(x + 1), normalized."""
    maps = []
    for image in images:
        x = image.clone().requires_grad_()
        output = features(x)
        F.relu(output[:, :, output.shape[2] // 2, output.shape[3] // 2]).sum().backward()
        assert x.grad is not None
        maps.append(F.relu(x.grad).sum((0, 1)).double().numpy())
    scores = np.log10(np.mean(maps, axis=0) + 1)
    return scores / scores.max()


@pytest.mark.parametrize("side", [40, 41])
def test_squares_are_those_of_the_published_rule(side: int) -> None:
    random = np.random.RandomState(0)
    row = np.exp(-(((np.arange(side) - side // 2) / 6) ** 2))
    for scores in (np.outer(row, row), random.rand(side, side), np.outer(row, np.ones(side))):
        for share in (*SHARES, 0.001):
            expected = published_square(scores, share)
            found = smallest_square(torch.from_numpy(scores), share)
            assert (found.side, found.ratio) == pytest.approx(expected or (side, 1.0))


def test_fields_are_those_of_the_published_rule() -> None:
    torch.manual_seed(0)
    network = create_model("poolformer_n", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)).eval()
    images = [torch.randn(1, 3, 96, 96) for _ in range(3)]
    field = receptive_field(network.forward_features, images)
    expected = published_field(network.forward_features, images)
    np.testing.assert_allclose(field.scores.numpy(), expected, rtol=1e-5, atol=1e-9)
    assert [one.side for one in field.squares()] == [
        (published_square(expected, share) or (96, 1.0))[0] for share in SHARES
    ]


def test_the_field_of_a_convolution_is_its_kernel() -> None:
    network = nn.Conv2d(3, 4, 7, padding=3)
    with torch.no_grad():
        network.weight.fill_(1.0)
    (square,) = receptive_field(network, [torch.ones(1, 3, 64, 64)]).squares([0.999])
    assert square == (0.999, 7, 49 / 64**2)


def test_no_gradient_at_all_is_a_field_of_zeros() -> None:
    field = ReceptiveField(torch.zeros(8, 8))
    assert not field.scores.any() and not field.scores.isnan().any()
    assert [one.side for one in field.squares()] == [8] * 4


def test_what_a_position_of_a_stage_looks_at() -> None:
    torch.manual_seed(0)
    pooled = create_model("poolformer_n", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), norm="batch_norm").eval()
    x = torch.randn(1, 3, 64, 64)
    seen = token_gradient(pooled, x, 0, (5, 6))
    rows, columns = seen.nonzero(as_tuple=True)
    assert seen.shape == (16, 16)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 6, 5, 7), "a window of 3×3"
    everywhere = create_model(
        "poolformer_n", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), mixers="attention"
    ).eval()
    assert (token_gradient(everywhere, x, 1) > 0).all(), "attention looks everywhere"


def test_the_gradient_of_a_position_is_that_of_differences() -> None:
    torch.manual_seed(0)
    network = create_model("poolformer_n", depths=(1, 1, 1, 1), dims=(4, 6, 8, 8)).double().eval()
    x, step = torch.randn(1, 3, 64, 64, dtype=torch.float64), 1e-6
    seen = token_gradient(network, x, 1, (3, 5))
    assert seen.shape == (16, 16), "the input of the stage, before it is halved"
    with torch.no_grad():
        given = network.stages[0](network.stem(x))
        for row, column in ((6, 10), (7, 11), (5, 9)):
            slopes = []
            for channel in range(4):
                moved = [given.clone(), given.clone()]
                moved[0][0, channel, row, column] += step
                moved[1][0, channel, row, column] -= step
                up, down = (network.stages[1](one)[0, :, 3, 5].sum() for one in moved)
                slopes.append((up - down) / (2 * step))
            expected = torch.stack(slopes).norm().item()
            assert expected > 0 and seen[row, column].item() == pytest.approx(expected, rel=1e-4)


class _Gray(nn.Module):
    """A network given the mean of the channels: the order of their sum and its positive part is the same."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.pretrained_cfg = {
            "input_size": (3, 896, 896), "crop_pct": 1.0, "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x.mean(1, keepdim=True).expand(-1, 3, -1, -1))


@pytest.mark.oracle
def test_sides_are_those_of_openerf(photographs: list[Image.Image], tmp_path: Path) -> None:
    import openerf
    import timm
    from openerf.data import build_timm_eval_transform

    torch.manual_seed(0)
    network = _Gray(timm.create_model("resnet50", zero_init_last=False)).eval()
    for number, image in enumerate(photographs[:3]):
        image.save(tmp_path / f"{number}.png")
    theirs = openerf.compute_erf(
        network, image_dir=tmp_path, target_layer="network.layer4", device="cpu", show_progress=False
    ).erf_map
    transform, _ = build_timm_eval_transform(network)
    inputs = [transform(Image.open(file))[None] for file in sorted(tmp_path.glob("*.png"))]
    ours = receptive_field(network, inputs)
    factor = float(ours.gradients.sum() / theirs.sum())  # theirs is normalized before the logarithm
    scores = np.log10(theirs * factor + 1)
    sides = [square.side for square in ours.squares()]
    expected = [(published_square(scores, share) or (896, 1.0))[0] for share in SHARES]
    print("resnet50 at 896×896, shares", SHARES, "ours", sides, "openerf", expected)
    assert np.abs(np.subtract(sides, expected)).max() <= 1
