"""Where maps of the U meet: with guides and the location's channel on the way to another level, and with what was
skipped on the way back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vsdiqp.network.lost import tile_pattern


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands behind a level's B, H, W, C tokens when they leave it."""

    guides: Sequence[Tensor]
    """B or 1, H, W, C each."""
    zeros: int
    """Channels that fill up to a whole number of frames."""
    pattern: Tensor
    """B or 1, 4, 4, K: LOST's, of which the first channel is repeated over the map."""


class Joins(Protocol):
    """Who takes the steps between the stages of a U."""

    def down(self, down: nn.Module, x: Tensor, beside: Beside) -> Tensor:
        """``down`` of `joined`."""
        ...

    def up(self, up: nn.Module, decode: nn.Module, x: Tensor, skip: Tensor, beside: Beside) -> Tensor:
        """``decode`` of what ``up`` makes of `joined`, with ``skip`` behind it or added to it."""
        ...


@dataclass(frozen=True, slots=True)
class PlainJoins:
    """In torch. ``concat``: what was skipped stands behind what comes from below; else it is added."""

    concat: bool

    def down(self, down: nn.Module, x: Tensor, beside: Beside) -> Tensor:
        """See `Joins`."""
        y: Tensor = down(joined(x, beside))
        return y

    def up(self, up: nn.Module, decode: nn.Module, x: Tensor, skip: Tensor, beside: Beside) -> Tensor:
        """See `Joins`."""
        y = up(joined(x, beside))
        z: Tensor = decode(torch.cat([y, skip], -1) if self.concat else y + skip)
        return z


def joined(x: Tensor, beside: Beside) -> Tensor:
    """Tokens and what stands behind them: B, H, W, C -> B, H, W, all channels."""
    batch, height, width, _ = x.shape
    parts = [x, *(guide.expand(batch, -1, -1, -1) for guide in beside.guides)]
    if beside.zeros:
        parts.append(x.new_zeros(batch, height, width, beside.zeros))
    parts.append(tile_pattern(beside.pattern[..., :1], height, width).expand(batch, -1, -1, -1))
    return torch.cat(parts, -1)
