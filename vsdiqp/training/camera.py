"""Stills and clips become clips that move, look and age like real footage, before they're encoded.

All of it happens on the source side: what comes out is the pristine clip that a network must get back to.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vsdiqp.training.degrade import Clip
from vsdiqp.training.sources import FEWEST, LONGEST_RUN, Library, Source, UnreadableError, Window, warn_once

Floats = NDArray[np.float32]

MATRICES = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}
"""H.273 matrix number to (Kr, Kb): BT.709 and BT.601."""

_LITTLE_DETAIL = 3.0  # 8-bit steps between neighbours, both directions together
_TRIES = 20  # scenes that may fail for what can't be read, until it is taken that nothing can
_OVERSAMPLING = 2  # textures are warped at twice the output's resolution, where bicubic is nearly exact


@dataclass(slots=True)
class Shot:
    """A rendered clip [F,3,H,W] of RGB in 0..1, and what is known of it."""

    rgb: torch.Tensor
    cuts: list[int] = field(default_factory=list)
    """Frames that begin a new scene."""
    sources: list[str] = field(default_factory=list)


def render(
    sources: list[Source], library: Library, size: tuple[int, int], frames: int, rng: np.random.Generator
) -> Shot:
    """A clip of ``size`` (height, width) and at most ``frames`` frames, drawn at random from ``sources``.

    Clips that are shorter than ``frames`` and play as they are give fewer frames, never under three.
    """
    shot = _scene(sources, library, size, frames, rng)
    if _detail(shot.rgb) < _LITTLE_DETAIL and rng.random() < 0.75:
        # Skies and gradients teach little and are everywhere; some are enough.
        shot = _scene(sources, library, size, frames, rng)
    count = shot.rgb.shape[0]
    if count >= 6 and rng.random() < 0.05:
        other = _scene(sources, library, size, count, rng)
        cut = int(rng.integers(2, count - 2))
        if other.rgb.shape[0] >= count - cut:
            shot.rgb = torch.cat([shot.rgb[:cut], other.rgb[: count - cut]])
            shot.cuts.append(cut)
            shot.sources += other.sources
    return shot


def _scene(
    sources: list[Source], library: Library, size: tuple[int, int], frames: int, rng: np.random.Generator
) -> Shot:
    """A scene of what can be read: another is drawn where a source can't. Raises DiqpError where that goes on."""
    for _ in range(_TRIES):
        try:
            return _take(sources, library, size, frames, rng)
        except UnreadableError as error:
            warn_once(f"{error}; another source is taken instead")
            failed = error
    raise failed


def _take(
    sources: list[Source], library: Library, size: tuple[int, int], frames: int, rng: np.random.Generator
) -> Shot:
    weights = np.array([source.weight for source in sources])
    source = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
    start = source.draw_start(rng)
    names = [source.name]
    if source.frames >= FEWEST and rng.random() < 0.7:
        rgb = _play(source, library, start, size, frames, rng)
    else:
        rgb = _move(_picture(source, library, start, rng), size, frames, rng)
        if rng.random() < 0.25:
            front = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
            layer = _move(_picture(front, library, front.draw_start(rng), rng), size, frames, rng)
            rgb = _composite(rgb, layer, rng)
            names.append(front.name)
    rgb = _look(_orient(rgb, rng), rng)
    if rng.random() < 0.06:
        rgb = _title(rgb, rng)
    return Shot(rgb, [], names)


