"""Pristine material: a folder of stills and videos, read as RGB or as the video's own 4:2:0 planes."""

import collections
import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from vsdiqp.errors import DiqpError
from vsdiqp.training.degrade import Clip, plane_array
from vsdiqp.training.sepe import ENCODED_FOLDER

_log = logging.getLogger("vsdiqp")

Rgb = NDArray[np.uint8]
Window = tuple[int, int, int, int]
"""Part of a picture: top, left, height, width."""

STILLS = {".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
VIDEOS = {".mkv", ".mp4", ".mov", ".avi", ".y4m", ".webm", ".m4v", ".ts", ".mxf"}
LONGEST_RUN = 64
"""Frames of a long video read at once."""
FEWEST = 3
"""Frames that a triplet needs."""
_COUNTED = 2 * LONGEST_RUN
"""Frames from which a file's length is taken from its duration, where it doesn't tell a number: counting reads it
whole."""
_PATIENCE = 300
"""Packets that may fail before the first frame."""
_NEUTRAL = (128, 128, 128)
"""What lies behind transparent pixels."""


class UnreadableError(DiqpError):
    """A still or video that can't be read, or not as far as is needed; others may be taken instead."""


@dataclass(frozen=True, slots=True)
class Source:
    """One still or video. ``frames`` is 1 for a still; of a long video that doesn't tell it, about how many."""

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
        """Whether it's a picture, not a video."""
        return self.path.suffix.lower() in STILLS

    @property
    def long(self) -> bool:
        """Whether it's a video that is read in parts."""
        return self.frames > LONGEST_RUN

    @property
    def planar(self) -> bool:
        """Whether its samples can be used as they are: 4:2:0 of 8 or 10 bits."""
        return self.pixel_format in ("yuv420p", "yuv420p10le")

    @property
    def weight(self) -> float:
        """How often to draw from this source: the square root of the samples that differ.

        Neighbouring frames show nearly the same, so a long clip doesn't count for more than 16 of its frames.
        """
        return float(np.sqrt(self.width * self.height * min(self.frames, 16)))

    def draw_start(self, rng: np.random.Generator) -> int:
        """A frame to read from, anywhere in a long video; 0 in others."""
        return int(rng.integers(max(self.frames - LONGEST_RUN, 0) + 1))


def find_sources(folder: Path) -> list[Source]:
    """All stills and videos below ``folder``, sorted by path. Names that begin with a dot are passed over.

    What can't be read is left out with a warning, as are folders named QP-x, whose pictures are damaged, and a warning
    tells of interlaced videos. Raises DiqpError when nothing is left.
    """
    if not folder.is_dir():
        raise DiqpError(f"{folder} is not a folder; give one that holds stills or videos")
    sources: list[Source] = []
    damaged: set[Path] = set()
    unread: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in STILLS | VIDEOS):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or not path.is_file():
            continue
        if any(ENCODED_FOLDER.fullmatch(part) for part in parts[:-1]):
            damaged.add(path.parent)
            continue
        try:
            sources.append(_inspect(path, folder))
        except DiqpError as error:
            _log.warning("%s; it is left out", error)
            unread.append(str(error))
    if damaged:
        _log.warning(
            "%d folders named QP-x, such as %s, are left out: they hold encoded pictures, and what is read here must "
            "be pristine",
            len(damaged),
            min(damaged),
        )
    if not sources:
        kinds = " ".join(sorted(STILLS | VIDEOS))
        if unread:
            raise DiqpError(f"none of the {len(unread)} stills and videos in {folder} can be read: {unread[0]}")
        raise DiqpError(f"{folder} holds no stills or videos; accepted are files ending in {kinds}")
    return sources


@cache
def warn_once(text: str) -> None:
    """Log a warning, the same one no more than once a process."""
    _log.warning("%s", text)


def _inspect(path: Path, folder: Path) -> Source:
    name = path.relative_to(folder).as_posix()
    with _reading(path):
        if path.suffix.lower() in STILLS:
            from PIL import Image

            with Image.open(path) as image:
                return Source(path, name, image.width, image.height, 1, "rgb24")
        return _inspect_video(path, name)


def _inspect_video(path: Path, name: str) -> Source:
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        seconds = _seconds(container, stream)
        frames = stream.frames
        if not frames and seconds and stream.average_rate and seconds * stream.average_rate > _COUNTED:
            frames = round(seconds * stream.average_rate)
        # What the headers say may not be what is shown, and whether there is a decoder shows when it is asked.
        first = list(itertools.islice(_frames(container, stream), FEWEST))
        if not first:
            raise _unreadable(path, "it has no frames that decode")
        shown = first[0]
        matrix = _matrix(stream.codec_context)
    if any(frame.interlaced_frame for frame in first):
        _log.warning(
            "%s is interlaced; its fields are taken for one progressive picture: deinterlace it, or remove it", path
        )
    return Source(path, name, shown.width, shown.height, frames or _count(path), shown.format.name, matrix)


