"""Frames as FFmpeg's decoders output them: their order, the quantiser of their blocks, and what the encoder signed."""

from collections.abc import Buffer, Iterator
from itertools import groupby
from typing import cast

import av
import av.error
import numpy as np
from av.sidedata.encparams import VideoEncParams

from vsdiqp.codecs.frames import CodedFrame
from vsdiqp.codecs.progress import Progress, report

_UUID_BYTES = 16
"""Unregistered user data begins with a UUID (H.265 annex D.3.7), the text follows."""

_FAST = {
    "skip_loop_filter": "all",  # pictures are not looked at
    "export_side_data": "venc_params",
    # Without this the H.264 decoder guesses how far frames are reordered, and may output the first ones out of order.
    "strict": "strict",
}


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yield the packets of ``stream``; a file that breaks off ends there, as it does for source filters."""
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed)
        except (StopIteration, av.error.FFmpegError):
            return
        # The demuxer's last packet is empty: it flushes decoders.
        if packet.size > 0:
            yield packet


def decoded(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[int, int | None, av.VideoFrame]]:
    """Yield (index of its packet, that packet's position in bytes, frame) for every frame the decoder outputs.

    Pictures are not fit for viewing: the loop filter is left out. Packets the decoder rejects are passed over.
    """
    context = stream.codec_context
    context.copy_opaque = True
    _use_one_thread(context)
    context.options = _FAST
    for index, packet in enumerate(packets(container, stream)):
        packet.opaque = (index, packet.pos)
        yield from _decode(context, packet)
    yield from _decode(context, None)


def _use_one_thread(context: av.VideoCodecContext) -> None:
    """Decode without worker threads.

    What they log goes through Python and needs its lock, which the thread that closes the decoder holds while it waits
    for them: damaged AV1 and scans in several threads were seen to stand still for ever.
    """
    context.thread_count = 1


def _decode(context: av.VideoCodecContext, packet: av.Packet | None) -> Iterator[tuple[int, int | None, av.VideoFrame]]:
    try:
        frames = context.decode(packet)
    except av.error.FFmpegError:
        return
    for frame in frames:
        index, position = frame.opaque
        yield index, position, frame


def in_decoder_order(
    frames: list[tuple[int, CodedFrame]],
    container: av.container.InputContainer,
    stream: av.VideoStream,
    progress: Progress | None = None,
) -> list[CodedFrame]:
    """Return those of ``frames``, (packet index, frame), that the decoder outputs, in the order it does."""
    by_packet = {
        index: [frame for _, frame in group]
        for index, group in groupby(sorted(frames, key=lambda item: item[0]), key=lambda item: item[0])
    }
    ordered: list[CodedFrame] = []
    for index, position, _ in decoded(container, stream):
        report(progress, position, container.size)
        left = by_packet.get(index)
        if left:
            ordered.append(left.pop(0))
    return ordered


def block_quantiser(frame: av.VideoFrame) -> float | None:
    """Return the mean quantiser of ``frame``'s luma blocks by area, in the codec's own unit; None when it has none.

    H.264 QP (with QpBdOffset added above 8 bits), VP9 base_qindex (with its segments' changes when there are any),
    MPEG-1, 2 and 4 quantiser scale, in MPEG-2's linear unit.
    """
    parameters = frame.side_data.get("VIDEO_ENC_PARAMS")
    if not isinstance(parameters, VideoEncParams):
        return None
    if parameters.nb_blocks == 0:
        return float(parameters.qp)
    # AVVideoBlockParams: src_x, src_y, w, h, delta_qp, each 32 bits; FFmpeg may append to it, so the stride is asked.
    blocks = np.ndarray(
        (parameters.nb_blocks, 5),
        np.int32,
        np.frombuffer(cast(Buffer, parameters), np.uint8),
        parameters.blocks_offset,
        (parameters.block_size, 4),
    )
    area = blocks[:, 2].astype(np.int64) * blocks[:, 3]
    return float(parameters.qp + (area * blocks[:, 4]).sum() / area.sum())


def first_frame(container: av.container.InputContainer, stream: av.VideoStream) -> av.VideoFrame | None:
    """Decode until there is a frame; None when none comes."""
    _use_one_thread(stream.codec_context)
    try:
        return next(container.decode(stream))
    except (StopIteration, av.error.FFmpegError):
        return None


def signature(frame: av.VideoFrame | None, stream: av.VideoStream) -> str:
    """Return what the encoder wrote about itself into the stream, else into the container; empty when it did not.

    x264 and x265 write their whole command line as unregistered user data before the first picture.
    """
    if frame is not None:
        data = frame.side_data.get("SEI_UNREGISTERED")
        text = bytes(data)[_UUID_BYTES:].rstrip(b"\0") if data is not None else b""
        if text and text.isascii():
            return text.decode("ascii")
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return " ".join(tags[key] for key in ("encoder", "encoder_settings") if key in tags)