def _picture(source: Source, library: Library, start: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    return library.picture(source, start, int(rng.integers(min(source.frames, LONGEST_RUN))))


def _detail(rgb: torch.Tensor) -> float:
    """Mean absolute difference of neighbouring samples in the middle frame, in 8-bit steps."""
    picture = rgb[rgb.shape[0] // 2].mean(0) * 255
    return float(picture.diff(dim=0).abs().mean() + picture.diff(dim=1).abs().mean())


# ---------------------------------------------------------------- motion


def _play(
    source: Source, library: Library, start: int, size: tuple[int, int], frames: int, rng: np.random.Generator
) -> torch.Tensor:
    """A moving clip as it is, at its own or a smaller scale. Only what is shown of large pictures is read."""
    scale = _scale(source.height, source.width, size, rng, native=0.4)
    box = _box(source.height, source.width, size, scale, rng, whole=scale == 1)
    window = _window(box, size, source.height, source.width)
    pictures = library.rgb(source, start, window)
    count = pictures.shape[0]
    step = 2 if count >= 2 * frames and rng.random() < 0.15 else 1
    length = min(frames, (count - 1) // step + 1)
    first = int(rng.integers(count - (length - 1) * step))
    order = first + step * np.arange(length)
    if rng.random() < 0.5:
        order = order[::-1]
    left, top, right, bottom = box
    inside = (left - window[1], top - window[0], right - window[1], bottom - window[0])
    return torch.stack([_resample(pictures[index], inside, size) for index in order])


def _window(box: tuple[float, float, float, float], size: tuple[int, int], height: int, width: int) -> Window:
    """The part of a picture of ``height`` and ``width`` that a box at ``size`` is resampled from."""
    left, top, right, bottom = box
    margin = _margin(box, size)
    y0, x0 = max(int(top) - margin, 0), max(int(left) - margin, 0)
    return y0, x0, min(int(bottom) + margin + 1, height) - y0, min(int(right) + margin + 1, width) - x0


def _margin(box: tuple[float, float, float, float], size: tuple[int, int]) -> int:
    """Pixels around a box that the filter reaches."""
    return 4 * int(np.ceil((box[3] - box[1]) / size[0]))


def _move(picture: NDArray[np.uint8], size: tuple[int, int], frames: int, rng: np.random.Generator) -> torch.Tensor:
    """A camera's way over a still: pan, zoom, rotation, shake, a little bending; with motion blur at times."""
    height, width = picture.shape[:2]
    scale = _scale(height, width, size, rng, native=0.25)
    path = _Path(size, frames, rng)
    # The texture holds what the camera passes over, at the output's scale, plus a rim for the bicubic kernel.
    extent = [float(span) + 8 for span in path.extent()]
    texture_size = (
        int(min(extent[0], height / scale)) // 2 * 2,
        int(min(extent[1], width / scale)) // 2 * 2,
    )
    box = _box(height, width, texture_size, scale, rng)
    texture = _resample(picture, box, texture_size)
    big = (texture_size[0] * _OVERSAMPLING, texture_size[1] * _OVERSAMPLING)
    texture = functional.interpolate(texture[None], size=big, mode="bicubic", align_corners=False)
    shutter = float(rng.uniform(0.2, 0.6)) if path.speed > 1.5 and rng.random() < 0.35 else 0.0
    samples = 4 if shutter else 1
    out = []
    for index in range(frames):
        times = index + shutter * (np.arange(samples) / samples)
        warped = [_warp(texture, path.grid(float(time), texture_size)) for time in times]
        out.append(torch.stack(warped).mean(0) if samples > 1 else warped[0])
    return torch.stack(out)


class _Path:
    """Where each output pixel looks, in output pixels from the texture's centre, at a time in frames."""

    def __init__(self, size: tuple[int, int], frames: int, rng: np.random.Generator) -> None:
        self._size = size
        self._half_time = (frames - 1) / 2
        kind = rng.choice(5, p=(0.12, 0.28, 0.36, 0.19, 0.05))
        low, high = ((0, 0), (0.02, 0.5), (0.5, 3), (3, 10), (10, 20))[int(kind)]
        self.speed = float(rng.uniform(low, high))
        angle = float(rng.uniform(0, 2 * np.pi)) if rng.random() < 0.5 else float(rng.integers(4)) * np.pi / 2
        self._velocity = (self.speed * np.sin(angle), self.speed * np.cos(angle))
        if rng.random() < 0.15:
            self._velocity = (float(np.round(self._velocity[0])), float(np.round(self._velocity[1])))
        self._offset = rng.uniform(-0.5, 0.5, 2)
        moving = kind > 0
        self._zoom = float(rng.normal(0, 0.004)) if moving and rng.random() < 0.4 else 0.0
        self._spin = float(rng.normal(0, 0.004)) if moving and rng.random() < 0.3 else 0.0
        self._tilt = float(rng.normal(0, 0.1)) if rng.random() < 0.3 else 0.0
        self._acceleration = float(rng.normal(0, 0.03)) * self.speed if rng.random() < 0.4 else 0.0
        self._shake = _waves(rng, 3, 0.6 if moving and rng.random() < 0.3 else 0.0, (0.2, 1.5))
        self._bend = _waves(rng, 3, 2.0 if moving and rng.random() < 0.2 else 0.0, (0.05, 0.6))
        self._wave_numbers = rng.uniform(-3, 3, (3, 2)) * 2 * np.pi / max(size)
        rows = (torch.arange(size[0], dtype=torch.float32) - (size[0] - 1) / 2)[:, None]
        columns = (torch.arange(size[1], dtype=torch.float32) - (size[1] - 1) / 2)[None]
        self._rows = rows.expand(size)
        self._columns = columns.expand(size)

    def extent(self) -> tuple[float, float]:
        """Height and width that the whole way covers."""
        first, last = self._affine(-0.5), self._affine(2 * self._half_time + 0.5)
        spans = []
        for axis in (0, 1):
            reach = 0.0
            for matrix, offset in (first, last):
                side = abs(matrix[axis, 0]) * self._size[0] + abs(matrix[axis, 1]) * self._size[1]
                reach = max(reach, abs(offset[axis]) + side / 2)
            spans.append(2 * reach + 8)
        return spans[0], spans[1]

    def _affine(self, time: float) -> tuple[NDArray[Any], NDArray[Any]]:
        t = time - self._half_time
        angle = self._tilt + self._spin * t
        factor = np.exp(self._zoom * t)
        matrix = factor * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        velocity = np.array(self._velocity)
        gain = t + self._acceleration * t * abs(t) / max(self.speed, 1e-3) / 2
        shake = [sum(a * np.sin(w * time + p) for a, w, p in self._shake[i::2]) for i in (0, 1)]
        return matrix, velocity * gain + self._offset + np.array(shake)

    def grid(self, time: float, texture: tuple[int, int]) -> torch.Tensor:
        """Sampling grid [1,H,W,2] for torch's grid_sample (align_corners=False) over a texture of that size."""
        matrix, offset = self._affine(time)
        y = matrix[0, 0] * self._rows + matrix[0, 1] * self._columns + offset[0]
        x = matrix[1, 0] * self._rows + matrix[1, 1] * self._columns + offset[1]
        for (amplitude, speed, phase), (ky, kx) in zip(self._bend, self._wave_numbers, strict=True):
            if amplitude:
                wave = amplitude * torch.sin(ky * self._rows + kx * self._columns + (speed * time + phase))
                y, x = y + wave, x + wave.flip(0)
        return torch.stack([x * (2 / texture[1]), y * (2 / texture[0])], -1)[None]


def _waves(
    rng: np.random.Generator, count: int, amplitude: float, speeds: tuple[float, float]
) -> list[tuple[float, float, float]]:
    return [
        (amplitude * float(rng.uniform(0.2, 1)) / count, float(rng.uniform(*speeds)), float(rng.uniform(0, 6.28)))
        for _ in range(count)
    ]


def _warp(texture: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return functional.grid_sample(texture, grid, mode="bicubic", padding_mode="reflection", align_corners=False)[0]


def _composite(back: torch.Tensor, front: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Parallax: soft-edged islands of ``front``, moving on their own, before ``back``."""
    frames, _, height, width = back.shape
    cells = int(rng.integers(2, 6))
    noise = torch.from_numpy(rng.normal(size=(1, 1, cells + 3, cells + 3)).astype(np.float32))
    speed = rng.uniform(-4, 4, 2) if rng.random() < 0.7 else np.zeros(2)
    softness = float(rng.uniform(1, 3)) / (height / cells)
    pad = int(4 * frames) + 8
    field_ = functional.interpolate(
        noise, size=(height + 2 * pad, width + 2 * pad), mode="bicubic", align_corners=False
    )
    level = float(field_.quantile(float(rng.uniform(0.4, 0.7))))
    mask = torch.sigmoid((field_ - level) / softness)
    out = []
    for index in range(frames):
        t = index - (frames - 1) / 2
        top, left = (pad + float(s) * t for s in speed)
        rows, columns = int(np.floor(top)), int(np.floor(left))
        window = mask[:, :, rows : rows + height + 1, columns : columns + width + 1]
        fy, fx = top - rows, left - columns
        window = window[:, :, :-1] * (1 - fy) + window[:, :, 1:] * fy
        window = window[..., :-1] * (1 - fx) + window[..., 1:] * fx
        out.append(back[index] * (1 - window[0]) + front[index] * window[0])
    return torch.stack(out)


def _title(rgb: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Subtitles, captions or rolling credits: outlined letters, still or drifting up."""
    from PIL import Image, ImageDraw, ImageFont

    frames, _, height, width = rgb.shape
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?-'"
    lines = []
    for _ in range(int(rng.integers(1, 4))):
        words = ["".join(rng.choice(list(letters), int(rng.integers(1, 9)))) for _ in range(int(rng.integers(1, 5)))]
        lines.append(" ".join(words))
    drift = int(rng.integers(0, 3)) if rng.random() < 0.3 else 0
    canvas = Image.new("RGBA", (width, height + drift * frames), (0, 0, 0, 0))
    fill = tuple(int(v) for v in (rng.integers(0, 256, 3) if rng.random() < 0.4 else (240, 240, 240)))
    edge = tuple(255 - v if rng.random() < 0.2 else 0 for v in fill)
    size = float(rng.uniform(10, 40))
    place = (float(rng.uniform(-0.1, 0.4) * width), float(rng.uniform(0, 0.8) * height))
    ImageDraw.Draw(canvas).multiline_text(
        place,
        "\n".join(lines),
        fill=(*fill, int(rng.integers(160, 256))),
        font=ImageFont.load_default(size),
        stroke_width=int(rng.integers(0, 3)),
        stroke_fill=(*edge, 255),
    )
    layer = torch.from_numpy(np.asarray(canvas).transpose(2, 0, 1).astype(np.float32) / 255)
    out = []
    for index in range(frames):
        window = layer[:, index * drift : index * drift + height]
        out.append(rgb[index] * (1 - window[3:]) + window[:3] * window[3:])
    return torch.stack(out)


def _scale(height: int, width: int, size: tuple[int, int], rng: np.random.Generator, native: float) -> float:
    """Source pixels an output pixel spans: 1 (``native`` of the time) up to what the source's size allows."""
    largest = min(height / size[0], width / size[1])
    if largest <= 1 or rng.random() < native:
        return min(1.0, largest)
    return float(np.exp(rng.uniform(0, np.log(min(largest, 3.0)))))


def _box(
    height: int, width: int, size: tuple[int, int], scale: float, rng: np.random.Generator, whole: bool = False
) -> tuple[float, float, float, float]:
    """A place for ``size`` output pixels in the source: left, top, right, bottom in source pixels."""
    tall, wide = min(size[0] * scale, height), min(size[1] * scale, width)
    top, left = (float(rng.uniform(0, room)) if room > 0 else 0.0 for room in (height - tall, width - wide))
    if whole:
        top, left = float(int(top)), float(int(left))
    return left, top, left + wide, top + tall


def _resample(
    picture: NDArray[np.uint8], box: tuple[float, float, float, float], size: tuple[int, int]
) -> torch.Tensor:
    """The box of a picture [H,W,3], at ``size`` (Lanczos with antialiasing): [3,h,w] in 0..1."""
    left, top, right, bottom = box
    if right - left == size[1] and bottom - top == size[0] and left == int(left) and top == int(top):
        cut = picture[int(top) : int(bottom), int(left) : int(right)]
    else:
        from PIL import Image

        margin = _margin(box, size)
        x0, y0 = max(int(left) - margin, 0), max(int(top) - margin, 0)
        x1, y1 = int(right) + margin + 1, int(bottom) + margin + 1
        image = Image.fromarray(np.ascontiguousarray(picture[y0:y1, x0:x1]))
        inner = (left - x0, top - y0, min(right - x0, image.width), min(bottom - y0, image.height))
        cut = np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=inner))
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)).astype(np.float32) / 255)


