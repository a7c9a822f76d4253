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


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_convolution(biased: bool, groups: int) -> None:
    x, weight = torch.randn(2, 8, 9, 7), torch.randn(12, 8 // groups, 3, 3)
    bias = torch.randn(12) if biased else None
    geometry = [2, 1], [1, 2], [1, 1], groups
    packed = onednn.pack_convolution(weight, x.shape, geometry)
    found = onednn.convolution(x, packed, bias, geometry)
    wanted = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), *geometry)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    assert onednn.usable(x)
    assert not onednn.usable(x.double()) and not onednn.usable(x.to("meta"))
    assert not onednn.usable(x.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.usable(x)
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    assert not onednn.usable(x)
