"""depthwise.cu against torch: its code run by a CPU, and on a GPU where there is one, as the backend launches it."""

import ctypes
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from host_grid import compile_with
from strips import strips_for

from vsdiqp.kernels import depthwise_cuda, sources
from vsdiqp.kernels.depthwise_cuda import FORMS, ROWS, fits, lanes, strip_rows
from vsdiqp.network.lewin import LeWinBlock

KINDS = [torch.float16, torch.bfloat16]
GELU_ERROR = 6e-5
SHAPES = {
    "one token": (1, 1, 1, 16),
    "one row": (2, 1, 13, 48),
    "one column": (1, 9, 1, 16),
    "odd sizes": (3, 11, 19, 48),
    "several strips": (2, 37, 10, 16),
    "a block's width and one more": (1, 5, 33, 16),
    "as released": (1, 8, 6, 368),
    "as shipped": (2, 7, 9, 288),
}
"""Images, height, width, channels of a frame."""
GUARD = 4096
"""Numbers around a map that must be neither read nor written."""


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x: B, H, W, frames, C; weight: frames, 3, 3, C. Returns fp64."""
    taps = weight.double().permute(3, 0, 1, 2)[:, None]
    padding = (len(weight) // 2, 1, 1)
    y = F.conv3d(x.double().permute(0, 4, 3, 1, 2), taps, bias.double(), padding=padding, groups=x.shape[-1])
    return F.gelu(y).permute(0, 3, 4, 2, 1)


def run_on_host(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, multiprocessors: int = 1, threads: int = 1
) -> torch.Tensor:
    """The kernel's result, with what lies around the maps watched."""
    images, height, width, frames, channels = x.shape
    brain = x.dtype == torch.bfloat16
    macros = tuple(option for option in depthwise_cuda.options(frames, channels, brain) if option.startswith("-D"))
    around = torch.full((x.numel() + 2 * GUARD,), float("nan"), dtype=x.dtype)
    around[GUARD:-GUARD] = x.flatten()
    out = torch.full_like(around, 7.0)
    size = x.element_size()
    launch = depthwise_cuda.depthwise(
        around.data_ptr() + GUARD * size, weight.data_ptr(), bias.data_ptr(), out.data_ptr() + GUARD * size,
        (images, height, width, frames, channels), multiprocessors,
    )  # fmt: skip
    run = compile_with(sources.DEPTHWISE, macros).depthwise_launch
    run(ctypes.c_void_p(launch.record.ctypes.data), *launch.grid, threads)
    assert (out[:GUARD] == 7).all() and (out[-GUARD:] == 7).all(), "written outside of the map"
    return out[GUARD:-GUARD].view(x.shape)


