"""Clips whose samples say their frame number, and counters of what is asked of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]


def numbered(
    frames: int,
    format: int = vs.GRAY8,
    width: int = 32,
    height: int = 16,
    props: Callable[[int], Mapping[str, int | float | str]] | None = None,
) -> vs.VideoNode:
    """A clip in which every sample of frame n is n; ``props`` gives the properties of frame n."""
    blank = vs.core.std.BlankClip(format=format, width=width, height=height, length=1)
    parts = []
    for n in range(frames):
        part = blank.std.BlankClip(color=[n] * blank.format.num_planes)
        if props and (given := props(n)):
            part = part.std.SetFrameProps(**given)
        parts.append(part)
    return vs.core.std.Splice(parts) if frames > 1 else parts[0]


def counted(clip: vs.VideoNode) -> tuple[vs.VideoNode, list[int]]:
    """The clip, and how often each of its frames has been made."""
    counts = [0] * clip.num_frames

    def count(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        counts[n] += 1
        return f

    return clip.std.ModifyFrame(clip, count), counts


def samples(frame: vs.VideoFrame) -> list[NDArray[np.generic]]:
    """Copies of the planes of a frame."""
    return [np.array(frame[plane]) for plane in range(frame.format.num_planes)]


def first_samples(clip: vs.VideoNode, order: Sequence[int] | None = None) -> dict[int, int]:
    """The first sample of every frame, asked for in ``order``."""
    return {n: int(clip.get_frame(n)[0][0, 0]) for n in order or range(clip.num_frames)}
