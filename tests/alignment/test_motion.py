"""Motion is found, frames are moved into place, and neither depends on how the frame is cut up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vsdiqp.alignment import MARGIN, Aligner, compensate, search_luma, seen_steps


def texture(height: int, width: int, scale: float = 6.0, seed: int = 0) -> np.ndarray:
    """Band-limited noise around mid-grey, code values."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(1, 1, int(height / scale) + 4, int(width / scale) + 4)).astype(np.float32)
    fine = F.interpolate(torch.from_numpy(coarse), size=(height, width), mode="bicubic")[0, 0].numpy()
    return 128 + 35 * fine


def shifted(x: float, y: float, height: int = 120, width: int = 168) -> tuple[np.ndarray, np.ndarray]:
    """Two 8-bit frames, the second showing the first's content (x, y) samples further right and down."""
    room, fine = 48, 8
    large = texture((height + 2 * room) * fine, (width + 2 * room) * fine, 6.0 * fine)

    def view(dx: float, dy: float) -> np.ndarray:
        top, left = round((room - dy) * fine), round((room - dx) * fine)
        part = large[top : top + height * fine : fine, left : left + width * fine : fine]
        return np.clip(part + 0.5, 0, 255).astype(np.uint8)

    return view(0, 0), view(x, y)


def vectors_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    aligner = Aligner(first.shape[1], first.shape[0])
    return aligner.search(aligner.prepare(first), aligner.prepare(second))


def moved(source: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    out = np.empty(source.shape, np.float32)
    compensate(source.astype(np.float32), (0, 0), vectors, out, 0, 0)
    return out


@pytest.mark.parametrize("motion", [(0, 0), (3, -2), (-17, 9), (36, 30), (0.5, 0), (-4.25, 7.75), (12.5, -0.25)])
def test_translation_is_found_to_a_quarter_of_a_sample(motion):
    first, second = shifted(*motion)
    vectors = vectors_between(first, second)
    inner = vectors[5:-5, 5:-5]
    assert (np.abs(inner - np.multiply(motion, 4)).max(-1) <= 1).mean() > 0.95


@pytest.mark.parametrize("motion", [(3, -2), (-4.25, 7.75), (12.5, -0.5)])
def test_compensation_puts_the_other_frame_into_place(motion):
    first, second = shifted(*motion)
    inner = (slice(40, -40), slice(40, -40))
    before = np.abs(second.astype(float) - first)[inner].mean()
    after = np.abs(moved(second, vectors_between(first, second)) - first)[inner].mean()
    assert after < 0.1 * before
    assert after < 1.0  # rounding of both frames to whole code values


def test_what_stands_still_is_not_moved():
    frame = np.clip(texture(64, 80), 0, 255).astype(np.uint8)
    noisy = np.clip(frame + np.random.default_rng(1).normal(0, 2, frame.shape), 0, 255).astype(np.uint8)
    vectors = vectors_between(frame, noisy)
    assert (vectors == 0).all(-1).mean() > 0.9
    assert (moved(frame, np.zeros_like(vectors)) == frame).all()


def test_a_flat_picture_has_no_motion():
    flat = np.full((48, 64), 90, np.uint8)
    assert not vectors_between(flat, flat).any()


@given(
    width=st.integers(16, 130),
    height=st.integers(16, 100),
    seed=st.integers(0, 5),
)
def test_any_content_of_any_size_gives_vectors_within_reach(width, height, seed):
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, 256, (height, width)).astype(np.uint8) for _ in range(2))
    vectors = vectors_between(first, second)
    assert vectors.shape == (-(-height // 8), -(-width // 8), 2)
    assert np.abs(vectors).max() < 4 * (MARGIN - 3)
    assert np.isfinite(moved(second, vectors)).all()


def test_searching_a_region_finds_what_searching_the_frame_finds():
    first, second = shifted(5, -3)
    aligner = Aligner(168, 120)
    prepared = aligner.prepare(first), aligner.prepare(second)
    whole = aligner.search(*prepared)
    part = aligner.search(*prepared, region=(64, 32, 136, 96))
    assert (part[4:12, 8:17] == whole[4:12, 8:17]).all()
    assert whole[4:12, 8:17].any()


def test_compensating_a_tile_gives_what_compensating_the_frame_gives():
    first, second = shifted(-6.25, 4.5)
    vectors = vectors_between(first, second)
    whole = moved(second, vectors)
    left, top, width, height = 72, 56, 40, 32
    x0, y0 = max(left - MARGIN, 0), max(top - MARGIN, 0)
    source = second.astype(np.float32)[y0 : top + height + MARGIN, x0 : left + width + MARGIN]
    tile = np.empty((height, width), np.float32)
    compensate(np.ascontiguousarray(source), (x0, y0), vectors, tile, left, top)
    assert (tile == whole[top : top + height, left : left + width]).all()


def test_a_tile_beyond_the_frame_repeats_its_edge():
    first, _ = shifted(0, 0)
    vectors = np.zeros((15, 21, 2), np.int16)
    tile = np.empty((24, 32), np.float32)
    compensate(first.astype(np.float32), (0, 0), vectors, tile, 152, 112)
    assert (tile[:8, :16] == first[112:, 152:]).all()
    assert (tile[:8, 16:] == first[112:, -1:]).all()
    assert (tile[8:, :16] == first[-1:, 152:]).all()


def test_prepared_memory_can_be_used_again():
    first, second = shifted(4, 4)
    aligner = Aligner(168, 120)
    memory = aligner.allocate()
    aligner.prepare(second, memory)
    aligner.prepare(first, memory)
    fresh = aligner.prepare(first)
    other = aligner.prepare(second)
    assert (aligner.search(memory, other) == aligner.search(fresh, other)).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_search_luma_rounds_code_values_to_eight_bits(bits):
    codes = np.arange(0, 1 << bits, 16 if bits == 16 else 1, dtype=np.int64)
    luma = ((codes - (16 << (bits - 8))) / (219 << (bits - 8))).astype(np.float32)[None]
    out = np.empty(luma.shape, np.uint8)
    search_luma(luma, out)
    expected = codes if bits == 8 else np.minimum((codes + (1 << (bits - 9))) >> (bits - 8), 255)
    assert (out[0] == expected).all()


def test_wrong_shapes_are_refused():
    aligner = Aligner(32, 16)
    with pytest.raises(ValueError, match="expected"):
        aligner.prepare(np.zeros((32, 16), np.uint8))


def test_neighbours_come_nearest_first():
    assert seen_steps(4) == [-1, 1, -2, 2]
    assert seen_steps(5) == [0, -1, 1, -2, 2], "an odd number begins with the frame itself"
    assert seen_steps(0) == []
