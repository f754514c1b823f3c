"""Pristine material: a folder of stills and videos, read as RGB or as the video's own 4:2:0 planes."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from vsdiqp.errors import DiqpError
from vsdiqp.training.degrade import Clip, plane_array

Rgb = NDArray[np.uint8]

STILLS = {".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
VIDEOS = {".mkv", ".mp4", ".mov", ".avi", ".y4m", ".webm", ".m4v", ".ts", ".mxf"}
_LONGEST_RUN = 64  # frames of a long video read at once


@dataclass(frozen=True, slots=True)
class Source:
    """One still or video. ``frames`` is 1 for a still."""

    path: Path
    name: str
    width: int
    height: int
    frames: int
    pixel_format: str
    matrix: int = 1
    """H.273 matrix coefficients, 1 or 6, of a video; guessed from its height when the file doesn't say."""

    @property
    def still(self) -> bool:
        """Whether there is but one frame."""
        return self.frames == 1

    @property
    def weight(self) -> float:
        """How often to draw from this source: the square root of the samples that differ.

        Neighbouring frames show nearly the same, so a long clip doesn't count for more than 16 of its frames.
        """
        return float(np.sqrt(self.width * self.height * min(self.frames, 16)))


def find_sources(folder: Path) -> list[Source]:
    """All stills and videos below ``folder``, sorted by path. Raises DiqpError when there are none."""
    if not folder.is_dir():
        raise DiqpError(f"{folder} is not a folder; give one that holds stills or videos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in STILLS | VIDEOS)
    sources = [_inspect(path, folder) for path in paths]
    if not sources:
        kinds = " ".join(sorted(STILLS | VIDEOS))
        raise DiqpError(f"{folder} holds no stills or videos; accepted are files ending in {kinds}")
    return sources


def _inspect(path: Path, folder: Path) -> Source:
    name = path.relative_to(folder).as_posix()
    try:
        if path.suffix.lower() in STILLS:
            from PIL import Image

            with Image.open(path) as image:
                return Source(path, name, image.width, image.height, 1, "rgb24")
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            return Source(
                path, name, stream.width, stream.height, max(frames, 2), stream.pix_fmt, _matrix(stream.codec_context)
            )
    except (OSError, IndexError, av.FFmpegError) as error:
        raise DiqpError(f"{path} can't be read as a still or a video ({error}); remove it or convert it") from error


class Library:
    """Reads sources and keeps the last used ones in memory, ``budget`` bytes at most."""

    def __init__(self, budget: int = 1 << 30) -> None:
        self._budget = budget
        self._kept: OrderedDict[tuple[Path, int, bool], Any] = OrderedDict()
        self._bytes = 0

    def rgb(self, source: Source, start: int = 0) -> Rgb:
        """Frames [F,H,W,3] from frame ``start`` on: all of a short clip, up to 64 of a long one."""
        return cast(Rgb, self._get(source, start, True))

    def planes(self, source: Source, start: int = 0) -> Clip:
        """Like ``rgb``, in the video's own 4:2:0 samples. Raises DiqpError for other formats."""
        if source.pixel_format not in ("yuv420p", "yuv420p10le"):
            raise DiqpError(f"{source.name} is {source.pixel_format}; its planes can be used as they are only in 4:2:0")
        return cast(Clip, self._get(source, start, False))

    def _get(self, source: Source, start: int, as_rgb: bool) -> Any:
        start = start if source.frames > _LONGEST_RUN else 0
        key = (source.path, start, as_rgb)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = _read_still(source) if source.still else _read_video(source, start, as_rgb)
        self._kept[key] = value
        self._bytes += _size(value)
        while self._bytes > self._budget and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)
        return value


def _size(value: Any) -> int:
    return value.y.nbytes + value.c.nbytes if isinstance(value, Clip) else int(value.nbytes)


def _read_still(source: Source) -> Rgb:
    from PIL import Image

    with Image.open(source.path) as image:
        return np.asarray(image.convert("RGB"), np.uint8)[None]


def _read_video(source: Source, start: int, as_rgb: bool) -> Any:
    frames: list[Any] = []
    with av.open(str(source.path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        bits = 10 if source.pixel_format == "yuv420p10le" else 8
        first = 0
        if start and stream.average_rate:
            # A keyframe near the wanted place is as good as the place itself.
            container.seek(int(start / stream.average_rate / stream.time_base), stream=stream)
        elif start:
            first = start
        for index, frame in enumerate(container.decode(stream)):
            if index < first:
                continue
            if as_rgb:
                frames.append(_to_rgb(frame, source.matrix))
            else:
                frames.append([plane_array(plane, bits) for plane in frame.planes])
            if len(frames) == _LONGEST_RUN:
                break
    if not frames:
        raise DiqpError(f"{source.path} has no frames that decode; remove it or convert it")
    if as_rgb:
        return np.stack(frames)
    y = np.stack([planes[0] for planes in frames])
    c = np.stack([np.stack([planes[i] for planes in frames]) for i in (1, 2)])
    even = (y.shape[1] // 2 * 2, y.shape[2] // 2 * 2)
    return Clip(y[:, : even[0], : even[1]], c[:, :, : even[0] // 2, : even[1] // 2], bits)


def _matrix(context: Any) -> int:
    told = int(context.colorspace)
    if told == 1:
        return 1
    if told in (5, 6):
        return 6
    return 1 if context.height >= 720 else 6


def _to_rgb(frame: Any, matrix: int) -> Rgb:
    space = Colorspace.ITU709 if matrix == 1 else Colorspace.ITU601
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=space,
        dst_colorspace=space,
        dst_color_range=ColorRange.JPEG,
        interpolation="BICUBIC",
    ).to_ndarray()
    return cast(Rgb, rgb)
