"""Look Around and Look Ahead: small chains of convolutions over thumbnails and look-ahead tiles.

A chain has one level for each level of the U, each fed by the level before; the released program starts over for every
level, which gives the same numbers (spec/diqp.md). Inputs are B, 3, frames, H, W; a level's result is returned as a
map B, h, w, C * frames with channel index ``c * frames + f``, ready to be concatenated to tokens.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class SeparableConv(nn.Module):
    """Conv3d (1, 3, 3), then Conv3d (3, 1, 1), each followed by InstanceNorm3d (no affine) and SiLU.

    The stride acts on space in the first convolution and on time in the second. ``norm=False`` only in the first pair
    of a chain.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool):
        super().__init__()
        self.spatial = nn.Conv3d(inputs, outputs, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1))
        self.temporal = nn.Conv3d(outputs, outputs, (3, 1, 1), stride=(stride, 1, 1), padding=(1, 0, 0))
        self.norm = norm

    def _activate(self, x: Tensor) -> Tensor:
        # Statistics over frame and space of one tile, in evaluation too: there are no running ones.
        return F.silu(F.instance_norm(x, eps=1e-5) if self.norm else x)

    def forward(self, x: Tensor) -> Tensor:
        """B, I, F, H, W -> B, O, F', H', W'."""
        return self._activate(self.temporal(self._activate(self.spatial(x))))


class GuideLevel(nn.Module):
    """Three separable convolutions; the first one carries the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool):
        super().__init__()
        self.pairs = nn.ModuleList(
            SeparableConv(inputs if p == 0 else outputs, outputs, stride if p == 0 else 1, norm=not (first and p == 0))
            for p in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """B, I, F, H, W -> B, O, F', H', W'."""
        for pair in self.pairs:
            x = pair(x)
        return x


def to_map(x: Tensor) -> Tensor:
    """B, C, F, H, W -> B, H, W, C * F."""
    return x.permute(0, 3, 4, 1, 2).flatten(3)


class GuideChain(nn.Module):
    """The levels of one guide. ``first_stride`` is 1 for Look Around (level 1 at the map's size), 2 for Look Ahead."""

    def __init__(self, widths: tuple[int, ...], first_stride: int):
        super().__init__()
        self.levels = nn.ModuleList(
            GuideLevel(widths[i - 1] if i else 3, widths[i], first_stride if i == 0 else 2, first=i == 0)
            for i in range(len(widths))
        )

    def forward(self, x: Tensor, decay: Tensor | None = None) -> list[Tensor]:
        """Maps of all levels. ``decay`` (B, 1, 1, 1, 1) scales the result of every level before the next reads it."""
        maps = []
        for level in self.levels:
            x = level(x)
            if decay is not None:
                x = x * decay.to(x.dtype)
            maps.append(to_map(x))
        return maps
