"""Stage of the network: downsampling, position embedding, and the blocks of one resolution."""

from typing import Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaformer.backbones.block import build_block
from metaformer.backbones.config import MetaFormerConfig
from metaformer.layers.embed import Downsample, PositionEmbedding
from metaformer.layers.init import init_part

Recompute = bool | Literal["mlp"]
"""What the backward pass recomputes: nothing, whole blocks, or the hidden activations of their MLPs."""


class Stage(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, config: MetaFormerConfig, stage: int) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.grad_checkpointing: Recompute = False
        self.downsample: nn.Module = nn.Identity()
        if stage > 0 and config.downsampled(stage):
            self.downsample = init_part(
                "downsample",
                Downsample,
                config.dims[stage - 1],
                dim,
                config.down_kernel,
                config.down_stride,
                config.down_padding,
                order=config.down,
                norm=config.embed_norm,
                eps=config.norm_eps,
            )
        self.pos_embed: nn.Module = nn.Identity()
        if config.pos_embed[stage]:
            grid = config.grid(stage)
            self.pos_embed = init_part("pos_embed", PositionEmbedding, dim, grid, config.grid_mode)
        first, last = sum(config.depths[:stage]), max(1, sum(config.depths) - 1)
        rates = (config.drop_path_rate * (first + i) / last for i in range(config.depths[stage]))
        mixers = zip(config.block_mixers(stage), rates, strict=True)
        self.blocks = nn.Sequential(
            *(init_part(f"blocks.{i}", build_block, config, stage, *one) for i, one in enumerate(mixers))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H_in, W_in) to (B, C, H, W) of this stage."""
        x = self.pos_embed(self.downsample(x))
        if not self.grad_checkpointing or not self.training:
            return self.blocks(x)
        for block in self.blocks:
            if self.grad_checkpointing == "mlp":
                x = block(x, recompute_mlp=True)
            else:
                x = checkpoint(block, x, use_reentrant=False)
        return x
