"""Which positions the attention blocks of a stage look at."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.attribution.stages import stage_of, trunk_of


def attention_maps(network: nn.Module, x: Tensor, stage: int, heads: bool = True) -> list[Tensor]:
    """Weights (heads, h, w, h, w) of each attention block of a stage, of one input (1, C, H, W).

    The first two positions are those that look, the last two those that are looked at; over these the weights
    sum to one. A stage without attention has none; a mixer with it has a method `attention_weights`.

    Args:
        network: classifier, segmenter or detector.
        x: the input.
        stage: from 0; −1 for the last.
        heads: keep them apart; else there is their mean alone, in far less memory.
    """
    blocks: Any = stage_of(network, stage).blocks
    mixers = [block.token_mixer for block in blocks if hasattr(block.token_mixer, "attention_weights")]
    found: list[Tensor] = []

    def keep(mixer: Any, args: tuple[Tensor, ...]) -> None:
        grid = args[0].shape[2:]
        weights = mixer.attention_weights(args[0])[0].float()
        weights = weights if heads else weights.mean(0, keepdim=True)
        found.append(weights.unflatten(2, grid).unflatten(1, grid))

    if not mixers:
        return found
    hooks = [mixer.register_forward_pre_hook(keep) for mixer in mixers]
    try:
        with torch.inference_mode():
            trunk_of(network).forward_features(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def attention_rollout(maps: Sequence[Tensor]) -> Tensor:
    """What each position takes of each through all blocks: (h, w, h, w), like `maps`.

    Heads are averaged and half of a block is its residual connection, https://arxiv.org/abs/2005.00928.

    Args:
        maps: weights (heads, h, w, h, w) of each block, in order.
    """
    grid = maps[0].shape[1:3]
    blocks = [weights.mean(0).flatten(2).flatten(0, 1) for weights in maps]  # each (N, N)
    rolled = same = torch.eye(len(blocks[0]), dtype=blocks[0].dtype, device=blocks[0].device)
    for weights in blocks:
        rolled = (weights + same) / 2 @ rolled
    return rolled.unflatten(1, grid).unflatten(0, grid)


def attention_received(network: nn.Module, x: Tensor, stage: int) -> Tensor | None:
    """How much all positions together take of each: (h, w), mean 1; None for a stage without attention.

    Args:
        network: classifier, segmenter or detector.
        x: one input (1, C, H, W).
        stage: from 0; −1 for the last.
    """
    maps = attention_maps(network, x, stage, heads=False)
    return attention_rollout(maps).sum((0, 1)) if maps else None
