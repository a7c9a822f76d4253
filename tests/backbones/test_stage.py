from dataclasses import replace

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.stage import Recompute, Stage
from metaformer.layers.drop_path import DropPath

CONFIG = MetaFormerConfig(
    depths=(1, 3), dims=(4, 4), mlp_ratios=(2, 2), mixers=("pooling", "pooling"), layer_scale=(1.0, 1.0),
    res_scale=(None, None), pos_embed=(False, True), downsamples=(True,), drop_path_rate=0.3,
    image_size=(32, 32),
)  # fmt: skip


def test_downsample_position_blocks() -> None:
    stage = Stage(CONFIG, 1).eval()
    torch.nn.init.normal_(stage.pos_embed.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(stage(x), stage.blocks(stage.downsample(x) + stage.pos_embed.weight))
    assert stage(x).shape == (2, 4, 4, 4)


def test_drop_path_grows_over_the_whole_network() -> None:
    rates = [m.rate for i in (0, 1) for m in Stage(CONFIG, i).modules() if isinstance(m, DropPath)]
    torch.testing.assert_close(rates[::2], [0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_checkpointing_gives_the_same_gradients(dtype: torch.dtype) -> None:
    stage = Stage(CONFIG, 1).to(dtype).train()
    grads = []
    modes: tuple[Recompute, ...] = (False, True, "mlp")
    for on in modes:
        torch.manual_seed(0)
        stage.grad_checkpointing = on
        stage.zero_grad()
        stage(torch.ones(2, 4, 8, 8, dtype=dtype)).square().sum().backward()
        grads.append([p.grad.clone() for p in stage.parameters() if p.grad is not None])
    for plain, *others in zip(*grads, strict=True):
        for other in others:
            torch.testing.assert_close(other, plain)


def test_stage_without_downsampling() -> None:
    stage = Stage(replace(CONFIG, downsamples=(False,), pos_embed=(False, False)), 1)
    assert stage(torch.randn(1, 4, 8, 8)).shape == (1, 4, 8, 8)
