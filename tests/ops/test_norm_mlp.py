import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
from metaformer.ops.norm_mlp import norm_mlp

sides = st.integers(1, 7)


class Half(nn.Module):
    """The second half of a block, of this library's layers."""

    def __init__(self, dim: int, norm: str, act: str) -> None:
        super().__init__()
        self.norm, self.mlp, self.scale = NORMS.build(norm, dim), Mlp(dim, 2 * dim, act=act), Scale(dim)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(self.mlp(self.norm(x)))

    def fused(self, x: Tensor) -> Tensor:
        fc1, fc2, act = self.mlp.fc1, self.mlp.fc2, self.mlp.act
        return norm_mlp(
            x, fc1.weight, fc1.bias, fc2.weight, fc2.bias,
            norm={"GroupNorm": "group_norm", "LayerNorm": "layer_norm", "NoNorm": "none"}[
                type(self.norm).__name__
            ],
            gamma=getattr(self.norm, "weight", None), beta=getattr(self.norm, "bias", None),
            act={"GELU": "gelu", "StarReLU": "star_relu", "SquaredReLU": "squared_relu", "ReLU": "relu"}[
                type(act).__name__
            ],
            act_scale=getattr(act, "scale", None), act_bias=getattr(act, "bias", None),
            scale=self.scale.scale,
        )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 3), st.integers(2, 9), sides, sides,
    st.sampled_from(["group_norm", "layer_norm", "none"]),
    st.sampled_from(["gelu", "star_relu", "squared_relu", "relu"]),
)  # fmt: skip
def test_is_norm_mlp_scale_and_shortcut(
    batch: int, dim: int, height: int, width: int, norm: str, act: str
) -> None:
    torch.manual_seed(0)
    half = Half(dim, norm, act).double()
    x = torch.randn(batch, dim, height, width, dtype=torch.float64, requires_grad=True)
    got, wanted = half.fused(x), half(x)
    torch.testing.assert_close(got, wanted)
    inputs = (x, *half.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(got.square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_shortcuts() -> None:
    x, w1, w2, each = torch.randn(2, 4, 3, 3), torch.randn(6, 4), torch.randn(4, 6), torch.randn(4)
    branch = norm_mlp(x, w1, None, w2, None, shortcut=None)
    torch.testing.assert_close(norm_mlp(x, w1, None, w2, None), x + branch)
    torch.testing.assert_close(norm_mlp(x, w1, None, w2, None, shortcut=0.5), 0.5 * x + branch)
    torch.testing.assert_close(
        norm_mlp(x, w1, None, w2, None, shortcut=each), x * each[:, None, None] + branch
    )


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"norm": "batch_norm"}, "unknown norm"),
        ({"act": "silu"}, "unknown act"),
        ({"act": "star_relu"}, "star_relu"),
        ({"act": "gelu", "act_scale": torch.ones(1)}, "star_relu"),
    ],
)
def test_what_no_form_knows_is_refused(words: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        norm_mlp(torch.zeros(1, 2, 1, 1), torch.zeros(2, 2), None, torch.zeros(2, 2), None, **words)  # type: ignore[arg-type]


def test_autocast_chooses_the_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm_mlp(torch.randn(1, 2, 3, 3), torch.randn(4, 2), None, torch.randn(2, 4), None)
    assert y.dtype == torch.bfloat16


def test_compiles_whole() -> None:
    half = Half(4, "group_norm", "gelu")
    x = torch.randn(1, 4, 5, 5)
    compiled = torch.compile(half.fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), half(x))
