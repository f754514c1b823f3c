"""Files of small clips that the tests of this folder write themselves."""

from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path,
    frames: int = 6,
    width: int = 64,
    height: int = 64,
    pixel_format: str = "yuv420p",
    matrix: int | None = None,
    hue: bool = False,
) -> Path:
    """A texture that moves to the right, lossless, grey or with some hue.

    matrix: FFmpeg's number of the one that the file says it has; samples stay the same.
    """
    texture = np.random.default_rng(0).integers(16, 236, (height // 4, width // 4 + frames)).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        for n in range(frames):
            luma = texture[:height, 2 * n : 2 * n + width].astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.stack([luma, luma // 2 if hue else luma, luma], -1), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_interlaced(path: Path, width: int = 64, height: int = 50) -> Path:
    """Three frames that say that they are made of fields."""
    with av.open(str(path), "w") as container:
        options = {"flags": "+ildct+ilme", "field_order": "tt", "qmin": "1", "qmax": "2"}
        stream = container.add_stream("mpeg2video", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        texture = np.random.default_rng(0).integers(16, 236, (height, width, 3), dtype=np.uint8)
        for n in range(3):
            frame = av.VideoFrame.from_ndarray(texture, format="rgb24").reformat(format="yuv420p")
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_two_sizes(path: Path) -> Path:
    """Six frames of 64x64, then six of 96x48, in one raw stream."""
    streams = b""
    for width, height in ((64, 64), (96, 48)):
        part = path.with_name("part.h264")
        with av.open(str(part), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=24, options={"qp": "20"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for n in range(6):
                frame = av.VideoFrame.from_ndarray(np.full((height, width), 50 + 10 * n, np.uint8), format="gray")
                frame = frame.reformat(format="yuv420p")
                frame.pts = n
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        streams += part.read_bytes()
        part.unlink()
    path.write_bytes(streams)
    return path
