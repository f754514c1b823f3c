"""planes.cu against the CPU path (planes.py, tiles.py, context.py), its code run by a CPU."""

import itertools

import numpy as np
import pytest
import torch
from host_grid import HostKernels, compile_for_host

from vsdiqp import tiles
from vsdiqp.clip import ClipFormat, FrameColour, Planes
from vsdiqp.context import Thumbnailer
from vsdiqp.kernels import layouts
from vsdiqp.planes import FrameMap

WIDTH, HEIGHT = 104, 72
LEFT, CENTRE, BOTTOM = 0, 1, 5


def clip(family="YUV", bits=8, sub=(1, 1), sample="integer", width=WIDTH, height=HEIGHT) -> ClipFormat:
    return ClipFormat(family, sample, bits, *sub, width, height, 30)


def colour(matrix=1, full=False, location=LEFT) -> FrameColour:
    return FrameColour(matrix, full, location)


FORMATS = {
    "yuv420p8": (clip(), colour()),
    "yuv420p10 centre": (clip(bits=10), colour(9, location=CENTRE)),
    "yuv420p16 bottom full": (clip(bits=16), colour(6, full=True, location=BOTTOM)),
    "yuv422p16": (clip(bits=16, sub=(1, 0)), colour()),
    "yuv410p8": (clip(sub=(2, 2)), colour(location=CENTRE)),
    "yuv440p12": (clip(bits=12, sub=(0, 1)), colour(location=2)),
    "yuv444p16": (clip(bits=16, sub=(0, 0)), colour(9)),
    "yuv420ph": (clip(bits=16, sample="float"), colour()),
    "yuv444ps": (clip(bits=32, sub=(0, 0), sample="float"), colour()),
    "rgb24": (clip("RGB", sub=(0, 0)), colour(0, full=True)),
    "rgbs": (clip("RGB", bits=32, sub=(0, 0), sample="float"), colour(0, full=True)),
    "gray16": (clip("GRAY", bits=16, sub=(0, 0)), colour()),
    "grays": (clip("GRAY", bits=32, sub=(0, 0), sample="float"), colour()),
}


def random_frame(form: ClipFormat, seed: int) -> Planes:
    """Noise over the whole range of the samples, and past the nominal one in floats."""
    random = np.random.default_rng(seed)
    planes = []
    for index in range(1 if form.family == "GRAY" else 3):
        shape = (
            (form.height >> form.subsampling_h, form.width >> form.subsampling_w)
            if index
            else (form.height, form.width)
        )
        if form.sample_type == "integer":
            plane = random.integers(0, 2**form.bits, shape)
            plane[0, :2] = np.iinfo(layouts.sample_dtype(form)).max  # which 10 bits in 16 don't have
        else:
            low = -0.7 if index and form.family == "YUV" else -0.2
            plane = random.uniform(low, low + 1.4, shape)
            plane[0, :4] = -0.0, 1e4, -1e4, 0.0
        planes.append(plane.astype(layouts.sample_dtype(form)))
    return tuple(planes)


def plan_of(form: ClipFormat, side=(64, 32), overlap=16) -> tiles.TilePlan:
    return tiles.plan(form.width, form.height, side, overlap, 16, 8)


