import pytest
import torch

from metaformer.layers.norm import NORMS


@pytest.mark.parametrize("name", list(NORMS))
def test_every_norm_keeps_shape_and_layout(name: str) -> None:
    x = torch.randn(2, 6, 5, 3).to(memory_format=torch.channels_last)
    y = NORMS.build(name, 6, eps=1e-5)(x)
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "axes"), [("group_norm", (1, 2, 3)), ("layer_norm", (1,)), ("batch_norm", (0, 2, 3))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_norms_are_their_definitions(name: str, axes: tuple[int, ...], bias: bool) -> None:
    norm = NORMS.build(f"{name}(bias={bias})", 6, eps=1e-3).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    assert {key for key, _ in norm.named_parameters()} == ({"weight", "bias"} if bias else {"weight"})
    x = torch.randn(4, 6, 5, 3, dtype=torch.float64) * 3 + 1
    expected = (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True, unbiased=False) + 1e-3).sqrt()
    expected = expected * norm.weight[:, None, None] + (norm.bias[:, None, None] if bias else 0)
    torch.testing.assert_close(norm(x), expected)


def test_none_is_nothing() -> None:
    x = torch.randn(1, 4, 2, 2)
    assert NORMS.build("none", 4, eps=1e-5)(x) is x
