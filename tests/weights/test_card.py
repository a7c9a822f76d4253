"""What a model says about its weights."""

import pytest

from metaformer.backbones.variants import VARIANTS
from metaformer.weights.card import pretrained_cfg
from metaformer.weights.sources import SOURCES


@pytest.mark.parametrize("name", VARIANTS)
def test_cards_name_layers_that_exist(name: str) -> None:
    card = pretrained_cfg(name, VARIANTS[name], None)
    assert card["classifier"] == ("head.fc.fc2" if name.startswith(("convformer", "caformer")) else "head.fc")
    assert card["pool_size"] == (7, 7) and card["first_conv"] == "stem.conv" and card["url"] == ""


def test_published_weights_fill_the_card() -> None:
    source = SOURCES["caformer_b36.sail_in22k_ft_in1k_384"]
    card = pretrained_cfg("caformer_b36", VARIANTS["caformer_b36"], source)
    assert card["input_size"] == (3, 384, 384) and card["tag"] == source.tag and card["crop_pct"] == 1.0
