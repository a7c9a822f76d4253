import pytest
import torch
import torch.nn.functional as F

from metaformer.ops import onednn

PLAIN = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("act", list(onednn.EPILOGUES))
def test_product_then_activation(act: str, packed: bool) -> None:
    x, weight, bias = torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4)
    found = onednn.product(x, onednn.pack(weight) if packed else weight, bias, act)
    torch.testing.assert_close(found, PLAIN[act](F.linear(x, weight, bias)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_then_sum(dtype: torch.dtype) -> None:
    x, weight, other = (torch.randn(*size, dtype=dtype) for size in ((6, 5), (4, 5), (6, 4)))
    if not onednn.usable(x):
        pytest.skip("this processor's oneDNN has no bfloat16")
    found, wanted = onednn.product(x, weight, None, plus=other), F.linear(x.double(), weight.double()) + other
    rounding = torch.finfo(dtype).eps * 8
    torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=rounding)


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    assert onednn.usable(x)
    assert not onednn.usable(x.double()) and not onednn.usable(x.to("meta"))
    assert not onednn.usable(x.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.usable(x)
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    assert not onednn.usable(x)
