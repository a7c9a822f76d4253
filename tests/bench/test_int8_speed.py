import json

import torch
from torch import Tensor, nn

import metaformer
from metaformer.bench.int8_speed import FORMS, measure_int8


class Small(nn.Module):
    """In the place of an int8 network: it takes float32 images of its size and gives logits."""

    in_chans, image_size = 3, (32, 32)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 32, 32) and images.dtype == torch.float32
        return images.mean((2, 3))


def test_rounds_and_table() -> None:
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (32, 32)}
    model = metaformer.create_model("poolformer_s12", num_classes=3, **tiny).eval()
    speed = measure_int8(model, Small(), (1, 2), rounds=2)
    values = json.loads(json.dumps(speed.to_dict()))
    assert set(values["seconds"]) == {"1", "2"}
    for row in values["seconds"].values():
        assert tuple(row) == FORMS and all(len(rounds) == 2 and min(rounds) > 0 for rounds in row.values())
    _, head, first, second = speed.text().splitlines()
    assert head.split()[:4] == ["batch", *FORMS]
    assert first.startswith("1 ") and second.startswith("2 ") and second.endswith("× bfloat16")
