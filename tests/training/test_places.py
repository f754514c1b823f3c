"""Where samples are said to lie: all over a real frame and clip, although the pool's items are small and short."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from vsdiqp.network import DiQP, DiQPConfig
from vsdiqp.training.batches import collate
from vsdiqp.training.dataset import PoolDataset

SMALL = DiQPConfig(
    embed_dim=4, depths=(1, 2, 1), heads=(1, 2, 2), look_around=(), look_ahead=(), tile=64, frames_ahead=2,
    codecs=("hevc", "av1"), qp_range={"hevc": (3, 51), "av1": (3, 255)},
)  # fmt: skip


def places(pool: Path, config: DiQPConfig, count: int) -> torch.Tensor:
    """[6,B] rows of the location tables."""
    data, rng = PoolDataset(pool, crop=(64, 64)), np.random.default_rng(0)
    samples = [data.sample(rng) for _ in range(count)]
    batch = collate(samples, torch.zeros(count, 3, 3), DiQP(config), rng)
    assert torch.equal(batch.location, batch.location.round())
    return batch.location[..., 0]


def test_tables_are_asked_for_every_place_and_frame(small_pool: Path) -> None:
    _, frame, left, top, shrunk_left, shrunk_top = places(small_pool, SMALL, 600)
    assert frame.unique().numel() > 140 and (frame.min(), frame.max()) == (0, 149)
    assert left.min() < 100 and 7500 < left.max() <= 7680 - 64
    assert top.min() < 100 and 4150 < top.max() <= 4320 - 64
    assert torch.equal(shrunk_left, (left * 64 / 7680).floor())
    assert torch.equal(shrunk_top, (top * 64 / 4320).floor())


@pytest.mark.parametrize("side", [64, 100])
def test_places_stay_inside_smaller_tables(small_pool: Path, side: int) -> None:
    rows = (86, 151, side, side, 64, 64)
    _, _, left, top, _, _ = places(small_pool, dataclasses.replace(SMALL, table_rows=rows), 50)
    assert max(left.max(), top.max()) <= side - 64
