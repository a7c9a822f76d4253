import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.block import Block, build_mixer
from metaformer.backbones.config import MetaFormerConfig
from metaformer.layers.drop_path import DropPath
from metaformer.layers.scale import Scale

TINY = {"depths": (1,), "dims": (6,), "downsamples": (), "pos_embed": (False,), "mlp_ratios": (2,)}


def block(**changes: object) -> Block:
    fields = {**TINY, "mixers": ("pooling",), "layer_scale": (0.5,), "res_scale": (None,), **changes}
    made = Block(MetaFormerConfig(**fields), 0, fields["mixers"][0], 0.0)  # type: ignore[arg-type,index]
    return made.double()


X = torch.randn(2, 6, 5, 5, dtype=torch.float64)


def test_two_scaled_branches_beside_shortcuts() -> None:
    b = block(res_scale=(2.0,), skip_lam=4.0)
    x = 2 * X + 0.5 * b.token_mixer(b.norm1(X)) / 4
    torch.testing.assert_close(b(X), 2 * x + 0.5 * b.mlp(b.norm2(x)) / 4)


def test_no_residual_and_no_mlp() -> None:
    torch.testing.assert_close(
        block(residual=False, mlp_ratios=(0,), layer_scale=(None,))(X), block().token_mixer(block().norm1(X))
    )
    assert not any(name.startswith(("mlp", "norm2")) for name, _ in block(mlp_ratios=(0,)).named_parameters())


class Fused(nn.Module):
    """A mixer whose fast form is told norm and scale; `calls` proves that it ran."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def fused(self, x: Tensor, norm: nn.Module, scale: nn.Module) -> Tensor:
        self.calls += 1
        return scale(norm(x).flip(-1))


class Plain(Fused):
    """The same without the fast form."""

    fused = None  # type: ignore[assignment]


def test_a_fused_form_is_used_where_the_mixer_has_one() -> None:
    fused, plain = block(mixers=(Fused,)), block(mixers=(Plain,))
    plain.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(X), plain(X))
    assert fused.token_mixer.calls == 1 and plain.token_mixer.calls == 0


def test_drop_path_drops_both_branches() -> None:
    b = block().train()
    b.drop_path1, b.drop_path2 = DropPath(0.999999), DropPath(0.999999)
    assert torch.equal(b(X), X)


def test_scales_start_at_their_values() -> None:
    scales = [m.scale.unique().tolist() for m in block(res_scale=(3.0,)).modules() if isinstance(m, Scale)]
    assert sorted(scales) == [[0.5], [0.5], [3.0], [3.0]]


@pytest.mark.parametrize("spec", ["identity", nn.Identity, lambda dim: nn.Conv2d(dim, dim, 1)])
def test_mixers_by_name_class_or_callable(spec: object) -> None:
    assert build_mixer(spec, 6, (5, 5), "strict")(X.float()).shape == X.shape  # type: ignore[arg-type]
