"""Model cards."""

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.models.build import DENSE_KINDS, NetworkConfig, build_network
from metaformer.weights.card import pretrained_cfg
from metaformer.weights.sources import SOURCES

CONFIGS: dict[str, NetworkConfig] = {
    **VARIANTS,
    **{
        f"{head}_poolformer_s12": kind.config(kind=head, backbone=VARIANTS["poolformer_s12"], num_classes=7)
        for kind in DENSE_KINDS
        for head in kind.heads
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_cards_name_layers_that_exist(name: str) -> None:
    config = CONFIGS[name]
    card = pretrained_cfg(name, config, None)
    with torch.device("meta"):
        model = build_network(config)
    assert model.get_submodule(card["classifier"]) and model.get_submodule(card["first_conv"])
    assert card["num_classes"] == config.num_classes and card["url"] == "" and "data" not in card
    assert card.get("pool_size") == ((7, 7) if isinstance(config, MetaFormerConfig) else None)


def test_published_weights_fill_the_card() -> None:
    source = SOURCES["caformer_b36.sail_in22k_ft_in1k_384"]
    card = pretrained_cfg("caformer_b36", VARIANTS["caformer_b36"], source)
    assert card["input_size"] == (3, 384, 384) and card["tag"] == source.tag and card["crop_pct"] == 1.0
    source = SOURCES["mask_rcnn_poolformer_s12.sail_coco_1x"]
    card = pretrained_cfg(source.model, CONFIGS[source.model], source)
    assert card["url"] == source.url and card["data"] == "coco" and card["num_classes"] == 80
    assert card["input_size"] == (3, 800, 1333) and "crop_pct" not in card
