"""Small pictures and clips that the tests of this folder paint themselves."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vsdiqp.training.degrade import Clip, encode_lossless


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """[H,W,3] of soft blobs and hard edges, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    out = np.full((height, width, 3), 90.0)
    for _ in range(12):
        cy, cx, size = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(6, 30)
        colour = rng.uniform(-90, 120, 3)
        distance = np.hypot(y - cy, x - cx)
        shape = distance < size if rng.random() < 0.5 else np.exp(-((distance / size) ** 2))
        out += shape[..., None] * colour
    out += rng.normal(0, 2, out.shape)
    return np.clip(out, 0, 255).astype(np.uint8)


def moving_clip(frames: int = 9, side: int = 64, bits: int = 8, seed: int = 0) -> Clip:
    """A pan over a picture, as 4:2:0 planes whose chroma is made of other parts of the picture."""
    wide = picture(side, side + 2 * frames, seed).astype(np.uint16)
    unit = 1 if bits == 8 else 4
    y = np.stack([wide[:, 2 * n : 2 * n + side, 1] * unit for n in range(frames)])
    c = np.stack([y[:, ::2, ::2] // 2 + 60 * unit, y[:, ::2, ::2] // 4 + 90 * unit])
    dtype = np.uint8 if bits == 8 else np.uint16
    return Clip(y.astype(dtype), c.astype(dtype), bits)


def fill_sources(folder: Path, side: int = 96) -> None:
    """Two stills and a video."""
    (folder / "stills").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(picture(side, side + 32, number)).save(folder / "stills" / f"{number}.png")
    (folder / "clip.mkv").write_bytes(encode_lossless(moving_clip(12, side, seed=3)))


def write_video(
    path: Path,
    clip: Clip,
    encoder: str = "libx264",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    times: list[int] | None = None,
    pixel_format: str = "yuv420p",
) -> None:
    """An 8-bit clip at 24 frames a second, or at ``times`` in 24ths, every frame a keyframe unless ``options`` say."""
    path.parent.mkdir(exist_ok=True)
    height, width = clip.y.shape[1:]
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(encoder, rate=24, options=options or {"qp": "0", "preset": "ultrafast", "g": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for index in range(clip.frames):
            planes = [clip.y[index], clip.c[0, index], clip.c[1, index]]
            samples = np.concatenate([plane.ravel() for plane in planes]).reshape(height * 3 // 2, width)
            frame = av.VideoFrame.from_ndarray(samples, "yuv420p").reformat(format=pixel_format)
            frame.pts, frame.time_base = (times[index] if times else index), Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def numbered(frames: int, side: int = 64) -> Clip:
    """Frame n is as bright as n // 2 + 20 says."""
    y = np.repeat((np.arange(frames) // 2 + 20).astype(np.uint8), side * side).reshape(frames, side, side)
    return Clip(y, np.full((2, frames, side // 2, side // 2), 128, np.uint8))
