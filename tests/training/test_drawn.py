"""Pictures that no camera took: in range, of the size asked for, the same for the same seed, and of every kind."""

import itertools

import numpy as np
import pytest
import torch

from vsdiqp.training.drawn import KINDS, _life, draw

SIZE, FRAMES = (96, 130), 5


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_rgb_in_range_and_repeatable(kind: str) -> None:
    for seed in range(12):
        clip = KINDS[kind](SIZE, FRAMES, rng(seed))
        assert clip.shape == (FRAMES, 3, *SIZE) and clip.dtype == torch.float32
        assert clip.min() >= 0 and clip.max() <= 1
        assert torch.equal(clip, KINDS[kind](SIZE, FRAMES, rng(seed)))


@pytest.mark.parametrize("kind", KINDS)
def test_clips_differ_and_most_show_something(kind: str) -> None:
    clips = [KINDS[kind](SIZE, FRAMES, rng(seed)) for seed in range(12)]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(clips))
    assert sum(clip.std() > 0.003 for clip in clips) >= 10
    assert any((clip[1:] != clip[:-1]).any() for clip in clips), "nothing ever moves"


def test_life_is_life() -> None:
    """Where states last a frame, a cell lives on with two or three neighbours and is born with three."""
    checked = 0
    for seed in range(40):
        states = _life(12, 16, 4, rng(seed)).numpy().astype(int)
        for now, then in itertools.pairwise(states):
            if (now == then).all():
                continue
            around = sum(np.roll(now, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)) - now
            assert ((around == 3) | ((around == 2) & (now == 1)) == (then == 1)).all()
            checked += 1
    assert checked > 20


def test_every_kind_is_drawn_and_some_are_letterboxed() -> None:
    drawn = [draw(SIZE, 3, rng(seed)) for seed in range(80)]
    assert {name for _, name in drawn} == set(KINDS)
    barred = [clip for clip, _ in drawn if not clip[:, :, :8].any() and not clip[:, :, -8:].any()]
    assert 8 < len(barred) < 40
