"""Streams made on the fly by the encoders that users have."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from vsdiqp.training.priority import ordinary_threads

WIDTH, HEIGHT, FRAMES = 96, 64, 30

X265_QUIET = "log-level=none:pools=none:frame-threads=1"
SVT_QUIET = "lp=1"


def scene(frames: int, width: int, height: int) -> Iterator[np.ndarray[Any, Any]]:
    """A camera pan over blocks of noise and gradients, with a still stretch: B frames, skips and real residuals."""
    rng = np.random.default_rng(5)
    wall = rng.integers(0, 256, (height // 4 + frames, width // 4 + frames), np.uint8).repeat(4, 0).repeat(4, 1)
    wall = wall // 2 + np.linspace(0, 127, wall.shape[1], dtype=np.uint8)
    for frame in range(frames):
        moved = min(frame, frames * 2 // 3)
        yield np.ascontiguousarray(wall[moved : moved + height, 2 * moved : 2 * moved + width])


def encode(
    path: Path,
    encoder: str,
    options: dict[str, str],
    *,
    frames: int = FRAMES,
    width: int = WIDTH,
    height: int = HEIGHT,
    pixel_format: str = "yuv420p",
) -> Path:
    """Encode the scene with an encoder of PyAV; skips the test where PyAV lacks it."""
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {encoder}")
    with ordinary_threads(), av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for picture in scene(frames, width, height):
            frame = av.VideoFrame.from_ndarray(picture, "gray").reformat(format=pixel_format)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def encode_libaom(path: Path, *options: str) -> Path:
    """Encode the scene with libaom, which PyAV lacks, through the ffmpeg program; skips where there is none."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None or b"libaom-av1" not in subprocess.run([ffmpeg, "-encoders"], capture_output=True).stdout:
        pytest.skip("libaom is tested through an ffmpeg program that has it")
    video = b"".join(picture.tobytes() for picture in scene(FRAMES, WIDTH, HEIGHT))
    raw = ("-f", "rawvideo", "-pixel_format", "gray", "-video_size", f"{WIDTH}x{HEIGHT}", "-framerate", "25")
    how = ("-pix_fmt", "yuv420p", "-c:v", "libaom-av1", "-cpu-used", "8", "-threads", "1", *options)
    command = [ffmpeg, "-v", "error", "-y", *raw, "-i", "-", *how, str(path)]
    subprocess.run(command, input=video, check=True, timeout=120)
    return path


def remux(source: Path, target: Path, *, first: int = 0, shift: int = 0) -> Path:
    """Copy the packets of ``source`` from number ``first`` on, their times moved ``shift`` frames to the past."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_mux_stream(stream.codec_context.codec.canonical_name, rate=25)
        BitStreamFilterContext("null", stream, copy)  # copies what the container must know of the stream
        for number, packet in enumerate(container.demux(stream)):
            if packet.size == 0 or number < first:
                continue
            if packet.dts is not None and packet.pts is not None and shift:
                ticks = round(shift / 25 / packet.time_base)
                packet.dts -= ticks
                packet.pts -= ticks
            packet.stream = copy
            out.mux(packet)
    return target
