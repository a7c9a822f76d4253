from dataclasses import replace

import pytest
import torch

import metaformer
from metaformer.deploy.packaging.input_limits import InputLimits, limits_for
from metaformer.errors import ConfigError, SizeError

LIMITS = InputLimits((2, 4), 3, (64, 96), (64, 64), "float32", "cpu")
TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (64, 64), "num_classes": 5}


def test_what_fits_is_let_in() -> None:
    for shape in ((2, 3, 64, 64), (4, 3, 96, 64)):
        LIMITS.check(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ((1, 3, 64, 64), "batch of 1"),
        ((5, 3, 64, 64), "batch of 5"),
        ((2, 3, 97, 64), "height of 97"),
        ((2, 3, 64, 63), "width of 63"),
        ((2, 1, 64, 64), r"got \(2, 1, 64, 64\)"),
        ((3, 64, 64), r"got \(3, 64, 64\)"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], field: str) -> None:
    with pytest.raises(SizeError, match=f"{field}.*2…4 images of 64…96×64 pixels, float32 on cpu"):
        LIMITS.check(torch.zeros(shape))


def test_another_type_or_device() -> None:
    images = torch.zeros(2, 3, 64, 64)
    with pytest.raises(ConfigError, match=r"torch.bfloat16 on cpu: the package takes"):
        LIMITS.check(images.bfloat16())
    with pytest.raises(ConfigError, match=r"on meta: the package takes"):
        LIMITS.check(images.to("meta"))


def test_there_and_back() -> None:
    assert InputLimits.from_dict(LIMITS.to_dict()) == LIMITS
    with pytest.raises(ConfigError, match="height is 9 … 8"):
        replace(LIMITS, height=(9, 8))
    with pytest.raises(ConfigError, match="dtype"):
        _ = replace(LIMITS, dtype="load").torch_dtype


def test_limits_of_a_network() -> None:
    model = metaformer.create_model("poolformer_s12", **TINY)
    assert limits_for(model, (1, 8), None, None).height == (64, 64)
    assert limits_for(model, (1, 8), None, torch.zeros(1, 3, 64, 96)).width == (96, 96)
    assert limits_for(model, (1, 8), "dynamic", None).height == (35, 4096)
    assert limits_for(model, (1, 8), (35, 70), None).width == (35, 70)
    with pytest.raises(ConfigError, match=r"size 34 … 70.* 35 pixels"):
        limits_for(model, (1, 8), (34, 70), None)
    with pytest.raises(ConfigError, match="batch is 0 … 8"):
        limits_for(model, (0, 8), None, None)


def test_a_detector_begins_where_its_coarsest_level_has_two_positions() -> None:
    backbone = metaformer.create_model("poolformer_s12", **TINY).config
    detector = metaformer.create_detector("retinanet", backbone, num_classes=3, fpn_dim=8)
    least, _ = limits_for(detector, (1, 8), "dynamic", None).height
    with torch.no_grad():
        assert detector.eval().forward_head(torch.zeros(1, 3, least, least)).logits[-1].shape[2:] == (2, 2)
        assert detector.forward_head(torch.zeros(1, 3, least - 1, least)).logits[-1].shape[2:] == (1, 2)
