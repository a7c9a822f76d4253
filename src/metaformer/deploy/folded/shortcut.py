"""What goes past a branch."""

from torch import Tensor, nn

from metaformer.deploy.folded.prepared import Prepared
from metaformer.deploy.folded.product import Product
from metaformer.layers.scale import Scale


class Shortcut(Prepared):
    """The tokens (B, H, W, C) as they are, times ResScale, or none at all."""

    def __init__(self, res_scale: nn.Module, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.scale = (
            nn.Parameter(res_scale.scale.detach().clone(), requires_grad=False)
            if isinstance(res_scale, Scale)
            else None
        )

    @property
    def factor(self) -> float | Tensor | None:
        """What the tokens are multiplied with, as the operations of `ops` take it."""
        return (1.0 if self.scale is None else self.scale) if self.residual else None

    @property
    def keep(self) -> Tensor | None:
        """The tokens' factor (C,) in float32, as the C++ kernels take it."""
        scale = self.scale
        return None if scale is None else self.kept("keep", lambda: scale.float().contiguous())

    def forward(self, tokens: Tensor) -> Tensor | None:
        if not self.residual:
            return None
        return tokens if self.scale is None else tokens * self.scale

    def joined(self, product: Product, branch: Tensor, tokens: Tensor) -> Tensor:
        """Give the product of the branch plus what goes past it."""
        return product(branch, plus=tokens, keep=self.keep) if self.residual else product(branch)
