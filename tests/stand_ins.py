"""Small networks with DiQP's interface whose output is known beforehand, and clips to run them on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsdiqp.clip import ClipFormat, FrameColour, Planes, Run


@dataclass(frozen=True)
class Config:
    name: str = "stand-in"
    colour: str = "ycbcr"
    tile: int = 64
    overlap: int = 16
    multiple: int = 16
    align: int = 8
    codecs: tuple[str, ...] = ("hevc",)
    qp_range: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"hevc": (3, 51)})
    max_size: tuple[int, int] | None = None
    guide_size: tuple[int, int] | None = None
    uses_around: bool = False
    uses_ahead: bool = False
    look_ahead_frames: int = 0
    neighbours: int = 0
    first_pass: str = ""

    @property
    def seen(self) -> int:
        return 2 * self.neighbours + bool(self.first_pass)


class Zero:
    """Predicts nothing, and remembers what it was shown."""

    def __init__(self, **config: object) -> None:
        self.config = Config(**config)  # type: ignore[arg-type]
        self.tiles: list[Tensor] = []
        self.ahead_tiles: list[Tensor] = []
        self.besides: list[Tensor | None] = []
        self.guides: list[tuple[Tensor, Tensor]] = []
        self.places: list[tuple[int, int]] = []

    def locate(self, qp, codec, middle, frames, left, top, width, height, tile_h, tile_w):
        return torch.tensor([qp, middle, left, top, width, height], dtype=torch.float64), 1.0

    def confidence(self, qp, codec):
        return 1.0

    def chroma_confidence(self, qp, codec):
        return 1.0

    def to_precision(self, dtype):
        return self

    def frame_guides(self, around, ahead_scaled, weight_decay):
        self.guides.append((around.clone(), ahead_scaled.clone()))
        return ()

    def predict(self, tile, ahead_tile, guides, location, weight_decay, beside=None):
        self.tiles.append(tile.clone())
        self.besides.append(None if beside is None else beside.clone())
        self.ahead_tiles.append(ahead_tile.clone())
        self.places.append((int(location[2, 0, 0]), int(location[3, 0, 0])))
        return self.residual(tile, location)

    def residual(self, tile: Tensor, location: Tensor) -> Tensor:
        return torch.zeros_like(tile)


class Constant(Zero):
    """Adds the same number to every channel of every pixel."""

    def __init__(self, value: float, **config: object) -> None:
        super().__init__(**config)
        self.value = value

    def residual(self, tile, location):
        return torch.full_like(tile, self.value)


class Blur(Zero):
    """The residual of a box blur of 7 rows and columns: local, and wrong next to the borders of a tile."""

    def residual(self, tile, location):
        flat = tile.flatten(0, 2)[:, None]
        kernel = torch.full((1, 1, 7, 7), 1 / 49)
        return (F.conv2d(F.pad(flat, (3, 3, 3, 3), "replicate"), kernel) - flat).view_as(tile)


class PlaceBias(Zero):
    """Adds a number that depends on the tile: what a network does that judges tiles a little differently."""

    def residual(self, tile, location):
        left, top = location[2, 0, 0], location[3, 0, 0]
        return torch.full_like(tile, 0.01 * ((left / 8 * 7 + top / 8 * 3) % 5 - 2).item())


def clip_format(
    family="YUV", bits=8, subsampling=(1, 1), size=(48, 32), sample_type="integer", frames=30
) -> ClipFormat:
    if family != "YUV":
        subsampling = (0, 0)
    return ClipFormat(family, sample_type, bits, *subsampling, *size, frames)


def colour(family="YUV", matrix=None, full_range=False, chroma_location=0) -> FrameColour:
    if matrix is None:
        matrix = 0 if family == "RGB" else 1
    return FrameColour(matrix, full_range, chroma_location)


def dtype(clip: ClipFormat) -> type:
    if clip.sample_type == "float":
        return np.float16 if clip.bits == 16 else np.float32
    return np.uint8 if clip.bits == 8 else np.uint16


def shapes(clip: ClipFormat) -> list[tuple[int, int]]:
    chroma = (clip.height >> clip.subsampling_h, clip.width >> clip.subsampling_w)
    return [(clip.height, clip.width), chroma, chroma][: 1 if clip.family == "GRAY" else 3]


def noise(clip: ClipFormat, seed: int) -> Planes:
    """A frame of random samples over the whole code range, as the plugin gives it: padded rows, read only."""
    rng = np.random.default_rng(seed)
    planes = []
    for index, (rows, columns) in enumerate(shapes(clip)):
        if clip.sample_type == "float":
            low = -0.5 if index and clip.family == "YUV" else 0.0
            padded = (rng.random((rows, columns + 13)) + low).astype(dtype(clip))
        else:
            padded = rng.integers(0, 2**clip.bits, (rows, columns + 13)).astype(dtype(clip))
        padded.flags.writeable = False
        planes.append(padded[:, :columns])
    return tuple(planes)


def empty(clip: ClipFormat) -> Planes:
    return tuple(np.zeros((rows, columns + 5), dtype(clip))[:, :columns] for rows, columns in shapes(clip))


def make_run(clip: ClipFormat, meaning: FrameColour, seed=0, targets=(True, True, True), middle=4) -> Run:
    frames = [noise(clip, seed + i) for i in range(4)]
    wanted = [empty(clip) if wanted else None for wanted in targets]
    return Run(tuple(frames[:3]), frames[3], tuple(wanted), meaning, 37.0, "hevc", middle)


def same_bits(a: Planes, b: Planes) -> bool:
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))
