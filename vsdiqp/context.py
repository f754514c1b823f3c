"""What the network is shown of whole frames: thumbnails for Look Around and Look Ahead.

A run needs three: of frames n-1 and n+1 and of the look-ahead frame; n+1 serves both guides. Nothing is kept between
runs, on purpose: with T = 50 a look-ahead frame comes back as the MIDDLE frame of a later group, which no guide looks
at, so a cache would hold full of thumbnails and never be asked for one.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsdiqp.clip import Planes, Run
from vsdiqp.planes import FrameMap, identity

_CUBIC: float = -0.75
"""The free parameter of the bicubic kernel that the released networks were trained with."""


_BAND: int = 128
"""Rows converted at once, so that what is made on the way stays in the processor's cache."""


class Thumbnailer:
    """Shrinks whole frames to ``size`` (height, width), aspect not kept: bicubic, no antialiasing, edges clamped.

    Pixel centres lie at half-integers. Reads only the pixels that the sixteen taps of each result touch.
    """

    def __init__(self, width: int, height: int, size: tuple[int, int], device: torch.device | str = "cpu") -> None:
        self._rows, self._row_taps, self._row_weights = _taps(height, size[0], device)
        self._columns, self._column_taps, self._column_weights = _taps(width, size[1], device)
        self._whole = 2 * len(self._rows) * len(self._columns) > width * height
        if self._whole:
            # Picking most of the pixels one by one costs more than converting all of them.
            self._row_taps = torch.from_numpy(self._rows).to(device)[self._row_taps]
            self._column_taps = torch.from_numpy(self._columns).to(device)[self._column_taps]
        self._shape = (height, width)
        self._device = device

    def shrink(self, frames: FrameMap, planes: Planes) -> Tensor:
        """The frame's thumbnail (3,height,width) in network colours, limited to 0..1."""
        if self._whole:
            picture = torch.empty((3, *self._shape), dtype=torch.float32, device=self._device)
            for top in range(0, self._shape[0], _BAND):
                frames.read(planes, 0, top, picture[:, top : top + _BAND])
        else:
            picture = frames.sample(planes, self._rows, self._columns)
        shrunk = []
        for channel in picture:
            rows = _weigh(channel, 0, self._row_taps, self._row_weights[..., None])
            shrunk.append(_weigh(rows, 1, self._column_taps, self._column_weights))
        return torch.stack(shrunk).clamp_(0.0, 1.0)


def thumbnails(
    run: Run, frames: FrameMap, thumbnailer: Thumbnailer, around: bool, ahead: bool
) -> tuple[Tensor, Tensor]:
    """Whole-frame inputs of the guides: around (1,3,2,h,w: n-1, n+1) and ahead scaled (1,3,2,h,w: n+1, look-ahead).

    Zero-sized (1,3,2,0,0) where the network doesn't ask for them. A frame that appears twice is shrunk once.
    """
    made: dict[tuple[int, ...], Tensor] = {}

    def shrink(planes: Planes) -> Tensor:
        key = identity(planes)
        if key not in made:
            made[key] = thumbnailer.shrink(frames, planes)
        return made[key]

    def pair(wanted: bool, first: Planes, second: Planes) -> Tensor:
        if not wanted:
            return torch.empty((1, 3, 2, 0, 0), dtype=torch.float32)
        return torch.stack((shrink(first), shrink(second)), 1)[None]

    return pair(around, run.frames[0], run.frames[2]), pair(ahead, run.frames[2], run.ahead)


def _weigh(picture: Tensor, dim: int, taps: Tensor, weights: Tensor) -> Tensor:
    result = picture.index_select(dim, taps[0]).mul_(weights[0])
    for tap, weight in zip(taps[1:], weights[1:], strict=True):
        result.addcmul_(picture.index_select(dim, tap), weight)
    return result


def _taps(length: int, size: int, device: torch.device | str) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Positions read along one axis, and for each of 4 taps the indices into them (4,size) and weights (4,size)."""
    centre = (np.arange(size) + 0.5) * (length / size) - 0.5
    base = np.floor(centre)
    fraction = centre - base
    positions = np.clip(base.astype(np.int64) + np.arange(-1, 3)[:, None], 0, length - 1)
    weights = cubic(np.abs(fraction - np.arange(-1, 3)[:, None]))
    needed = np.unique(positions)
    indices = np.searchsorted(needed, positions)
    return needed, torch.from_numpy(indices).to(device), torch.from_numpy(weights.astype(np.float32)).to(device)


def cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel for distances 0..2, with the parameter of the released networks."""
    a = _CUBIC
    near = ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0
    far = ((a * distance - 5.0 * a) * distance + 8.0 * a) * distance - 4.0 * a
    return np.where(distance <= 1.0, near, far)
