"""What every network offers.

Shape suffixes: B rows of a batch, L bars of a window, F features, H hidden units, C outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from ktrdr_core.models.dropout import SeededDropout, derive_seed
from ktrdr_core.models.network_spec import NetworkSpec

__all__ = ["AffineFirstNetwork", "Network", "SeededDropout", "derive_seed"]


class Network(nn.Module):
    """Rows of features in, (B, F) or windows (B, L, F); outputs (B, C): logits of BUY, HOLD, SELL, or one number."""

    spec: NetworkSpec

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, C) for rows (B, F) or windows (B, L, F)."""

    def dropouts(self) -> Iterator[SeededDropout]:
        """Yield the dropout layers in forward order."""
        for module in self.modules():
            if isinstance(module, SeededDropout):
                yield module


class AffineFirstNetwork(Network):
    """A network whose forward pass is `tail(x @ weight.T + bias)`, which permutation importance uses."""

    @abstractmethod
    def first_affine(self) -> tuple[Tensor, Tensor]:
        """Return weight (H, F) and bias (H,) of the affine map that reads the features."""

    @abstractmethod
    def tail(self, z_BH: Tensor) -> Tensor:
        """Return the outputs (B, C) from the first affine map's (B, H)."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return self.tail(functional.linear(x_BF, *self.first_affine()))
