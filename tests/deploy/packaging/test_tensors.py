from typing import NamedTuple

import torch
from torch import Tensor

import metaformer
from metaformer.deploy.optimize import named_tensors, network_outputs
from metaformer.deploy.packaging.package import OutputTuple

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}


class Said(NamedTuple):
    logits: tuple[Tensor, ...]
    sizes: list[dict[str, Tensor]]


def test_names_lead_to_tensors() -> None:
    a, b, c = torch.zeros(3, 1)
    found = dict(named_tensors(Said((a, b), [{"wide": c}])))
    assert list(found) == ["logits.0", "logits.1", "sizes.0.wide"]
    assert found["logits.1"] is b
    assert list(dict(named_tensors(a))) == ["output"]


def test_networks_in_tensors() -> None:
    x = torch.zeros(1, 3, 64, 64)
    config = metaformer.create_model("poolformer_s12", **TINY).config
    segmenter = metaformer.create_segmenter(
        "semantic_fpn", config, num_classes=3, fpn_dim=8, head_dim=8
    ).eval()
    assert network_outputs(segmenter, x)["output"].shape == (1, 3, 16, 16)
    detector = metaformer.create_detector("retinanet", config, num_classes=3, fpn_dim=8).eval()
    names = list(network_outputs(detector, x))
    assert names == [f"{kind}.{level}" for kind in ("logits", "deltas") for level in range(5)]
    assert len(OutputTuple(detector)(x)) == len(names)
