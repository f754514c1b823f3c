"""Residuals of chroma for clips whose chroma is finer than that of 4:2:0.

Networks that work in YCbCr are trained on 4:2:0, on residuals as a 4:2:0 clip takes them: filtered down to where its
chroma lies, left-sited. Of what that takes away they learn nothing, and it is mostly noise.
"""

import torch
from torch import Tensor

from vsdiqp.clip import ClipFormat
from vsdiqp.planes import ChromaAxis

SHARE = 0.75
"""What is applied of such a network's chroma beside what is at 4:2:0. Encoded at 4:4:4 or as RGB chroma is damaged
otherwise, and mostly less; whether a clip was, or had its chroma scaled up, its samples don't say."""


def is_finer(clip: ClipFormat, colour: str) -> bool:
    """Whether along an axis a clip's chroma is finer than what a network with these colours was trained on."""
    return colour == "ycbcr" and clip.family != "GRAY" and min(clip.subsampling_w, clip.subsampling_h) == 0


def as_trained(residual: Tensor, clip: ClipFormat, colour: str) -> Tensor:
    """A residual B, 3, frames, h, w (h, w even) whose chroma is what it would be of a 4:2:0 clip, scaled up again along
    the axes in which the clip's own chroma is as fine as its luma."""
    if not is_finer(clip, colour):
        return residual
    chroma = residual[:, 1:]
    if clip.subsampling_w == 0:
        chroma = _down_and_up(chroma, 4, 0.0)
    if clip.subsampling_h == 0:
        chroma = _down_and_up(chroma, 3, 0.5)
    return torch.cat([residual[:, :1], chroma], 1)


def _down_and_up(x: Tensor, dim: int, offset: float) -> Tensor:
    """What is left along ``dim`` of what chroma samples at every second place and ``offset`` take of it."""
    size = x.shape[dim]
    axis = ChromaAxis(2, offset, size // 2)
    return axis.expand(axis.reduce(x, dim, 0, 0, size // 2), dim, 0, size)
