"""LOST: where a tile lies, when, and how strongly its clip was compressed, as one extra channel for every level.

Source: spec/diqp.md, "LOST (location and step)". The released networks look integers up in tables, which limits frames
to 8192x4320 and clips to 300 frames; ours feed continuous numbers to a small perceptron.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsdiqp.errors import DiqpError

CLIP_FRAMES = 300
"""Length of the clips that the released networks were trained on."""


def tile_pattern(pattern: Tensor, height: int, width: int) -> Tensor:
    """Repeat (not stretch) B, 4, 4, K over a map: B, H, W, K with value[y % 4][x % 4]."""
    return pattern.repeat(1, -(-height // 4), -(-width // 4), 1)[:, :height, :width]


class TableLocation(nn.Module):
    """Six embedding tables of width 4 -> Linear 24 -> 16, SiLU, a 4x4 pattern."""

    def __init__(self, rows: tuple[int, ...]):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, 4) for count in rows)
        self.project = nn.Linear(24, 16)
        self.rows = rows

    def forward(self, location: Tensor) -> Tensor:
        """location: 6, B, 1 integers -> pattern B, 4, 4, 1. Rows longer than 1 are scaled to norm 1."""
        index = location.reshape(6, -1).long()
        looked_up = torch.stack([table(i) for table, i in zip(self.tables, index, strict=True)], -1)  # B, 4, 6
        norm = looked_up.float().norm(dim=1, keepdim=True)
        looked_up = looked_up * torch.where(norm > 1, 1 / (norm + 1e-7), torch.ones_like(norm))
        return F.silu(self.project(looked_up.flatten(1).to(self.project.weight.dtype))).view(-1, 4, 4, 1)

    def locate(
        self, qp: float, middle: int, frames: int, left: int, top: int, width: int, height: int, tile: tuple[int, int]
    ) -> tuple[Tensor, float]:
        """The integers of one tile and the weight decay. See `DiQP.locate`."""
        if width > self.rows[2] or height > self.rows[3]:
            raise DiqpError(
                f"frames of {width}x{height} are larger than this checkpoint's location tables, which end at "
                f"{self.rows[2]}x{self.rows[3]}; crop the clip or use a model without tables (model='lite')"
            )
        # Counted from the end of the clip: the last 299 frames are told apart, everything before is treated alike.
        place = max(1, CLIP_FRAMES - (frames - middle))
        tile_h, tile_w = tile
        values = [
            min(max(round(qp), 0), 3 * self.rows[0] - 1) // 3,
            min(place // 2, self.rows[1] - 1),
            left,
            top,
            min(int(left * tile_w / width), self.rows[4] - 1),
            min(int(top * tile_h / height), self.rows[5] - 1),
        ]
        return torch.tensor(values, dtype=torch.float64), (CLIP_FRAMES - place) / CLIP_FRAMES


DAMAGE = {"hevc": (-4.357, 1.088, -0.137), "av1": (-4.490, 0.853, 0.003)}
"""Where `ContinuousLocation.damage` starts: natural logarithm of the typical RMS luma error (range 0..1) as a
polynomial in t, QP scaled to -1..1 over `DAMAGE_QPS`, measured on 350 clips of the training pool."""
DAMAGE_QPS = {"hevc": (12, 51), "av1": (40, 255)}


class ContinuousLocation(nn.Module):
    """QP, codec and relative place through a perceptron: a pattern of several channels and a vector for modulation.

    The pattern repeats every 4 cells of a half-resolution grid, which is the 8x8 grid of HEVC and AV1 transforms: it
    tells the network the phase of the coding grid (spec/restoration-notes.md, lesson 1).
    """

    FEATURES = 9

    def __init__(
        self, codecs: tuple[str, ...], ranges: dict[str, tuple[int, int]], hidden: int = 64, channels: int = 11
    ):
        super().__init__()
        self.codecs, self.ranges, self.channels = codecs, ranges, channels
        self.embed = nn.Linear(self.FEATURES, hidden)
        self.vector = nn.Linear(hidden, hidden)
        self.project = nn.Linear(hidden, 16 * channels)
        self.log_damage = nn.Parameter(torch.tensor([DAMAGE.get(c, DAMAGE["hevc"]) for c in codecs]))

    def code(self, location: Tensor) -> Tensor:
        """location: 6, B, 1 -> B, hidden: the vector that modulates convolution blocks."""
        values = location.reshape(6, -1).to(self.embed.weight.dtype)
        t, codec, left, top = values[0], values[1], values[4], values[5]
        features = [t, t * t, codec, codec * t, codec * t * t, torch.sin(3.1416 * t), torch.cos(3.1416 * t), left, top]
        return F.silu(self.vector(F.silu(self.embed(torch.stack(features, -1)))))

    def damage(self, location: Tensor) -> Tensor:
        """location: 6, B, 1 -> B: the RMS luma error to expect at this QP, 0..1 scale.

        Inputs and residuals are measured in it, so that a network sees the same picture of damage at every QP instead
        of one that grows nearly ninefold from HEVC QP 12 to 51.
        """
        values = location.reshape(6, -1).to(self.log_damage.dtype)
        t, codec = values[0], values[1]
        powers = torch.stack([torch.ones_like(t), t, t * t], -1)
        both = powers @ self.log_damage.t()
        # The codec is -1 for the first and +1 for the second.
        share = (codec + 1) / 2
        return torch.exp(both[:, 0] * (1 - share) + both[:, -1] * share)

    def forward(self, location: Tensor) -> Tensor:
        """location: 6, B, 1 -> pattern B, 4, 4, channels."""
        return self.project(self.code(location)).view(-1, 4, 4, self.channels)

    def locate(self, qp: float, codec: str, left: int, top: int, width: int, height: int) -> tuple[Tensor, float]:
        """The numbers of one tile and a weight decay of 1. See `DiQP.locate`, which checks codec and QP."""
        low, high = self.ranges[codec]
        t = (qp - low) / (high - low)
        values = [2 * t - 1, 2.0 * self.codecs.index(codec) - 1, left, top, left / width, top / height]
        return torch.tensor(values, dtype=torch.float64), 1.0
