import pytest
import torch
from torch import nn

from metaformer.deploy.packaging.input_limits import InputLimits
from metaformer.deploy.packaging.package import compare, trial_batches
from metaformer.deploy.packaging.packaged import FORMAT, Packaged
from metaformer.errors import OptimizeError

LIMITS = InputLimits((1, 8), 3, (64, 512), (64, 512), "float32", "cpu")
NOTES = {"format": FORMAT, "inputs": LIMITS.to_dict(), "outputs": ["output"]}


def test_two_batches_of_two_sizes() -> None:
    network = nn.Conv2d(3, 4, 1)
    first, second = trial_batches(network, LIMITS, None)
    assert first.shape == (1, 3, 64, 64) and second.shape == (3, 3, 69, 101)
    sample = torch.ones(20, 3, 128, 64)
    first, second = trial_batches(network, LIMITS, sample)
    assert first.shape == (8, 3, 128, 64) and second.shape == (3, 3, 69, 101)
    first, _ = trial_batches(network, LIMITS, torch.ones(2, 3, 32, 32))
    assert first.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 5e-5), (torch.bfloat16, 0.06)])
def test_rounding_is_let_pass_and_more_is_not(dtype: torch.dtype, rounding: float) -> None:
    network, images = nn.Conv2d(3, 4, 1), torch.randn(2, 3, 64, 64)
    wanted = {"output": network(images).detach().to(dtype)}
    largest = wanted["output"].abs().max()
    near = Packaged(NOTES, lambda _: [wanted["output"] + rounding * largest])
    assert compare(near, [(images, wanted)]) == pytest.approx(rounding, rel=0.2)
    for factor in (4 * rounding, float("nan")):
        far = Packaged(NOTES, lambda _, factor=factor: [wanted["output"] + factor * largest])
        with pytest.raises(OptimizeError, match="of the largest output on images"):
            compare(far, [(images, wanted)])