def _count(path: Path) -> int:
    """Packets that hold something, up to the first that can't be read."""
    frames = 0
    with av.open(str(path)) as container, contextlib.suppress(av.FFmpegError):
        for packet in container.demux(container.streams.video[0]):
            frames += packet.size > 0
    return max(frames, 1)


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise _unreadable(path, "it has no video")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise _unreadable(path, "this FFmpeg has no decoder for its video")
    stream.thread_count = 1
    # Else decoders paint over damage that they have noticed, and nobody is told.
    stream.codec_context.options = {"err_detect": "crccheck+explode"}
    return stream


def _frames(container: Any, stream: Any) -> Generator[Any]:
    """Frames up to the first that can't be decoded. Before the first frame that's no error: recordings begin anywhere.

    Raises what FFmpeg raises where nothing decodes, or the file itself is damaged.
    """
    given, failures = False, 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            failures += 1
            if given:
                return
            if failures > _PATIENCE:
                raise
            continue
        for frame in frames:
            # After a failure frames lack what they refer to, up to the next keyframe.
            if given or not failures or frame.key_frame:
                given = True
                yield frame


def _seconds(container: Any, stream: Any) -> float | None:
    """How long the video plays, where the file tells it."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return float(container.duration / av.time_base) if container.duration else None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name ``path`` in the error when what is read there goes wrong. Decoders raise whatever the damage leads to."""
    try:
        yield
    except (DiqpError, MemoryError):
        raise
    except (FileNotFoundError, PermissionError) as error:
        # Not the file's own fault, and it may come back: others must not be taken instead.
        raise DiqpError(f"{path} can't be opened ({error.strerror}); make it readable again") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _unreadable(path, str(reason)) from error


def _unreadable(path: Path, why: str) -> UnreadableError:
    return UnreadableError(f"{path} can't be read as a still or a video ({why}): remove it or convert it")


