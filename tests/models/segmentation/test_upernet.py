"""UperNet's head; that it equals transformers' is in tests/test_transformers.py."""

import torch

from metaformer.models.segmentation.upernet import UperNetHead


def test_maps_of_any_size() -> None:
    head = UperNetHead((8, 12, 16), 6, 5, 0.1).eval()
    for sizes in ([(16, 16), (8, 8), (4, 4)], [(13, 7), (7, 4), (4, 2)], [(1, 1)] * 3):
        maps = [torch.randn(1, dim, *size) for dim, size in zip((8, 12, 16), sizes, strict=True)]
        with torch.no_grad():
            logits = head(maps)
        assert logits.shape == (1, 5, *sizes[0]) and logits.isfinite().all()


def test_one_map_is_enough() -> None:
    head = UperNetHead((8,), 6, 5, 0.0).eval()
    assert head([torch.randn(1, 8, 9, 9)]).shape == (1, 5, 9, 9)
