"""Where tiles lie, how they overlap, and how their results become one picture without seams.

Columns and rows are planned apart: a plan is two axes, and the weight of a pixel in a tile is the product of its
weights on both. Along an axis the weights of all tiles sum to one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsdiqp.errors import DiqpError


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles along one axis: their side, first pixels, and weights over the pixels that each has inside the frame."""

    length: int
    """Pixels of the frame along this axis."""
    side: int
    """Pixels of a tile."""
    starts: tuple[int, ...]
    """Ascending from 0; the last tile reaches the end of the frame or beyond it, where the frame is padded."""
    weights: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The grid of tiles over one frame size."""

    columns: Axis
    rows: Axis

    @property
    def count(self) -> int:
        """Tiles a frame."""
        return len(self.columns.starts) * len(self.rows.starts)


def plan(width: int, height: int, tile: tuple[int, int], overlap: int, multiple: int = 1, align: int = 1) -> TilePlan:
    """Cover ``width`` x ``height`` with tiles of ``tile`` (width, height) that share ``overlap`` pixels or more.

    Tile sides must be multiples of ``multiple``; a side larger than the frame rounded up to it shrinks to that. Tiles
    start at multiples of ``align``, so that the coding grid lies the same way in each. Raises DiqpError.
    """
    return TilePlan(
        _axis("width", width, tile[0], overlap, multiple, align),
        _axis("height", height, tile[1], overlap, multiple, align),
    )


def best_tile(width: int, height: int, side: int, overlap: int, multiple: int = 1, align: int = 1) -> tuple[int, int]:
    """The tile (width, height) with which covering the frame computes the fewest pixels; of equals the largest.

    Sides lie between half of ``side`` and twice it, the area is at most twice its square: about as much memory and
    about as wide a view as square tiles of ``side``, but 1920x1080 in fours of 1024x576 instead of fifteens of 512x512.
    """
    wide, tall = (_sides(length, side, overlap, multiple, align) for length in (width, height))
    affordable = [(w, h) for w in wide for h in tall if w * h <= 2 * side * side]

    def cost(tile: tuple[int, int]) -> tuple[int, int]:
        count = len(_starts(width, tile[0], overlap, align)) * len(_starts(height, tile[1], overlap, align))
        return count * tile[0] * tile[1], count

    return min(affordable, key=cost, default=(side, side))


class Strip(NamedTuple):
    """Complete rows of the picture: frame rows ``start`` to ``stop``, and some more around them."""

    values: Tensor
    """(...,rows,width), row 0 being frame row ``first``."""
    first: int
    start: int
    stop: int


class Canvas:
    """Gathers the weighted results of a plan's tiles, row of tiles by row, and gives out strips that are complete.

    It holds one row of tiles at a time. A strip comes with ``margin`` complete rows above and below (where the frame
    has them) and ends at a multiple of ``step`` rows or at the frame's end.
    """

    def __init__(
        self, plan: TilePlan, channels: Sequence[int], margin: int, step: int, device: torch.device | str = "cpu"
    ) -> None:
        self._plan, self._margin, self._step = plan, margin, step
        self._row = 0
        self._first = 0
        self._done = 0
        self._ended = False
        rows = min(plan.rows.length, plan.rows.side + 2 * margin + step)
        self._sum = torch.zeros((*channels, rows, plan.columns.length), dtype=torch.float32, device=device)
        self._column_weights = [torch.from_numpy(w).to(device) for w in plan.columns.weights]
        self._row_weights = [torch.from_numpy(w).to(device)[:, None] for w in plan.rows.weights]

    def add(self, column: int, tile: Tensor) -> None:
        """Add the tile (...,side,side) of the current row of tiles; pixels outside the frame are dropped."""
        if self._ended:
            self._advance()
        wide, tall = self._column_weights[column], self._row_weights[self._row]
        left, top = self._plan.columns.starts[column], self._plan.rows.starts[self._row] - self._first
        part = tile[..., : len(tall), : len(wide)]
        target = self._sum[..., top : top + len(tall), left : left + len(wide)]
        # One multiplication with the product, so that full weight leaves a value as it is.
        target.addcmul_(part, wide * tall)

    def end_row(self) -> Strip:
        """Finish the current row of tiles and give what is complete now; it is valid until the next `add`."""
        rows = self._plan.rows
        if self._row + 1 == len(rows.starts):
            stop = rows.length
        else:
            stop = max(self._done, (rows.starts[self._row + 1] - self._margin) // self._step * self._step)
        strip = Strip(self._sum[..., : self._bottom() - self._first, :], self._first, self._done, stop)
        self._done, self._ended = stop, True
        return strip

    def _advance(self) -> None:
        first = max(0, self._done - self._margin)
        kept = self._sum[..., first - self._first : self._bottom() - self._first, :].clone()
        self._sum[..., : kept.shape[-2], :] = kept
        self._sum[..., kept.shape[-2] :, :] = 0
        self._first, self._ended = first, False
        self._row += 1

    def _bottom(self) -> int:
        return min(self._plan.rows.length, self._plan.rows.starts[self._row] + self._plan.rows.side)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _fits(length: int, side: int, overlap: int, align: int) -> bool:
    return side >= length or (side - overlap) // align >= 1


def _sides(length: int, side: int, overlap: int, multiple: int, align: int) -> list[int]:
    whole = _round_up(length, multiple)
    smallest, largest = min(_round_up(math.ceil(side / 2), multiple), whole), min(2 * side, whole)
    return [s for s in range(smallest, largest + 1, multiple) if _fits(length, s, overlap, align)]


def _starts(length: int, side: int, overlap: int, align: int) -> tuple[int, ...]:
    if side >= length:
        return (0,)
    last = math.ceil((length - side) / align)
    gaps = math.ceil(last / ((side - overlap) // align))
    return tuple(index * last // gaps * align for index in range(gaps + 1))


def _axis(name: str, length: int, side: int, overlap: int, multiple: int, align: int) -> Axis:
    if side < 1 or side % multiple:
        below = side // multiple * multiple
        choices = f"{below} or {below + multiple}" if below > 0 else f"{multiple}"
        raise DiqpError(f"the tile's {name} is {side}; this model takes multiples of {multiple}: try {choices}")
    side = min(side, _round_up(length, multiple))
    if side < min(align, length):
        raise DiqpError(
            f"the tile's {name} is {side}, but tiles start at multiples of {align}: it must be at least {align}"
        )
    if overlap < 0 or not _fits(length, side, overlap, align):
        raise DiqpError(
            f"overlap is {overlap} for a tile {name} of {side}; it may be 0 to {max(0, side - align)} "
            f"(tiles start at multiples of {align}): lower overlap or take a larger tile"
        )
    starts = _starts(length, side, overlap, align)
    return Axis(length, side, starts, _weights(length, side, starts))


def _weights(length: int, side: int, starts: tuple[int, ...]) -> tuple[NDArray[np.float32], ...]:
    """Raised-cosine ramps over the middle half of each overlap.

    The outer quarters belong to the tile whose border is further away: pixels next to a tile's border saw padding
    instead of picture, and a local network is then as exact in tiles as in one piece.
    """
    windows = []
    for index, start in enumerate(starts):
        window = np.ones(side)
        position: NDArray[np.float64] = np.arange(side, dtype=np.float64) + 0.5
        if index:
            window *= _ramp(position, starts[index - 1] + side - start)
        if index + 1 < len(starts):
            window *= _ramp(side - position, start + side - starts[index + 1])
        windows.append(window[: length - start])
    total = np.zeros(length)
    for start, window in zip(starts, windows, strict=True):
        total[start : start + len(window)] += window
    return tuple(
        (window / total[start : start + len(window)]).astype(np.float32)
        for start, window in zip(starts, windows, strict=True)
    )


def _ramp(distance: NDArray[np.float64], overlap: int) -> NDArray[np.float64]:
    """0 to 1 over the middle half of an overlap, by distance from the tile's border in pixels."""
    if overlap == 0:
        return np.ones_like(distance)
    ramp: NDArray[np.float64] = np.sin(np.pi / 2 * np.clip((distance - overlap / 4) / (overlap / 2), 0.0, 1.0)) ** 2
    return ramp