class Library:
    """Reads sources. The stills and short clips that were used last stay in memory, ``budget`` bytes at most.

    Long videos, and what takes more than half the budget, are read anew each time and cut while they are.
    What can't be read raises UnreadableError; frames before the damage are given where there are 3 or more.
    """

    def __init__(self, budget: int = 1 << 30) -> None:
        self._budget = budget
        self._kept: OrderedDict[tuple[Path, bool], Any] = OrderedDict()
        self._bytes = 0

    def rgb(self, source: Source, start: int = 0, window: Window | None = None) -> Rgb:
        """Frames [F,H,W,3] from about frame ``start`` on: all of a short clip, up to 64 of a long one.

        ``window``: only that part of the pictures.
        """
        return cast(Rgb, self._get(source, start, window or (0, 0, source.height, source.width), True))

    def picture(self, source: Source, start: int, index: int) -> Rgb:
        """One whole picture [H,W,3]: frame ``index`` of those that ``rgb`` gives, or the last."""
        if self._keeps(source, True) or source.still:
            pictures = self.rgb(source, start)
            return cast(Rgb, pictures[min(index, len(pictures) - 1)])
        return _read_picture(source, start, index)

    def planes(self, source: Source, start: int = 0, window: Window | None = None) -> Clip:
        """Like ``rgb``, in the video's own 4:2:0 samples; the window is even. Raises DiqpError for other formats."""
        if not source.planar:
            raise DiqpError(f"{source.name} is {source.pixel_format}; its planes can be used as they are only in 4:2:0")
        even = (0, 0, source.height // 2 * 2, source.width // 2 * 2)
        return cast(Clip, self._get(source, start, window or even, False))

    def _keeps(self, source: Source, as_rgb: bool) -> bool:
        return not source.long and _run_bytes(source, as_rgb) <= self._budget // 2

    def _get(self, source: Source, start: int, window: Window, as_rgb: bool) -> Any:
        if self._keeps(source, as_rgb):
            return _cut(self._whole(source, as_rgb), window)
        if source.still:
            return _cut(_read_still(source), window)
        return _read_run(source, start if source.long else 0, window, as_rgb)

    def _whole(self, source: Source, as_rgb: bool) -> Any:
        key = (source.path, as_rgb)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        # Room is made first: afterwards both would have been in memory.
        while self._kept and self._bytes + _run_bytes(source, as_rgb) > self._budget:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)
        even = (0, 0, source.height // 2 * 2, source.width // 2 * 2)
        window = (0, 0, source.height, source.width) if as_rgb else even
        value = _read_still(source) if source.still else _read_run(source, 0, window, as_rgb)
        self._kept[key] = value
        self._bytes += _size(value)
        return value


def _size(value: Any) -> int:
    return value.y.nbytes + value.c.nbytes if isinstance(value, Clip) else int(value.nbytes)


def _run_bytes(source: Source, as_rgb: bool) -> int:
    """Bytes of all frames that are read at once, whole."""
    sample = 3.0 if as_rgb else 1.5 * (1 if _bits(source) == 8 else 2)
    return int(sample * source.width * source.height * min(source.frames, LONGEST_RUN))


def _bits(source: Source) -> int:
    return 10 if source.pixel_format == "yuv420p10le" else 8


def _cut(value: Any, window: Window) -> Any:
    rows, columns = _slices(window)
    if not isinstance(value, Clip):
        return value[:, rows, columns]
    half_rows, half_columns = _slices(_half(window))
    return Clip(value.y[:, rows, columns], value.c[:, :, half_rows, half_columns], value.bits)


def _slices(window: Window) -> tuple[slice, slice]:
    top, left, height, width = window
    return slice(top, top + height), slice(left, left + width)


def _half(window: Window) -> Window:
    top, left, height, width = window
    return top // 2, left // 2, height // 2, width // 2


# ---------------------------------------------------------------- stills


def _read_still(source: Source) -> Rgb:
    from PIL import Image

    with _reading(source.path), Image.open(source.path) as image:
        return _eight_bits(image, source.path)[None]


def _eight_bits(image: Any, path: Path) -> Rgb:
    """RGB [H,W,3] of a Pillow image. Its own conversion clips samples of more than 8 bits instead of scaling them."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        white = 1 if image.mode == "F" else 65535
        grey = np.asarray(image, np.float32)
        if not (grey.min() >= 0 and grey.max() <= white):
            raise _unreadable(path, f"its samples go from {grey.min():g} to {grey.max():g}; 0 to {white} are accepted")
        eight = np.rint(grey * (255 / white)).astype(np.uint8)
        return np.repeat(eight[..., None], 3, axis=-1)
    if "A" in image.getbands() or "transparency" in image.info:
        # What lies hidden under transparent pixels is often no picture at all.
        behind = Image.new("RGBA", image.size, (*_NEUTRAL, 255))
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"), np.uint8)


# ---------------------------------------------------------------- videos


def _read_run(source: Source, start: int, window: Window, as_rgb: bool) -> Any:
    fewest = min(FEWEST, source.frames)
    collect: Callable[[Source, Iterator[Any], Window], Any] = _collect_rgb if as_rgb else _collect_planes
    with _reading(source.path):
        while True:
            with contextlib.closing(_decode(source, start, as_rgb)) as frames:
                value = collect(source, frames, window)
            count = value.frames if isinstance(value, Clip) else len(value)
            if count >= fewest:
                return value
            if not start:
                raise _unreadable(source.path, f"{count} of its frames decode, {fewest} are needed")
            # Its end, or damage: there is more the nearer to the beginning.
            start //= 2


def _read_picture(source: Source, start: int, index: int) -> Rgb:
    with _reading(source.path):
        while True:
            with contextlib.closing(_decode(source, start, True)) as frames:
                last = collections.deque(itertools.islice(frames, index + 1), maxlen=1)
            if last:
                return _to_rgb(last[0], source.matrix)
            if not start:
                raise _unreadable(source.path, "none of its frames decodes")
            start //= 2


def _decode(source: Source, start: int, any_format: bool) -> Generator[Any]:
    """Frames from the keyframe before ``start`` on, up to where they are damaged or other than the source's first."""
    with av.open(str(source.path)) as container:
        stream = _stream(container, source.path)
        skipped = _seek(container, stream, source, start)
        begun, given = not start, False
        with contextlib.suppress(av.FFmpegError):  # what lies before the damage is good
            for frame in itertools.islice(_frames(container, stream), skipped, None):
                if (frame.width, frame.height) != (source.width, source.height):
                    return
                if not any_format and frame.format.name != source.pixel_format:
                    return
                begun = begun or frame.key_frame  # frames before it lack those they refer to
                if begun and not frame.is_corrupt:
                    given = True
                    yield frame
                elif given:
                    return


def _seek(container: Any, stream: Any, source: Source, start: int) -> int:
    """Go to the keyframe before frame ``start``, which is as good as the frame; returns how many frames to skip yet.

    Places are shares of the duration, not counts of a frame's: frames may differ in that.
    """
    if not start:
        return 0
    seconds = _seconds(container, stream)
    if seconds is None and stream.average_rate:
        seconds = float(source.frames / stream.average_rate)
    if seconds is None:
        return start
    place = round(start / source.frames * seconds / stream.time_base)
    try:
        container.seek((stream.start_time or 0) + place, stream=stream)
    except av.FFmpegError:
        return start
    return 0


def _collect_rgb(source: Source, frames: Iterator[Any], window: Window) -> Rgb:
    rows, columns = _slices(window)
    run = np.empty((min(source.frames, LONGEST_RUN), *window[2:], 3), np.uint8)
    count = 0
    for count, frame in enumerate(itertools.islice(frames, len(run)), 1):
        run[count - 1] = _to_rgb(frame, source.matrix)[rows, columns]
    return run[:count]


def _collect_planes(source: Source, frames: Iterator[Any], window: Window) -> Clip:
    bits = _bits(source)
    places = [_slices(window), _slices(_half(window)), _slices(_half(window))]
    dtype = np.uint8 if bits == 8 else np.uint16
    length = min(source.frames, LONGEST_RUN)
    y = np.empty((length, *window[2:]), dtype)
    c = np.empty((2, length, *_half(window)[2:]), dtype)
    count = 0
    for count, frame in enumerate(itertools.islice(frames, length), 1):
        for run, plane, place in zip((y, *c), frame.planes, places, strict=True):
            run[count - 1] = plane_array(plane, bits)[place]
    return Clip(y[:count], c[:, :count], bits)


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
