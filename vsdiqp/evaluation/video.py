"""Clips in VapourSynth: opening files, settling what their samples mean, frames as float pictures."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.metrics import Picture

Node = Any
"""A vapoursynth.VideoNode."""

Frame = Any
"""A vapoursynth.VideoFrame."""

_log = logging.getLogger("vsdiqp")

_PREFETCH = 4  # frames in flight in a lockstep read: enough for two cores, little memory


def core() -> Any:
    """The VapourSynth core, imported on first use."""
    import vapoursynth

    return vapoursynth.core


def open_video(path: str | Path) -> Node:
    """A video file as a clip of constant format and size, through BestSource, without leaving an index file behind.

    Frames that are flagged interlaced are taken as they are, and said to be. Raises DiqpError where BestSource is
    missing or cannot read the file, and where frames differ in format or size.
    """
    import vapoursynth

    path = Path(path)
    if not path.is_file():
        raise DiqpError(f"no such video file: {path}")
    if not hasattr(core(), "bs"):
        raise DiqpError("reading video needs BestSource; install it with: pip install vapoursynth-bestsource")
    try:
        # As bytes: VapourSynth refuses text that is no UTF-8, which names of files may be.
        clip = core().bs.VideoSource(os.fsencode(path), cachemode=0)
        if clip.format is None or not clip.width or not clip.height:
            raise DiqpError(f"the frames of {path} differ in size or format; give a clip in which all are alike")
        fields = int(clip.get_frame(0).props.get("_FieldBased", 0))
    except vapoursynth.Error as error:
        raise DiqpError(f"cannot read {path}: {error}") from error
    if fields:
        _log.warning("%s is flagged interlaced; it is measured as progressive", path)
    return clip


def settle_colour(clip: Node, like: Node | None = None) -> Node:
    """Writes matrix, range and chroma location on every frame, so that nothing downstream has to guess.

    Taken from the first frame of `like` (default: the clip itself); where that does not say, BT.709 from 720 lines up
    and BT.601 (SMPTE 170M) below, limited range for YUV, left-sited chroma. Of a `like` that is RGB, YUV clips take
    nothing, nor the other way round. Frames count as progressive, whatever they are flagged: the encoders here are
    given whole frames, and conversions of fields would compare other colours than those of the frames.
    """
    rgb = clip.format.color_family == _families().RGB
    if like is None or (like.format.color_family == _families().RGB) != rgb:
        like = clip
    props = like.get_frame(0).props
    matrix = int(props.get("_Matrix", 2))
    if rgb:
        matrix = 0
    elif matrix in (0, 2, 3):
        matrix = 1 if clip.height >= 720 else 6
    settled: dict[str, int] = {"_Matrix": matrix, "_Range": int(props.get("_Range", 1 if rgb else 0)), "_FieldBased": 0}
    if clip.format.subsampling_w or clip.format.subsampling_h:
        settled["_ChromaLocation"] = int(props.get("_ChromaLocation", 0))
    return core().std.SetFrameProps(clip, **settled)


def to_rgb(clip: Node) -> Node:
    """RGB of single floats by the clip's own matrix (bicubic chroma); unclamped."""
    import vapoursynth

    return clip if clip.format.id == vapoursynth.RGBS else core().resize.Bicubic(clip, format=vapoursynth.RGBS)


def plane(frame: Frame, index: int) -> Picture:
    """A plane as a float32 picture of range 1: integers of n bits divided by 255 * 2^(n-8), range flags ignored.

    That is the scale on which codec papers state PSNR: luma errors in 8-bit steps against a peak of 255. Deeper samples
    lie on the same scale, so that depths can be compared.
    """
    array: NDArray[Any] = np.asarray(frame[index])
    if frame.format.sample_type == _sample_types().INTEGER:
        return array.astype(np.float32) / np.float32(_one(frame))
    return array.astype(np.float32)


def rgb_picture(frame: Frame) -> Picture:
    """An RGBS frame as (3, rows, columns), clamped to 0..1 as a screen would."""
    stacked: Picture = np.stack([np.asarray(frame[i], np.float32) for i in range(3)])
    return np.clip(stacked, 0.0, 1.0)


def lockstep(*clips: Node) -> Iterator[tuple[Frame, ...]]:
    """Frames of several clips of one length, side by side, holding only a few at a time."""
    yield from zip(*(clip.frames(prefetch=_PREFETCH, backlog=_PREFETCH, close=True) for clip in clips), strict=True)


def keep_frames(clip: Node) -> None:
    """Makes the core keep the clip's latest frames, so that two readers in lockstep have each made only once.

    The core's own guess is no cache where a clip has a single filter behind it, whatever else reads it.
    """
    core().std.SetVideoCache(clip, mode=1, fixedsize=1, maxsize=4 * _PREFETCH)


def map_luma(clip: Node, function: Callable[[Picture, Picture, Picture], Picture]) -> Node:
    """A filter from a Python function of the luma of frames n-1, n, n+1 (ends repeated), which returns new luma.

    Pictures are as in `plane`; the result is rounded once and clipped to the format's range. Chroma passes through.
    """
    last = clip.num_frames - 1
    std = core().std
    before = std.DuplicateFrames(clip, 0)[: last + 1]
    after = std.DuplicateFrames(clip, last)[1:]

    def modify(n: int, f: list[Frame]) -> Frame:
        out = f[1].copy()
        result = function(plane(f[0], 0), plane(f[1], 0), plane(f[2], 0))
        target = np.asarray(out[0])
        if out.format.sample_type == _sample_types().INTEGER:
            highest = (1 << out.format.bits_per_sample) - 1
            result = np.clip(np.floor(result * np.float32(_one(out)) + 0.5), 0, highest)
        target[...] = result.astype(target.dtype)
        return out

    return std.ModifyFrame(clip, [before, clip, after], modify)


def _one(frame: Frame) -> int:
    """The integer that stands for 1."""
    return int(255 << (frame.format.bits_per_sample - 8))


def _families() -> Any:
    import vapoursynth

    return vapoursynth.ColorFamily


def _sample_types() -> Any:
    import vapoursynth

    return vapoursynth.SampleType