# ---------------------------------------------------------------- look


def _orient(rgb: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    if rng.random() < 0.5:
        rgb = rgb.flip(-1)
    turns = int(rng.choice(4, p=(0.55, 0.15, 0.15, 0.15)))
    if turns and (turns == 2 or rgb.shape[-1] == rgb.shape[-2]):
        rgb = torch.rot90(rgb, turns, (-2, -1))
    return rgb


def _look(rgb: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Tone, colour, sharpness and grain, the same for all frames; fades and flashes."""
    if rng.random() < 0.2:
        rgb = rgb[:, torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.04:
        rgb = 1 - rgb
    rgb = rgb.clamp(0, 1)
    if rng.random() < 0.5:
        rgb = rgb ** float(np.exp(rng.uniform(-0.5, 0.5)))
    if rng.random() < 0.5:
        contrast, middle = float(rng.uniform(0.5, 1.1)), float(rng.uniform(0.25, 0.75))
        target = middle if rng.random() < 0.3 else 0.5
        rgb = (rgb - 0.5) * contrast + 0.5 + (target - 0.5) * (1 - min(contrast, 1.0)) * 2
    grey = (rgb * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1, keepdim=True)
    if rng.random() < 0.4:
        rgb = grey + (rgb - grey) * float(rng.uniform(0.3, 1.5))
    elif rng.random() < 0.05:
        rgb = grey.expand_as(rgb)
    if rng.random() < 0.12:
        rgb = _blur(rgb, float(rng.uniform(0.4, 1.4)))
    frames = rgb.shape[0]
    if rng.random() < 0.04:
        start, stop = rng.uniform(0, 1.2, 2)
        rgb = rgb * torch.linspace(float(start), float(stop), frames)[:, None, None, None]
    elif rng.random() < 0.02:
        flash = int(rng.integers(frames))
        rgb = rgb.clone()
        rgb[flash] = rgb[flash] * float(rng.uniform(1.2, 2)) + float(rng.uniform(0, 0.3))
    if rng.random() < 0.2:
        rgb = rgb + _grain(rgb, rng)
    return rgb.clamp(0, 1)


def _grain(rgb: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Film grain or sensor noise, 0.3 to 3.5 steps of 8 bits, mostly in luma, at times a little correlated."""
    frames, _, height, width = rgb.shape
    sigma = float(np.exp(rng.uniform(np.log(0.3), np.log(3.5)))) / 255
    noise = torch.from_numpy(rng.standard_normal((frames, 1, height, width), dtype=np.float32))
    if rng.random() < 0.5:
        noise = _blur(noise, float(rng.uniform(0.35, 0.8)))
        noise = noise / noise.std()
    if rng.random() < 0.3:
        colour = torch.from_numpy(rng.standard_normal((frames, 3, height, width), dtype=np.float32))
        noise = noise + 0.5 * colour
    return sigma * noise


def _blur(pictures: torch.Tensor, sigma: float) -> torch.Tensor:
    channels = pictures.shape[1]
    taps = torch.exp(-0.5 * (torch.arange(-4, 5, dtype=torch.float32) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(channels, 1, 9)
    padded = functional.pad(pictures, (4, 4, 4, 4), mode="reflect")
    out = functional.conv2d(padded, taps[:, :, :, None].contiguous(), groups=channels)
    return functional.conv2d(out, taps[:, :, None].contiguous(), groups=channels)


# ---------------------------------------------------------------- colour


def to_yuv420(rgb: torch.Tensor, matrix: int, bits: int) -> Clip:
    """RGB [F,3,H,W] in 0..1 to limited-range 4:2:0 with chroma sited left.

    Chroma is filtered with [1 2 1]/4 across (the sample sits on a luma column) and [1 1]/2 down (it sits between two
    rows). ``matrix`` is 1 (BT.709) or 6 (BT.601).
    """
    kr, kb = MATRICES[matrix]
    red, green, blue = rgb.unbind(1)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = torch.stack([(blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))])
    rows = (chroma[..., ::2, :] + chroma[..., 1::2, :]) / 2
    left = torch.cat([rows[..., :1], rows[..., 1:-1:2]], -1)
    small = rows[..., ::2] / 2 + (left + rows[..., 1::2]) / 4
    unit = 1 << (bits - 8)
    dtype = np.uint8 if bits == 8 else np.uint16
    top = 255 * unit
    luma = (y * 219 * unit + 16 * unit).add(0.5).floor().clamp(0, top)
    small = (small * 224 * unit + 128 * unit).add(0.5).floor().clamp(0, top)
    return Clip(luma.numpy().astype(dtype), small.numpy().astype(dtype), bits)
