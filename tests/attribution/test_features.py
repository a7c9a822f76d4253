"""Principal components against numpy's eigenvectors of the covariance."""

import numpy as np
import torch

from metaformer.attribution.features import pca_colors, principal_components, stage_features
from metaformer.factory import create_detector, create_model


def test_components_are_those_of_the_covariance() -> None:
    features = torch.randn(12, 7, 5, generator=torch.Generator().manual_seed(0))
    points = features.numpy().reshape(12, 35).astype(np.float64)
    points -= points.mean(axis=1, keepdims=True)
    variances, axes = np.linalg.eigh(points @ points.T / 35)
    found = principal_components(features)
    assert found.shape == (3, 7, 5)
    for component, number in zip(found, (-1, -2, -3), strict=True):
        axis = axes[:, number]
        expected = (axis * np.sign(axis[np.abs(axis).argmax()])) @ points
        np.testing.assert_allclose(component.numpy().ravel(), expected, atol=1e-6)
        np.testing.assert_allclose(component.square().mean(), variances[number], rtol=1e-6)


def test_components_that_the_positions_lack_are_zero_and_gray() -> None:
    ramp = torch.arange(6.0).reshape(1, 2, 3) * torch.tensor([1.0, -2.0, 0.5, 0.0])[:, None, None]
    components = principal_components(ramp)
    assert components[0].unique().numel() == 6 and not components[1:].any()
    colors = pca_colors(ramp)
    assert colors[0].min() == 0 and colors[0].max() == 1 and (colors[1:] == 0.5).all()
    assert (pca_colors(torch.full((8, 4, 4), 3.0)) == 0.5).all(), "features that are equal everywhere"
    assert pca_colors(torch.randn(8, 1, 1)).tolist() == [[[0.5]]] * 3
    assert pca_colors(torch.randn(2, 3, 3)).shape == (3, 3, 3), "two channels"


def test_alike_positions_have_alike_colors() -> None:
    features = torch.randn(16, 8, 8) * 0.01
    features[:, 2:5, 3:6] += torch.randn(16, 1, 1)
    colors = pca_colors(features)
    inside, outside = colors[0, 2:5, 3:6], colors[0, 5:]
    assert (inside.mean() - outside.mean()).abs() > 0.7


def test_stages_of_classifiers_and_backbones() -> None:
    x = torch.randn(1, 3, 64, 64)
    for network in (create_model("poolformer_n"), create_detector("mask_rcnn", "poolformer_n")):
        assert [level.shape[2] for level in stage_features(network, x)] == [16, 8, 4, 2]
