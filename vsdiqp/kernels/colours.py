"""The numbers of planes.py and context.py that the kernels need: one definition serves the CPU and the GPU."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsdiqp import context, planes
from vsdiqp.clip import ClipFormat, FrameColour
from vsdiqp.planes import FrameMap


class ColourNumbers(NamedTuple):
    """``value = (code - zero) / scale`` a plane; network colour = to_network values + bias, limited."""

    zero: tuple[float, ...]
    scale: tuple[float, ...]
    to_network: NDArray[np.float64]
    """3 x planes."""
    from_network: NDArray[np.float64]
    """planes x 3."""
    bias: tuple[float, float, float]
    limits: tuple[float, float]
    wild: float
    legal: tuple[float, float]


def colour_numbers(clip: ClipFormat, colour: FrameColour, network_colour: str) -> ColourNumbers:
    """What `FrameMap` computes with. Raises DiqpError as it does."""
    frames = FrameMap(clip, colour, network_colour)
    return ColourNumbers(
        tuple(code.zero for code in frames.codes),
        tuple(code.scale for code in frames.codes),
        frames.to_network,
        frames.to_clip,
        frames.bias,
        frames.limits,
        planes.WILD,
        frames.legal,
    )


def chroma_site(clip: ClipFormat, colour: FrameColour) -> tuple[float, float]:
    """Position of chroma sample (0, 0) on the luma grid: x, y."""
    frames = FrameMap(clip, colour, "ycbcr")
    return frames.x.offset, frames.y.offset


def cubic_taps(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of ``size`` results along an axis: the first of four positions read, and the four weights (size, 4)."""
    centre = (np.arange(size) + 0.5) * (length / size) - 0.5
    base = np.floor(centre)
    weights = context.cubic(np.abs((centre - base)[:, None] - np.arange(-1, 3)))
    return base.astype(np.int64) - 1, weights
