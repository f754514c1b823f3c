"""Reads a file once, from start to end, and returns the quantiser of every frame."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import av
import av.error
from av.video.frame import PictureType

from vsdiqp.codecs import av1, decoding, hevc
from vsdiqp.codecs.frames import CodedFrame, Scan
from vsdiqp.codecs.progress import Progress, report
from vsdiqp.codecs.scales import FOREIGN, ForeignScale, scale_of
from vsdiqp.codecs.trace import HeaderTrace, Section, tracing
from vsdiqp.errors import DiqpError

Order = Literal["headers", "decoder"]
"""Where the order of frames is taken from: the headers alone, or a decoder's output, which takes much longer."""


_KINDS = {PictureType.I: "I", PictureType.P: "P", PictureType.B: "B"}


class HeaderReader(Protocol):
    """What :mod:`hevc` and :mod:`av1` have in common."""

    def read(self, sections: list[Section], packet: int, shown: bool) -> None:
        """Take the headers of one packet."""

    @property
    def ordered(self) -> bool:
        """Whether the headers tell the output order."""

    @property
    def complete(self) -> bool:
        """Whether all that the headers promise is output."""

    def frames(self) -> list[tuple[int, CodedFrame]]:
        """Return (packet index, frame) in output order."""

    def coded(self) -> list[tuple[int, CodedFrame]]:
        """Return (packet index, frame) for everything that a decoder might output."""


@dataclass(frozen=True, slots=True)
class _Headers:
    reader: Callable[[], HeaderReader]
    unit_types: str
    wanted: frozenset[str]
    conceals: bool
    """The decoder outputs frames of which a part is damaged, so that their headers count."""
    amend: Callable[[list[Section], bytes, bytes], list[Section]] | None = None
    """Adds what FFmpeg doesn't parse, from a packet's bytes and the stream's extradata."""


_HEADERS: dict[str, _Headers] = {
    "hevc": _Headers(hevc.HevcReader, hevc.UNIT_TYPES, hevc.WANTED, conceals=True, amend=hevc.with_ends),
    "av1": _Headers(av1.Av1Reader, av1.UNIT_TYPES, av1.WANTED, conceals=False),
}
"""Codecs whose headers are read; those of ``FOREIGN`` are decoded, because only decoders know their blocks' QP."""


def scan_file(path: Path, progress: Progress | None = None, order: Order = "headers") -> Scan:
    """Read the QP of every frame of the first video stream of ``path``, in presentation order.

    ``order`` "decoder" also decodes HEVC and AV1, and leaves out the frames that the decoder makes nothing of: what
    damaged files need. Where headers don't tell the order, as in HEVC that was joined without marks, that is done in
    any case. Raises :class:`DiqpError` when the file cannot be opened, holds no video, or is of a codec
    whose QP cannot be read.
    """
    unreadable, complete = 0, True
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            stream_codec = "" if context is None else str(context.codec.canonical_name)
            if stream_codec in _HEADERS:
                reader, unreadable = _read_headers(container, stream, _HEADERS[stream_codec], progress)
                frames = [frame for _, frame in reader.frames()]
                complete = reader.complete
                if not reader.ordered:
                    order = "decoder"
                qps: list[float] = [frame.qp for frame in frames]
                scale = scale_of(stream_codec)
            elif stream_codec in FOREIGN:
                foreign = FOREIGN[stream_codec]
                frames, qps = _read_blocks(container, stream, foreign, progress)
                scale = scale_of(foreign.codec)
            else:
                raise DiqpError(
                    f"{path} is {stream_codec or 'of an unknown codec'}: the QP can be read from "
                    f"{', '.join([*_HEADERS, *FOREIGN])}; for this one give Restore a qp"
                )
            described = {
                "profile": str(context.profile or ""),
                "bits": context.format.components[0].bits if context.format is not None else 8,
                "width": context.width,
                "height": context.height,
            }
        if order == "decoder" and stream_codec in _HEADERS:
            with _open(path) as container:
                frames = decoding.in_decoder_order(reader.coded(), container, container.streams.video[0], progress)
                qps, complete = [frame.qp for frame in frames], True
        with _open(path) as container:
            stream = container.streams.video[0]
            first = decoding.first_frame(container, stream)
            encoder = decoding.signature(first, stream)
            if first is not None:  # AV1's sequence header may promise larger ones
                described |= {"width": first.width, "height": first.height}
    except av.error.FFmpegError as error:
        raise DiqpError(
            f"cannot read {path}: {error.strerror or error}; give the video that the clip was read from, complete and "
            f"undamaged, or give Restore a qp"
        ) from error
    if not frames:
        raise DiqpError(f"no frame of {path} could be read: is the file complete and not encrypted?")
    return Scan(
        stream_codec=stream_codec,
        codec=scale.codec,
        encoder=encoder,
        frames=frames,
        qps=[round(scale.clamp(qp)) for qp in qps],
        unreadable=unreadable,
        complete=complete,
        **described,
    )


def _open(path: Path) -> av.container.InputContainer:
    container = av.open(str(path.absolute()))  # or a colon in a name would end the name of a protocol
    if not container.streams.video:
        container.close()
        raise DiqpError(f"{path} holds no video stream: give the file that the clip was loaded from")
    return container


def _read_headers(
    container: av.container.InputContainer, stream: av.VideoStream, headers: _Headers, progress: Progress | None
) -> tuple[HeaderReader, int]:
    """Return what has read all packets, and the number of those that could not be parsed."""
    reader = headers.reader()
    unreadable, extradata = 0, bytes(stream.codec_context.extradata or b"")
    with tracing() as lines:
        trace = HeaderTrace(stream, lines, headers.unit_types, headers.wanted)
        reader.read(trace.initial, -1, False)
        for index, packet in enumerate(decoding.packets(container, stream)):
            # The filter takes the packet's contents away: ask it first.
            position, shown = packet.pos, not packet.is_discard
            content = bytes(packet) if headers.amend else b""
            sections, whole = trace.read(packet)
            if headers.amend:
                sections = headers.amend(sections, content, extradata)
            unreadable += not whole
            if whole or headers.conceals:
                reader.read(sections, index, shown)
            report(progress, position, container.size)
    return reader, unreadable


def _read_blocks(
    container: av.container.InputContainer, stream: av.VideoStream, foreign: ForeignScale, progress: Progress | None
) -> tuple[list[CodedFrame], list[float]]:
    """Return the frames and, for each, its mean block QP on the scale of ``foreign.codec``."""
    frames: list[CodedFrame] = []
    qps: list[float] = []
    quantiser: float | None = None
    for _, position, frame in decoding.decoded(container, stream):
        # A frame that is shown again, or one that is all concealment, has no blocks of its own.
        found = decoding.block_quantiser(frame)
        quantiser = quantiser if found is None else found
        if quantiser is None:
            raise DiqpError("the decoder says nothing of the first frame's quantiser: give Restore a qp")
        bits = frame.format.components[0].bits
        kind = _KINDS.get(PictureType(frame.pict_type), "P")
        frames.append(CodedFrame(round(quantiser), kind, frame.key_frame))
        qps.append(foreign.convert(quantiser, bits))
        report(progress, position, container.size)
    return frames, qps
