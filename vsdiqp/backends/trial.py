"""Whether a form of the network answers on a device as the plain module does on the CPU; tried before it is used.

Compiled kernels depend on the GPU, its driver, Triton and the compilers behind it, and few of their combinations have
ever been seen. What is wrong there would be wrong in every picture, and a picture must never get worse.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from vsdiqp.backends.base import Network, NetworkConfig, Predictor
from vsdiqp.backends.device import on
from vsdiqp.tiles import TilePlan

LIMITS: Final = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""RMS error, as a share of the residual's RMS, from which on a form is not to be used. Rounding alone stays at a tenth
(`lite` and `base` in half precision: 0.003 and 0.004)."""
LARGEST: Final = 10
"""Largest error, in those limits: a window gone wrong is little of a tile's RMS. Rounding alone: a twentieth."""
LEAST: Final = 1e-3
"""Of the residual's RMS, a quarter of a code value of 8 bits: what is less is taken for this."""
NOISE: Final = 0.01
"""RMS, of what is tried."""
SIDE: Final = 128
"""Of the tile that is tried, at least."""


def tile_like(plan: TilePlan, config: NetworkConfig) -> tuple[int, int]:
    """Width and height of a tile for which the kernels that a plan's tiles need are compiled; it may be smaller."""
    # Triton compiles another kernel for numbers that are no multiple of 16. Sides are multiples of 8 at every level.
    step = 2 * config.multiple

    def side(wanted: int) -> int:
        rest = wanted % step or step
        return min(wanted, rest + -(-max(0, SIDE - rest) // step) * step)

    return side(plan.columns.side), side(plan.rows.side)


def objection(
    network: Network,
    predictor: Predictor,
    where: torch.device,
    dtype: torch.dtype,
    tile: tuple[int, int],
    *,
    half_tiles: bool = False,
    batch: int = 2,
    times: int = 1,
    ways: Sequence[Callable[[], AbstractContextManager[object]]] = (nullcontext,),
) -> str | None:
    """Why ``predictor`` is not to be used on a device: how far it is from ``network`` (fp32, on the CPU); None if near.

    dtype: precision that it computes in; tile: width and height; half_tiles: it is given tiles in fp16. It has to
    answer for one tile as the network does, and for ``batch`` different ones at once as for each of them alone:
    ``times`` times, asked without waiting for what was asked before, and that within each of ``ways``. Raises what the
    predictor raises: that memory did not suffice, too, which says nothing of it.
    """
    around, ahead_scaled, decay, *arguments = _arguments(network, *tile)

    def answers(of: Predictor, device: torch.device, kind: torch.dtype, mirrored: Sequence[bool], times: int) -> Tensor:
        """For as many tiles, some of them the other's mirror image, asked so many times: one after the other."""
        around_there, ahead_there, *there = (t.to(device) for t in (around, ahead_scaled, *arguments))
        decay_there = decay.to(device)
        guides = of.frame_guides(around_there.to(kind), ahead_there.to(kind), decay_there)
        picture, ahead, location, *beside = there
        given = (picture.to(kind), ahead.to(kind), *beside)
        picture, ahead, *beside = (torch.cat([t.flip(-1) if other else t for other in mirrored]) for t in given)
        locations = location.repeat_interleave(len(mirrored), 1)
        said = [of.predict(picture, ahead, guides, locations, decay_there, *beside) for _ in range(times)]
        return torch.cat(said).double().cpu()

    kind = torch.float16 if half_tiles else torch.float32
    mirrored = [index % 2 > 0 for index in range(batch)]
    errors = []
    with torch.inference_mode(), on(where):
        expected = answers(network, torch.device("cpu"), torch.float32, [False], 1)
        for way in ways:
            with way():
                errors.append(answers(predictor, where, kind, [False], 1) - expected)
                if batch > 1:
                    both = (expected, answers(predictor, where, kind, [True], 1))
                    each = torch.cat([both[other] for other in mirrored] * times)
                    errors.append(answers(predictor, where, kind, mirrored, times) - each)
    error, scale = torch.cat(errors).abs(), max(LEAST, _rms(expected))
    share, largest = error.square().mean((1, 2, 3, 4)).sqrt().max().item() / scale, error.max().item() / scale
    if share <= LIMITS[dtype] and largest <= LIMITS[dtype] * LARGEST:  # never so if anything is NaN
        return None
    return (
        f"its residuals are off by {share:.2g} of their RMS, {largest:.2g} at most, where {LIMITS[dtype]:g} and "
        f"{LIMITS[dtype] * LARGEST:g} are allowed"
    )


def _arguments(network: Network, width: int, height: int) -> tuple[Tensor, ...]:
    """Thumbnails, weight decay; tile, look-ahead, location and, where there are any, neighbours: of one tile."""
    config, generator = network.config, torch.Generator().manual_seed(1)
    codec = config.codecs[0]
    qp = sum(config.qp_range[codec]) / 2
    drawn = torch.rand(1, 3, 16, 16, dtype=torch.float32, generator=generator)

    def pictures(wanted: bool, frames: int, size: tuple[int, int] = (height, width)) -> Tensor:
        if not wanted:
            return torch.zeros(1, 3, frames, 0, 0, dtype=torch.float32)
        smooth = F.interpolate(drawn, size, mode="bicubic")[:, :, None]
        noise = torch.randn(1, 3, frames, *size, dtype=torch.float32, generator=generator)
        return (smooth + noise * NOISE).clamp(0, 1)

    thumbnail = config.guide_size or (height, width)
    location, decay = network.locate(qp, codec, 1, 9, 0, 0, 2 * width, 2 * height, height, width)
    picture = pictures(True, 3)
    given = [
        pictures(config.uses_around, 2, thumbnail),
        pictures(config.uses_ahead, 2, thumbnail),
        torch.full((1, 1, 1, 1, 1), decay, dtype=torch.float32),
        picture,
        pictures(config.uses_ahead, 2),
        location.view(6, 1, 1),
    ]
    if config.neighbours:
        noise = torch.randn(1, 3, config.seen, height, width, dtype=torch.float32, generator=generator)
        given.append(picture[:, 0, :, None] + noise * NOISE)
    return tuple(given)


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
