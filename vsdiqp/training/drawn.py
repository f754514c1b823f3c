"""Pictures that no camera took: text and windows, pixel patterns, noise, gradients, flat shapes, flicker.

People restore screen recordings, pixel art, test cards and title cards too. A network that has seen photographs alone
takes a pattern of single pixels, which AV1 codes nearly without error, for noise.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
Kind = Callable[[Size, int, np.random.Generator], Tensor]

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;(){}[]+-*/=_"))
_SMOOTH = 2
"""Shapes are drawn so many times larger and averaged: their edges are antialiased."""


def draw(size: Size, frames: int, rng: np.random.Generator) -> tuple[Tensor, str]:
    """A clip of one of KINDS, RGB F, 3, H, W in 0..1, and the kind's name. One in four is letterboxed."""
    name = str(rng.choice(list(KINDS)))
    clip = KINDS[name](size, frames, rng)
    if rng.random() < 0.25:
        bar = int(rng.integers(8, size[0] // 4))
        clip[:, :, :bar] = clip[:, :, -bar:] = 0
    return clip, name


def automaton(size: Size, frames: int, rng: np.random.Generator) -> Tensor:
    """Cellular automata in two colours: Life on a torus, or a one-dimensional rule scrolling up; cells of 1 to 4 px."""
    cell = int(rng.integers(1, 5))
    height, width = -(-size[0] // cell), -(-size[1] // cell)
    evolve = _life if rng.random() < 0.5 else _elementary
    states = evolve(height, width, frames, rng)
    grown = states.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, : size[0], : size[1]]
    colours = torch.from_numpy(rng.random((2, 3), dtype=np.float32))
    return colours[grown.long()].permute(0, 3, 1, 2).contiguous()


def _life(height: int, width: int, frames: int, rng: np.random.Generator) -> Tensor:
    state = torch.from_numpy(rng.random((height, width)) < rng.uniform(0.1, 0.5)).float()[None, None]
    ring = torch.ones(1, 1, 3, 3)
    ring[..., 1, 1] = 0
    every, states = int(rng.integers(1, 4)), []
    for n in range(frames):
        if n % every == 0:
            around = functional.conv2d(functional.pad(state, (1, 1, 1, 1), mode="circular"), ring)
            state = ((around == 3) | ((around == 2) & (state > 0))).float()
        states.append(state[0, 0])
    return torch.stack(states)


def _elementary(height: int, width: int, frames: int, rng: np.random.Generator) -> Tensor:
    rule, step = int(rng.choice((30, 90, 110, 150))), int(rng.integers(1, 5))
    outcome = np.array([rule >> i & 1 for i in range(8)])
    rows = [rng.integers(0, 2, width)]
    for _ in range(height + step * frames - 1):
        last = rows[-1]
        rows.append(outcome[4 * np.roll(last, 1) + 2 * last + np.roll(last, -1)])
    sheet = torch.from_numpy(np.stack(rows)).float()
    return torch.stack([sheet[n * step : n * step + height] for n in range(frames)])


def sprites(size: Size, frames: int, rng: np.random.Generator) -> Tensor:
    """Pixel art: a map of tiles in a few colours that scrolls by whole pixels, figures over it; cells of 1 to 4 px."""
    cell = int(rng.integers(1, 5))
    height, width = -(-size[0] // cell), -(-size[1] // cell)
    colours = torch.from_numpy(rng.random((int(rng.choice((4, 8, 16))), 3), dtype=np.float32))
    side = int(rng.choice((8, 16)))
    kinds = [_tile(side, len(colours), rng) for _ in range(int(rng.integers(2, 8)))]
    speed = rng.integers(-3, 4, 2) if rng.random() < 0.6 else np.zeros(2, np.int64)
    rows, columns = (-(-(n + 4 * frames) // side) + 1 for n in (height, width))
    ground = np.block([[kinds[kind] for kind in row] for row in rng.integers(0, len(kinds), (rows, columns))])
    figures = [(_figure(side, len(colours), rng), rng.uniform(0, 1, 2), rng.normal(0, 2, 2)) for _ in range(5)]
    pictures = []
    for n in range(frames):
        top, left = (int(v) * (n if v >= 0 else n - frames) for v in speed)
        picture = ground[top : top + height, left : left + width].copy()
        for figure, place, pace in figures[: len(kinds)]:
            y, x = (place * (height - side, width - side) + n * pace).astype(int) % (height - side, width - side)
            under = picture[y : y + side, x : x + side]
            under[figure >= 0] = figure[figure >= 0]
        pictures.append(picture)
    grown = torch.from_numpy(np.stack(pictures)).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return colours[grown[:, : size[0], : size[1]]].permute(0, 3, 1, 2).contiguous()


def _tile(side: int, colours: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A square of a map: plain, dithered between two colours, striped, or speckled."""
    one, other = rng.integers(0, colours, 2)
    y, x = np.mgrid[:side, :side]
    pattern = [
        np.zeros((side, side), bool),
        (x + y) % 2 == 0,
        (x % 2 == 0) & (y % 2 == 0),
        (y if rng.random() < 0.5 else x) % int(rng.integers(2, 5)) == 0,
        rng.random((side, side)) < rng.uniform(0.05, 0.5),
    ][int(rng.integers(5))]
    return np.where(pattern, one, other)


def _figure(side: int, colours: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A figure with two equal halves; -1 where one sees through it."""
    half = rng.integers(0, colours, (side // 4, side // 8)).repeat(4, 0).repeat(4, 1)
    half = np.where(rng.random(half.shape) < 0.2, rng.integers(0, colours), half)
    half[np.kron(rng.random((side // 4, side // 8)) < 0.3, np.ones((4, 4))) > 0] = -1
    return np.concatenate([half, half[:, ::-1]], 1)


def noise(size: Size, frames: int, rng: np.random.Generator) -> Tensor:
    """Noise on a plain colour: fine or blotchy, grey or coloured, new in every frame, standing still or drifting."""
    channels = 3 if rng.random() < 0.3 else 1
    still = rng.random() < 0.5
    count = 1 if still else frames
    height, width = size[0] + 4 * frames, size[1] + 4 * frames
    field = torch.from_numpy(rng.standard_normal((count, channels, height, width), dtype=np.float32))
    if rng.random() < 0.6:
        blurs = int(rng.integers(1, 4))
        for _ in range(blurs):
            field = functional.avg_pool2d(field, 3, stride=1, padding=1)
    field = field / field.std()
    dy, dx = rng.integers(0, 5, 2) if still else (0, 0)
    moved = [
        field[n if not still else 0, :, n * dy : n * dy + size[0], n * dx : n * dx + size[1]] for n in range(frames)
    ]
    colour = torch.from_numpy(rng.uniform(0.2, 0.8, (3, 1, 1)).astype(np.float32))
    return (colour + float(np.exp(rng.uniform(-4.5, -1.5))) * torch.stack(moved)).clamp(0, 1)


def gradient(size: Size, frames: int, rng: np.random.Generator) -> Tensor:
    """Smooth slopes between four to nine colours, drifting slowly: banding in the making."""
    side = int(rng.integers(2, 4))
    spread = float(rng.choice((0.05, 0.2, 0.5)))
    base = rng.uniform(0, 1, (1, 3, 1, 1))
    ends = [torch.from_numpy(base + spread * rng.uniform(-1, 1, (1, 3, side, side))).float() for _ in range(2)]
    changes = float(rng.choice((0.0, 0.02, 0.1)))
    pictures = [torch.lerp(ends[0], ends[1], changes * n) for n in range(frames)]
    grown = functional.interpolate(torch.cat(pictures), size=size, mode="bicubic", align_corners=True)
    return grown.clamp(0, 1)


def screen(size: Size, frames: int, rng: np.random.Generator) -> Tensor:
    """A page of text, lines and boxes, still, scrolling by whole pixels, or being typed."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = size
    step = int(rng.choice((0, 0, 1, 2, 5, 12)))
    tall = height + step * frames
    dark = rng.random() < 0.5
    paper, ink = ((20, 20, 24), (220, 220, 220)) if dark else ((250, 250, 250), (20, 20, 20))
    page = Image.new("RGB", (width, tall), paper)
    pen = ImageDraw.Draw(page)
    for _ in range(int(rng.integers(0, 6))):
        left, top = int(rng.integers(width)), int(rng.integers(tall))
        right, bottom = left + int(rng.integers(20, width)), top + int(rng.integers(10, height // 2))
        fill = _colour(rng) if rng.random() < 0.6 else None
        pen.rectangle((left, top, right, bottom), fill=fill, outline=_colour(rng), width=int(rng.integers(1, 3)))
    font = ImageFont.load_default(int(rng.integers(8, 22)))
    line = int(rng.integers(12, 30))
    for y in range(4, tall, line):
        words = ["".join(rng.choice(LETTERS, int(rng.integers(1, 10)))) for _ in range(int(rng.integers(1, 9)))]
        pen.text(
            (int(rng.choice((4, 4, 20, 36))), y),
            " ".join(words),
            fill=ink if rng.random() < 0.7 else _colour(rng),
            font=font,
        )
    sheet = torch.from_numpy(np.asarray(page, np.float32) / 255).permute(2, 0, 1)
    clip = torch.stack([sheet[:, n * step : n * step + height] for n in range(frames)])
    if step == 0 and rng.random() < 0.5:  # a cursor, or a line being typed over
        top, speed = int(rng.integers(height - 12)), int(rng.integers(1, 9))
        for n in range(frames):
            clip[n, :, top : top + 12, : 8 + n * speed] = (
                torch.tensor(_colour(rng) if n == 0 else ink)[:, None, None] / 255
            )
    return clip


def shapes(size: Size, frames: int, rng: np.random.Generator) -> Tensor:
    """Flat polygons with or without outlines, moving and turning over a flat ground: cel animation without artists."""
    from PIL import Image, ImageDraw

    height, width = (side * _SMOOTH for side in size)
    ground = _colour(rng)
    polygons = [_Polygon(height, width, rng) for _ in range(int(rng.integers(2, 12)))]
    pictures = []
    for n in range(frames):
        picture = Image.new("RGB", (width, height), ground)
        pen = ImageDraw.Draw(picture)
        for polygon in polygons:
            corners = [(float(x), float(y)) for x, y in polygon.corners(n)]
            pen.polygon(corners, fill=polygon.fill, outline=polygon.line, width=polygon.thickness)
        pictures.append(np.asarray(picture, np.float32) / 255)
    return functional.avg_pool2d(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), _SMOOTH)


class _Polygon:
    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        count = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        radius = rng.uniform(0.3, 1, count) * rng.uniform(0.05, 0.5) * min(height, width)
        self._points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
        self._centre = rng.uniform(0, 1, 2) * (width, height)
        moves = rng.random() < 0.7
        self._speed = rng.normal(0, 8, 2) if moves else np.zeros(2)
        self._turn = float(rng.normal(0, 0.03)) if moves else 0.0
        self.fill, self.line = _colour(rng), _colour(rng) if rng.random() < 0.5 else None
        self.thickness = int(rng.integers(1, 7))

    def corners(self, time: int) -> NDArray[np.float64]:
        """(count, 2) of x, y at a frame."""
        cosine, sine = np.cos(self._turn * time), np.sin(self._turn * time)
        rotation = np.array([[cosine, -sine], [sine, cosine]])
        moved: NDArray[np.float64] = self._points @ rotation.T + self._centre + time * self._speed
        return moved


def flicker(size: Size, frames: int, rng: np.random.Generator) -> Tensor:
    """One of the others with a brightness that jumps from frame to frame."""
    other = (shapes, gradient, noise, screen)[int(rng.integers(4))](size, frames, rng)
    depth = float(rng.choice((0.02, 0.1, 0.4)))
    levels = torch.from_numpy(rng.uniform(1 - depth, 1 + depth, (frames, 1, 1, 1)).astype(np.float32))
    return (other * levels).clamp(0, 1)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


KINDS: dict[str, Kind] = {
    "automaton": automaton,
    "sprites": sprites,
    "noise": noise,
    "gradient": gradient,
    "screen": screen,
    "shapes": shapes,
    "flicker": flicker,
}
"""What `draw` draws from, each as often."""
