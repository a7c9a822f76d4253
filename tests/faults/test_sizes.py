"""Item 15: an input of any size gives the documented shape, or an error that names the required size."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from faults.networks import structures
from faults.run import Tally
from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.errors import GridError, SizeError
from metaformer.factory import list_models

WHAT = "sizes: any H, W ≤ 512, batch ≤ 4, channels give the shape or say what is needed"
KINDS = structures()


@pytest.mark.parametrize("config", KINDS, ids=lambda config: KINDS[config][0])
def test_any_size_gives_the_shape_or_an_error(
    config: MetaFormerConfig, tally: Tally, often: Callable[[int, int], int]
) -> None:
    networks = {
        (chans, mode): MetaFormer(replace(config, in_chans=chans, grid_mode=mode)).eval()
        for chans in (1, 3, 4)
        for mode in ("strict", "interpolate")
    }

    @settings(
        max_examples=often(6, 60),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(
        st.one_of(st.integers(1, 512), st.integers(1, 20)),
        st.one_of(st.integers(1, 512), st.integers(1, 20)),
        st.integers(0, 4),
        st.sampled_from([1, 3, 4]),
        st.sampled_from([1, 3, 3, 4]),
        st.sampled_from(["strict", "interpolate"]),
    )
    def attempt(height: int, width: int, batch: int, chans: int, wanted: int, mode: str) -> None:
        wrong = _wrong(networks[wanted, mode], torch.randn(batch, chans, height, width))
        tally("15", WHAT, not wrong, wrong)

    attempt()


@torch.inference_mode()
def _wrong(network: MetaFormer, x: Tensor) -> str:
    """What is not as documented, or nothing."""
    config, (batch, chans, height, width) = network.config, x.shape
    try:
        logits = network(x)
    except GridError as error:
        grid = f"{height}×{width}"
        explained = "made for a grid of" in str(error) and "grid_mode='interpolate'" in str(error)
        return "" if explained and config.grid_mode == "strict" else f"{grid}: {error}"
    except SizeError as error:
        if chans != config.in_chans:
            return "" if f"expected images (B, {config.in_chans}, H, W)" in str(error) else str(error)
        least = network.min_size
        small = min(height, width) < least
        return "" if small and f"at least {least}×{least}" in str(error) else str(error)
    except Exception as error:
        return f"{tuple(x.shape)}: {type(error).__name__}: {error}"
    if logits.shape != (batch, config.num_classes) or not logits.isfinite().all():
        return f"{tuple(x.shape)} gave {tuple(logits.shape)}, or values that are not finite"
    if chans != config.in_chans or min(height, width) < network.min_size:
        return f"{tuple(x.shape)} should have been refused"
    return ""


def test_every_registered_network_is_covered() -> None:
    assert sorted(name for names in KINDS.values() for name in names) == sorted(list_models())
