"""A closed-form teacher: least-squares filters chosen per pixel, which a fresh network first learns to imitate.

What can be predicted of codec noise is a few per cent of its energy; the rest acts as noise on every gradient, and a
network spends its first thousands of steps finding what a linear system finds in minutes (spec/restoration-notes.md:
36 linear filters, 20 seconds, beat networks trained for 15 minutes). Imitating that solution has no such noise: it is a
function of the input alone. The network then goes on from there with the true target.

Everything is measured in the damage to expect at the QP, so that a few bands of QP share their filters. A pixel's class
is its surroundings' activity (8 bins), main direction (3) and whether it touches the 8x8 coding grid (2). Its features
are differences to the centre: 7x7 in the frame, as they are and clipped (which leaves edges out, as in the non-linear
adaptive loop filter of VVC), and 3x3 of both neighbours, clipped at two levels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, DiQPConfig, load_checkpoint
from vsdiqp.network.checkpoint import resolve
from vsdiqp.training.batches import normalised, typical_error
from vsdiqp.training.dataset import PoolDataset

ACTIVITY = (0.10, 0.2, 0.35, 0.6, 1.0, 1.7, 3.0)
"""Limits of the mean absolute gradient in units of damage."""
DIRECTION = (0.4, 0.6)
CLASSES = (len(ACTIVITY) + 1) * (len(DIRECTION) + 1) * 2
REACH = 3
CENTRES = {"hevc": (17.0, 24.0, 30.0, 36.0, 42.0, 48.0), "av1": (60.0, 102.0, 140.0, 178.0, 216.0, 250.0)}
"""QPs that have filters of their own; between them filters are mixed linearly."""
FEATURES = 2 * 48 + 2 * 18


def damage_of(qp: float, codec: str) -> float:
    """RMS luma error to expect, range 0..1."""
    return typical_error(qp, codec) ** 0.5


def classify(luma: Tensor) -> Tensor:
    """N, h, w in units of damage -> class of every pixel; the top left lies on the coding grid."""
    x = F.pad(luma[:, None], (REACH,) * 4, mode="replicate")
    across = F.avg_pool2d((x[..., :, 1:] - x[..., :, :-1]).abs(), (7, 6), stride=1)
    down = F.avg_pool2d((x[..., 1:, :] - x[..., :-1, :]).abs(), (6, 7), stride=1)
    total = (across + down)[:, 0]
    activity = torch.bucketize(total / 2, torch.tensor(ACTIVITY))
    direction = torch.bucketize((across[:, 0] + 1e-6) / (total + 2e-6), torch.tensor(DIRECTION))
    height, width = luma.shape[-2:]
    y, x8 = torch.arange(height) % 8, torch.arange(width) % 8
    grid = ((y == 0) | (y == 7))[:, None] | ((x8 == 0) | (x8 == 7))[None, :]
    return (activity * (len(DIRECTION) + 1) + direction) * 2 + grid


def features(frames: Tensor) -> Tensor:
    """3, h, w in units of damage (before, current, after) -> FEATURES, h * w."""
    centre = frames[1]
    own = F.unfold(F.pad(centre[None, None], (REACH,) * 4, mode="replicate"), 2 * REACH + 1)[0]
    own = own - centre.reshape(1, -1)
    own = torch.cat([own[:24], own[25:]])
    others = [F.unfold(F.pad(frames[i][None, None], (1,) * 4, mode="replicate"), 3)[0] for i in (0, 2)]
    time = torch.cat(others) - centre.reshape(1, -1)
    return torch.cat([own.clamp(-8, 8), own.clamp(-0.7, 0.7), time.clamp(-0.7, 0.7), time.clamp(-2, 2)])


def mixture(codec: str, qp: float) -> list[tuple[int, float]]:
    """Bands of a QP and their shares."""
    centres = CENTRES[codec]
    position = float(np.interp(qp, centres, range(len(centres))))
    low = min(int(position), len(centres) - 2)
    return [(low, 1 - (position - low)), (low + 1, position - low)]


@dataclass
class Teacher:
    """Fitted filters: codec -> bands, CLASSES, FEATURES."""

    filters: dict[str, Tensor]

    def residual(self, frames: Tensor, qp: float, codec: str) -> Tensor:
        """What to add to the middle of 3, h, w frames (luma 0..1): h, w."""
        damage = damage_of(qp, codec)
        scaled = frames / damage
        filters = sum(share * self.filters[codec][band] for band, share in mixture(codec, qp))
        assert isinstance(filters, Tensor)
        values, classes = features(scaled), classify(scaled[1:2])[0].flatten()
        out = torch.empty(values.shape[1])
        order = classes.argsort()
        counts = torch.bincount(classes, minlength=CLASSES).tolist()
        for kind, here in enumerate(torch.split(order, counts)):
            if len(here):
                out[here] = filters[kind] @ values[:, here]
        return out.view(frames.shape[1:]) * damage

    def save(self, path: Path | str) -> None:
        """Write as .safetensors."""
        save_file({k: v.contiguous() for k, v in self.filters.items()}, str(path))

    @classmethod
    def load(cls, path: Path | str) -> "Teacher":
        """Read what `save` wrote."""
        return cls(load_file(str(path)))


def load_teacher(path: Path | str, pupil: DiQPConfig) -> "Teacher | DiQP":
    """Filters as `Teacher.save` writes them, or a network: a shipped one's name, or a checkpoint.

    Raises DiqpError where it is neither, and for a network that sees other things than the ``pupil`` does.
    """
    try:
        file = resolve(path)
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                if set(tensors.keys()) <= set(CENTRES):
                    return Teacher.load(file)
    except (DiqpError, SafetensorError) as error:
        raise DiqpError(f"{path} is no teacher ({error}); a file that --fit-teacher wrote is one, too") from None
    network = load_checkpoint(file)
    for name in ("colour", "neighbours", "first_pass", "codecs", "uses_around", "uses_ahead", "stem_scale"):
        its, own = getattr(network.config, name), getattr(pupil, name)
        if its != own:
            raise DiqpError(
                f"the teacher {path} has {name} {its!r}, the network to train {own!r}: a teacher must see what its "
                f"pupil sees"
            )
    return network


def fit(dataset: PoolDataset, limit: int, seed: int = 0, ridge: float = 3e-3) -> Teacher:
    """Solve for the filters on ``limit`` items, one frame of every stream, each weighted by 1 / its squared error."""
    rng = np.random.default_rng(seed)
    shape = {c: (len(CENTRES[c]), CLASSES) for c in CENTRES}
    grams = {c: torch.zeros(*shape[c], FEATURES, FEATURES, dtype=torch.float64) for c in CENTRES}
    sides = {c: torch.zeros(*shape[c], FEATURES, dtype=torch.float64) for c in CENTRES}
    for index in rng.permutation(len(dataset))[:limit]:
        item = dataset.load_item(int(index))
        bits, count = item.source.bits, item.source.frames
        for stream in item.degraded:
            n = int(rng.integers(1, count - 1))
            qp = stream.nominal if stream.constant and rng.random() < 0.5 else float(stream.qps[n - 1 : n + 2].mean())
            damage = damage_of(qp, stream.codec)
            frames = normalised(stream.clip.y[n - 1 : n + 2], bits, False) / damage
            error = normalised(item.source.y[n], bits, False) / damage - frames[1]
            weight = 1 / (float(error.square().mean()) + 0.1)
            values, classes, target = features(frames), classify(frames[1:2])[0].flatten(), error.flatten()
            order = classes.argsort()
            for kind, here in enumerate(torch.split(order, torch.bincount(classes, minlength=CLASSES).tolist())):
                if not len(here):
                    continue
                own = values[:, here]
                gram, side = (own @ own.t()).double() * weight, (own @ target[here]).double() * weight
                for band, share in mixture(stream.codec, qp):
                    grams[stream.codec][band, kind] += share * gram
                    sides[stream.codec][band, kind] += share * side
    filters = {}
    for codec, gram in grams.items():
        # Classes that are rare in a band lean on the neighbouring bands.
        smooth, right = gram.clone(), sides[codec].clone()
        smooth[1:] += 0.1 * gram[:-1]
        smooth[:-1] += 0.1 * gram[1:]
        right[1:] += 0.1 * sides[codec][:-1]
        right[:-1] += 0.1 * sides[codec][1:]
        diagonal = smooth.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 10.0
        solved = torch.linalg.solve(smooth + ridge * diagonal * torch.eye(FEATURES, dtype=torch.float64), right)
        filters[codec] = solved.float()
    return Teacher(filters)
