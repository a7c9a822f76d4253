import pytest
import torch

from metaformer.layers.act import SquaredReLU, StarReLU
from metaformer.ops.star_relu import reference, star_relu_


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_is_the_activation(count: int, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(count).to(dtype)
    with torch.no_grad():
        wanted = StarReLU(0.8, -0.4)(x.double())
    found = star_relu_(x.clone(), 0.8, -0.4)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        star_relu_(x.clone()).double(), SquaredReLU()(x.double()), rtol=tolerance, atol=1e-6
    )


def test_takes_the_place_of_its_input() -> None:
    x = torch.tensor([-2.0, 3.0, torch.nan])
    found = star_relu_(x, 2.0, 1.0)
    assert found.tolist()[:2] == [1.0, 19.0] and found[2].isnan()


def test_plain_form_leaves_its_input() -> None:
    x = torch.tensor([-2.0, 3.0], requires_grad=True)
    star_relu_(x, 2.0, 1.0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 12.0]
    assert reference(x, 1.0, 0.0).tolist() == [0.0, 9.0] and x.tolist() == [-2.0, 3.0]
