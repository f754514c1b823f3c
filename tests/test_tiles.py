"""Promises of the tiling: everything covered, on the grid, weights that sum to one, strips that add up to the whole."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vsdiqp import tiles
from vsdiqp.errors import DiqpError

plans = st.builds(
    lambda length, multiple, side, overlap, align: (length, multiple * side, overlap, multiple, align),
    st.integers(16, 700),
    st.sampled_from([8, 16, 64, 128]),
    st.integers(1, 6),
    st.integers(0, 48),
    st.sampled_from([1, 8, 64]),
)


def columns_of(numbers):
    length, side, overlap, multiple, align = numbers
    padded = -(-length // multiple) * multiple
    assume(side >= padded or side - overlap >= align)
    return tiles.plan(length, 16, (side, 128), overlap, multiple, align).columns


@settings(deadline=None)
@given(plans)
def test_tiles_cover_the_frame_on_the_grid_with_the_overlap_asked_for(numbers):
    length, side, overlap, multiple, align = numbers
    axis = columns_of(numbers)
    assert axis.side % multiple == 0
    assert axis.side <= max(side, multiple)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.side >= length
    assert all(start % align == 0 for start in axis.starts)
    for before, after in pairwise(axis.starts):
        assert after < length
        assert 0 < after - before <= axis.side - overlap


@settings(deadline=None)
@given(plans)
def test_weights_sum_to_one_everywhere_and_are_one_at_the_borders_of_the_frame(numbers):
    axis = columns_of(numbers)
    total = np.zeros(axis.length)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert len(weights) == min(axis.side, axis.length - start)
        assert weights.min() >= 0
        total[start : start + len(weights)] += weights
    np.testing.assert_allclose(total, 1, atol=2e-7)
    assert axis.weights[0][0] == 1
    assert axis.weights[-1][-1] == 1


def test_weights_rise_and_fall_smoothly_and_leave_out_the_tiles_borders():
    axis = tiles.plan(200, 64, (64, 64), 16, 8, 8).columns
    for index, weights in enumerate(axis.weights[1:], 1):
        shared = axis.starts[index - 1] + axis.side - axis.starts[index]
        assert np.all(weights[: shared // 4] == 0)
        assert np.all(np.diff(weights[:shared]) >= 0)
        assert np.diff(weights[:shared]).max() < 4 / shared


@settings(deadline=None, max_examples=50)
@given(
    st.integers(16, 150),
    st.integers(16, 150),
    st.sampled_from([(64, 64), (48, 64), (32, 48)]),
    st.sampled_from([0, 8, 16]),
    st.sampled_from([(0, 1), (1, 2), (3, 4), (15, 16)]),
)
def test_strips_put_together_are_the_whole_picture(width, height, tile, overlap, halo):
    margin, step = halo
    plan = tiles.plan(width, height, tile, overlap, 16, 8)
    generator = torch.Generator().manual_seed(1)
    padded = torch.rand(2, 400, 400, generator=generator)
    canvas = tiles.Canvas(plan, (2,), margin, step)
    seen = 0
    for top in plan.rows.starts:
        for column, left in enumerate(plan.columns.starts):
            canvas.add(column, padded[:, top : top + plan.rows.side, left : left + plan.columns.side])
        strip = canvas.end_row()
        assert strip.start == seen
        seen = strip.stop
        assert strip.stop == height or strip.stop % step == 0
        if strip.start == strip.stop:
            continue
        low, high = max(0, strip.start - margin), min(height, strip.stop + margin)
        assert strip.first <= low
        got = strip.values[:, low - strip.first : high - strip.first]
        np.testing.assert_allclose(got, padded[:, low:high, :width], atol=1e-6)
    assert seen == height


@settings(deadline=None, max_examples=40)
@given(st.integers(16, 2500), st.integers(16, 2500), st.sampled_from([128, 256, 512]), st.sampled_from([8, 64]))
def test_the_best_tile_computes_no_more_than_the_square_one_and_stays_near_its_size(width, height, side, align):
    best = tiles.best_tile(width, height, side, 32, 64, align)

    def computed(tile):
        plan = tiles.plan(width, height, tile, 32, 64, align)
        return plan.count * plan.columns.side * plan.rows.side

    assert best[0] % 64 == best[1] % 64 == 0
    assert best[0] * best[1] <= 2 * side * side
    assert max(best) <= 2 * side
    assert computed(best) <= computed((side, side))


def test_the_best_tile_of_a_full_hd_frame():
    plan = tiles.plan(1920, 1080, tiles.best_tile(1920, 1080, 512, 32, 64, 8), 32, 64, 8)
    assert plan.count * plan.columns.side * plan.rows.side < 1.15 * 1920 * 1080


@pytest.mark.parametrize(
    ("tile", "overlap", "text"),
    [
        ((100, 64), 0, "tile's width is 100; this model takes multiples of 64: try 64 or 128"),
        ((64, 0), 0, "tile's height is 0"),
        ((64, 64), 57, "overlap is 57 for a tile width of 64; it may be 0 to 56"),
        ((64, 64), -1, "overlap is -1"),
    ],
)
def test_impossible_tilings_are_refused_by_name(tile, overlap, text):
    with pytest.raises(DiqpError, match=text):
        tiles.plan(300, 300, tile, overlap, 64, 8)


def test_a_tile_smaller_than_the_grid_is_refused():
    with pytest.raises(DiqpError, match=r"tile's height is 32, but tiles start at multiples of 64: .* at least 64"):
        tiles.plan(300, 300, (128, 32), 0, 32, 64)
