import pytest
import torch

from metaformer.mixers import MIXERS


@pytest.mark.parametrize("kernel", [3, 5])
def test_three_branches_weighted_per_channel(kernel: int) -> None:
    mixer = MIXERS.build(f"cycle_mlp(kernel={kernel}, qkv_bias=True)", 8).double()
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    h, w, c = mixer.sfc_h(x), mixer.sfc_w(x), mixer.mlp_c(x)
    logits = mixer.reweight((h + w + c).mean((2, 3), keepdim=True)).flatten(
        1
    )  # (B, 3C), a channel's three together
    weights = logits.reshape(2, 8, 3).softmax(-1)[..., None, None]
    expected = mixer.proj(weights[:, :, 0] * h + weights[:, :, 1] * w + weights[:, :, 2] * c)
    torch.testing.assert_close(mixer(x), expected)


def test_the_published_names_are_swapped() -> None:
    mixer = MIXERS.build("cycle_mlp", 8)
    assert (mixer.sfc_h.axis, mixer.sfc_w.axis) == ("width", "height")