def maps(
    shape: tuple[int, int, int, int], frames: int, kind: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A map, weights that make results about as large, biases."""
    *sides, channels = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*sides, frames, channels, generator=generator).to(kind)
    weight = torch.randn(frames, 3, 3, channels, generator=generator) / 4
    return x, weight, torch.randn(channels, generator=generator)


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within the GELU's error, that of sums in single precision, and half a step of the result's numbers."""
    step = torch.finfo(found.dtype).eps / 2
    torch.testing.assert_close(found.double(), expected, rtol=step + 1e-6, atol=GELU_ERROR + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", FORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_result_is_torchs(name: str, frames: int, kind: torch.dtype):
    x, weight, bias = maps(SHAPES[name], frames, kind)
    check(run_on_host(x, weight, bias), reference(x, weight, bias))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("frames", FORMS)
@pytest.mark.parametrize("architecture", ["compute_75", "compute_90"])
def test_so_is_the_compiled_codes(architecture: str, frames: int, kind: torch.dtype):
    """With the instructions of assembly that a GPU of old and one of now get, and the strips of a large one."""
    for name in ("one token", "odd sizes", "several strips", "as shipped"):
        x, weight, bias = maps(SHAPES[name], frames, kind)
        *sides, channels = SHAPES[name]
        out = torch.full_like(x, 7.0)
        strips_for(architecture)(x, weight, bias, out, (sides[0], sides[1], sides[2], frames, channels))
        check(out, reference(x, weight, bias))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", FORMS)
def test_each_tap_reads_its_own_neighbour_to_the_bit(frames: int, kind: torch.dtype):
    """Channel by channel another tap of one, and values at which the GELU is the identity or nothing at all."""
    channels = 64
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(32, 200, (2, 9, 7, frames, channels), generator=generator).to(kind)
    x *= torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    taps = 9 * frames
    weight = torch.zeros(taps, channels)
    weight[torch.arange(channels) % taps, torch.arange(channels)] = 1
    weight = weight.view(frames, 3, 3, channels)
    found = run_on_host(x, weight, torch.zeros(channels))
    assert torch.equal(found.double(), reference(x, weight, torch.zeros(channels)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gelu_is_within_what_it_says(kind: torch.dtype):
    at = torch.cat([torch.linspace(-6, 6, 1016), torch.tensor([0.0, 1e-4, -1e-4, 30.0, -30.0, 1e4, -1e4, 4.2])])
    found = run_on_host(torch.zeros(1, 1, 1, 3, 1024, dtype=kind), torch.zeros(3, 3, 3, 1024), at)
    check(found, F.gelu(at.double()).expand(found.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_what_overflows_and_what_is_no_number_stay_what_they_are(kind: torch.dtype):
    bias = torch.tensor([float("nan"), 3e38, -3e38, 7e4] * 4)
    found = run_on_host(torch.zeros(1, 1, 1, 3, 16, dtype=kind), torch.zeros(3, 3, 3, 16), bias)
    expected = torch.tensor([float("nan"), 3e38, 0.0, 7e4] * 4).to(kind).expand(found.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("frames", FORMS)
def test_results_depend_neither_on_the_strips_nor_on_the_block_nor_on_the_batch(frames: int):
    x, weight, bias = maps((2, 40, 9, 48), frames, torch.float16)
    one = run_on_host(x, weight, bias, multiprocessors=1)
    assert torch.equal(one, run_on_host(x, weight, bias, multiprocessors=1000))
    assert torch.equal(one, run_on_host(x, weight, bias, threads=3))
    assert torch.equal(one[1:], run_on_host(x[1:].contiguous(), weight, bias))


def test_strips_fill_the_gpu():
    assert all(rows % 3 == 1 for rows in ROWS), "the kernel takes three rows at a time, and one more"
    multiprocessors = 132
    for side, images, frames, channels in product((64, 128, 256), (1, 4, 8), FORMS, (192, 368, 768)):
        shape = (images, side, side, frames, channels)
        launch = depthwise_cuda.depthwise(0, 0, 0, 0, shape, multiprocessors)
        assert np.prod(launch.grid) >= (multiprocessors if frames == 3 else multiprocessors // 2)
        strips = int(launch.record["strips"][0])
        assert strips * launch.record["rows"][0] * FORMS[frames].across >= images * side * side
        assert launch.grid[0] * FORMS[frames].threads * FORMS[frames].numbers >= strips * channels
    assert strip_rows(10_000, 128, 528) >= 16, "long strips where there is enough to do"


def test_lanes_idle_little():
    for frames, channels in product(FORMS, range(16, 1024, 16)):
        threads, parts, side = FORMS[frames].threads, channels // FORMS[frames].numbers, lanes(frames, channels)
        busy = parts / (parts + -parts % side) * (threads // side * side) / threads
        assert busy >= (0.8 if parts > 32 else 0.3)
    assert lanes(3, 368) == 32 and lanes(3, 720) == 16
    assert [lanes(1, channels) for channels in (144, 192, 288, 384)] == [12, 24, 24, 32]


def test_sizes_that_are_too_large_are_refused():
    assert fits((8, 256, 256, 3, 768))
    assert fits((8, 1024, 1024, 1, 768))
    assert not fits((8, 1024, 1024, 3, 768))
    assert not fits((1, 8, 8, 3, 24))
    assert not fits((1, 8, 8, 2, 16))


def test_the_record_has_the_size_of_the_c_structure():
    assert compile_with(sources.DEPTHWISE, ("-DCHANNELS=16",)).depthwise_size() == depthwise_cuda.DEPTHWISE.itemsize


class OnGpu(NamedTuple):
    """As much of a tensor as is asked for its place."""

    dtype: torch.dtype
    is_cuda: bool = True


@pytest.mark.parametrize("frames", FORMS)
def test_which_maps_it_takes(frames: int):
    fused = pytest.importorskip("vsdiqp.backends.fused", reason="needs Triton, which CUDA builds of torch bring")
    shape = (1, 8, 8, frames, 96)
    for kind in KINDS:
        assert fused.strips_fit(OnGpu(kind), shape)
        assert not fused.strips_fit(OnGpu(kind, is_cuda=False), shape)
        assert not fused.strips_fit(OnGpu(kind), (1, 8, 8, frames, 24))
    assert not fused.strips_fit(OnGpu(torch.float32), shape)


@pytest.mark.parametrize("frames", FORMS)
def test_it_reads_the_weights_as_the_fused_block_stores_them(frames: int):
    fused = pytest.importorskip("vsdiqp.backends.fused", reason="needs Triton, which CUDA builds of torch bring")
    block = LeWinBlock(12, 1, 8, 4, frames, 0, frames).eval()
    feed = block.ffn.depthwise
    stored = fused.FusedBlock(block, torch.float16)
    hidden, padded = stored.hidden, stored.padded_hidden
    x = torch.randn(1, 8, 8, frames, hidden, generator=torch.Generator().manual_seed(1)).half()
    found = run_on_host(F.pad(x, (0, padded - hidden)), stored.depthwise_weight, stored.depthwise_bias)
    weight = feed.weight[:, 0].detach().permute(1, 2, 3, 0)
    check(found[..., :hidden], reference(x, weight, feed.bias.detach()))
    assert (found[..., hidden:] == 0).all(), "padding stays zero"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("frames", FORMS)
@pytest.mark.parametrize("shape", [*SHAPES.values(), (4, 64, 64, 368), (2, 61, 67, 720), (18, 88, 72, 192)], ids=str)
def test_on_the_gpu(shape: tuple[int, int, int, int], frames: int, kind: torch.dtype):
    pytest.importorskip("cupy", reason="needs CuPy")
    from vsdiqp.backends import fused

    x, weight, bias = (tensor.cuda() for tensor in maps(shape, frames, kind))
    out, replayed = torch.full_like(x, 7.0), torch.full_like(x, 7.0)

    def work(to: torch.Tensor) -> Callable[[], None]:
        return lambda: fused._strips(x, weight, bias, to, (*shape[:3], frames, shape[3]))

    # On a stream of torch's own, as a slot does.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work(out)()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        work(replayed)()
        graph.capture_end()
        assert (replayed == 7).all(), "captured, not run"
        graph.replay()
    side.synchronize()
    check(out.cpu(), reference(x.cpu(), weight.cpu(), bias.cpu()))
    assert torch.equal(out, replayed)