@pytest.mark.parametrize("network_colour", ["rgb", "ycbcr"])
@pytest.mark.parametrize("name", FORMATS)
def test_tiles_hold_the_colours_of_the_cpu_path(name: str, network_colour: str):
    form, meaning = FORMATS[name]
    plan = plan_of(form)
    frames = [random_frame(form, seed) for seed in range(4)]
    kernels = HostKernels(form, plan, (16, 16), network_colour, half=False)
    tile, ahead = kernels.prepare(meaning, frames, 0, plan.count)
    cpu = FrameMap(form, meaning, network_colour)
    for index, (top, left) in enumerate(itertools.product(plan.rows.starts, plan.columns.starts)):
        expected = torch.empty((3, 4, plan.rows.side, plan.columns.side))
        for f, frame in enumerate(frames):
            cpu.read(frame, left, top, expected[:, f])
        np.testing.assert_allclose(tile[index], expected[:, :3], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(ahead[index], expected[:, 2:], rtol=2e-6, atol=2e-6)


def test_half_tiles_are_the_float_tiles_rounded():
    form, meaning = FORMATS["yuv420p10 centre"]
    frames = [random_frame(form, seed) for seed in range(4)]
    full, half = (
        HostKernels(form, plan_of(form), (16, 16), "rgb", half=kind).prepare(meaning, frames, 1, 2)[0]
        for kind in (False, True)
    )
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_a_batch_holds_the_tiles_it_was_asked_for():
    form, meaning = FORMATS["yuv420p8"]
    frames = [random_frame(form, seed) for seed in range(3)]
    kernels = HostKernels(form, plan_of(form), (16, 16), "rgb", half=False)
    every, untouched = kernels.prepare(meaning, frames, 0, kernels.plan.count)
    some, _ = kernels.prepare(meaning, frames, 2, 3)
    np.testing.assert_array_equal(some, every[2:5])
    assert np.isnan(untouched).all(), "without a look-ahead frame nothing is written for it"


@pytest.mark.parametrize("name", ["yuv420p8", "yuv422p16", "yuv420ph", "rgb24", "gray16"])
@pytest.mark.parametrize("size", [(16, 24), (96, 128)])
def test_thumbnails_equal_the_cpu_path(name: str, size: tuple[int, int]):
    form, meaning = FORMATS[name]
    frames = [random_frame(form, seed) for seed in range(4)]
    around, ahead = HostKernels(form, plan_of(form), size, "rgb", half=False).shrink(meaning, frames)
    cpu, thumbnailer = FrameMap(form, meaning, "rgb"), Thumbnailer(form.width, form.height, size)
    before, _, after, beyond = (thumbnailer.shrink(cpu, frame) for frame in frames)
    np.testing.assert_allclose(around, torch.stack((before, after), 1), rtol=0, atol=5e-6)
    np.testing.assert_allclose(ahead, torch.stack((after, beyond), 1), rtol=0, atol=5e-6)


def blend_on_cpu(form, meaning, network_colour, plan, frames, prediction, strength, chroma=1.0) -> list[Planes]:
    cpu = FrameMap(form, meaning, network_colour)
    canvas = tiles.Canvas(plan, (3, 3), cpu.margin, cpu.row_step)
    targets = [tuple(np.zeros_like(plane) for plane in frame) for frame in frames]
    index = 0
    for _ in plan.rows.starts:
        for column in range(len(plan.columns.starts)):
            canvas.add(column, torch.from_numpy(prediction[index]).transpose(0, 1).nan_to_num(0.0, 0.0, 0.0))
            index += 1
        strip = canvas.end_row()
        for f in range(3):
            if strip.start < strip.stop:
                cpu.add(frames[f], targets[f], strip.values[f], strip.first, strip.start, strip.stop, strength, chroma)
    return targets


@pytest.mark.parametrize("network_colour", ["rgb", "ycbcr"])
@pytest.mark.parametrize("name", FORMATS)
def test_restored_planes_equal_the_cpu_path(name: str, network_colour: str):
    form, meaning = FORMATS[name]
    plan = plan_of(form)
    frames = [random_frame(form, seed) for seed in range(3)]
    random = np.random.default_rng(7)
    prediction = random.normal(0, 0.05, (plan.count, 3, 3, plan.rows.side, plan.columns.side)).astype(np.float32)
    prediction[0, 0, 0, 0, :2] = np.nan, np.inf
    kernels = HostKernels(form, plan, (16, 16), network_colour, half=False)
    chroma = 0.6 if network_colour == "ycbcr" else 1.0
    found = kernels.finish(meaning, frames, prediction, 0.8, chroma=chroma)
    expected = blend_on_cpu(form, meaning, network_colour, plan, frames, prediction, 0.8, chroma)
    changed = 0
    for ours, theirs, source in zip(found, expected, frames, strict=True):
        for a, b, c in zip(ours, theirs, source, strict=True):
            if form.sample_type == "integer":
                assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
                assert (a != b).mean() < 1e-3, "within one code value, and that only where rounding is a tie"
            else:
                np.testing.assert_allclose(a, b, rtol=1e-3 if form.bits == 16 else 1e-6, atol=2e-6)
            changed += (a != c).sum()
    assert changed > 0


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_predicted_returns_the_same_bits(name: str):
    form, meaning = FORMATS[name]
    plan = plan_of(form)
    frames = [random_frame(form, seed) for seed in range(3)]
    shape = (plan.count, 3, 3, plan.rows.side, plan.columns.side)
    kernels = HostKernels(form, plan, (16, 16), "rgb", half=False)
    predictions = {"zero": (np.zeros(shape, np.float32), 1.0), "strength zero": (np.ones(shape, np.float32), 0.0)}
    for what, (prediction, strength) in predictions.items():
        for ours, source in zip(kernels.finish(meaning, frames, prediction, strength), frames, strict=True):
            for a, b in zip(ours, source, strict=True):
                assert a.tobytes() == b.tobytes(), what


def test_unwanted_frames_are_not_written():
    form, meaning = FORMATS["yuv420p8"]
    plan = plan_of(form)
    frames = [random_frame(form, seed) for seed in range(3)]
    prediction = np.full((plan.count, 3, 3, plan.rows.side, plan.columns.side), 0.1, np.float32)
    kernels = HostKernels(form, plan, (16, 16), "rgb", half=False)
    some = kernels.finish(meaning, frames, prediction, 1.0, wanted=(1,))
    every = kernels.finish(meaning, frames, prediction, 1.0)
    assert some[0] is None and some[2] is None
    for a, b in zip(some[1], every[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_do_not_depend_on_the_block_size():
    """More threads than one share a block's memory: a missing barrier or a wrong index would show."""
    form, meaning = clip(width=80, height=32), colour(location=CENTRE)
    plan = plan_of(form, (48, 32), 8)
    frames = [random_frame(form, seed) for seed in range(4)]
    prediction = np.random.default_rng(3).normal(0, 0.1, (plan.count, 3, 3, 32, 48)).astype(np.float32)
    kernels = HostKernels(form, plan, (8, 8), "rgb", half=True)
    for threads in (3, 4):
        for one, many in zip(
            kernels.prepare(meaning, frames, 0, 1, 1), kernels.prepare(meaning, frames, 0, 1, threads), strict=True
        ):
            np.testing.assert_array_equal(one, many)
        for one, many in zip(kernels.shrink(meaning, frames, 1), kernels.shrink(meaning, frames, threads), strict=True):
            np.testing.assert_array_equal(one, many)
        one, many = (kernels.finish(meaning, frames[:3], prediction, 1.0, threads=n) for n in (1, threads))
        for a, b in zip(itertools.chain(*one), itertools.chain(*many), strict=True):
            np.testing.assert_array_equal(a, b)


def test_records_have_the_size_of_the_c_structures():
    library = compile_for_host(16, 0)
    for kernel, record in layouts.KERNELS.items():
        assert record.itemsize == getattr(library, f"{kernel}_size")()
