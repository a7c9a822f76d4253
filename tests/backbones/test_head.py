import pytest
import torch

from metaformer.backbones.config import HEADS, MetaFormerConfig
from metaformer.backbones.head import Head

X = torch.randn(3, 8, 4, 5)


def head(**changes: object) -> Head:
    return Head(MetaFormerConfig(dims=(2, 2, 2, 8), num_classes=5, **changes))  # type: ignore[arg-type]


def test_order_of_norm_and_average_matters() -> None:
    first, last = head(head="norm_pool_fc", norm="layer_norm"), head(head="pool_norm_fc")
    last.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(X), first.fc(first.norm(X).mean((2, 3))))
    torch.testing.assert_close(last(X), last.fc(last.norm(X.mean((2, 3)))))
    assert not torch.allclose(first(X), last(X))


@pytest.mark.parametrize("name", HEADS)
def test_every_head_drops_classifies_and_resets(name: str) -> None:
    built = head(head=name, head_dropout=0.5)
    assert built(X).shape == (3, 5)
    assert not torch.equal(built.train()(X), built(X))
    assert torch.equal(built.eval()(X), built(X))
    assert built(X, pre_logits=True).shape == (3, 8)
    built.reset(8, 9, "")
    assert built(X).shape == (3, 9, 4, 5)
    built.reset(8, 0, "max")
    assert built(X).shape == (3, 8)


def test_max_pooling() -> None:
    built = head(head="norm_pool_fc", norm="none", global_pool="max")
    torch.testing.assert_close(built(X, pre_logits=True), X.amax((2, 3)))


def test_mlp_head_norm_has_its_own_epsilon() -> None:
    built = head(head="pool_norm_mlp", norm_eps=1e-6)
    assert (built.norm.eps, built.fc.norm.eps) == (1e-6, 1e-5)
