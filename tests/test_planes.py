"""Promises of the pixel formats: H.273 values, chroma positions, an exact transpose, bit-identity of nothing added."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.stand_ins import clip_format, colour, dtype, empty, noise, same_bits, shapes
from vsdiqp.errors import DiqpError
from vsdiqp.planes import ChromaAxis, FrameMap, rgb_to_yuv

FACTORS = [1, 2, 4, 8, 16]
MATRICES = [1, 4, 5, 6, 7, 8, 9]

axes = st.builds(
    lambda factor, place, length: ChromaAxis(factor, {0: 0.0, 1: (factor - 1) / 2, 2: factor - 1.0}[place], length),
    st.sampled_from(FACTORS),
    st.integers(0, 2),
    st.integers(1, 9),
)


def interpolation_matrix(axis: ChromaAxis) -> np.ndarray:
    """Luma from chroma by the definition: linear between samples at i * factor + offset, clamped at the ends."""
    positions = np.arange(axis.length) * axis.factor + axis.offset
    luma = np.arange(axis.length * axis.factor)
    return np.stack([np.interp(luma, positions, row) for row in np.eye(axis.length)], 1)


@settings(deadline=None, max_examples=60)
@given(axes, st.data())
def test_any_part_of_the_luma_axis_interpolates_as_defined(axis, data):
    end = axis.length * axis.factor
    start = data.draw(st.integers(0, end - 1))
    stop = data.draw(st.integers(start + 1, end))
    chroma = np.random.default_rng(1).random(axis.length)
    first, last, _, _ = axis.window(start, stop)
    part = torch.tensor(chroma[first:last], dtype=torch.float32).repeat(2, 1)
    expected = (interpolation_matrix(axis) @ chroma)[start:stop]
    for dim, given_part in ((1, part), (0, part.T.contiguous())):
        got = axis.expand(given_part, dim, start, stop)
        np.testing.assert_allclose(got.select(1 - dim, 0), expected, atol=1e-6)
    low, high, weight = axis.interpolation(np.arange(start, stop))
    np.testing.assert_allclose(chroma[low] * (1 - weight.numpy()) + chroma[high] * weight.numpy(), expected, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(axes, st.data())
def test_the_way_down_is_the_normalised_transpose_of_the_way_up(axis, data):
    start = data.draw(st.integers(0, axis.length - 1))
    stop = data.draw(st.integers(start + 1, axis.length))
    end = axis.length * axis.factor
    luma = np.random.default_rng(2).random(end)
    transpose = interpolation_matrix(axis).T
    expected = (transpose / transpose.sum(1, keepdims=True) @ luma)[start:stop]
    first = data.draw(st.integers(0, max(0, start * axis.factor - axis.reach)))
    last = min(end, stop * axis.factor + axis.reach)
    part = torch.tensor(luma[first:last], dtype=torch.float32).repeat(2, 1)
    for dim, given_part in ((1, part), (0, part.T.contiguous())):
        got = axis.reduce(given_part, dim, first, start, stop)
        np.testing.assert_allclose(got.select(1 - dim, 0), expected, atol=1e-6)


def test_chroma_positions_of_the_six_sitings():
    """Luma x, y that lies exactly on chroma sample 2, 3 (H.273 figure 1), or midway for centred sitings."""
    clip = clip_format("YUV", 32, (1, 1), (16, 16), "float")
    across = {0: [4], 1: [4, 5], 2: [4], 3: [4, 5], 4: [4], 5: [4, 5]}
    down = {0: [6, 7], 1: [6, 7], 2: [6], 3: [6], 4: [7], 5: [7]}
    for place in range(6):
        planes = tuple(np.zeros(shape, np.float32) for shape in shapes(clip))
        planes[1][3, 2] = 0.5
        out = torch.empty(3, 16, 16)
        FrameMap(clip, colour(chroma_location=place), "ycbcr").read(planes, 0, 0, out)
        rows, columns = np.nonzero(out[1].numpy() == out[1].max().item())
        assert sorted(set(columns)) == across[place]
        assert sorted(set(rows)) == down[place]


@pytest.mark.parametrize(
    ("bits", "full", "code", "luma", "chroma"),
    [
        (8, False, 16, 0.0, 0.0),
        (8, False, 235, 1.0, None),
        (8, False, 240, None, 1.0),
        (8, True, 255, 1.0, 127 / 255 + 0.5),
        (10, False, 940, 1.0, None),
        (10, False, 512, None, 0.5),
        (10, True, 1023, 1.0, 511 / 1023 + 0.5),
        (16, False, 60160, 1.0, None),
        (16, True, 65535, 1.0, 32767 / 65535 + 0.5),
    ],
)
def test_code_values_of_h273(bits, full, code, luma, chroma):
    clip = clip_format("YUV", bits, (0, 0), (16, 16))
    planes = tuple(np.full(shape, code, dtype(clip)) for shape in shapes(clip))
    out = torch.empty(3, 16, 16)
    FrameMap(clip, colour(full_range=full), "ycbcr").read(planes, 0, 0, out)
    if luma is not None:
        np.testing.assert_allclose(out[0], luma, atol=1e-6)
    if chroma is not None:
        np.testing.assert_allclose(out[1:], chroma, atol=1e-6)


@pytest.mark.parametrize("matrix", MATRICES)
def test_matrices_make_grey_of_equal_channels_and_keep_chroma_within_half(matrix):
    to_yuv = rgb_to_yuv(matrix)
    np.testing.assert_allclose(to_yuv @ np.ones(3), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(np.abs(to_yuv[1:]).sum(1), 1.0, atol=1e-12)


def test_bt709_red_has_the_published_code_values():
    """ITU-R BT.709 at 8 bit: pure red is Y 63, Cb 102, Cr 240."""
    clip = clip_format("YUV", 8, (0, 0), (16, 16))
    planes = tuple(np.full(shape, code, np.uint8) for shape, code in zip(shapes(clip), (63, 102, 240), strict=True))
    out = torch.empty(3, 16, 16)
    FrameMap(clip, colour(matrix=1), "rgb").read(planes, 0, 0, out)
    np.testing.assert_allclose(out[:, 0, 0], [1, 0, 0], atol=0.006)


@pytest.mark.parametrize("matrix", [0, 2, 3, 10, 11, 13, 14])
def test_matrices_that_are_not_linear_are_refused_for_rgb_networks_by_number(matrix):
    with pytest.raises(DiqpError, match=f"_Matrix is {matrix}, .*1, 4, 5, 6, 7, 8, 9 only"):
        FrameMap(clip_format("YUV"), colour(matrix=matrix), "rgb")
    FrameMap(clip_format("YUV"), colour(matrix=matrix), "ycbcr")
    FrameMap(clip_format("GRAY"), colour("GRAY", matrix), "rgb")


families = st.sampled_from([("YUV", "rgb"), ("YUV", "ycbcr"), ("RGB", "rgb"), ("RGB", "ycbcr"), ("GRAY", "rgb")])


@settings(deadline=None, max_examples=40)
@given(families, st.sampled_from([8, 10, 16]), st.booleans(), st.sampled_from(MATRICES))
def test_a_network_that_names_another_picture_gets_it(pair, bits, full, matrix):
    """Read frames A and B, add B - A in network colours to A's planes: B's planes, to the code value."""
    family, network_colour = pair
    clip = clip_format(family, bits, (0, 0), (24, 20))
    frames = FrameMap(clip, colour(family, None if family == "RGB" else matrix, full), network_colour)
    rng = np.random.default_rng(3)
    # Colours inside the RGB cube, where nothing is limited.
    inside = []
    for _ in range(2):
        picture = rng.random((3, 20, 24))
        codes = _encode(picture, clip, matrix, full)
        inside.append(codes)
    reads = [torch.empty(3, 20, 24) for _ in range(2)]
    for planes, out in zip(inside, reads, strict=True):
        frames.read(planes, 0, 0, out)
    target = empty(clip)
    frames.add(inside[0], target, reads[1] - reads[0], 0, 0, 20)
    # Rounded codes can lie a step outside the cube, where an "rgb" network sees them limited.
    slack = 1 if network_colour == "rgb" and family == "YUV" else 0
    slack += 1 if bits == 16 else 0
    for got, expected in zip(target, inside[1], strict=True):
        assert np.abs(got.astype(int) - expected).max() <= slack


def _encode(picture, clip, matrix, full):
    step, peak = 2 ** (clip.bits - 8), 2**clip.bits - 1
    zero, scale = (0, peak) if full else (16 * step, 219 * step)
    if clip.family == "RGB":
        values = [p * scale + zero for p in picture]
    else:
        y, cb, cr = np.einsum("ij,jyx->iyx", rgb_to_yuv(matrix), picture)
        chroma = peak if full else 224 * step
        values = [y * scale + zero, cb * chroma + 128 * step, cr * chroma + 128 * step]
    codes = tuple(np.clip(np.floor(v + 0.5), 0, peak).astype(dtype(clip)) for v in values)
    return codes[:1] if clip.family == "GRAY" else codes


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["YUV", "RGB", "GRAY"]),
    st.sampled_from([("integer", 8), ("integer", 10), ("integer", 16), ("float", 16), ("float", 32)]),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.sampled_from(["rgb", "ycbcr"]),
    st.booleans(),
    st.integers(0, 5),
    st.integers(0, 2**16),
)
def test_nothing_added_is_bit_identical(family, kind, subsampling, network_colour, full, place, seed):
    clip = clip_format(family, kind[1], subsampling, (48, 32), kind[0])
    frames = FrameMap(clip, colour(family, None, full, place), network_colour)
    source, target = noise(clip, seed), empty(clip)
    frames.add(source, target, torch.zeros(3, 32, 48), 0, 0, 32)
    assert same_bits(source, target)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from(["rgb", "ycbcr"]),
    st.integers(0, 5),
    st.integers(0, 47),
    st.integers(0, 31),
    st.data(),
)
def test_a_tile_is_a_cut_of_the_whole_with_its_edge_going_on(subsampling, network_colour, place, left, top, data):
    clip = clip_format("YUV", 10, subsampling, (48, 32))
    width, height = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    frames = FrameMap(clip, colour(chroma_location=place), network_colour)
    source = noise(clip, 7)
    whole, tile = torch.empty(3, 32, 48), torch.full((3, height, width), float("nan"))
    frames.read(source, 0, 0, whole)
    frames.read(source, left, top, tile)
    rows = np.minimum(np.arange(top, top + height), 31)
    columns = np.minimum(np.arange(left, left + width), 47)
    np.testing.assert_array_equal(tile, whole[:, rows][:, :, columns])


@settings(deadline=None, max_examples=30)
@given(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["rgb", "ycbcr"]), st.data())
def test_sampling_some_rows_and_columns_gives_the_pixels_of_the_whole(subsampling, network_colour, data):
    clip = clip_format("YUV", 8, subsampling, (48, 32))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, 31), min_size=1))))
    columns = np.array(sorted(data.draw(st.sets(st.integers(0, 47), min_size=1))))
    frames = FrameMap(clip, colour(), network_colour)
    whole = torch.empty(3, 32, 48)
    frames.read(noise(clip, 8), 0, 0, whole)
    got = frames.sample(noise(clip, 8), rows, columns)
    np.testing.assert_allclose(got, whole[:, rows][:, :, columns], atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([(0, 0), (1, 1), (2, 1), (0, 2)]), st.integers(0, 5), st.data())
def test_rows_written_in_strips_equal_rows_written_at_once(subsampling, place, data):
    clip = clip_format("YUV", 32, subsampling, (48, 32), "float")
    frames = FrameMap(clip, colour(chroma_location=place), "rgb")
    residual = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(4)) - 0.5
    source, once, strips = noise(clip, 9), empty(clip), empty(clip)
    frames.add(source, once, residual, 0, 0, 32)
    cuts = sorted(data.draw(st.sets(st.integers(1, 32 // frames.row_step - 1), max_size=3)))
    edges = [0, *(c * frames.row_step for c in cuts), 32]
    for start, stop in pairwise(edges):
        first, last = max(0, start - frames.margin), min(32, stop + frames.margin)
        frames.add(source, strips, residual[:, first:last], first, start, stop)
    assert same_bits(once, strips)


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 16), st.floats(-0.25, 0.25, width=32))
def test_rounding_is_half_up_and_stays_in_the_code_range(bits, change):
    clip = clip_format("GRAY", bits, size=(32, 16))
    scale = float(np.float32(219 * 2 ** (bits - 8)))
    exact = np.float32(change) * np.float32(scale)
    assume(abs((float(exact) % 1) - 0.5) > 0.02)
    source, target = noise(clip, 3), empty(clip)
    FrameMap(clip, colour("GRAY"), "ycbcr").add(source, target, torch.full((3, 16, 32), change), 0, 0, 16)
    expected = np.clip(np.floor(source[0].astype(np.float64) + float(exact) + 0.5), 0, 2**bits - 1)
    np.testing.assert_array_equal(target[0], expected)


@pytest.mark.parametrize("change", [0.3, -0.3, 0.0])
def test_float_rgb_ends_at_black_and_white_as_integers_do(change):
    """The specification clamps its RGB. What a clip has beyond that is kept, and carried no farther."""
    clip = clip_format("RGB", 32, size=(16, 16), sample_type="float")
    source, target = [plane.copy() for plane in noise(clip, 3)], empty(clip)
    for plane in source:
        plane[0, :6] = -2.0, 0.1, 0.9, 3.0, np.inf, np.nan
    FrameMap(clip, colour("RGB"), "rgb").add(tuple(source), target, torch.full((3, 16, 16), change), 0, 0, 16)
    for old, new in zip(source, target, strict=True):
        expected = np.clip(old + np.float32(change), np.minimum(old, 0), np.maximum(old, 1))
        np.testing.assert_array_equal(new, expected if change else old)


def test_float_yuv_keeps_the_room_that_integers_have():
    clip = clip_format("YUV", 32, (0, 0), size=(16, 16), sample_type="float")
    source, target = noise(clip, 3), empty(clip)
    FrameMap(clip, colour(), "ycbcr").add(source, target, torch.full((3, 16, 16), 1.5), 0, 0, 16)
    for old, new in zip(source, target, strict=True):
        np.testing.assert_array_equal(new, old + np.float32(1.5))


@pytest.mark.parametrize("change", [0.02, -0.02, 0.0])
def test_codes_that_the_format_does_not_have_are_not_made_and_not_mended(change):
    clip = clip_format("GRAY", 10, size=(16, 16))
    source, target = [plane.copy() for plane in noise(clip, 3)], empty(clip)
    source[0][0, :3] = 1023, 1500, 65535
    FrameMap(clip, colour("GRAY"), "ycbcr").add(tuple(source), target, torch.full((3, 16, 16), change), 0, 0, 16)
    old = source[0].astype(np.int64)
    expected = np.clip(np.floor(old + np.float32(change) * np.float32(876) + 0.5), 0, np.maximum(old, 1023))
    np.testing.assert_array_equal(target[0], expected)


def test_grey_takes_the_luma_of_an_rgb_residual():
    clip = clip_format("GRAY", 32, size=(16, 16), sample_type="float")
    residual = torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(3, 16, 16)
    for matrix, luma in ((1, 0.2126 * 0.1 + 0.7152 * 0.2 + 0.0722 * 0.3), (5, 0.299 * 0.1 + 0.587 * 0.2 + 0.114 * 0.3)):
        target = empty(clip)
        FrameMap(clip, colour("GRAY", matrix), "rgb").add(noise(clip, 1), target, residual, 0, 0, 16)
        np.testing.assert_allclose(target[0] - noise(clip, 1)[0], luma, atol=1e-6)
