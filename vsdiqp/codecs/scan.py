"""Reads a file once, from start to end, and returns what its headers say of every frame."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import av
import av.error

from vsdiqp.codecs import av1, hevc
from vsdiqp.codecs.frames import CodedFrame, Scan
from vsdiqp.codecs.progress import Progress
from vsdiqp.codecs.scales import scale_of
from vsdiqp.codecs.trace import HeaderTrace, Section, tracing
from vsdiqp.errors import DiqpError


class HeaderReader(Protocol):
    """What :mod:`hevc` and :mod:`av1` have in common."""

    def read(self, sections: list[Section], packet: int, shown: bool) -> None:
        """Take the headers of one packet."""

    def frames(self) -> list[tuple[int, CodedFrame]]:
        """Return (packet index, frame) in output order."""


_HEADER_READERS: dict[str, tuple[Callable[[], HeaderReader], str, frozenset[str]]] = {
    "hevc": (hevc.HevcReader, hevc.UNIT_TYPES, hevc.WANTED),
    "av1": (av1.Av1Reader, av1.UNIT_TYPES, av1.WANTED),
}


def scan_file(path: Path, progress: Progress | None = None) -> Scan:
    """Read the QP of every frame of the first video stream of ``path``, in presentation order.

    Raises :class:`DiqpError` when the file cannot be opened, holds no video, or its codec is not one that is known.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DiqpError(f"{path} holds no video stream: give the file that the clip was loaded from")
            stream = container.streams.video[0]
            stream_codec = _codec_name(stream)
            if stream_codec not in _HEADER_READERS:
                raise DiqpError(f"{path} is {stream_codec}: the QP can be read from {', '.join(_HEADER_READERS)}")
            return _scan_headers(path, container, stream, stream_codec, progress)
    except av.error.FFmpegError as error:
        raise DiqpError(f"cannot read {path}: {error.strerror or error}") from error


def _codec_name(stream: av.VideoStream) -> str:
    context = stream.codec_context
    # The decoder may be called libdav1d where the codec is av1.
    return "" if context is None else str(context.codec.canonical_name)


def _scan_headers(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    stream_codec: str,
    progress: Progress | None,
) -> Scan:
    make_reader, unit_types, wanted = _HEADER_READERS[stream_codec]
    reader = make_reader()
    unreadable = 0
    size = max(container.size, 1)
    with tracing() as lines:
        trace = HeaderTrace(stream, lines, unit_types, wanted)
        reader.read(trace.initial, -1, False)
        for index, packet in enumerate(container.demux(stream)):
            if packet.size == 0:
                continue
            # The filter takes the packet's contents away: ask it first.
            position, shown = packet.pos, not packet.is_discard
            try:
                sections = trace.read(packet)
            except av.error.FFmpegError:
                unreadable += 1
                continue
            reader.read(sections, index, shown)
            if progress is not None and position is not None:
                progress(min(position / size, 1.0))
    frames = [frame for _, frame in reader.frames()]
    if not frames:
        raise DiqpError(
            f"no frame of {path} could be read ({unreadable} packets were damaged): is it complete and not encrypted?"
        )
    context = stream.codec_context
    scale = scale_of(stream_codec)
    return Scan(
        stream_codec=stream_codec,
        codec=stream_codec,
        profile=str(context.profile or ""),
        bits=context.format.components[0].bits if context.format is not None else 8,
        width=context.width,
        height=context.height,
        encoder="",
        frames=frames,
        qps=[int(scale.clamp(frame.qp)) for frame in frames],
        unreadable=unreadable,
    )
