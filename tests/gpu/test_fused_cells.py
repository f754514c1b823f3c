"""The fused stem and head of networks with neighbours against the plain ones: on a GPU where there is one, else through
Triton's interpreter.
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import pytest
import torch
from networks import LITE_LIKE
from test_fused import randomise
from torch import Tensor

from vsdiqp.network import DiQP, DiQPConfig
from vsdiqp.network.stem import CellHead, CellStem, FrameBlock, head_channels, liveliness, pattern_channels, seen_beside

pytest.importorskip("triton", reason="needs Triton, which CUDA builds of torch bring")

from vsdiqp.backends import fused, fused_cells, pipelines

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISIONS = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    # Triton's interpreter takes its bits for an integer.
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
]
SHAPES = {
    "as lite": (6, (64, 64)),
    "as base": (7, (64, 128)),
    "one on each side": (2, (24, 40)),
    "four on each side": (8, (24, 72)),
}
"""Frames seen, and a tile's height and width."""

BASE_LIKE = dataclasses.replace(LITE_LIKE, name="tiny-base", first_pass="lite", stem_blocks=2, head_blocks=2)
JOINT = dataclasses.replace(LITE_LIKE, joint=True)
ONE_BESIDE = dataclasses.replace(LITE_LIKE, neighbours=1)


def picture(batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Tiles of noise whose left halves are flat, nearly flat, and of two levels, in the last item not quite."""
    tile = torch.rand(batch, 3, 3, height, width, generator=generator)
    left = tile[..., : width // 2]
    left[:, :, 0] = 0.25
    left[:, :, 1] = 0.5 + left[:, :, 1] * 0.6 / 255
    left[:, :, 2] = (left[:, :, 2] > 0.5) * 0.7 + 0.1
    left[-1, :, 2] += torch.rand(left[-1, :, 2].shape, generator=generator) * 3.5 / 255
    return tile


def scene(seen: int, size: tuple[int, int], batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tiles, frames beside them (some near the frame, some not), a pattern, damage."""
    generator = torch.Generator().manual_seed(5)
    tile = picture(batch, *size, generator)
    noise = torch.randn(batch, 3, seen, *size, generator=generator)
    beside = tile[:, 0, :, None] + noise * torch.linspace(0.01, 0.1, seen)[:, None, None]
    pattern = torch.randn(batch, 4, 4, pattern_channels(seen), generator=generator)
    return tile, beside, pattern, torch.linspace(0.01, 0.05, batch)


def there(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(DEVICE) for t in tensors)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_stem_is_given_the_same(name: str, dtype: torch.dtype):
    seen, size = SHAPES[name]
    tile, beside, pattern, damage = scene(seen, size)
    stem = CellStem(8, 0, 8, seen)
    plain = stem.inputs(tile, pattern.to(dtype).float(), damage, seen_beside(tile, beside, damage))
    ours = fused_cells.stem_inputs(*there(tile, beside, pattern.to(dtype), damage))
    assert ours.dtype == dtype and ours.is_contiguous(memory_format=torch.channels_last)
    bound = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(ours.float().cpu(), plain, rtol=bound, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (24, 40)], ids=str)
def test_blocks_that_were_drawn_are_found(size: tuple[int, int]):
    tile = picture(2, *size, torch.Generator().manual_seed(3))
    plain = liveliness(tile)
    ours = fused_cells.shares(tile.to(DEVICE)).cpu()
    flat, nearly, two, not_quite = plain[0, 0, 0], plain[0, 0, 1], plain[0, 0, 2], plain[1, 0, 2]
    assert flat[0, 0] == two[0, 0] == 0 and 0 < nearly[0, 0] < 1 and 0 < not_quite[0, 0] < 1 and plain.max() == 1
    torch.testing.assert_close(ours.repeat_interleave(8, -1).repeat_interleave(8, -2), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_answer_means_the_same(name: str, dtype: torch.dtype):
    seen, size = SHAPES[name]
    tile, beside, _, damage = scene(seen, size)
    generator = torch.Generator().manual_seed(6)
    answer = torch.randn(6, head_channels(seen), size[0] // 2, size[1] // 2, generator=generator).to(dtype)
    bias = torch.randn(head_channels(seen), generator=generator).to(dtype)
    answer = answer.contiguous(memory_format=torch.channels_last)
    ours = fused_cells.residual(*there(answer, bias, tile, beside, damage))
    assert ours.dtype == torch.float32
    # In double precision: in single it would be off by nearly as much as is allowed.
    answer, bias, tile, beside, damage = (t.double() for t in (answer, bias, tile, beside, damage))
    head = CellHead(8, 0, 8, seen).double()
    plain = head.residual(answer + bias[:, None, None], tile, damage, seen_beside(tile, beside, damage))
    torch.testing.assert_close(ours.cpu().double(), plain, rtol=0, atol=8e-6 * plain.abs().max().item())


def test_an_item_does_not_depend_on_its_batch():
    tile, beside, pattern, damage = there(*scene(7, (64, 64), batch=3))
    inputs = fused_cells.stem_inputs(tile, beside, pattern, damage)
    assert torch.equal(inputs[3:6], fused_cells.stem_inputs(*(t[1:2] for t in (tile, beside, pattern, damage))))
    answer = torch.randn(9, 32, 32, 32, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    bias = torch.linspace(-1, 1, 32).to(DEVICE)
    residual = fused_cells.residual(answer, bias, tile, beside, damage)
    alone = fused_cells.residual(answer[3:6], bias, *(t[1:2] for t in (tile, beside, damage)))
    assert torch.equal(residual[1:2], alone)


@pytest.mark.parametrize("fences, own, stages", [(True, True, 3), (False, True, 1), (False, False, 3)])
def test_copies_are_asynchronous_where_that_is_safe(
    fences: bool, own: bool, stages: int, monkeypatch: pytest.MonkeyPatch
):
    """Tensor cores that read shared memory on their own need a fence, which an older Triton leaves out."""
    monkeypatch.setattr(pipelines, "FENCES", fences)
    monkeypatch.setattr(pipelines, "reads_on_its_own", lambda _: own)
    asked: list[int] = []

    class Launched:
        def __getitem__(self, _: object) -> Callable[..., None]:
            return lambda *_, num_stages, **__: asked.append(num_stages)

    monkeypatch.setattr(fused_cells.convolutions, "convolve", Launched())
    fused_cells.Convolution(torch.nn.Conv2d(32, 32, 3))(torch.zeros(1, 32, 8, 8))
    assert asked == [stages]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("inputs, outputs", [(48, 48), (32, 16), (48, 32), (64, 64), (80, 48), (8, 24)])
@pytest.mark.parametrize("size", [(20, 44), (3, 5)], ids=str)
@pytest.mark.parametrize("bare", [False, True], ids=["all that may follow", "nothing follows"])
def test_a_convolution_does_the_same(
    inputs: int, outputs: int, size: tuple[int, int], bare: bool, dtype: torch.dtype
) -> None:
    plain = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
    randomise(plain)
    plain.to(dtype)
    generator = torch.Generator().manual_seed(inputs)
    x, add = (torch.randn(6, *size, n, generator=generator).permute(0, 3, 1, 2) for n in (inputs, outputs))
    modulation = torch.randn(2, 2 * outputs, generator=generator)
    x, add, modulation = (t.to(dtype) for t in (x, add, modulation))
    fused_one = fused_cells.Convolution(plain).to(DEVICE)
    with torch.no_grad():
        if bare:
            ours = fused_one(x.to(DEVICE), bias=False)
            exact = torch.nn.functional.conv2d(x.double(), plain.weight.double(), padding=1)
        else:
            ours = fused_one(x.to(DEVICE), modulation=modulation.to(DEVICE), relu=True, add=add.to(DEVICE))
            scale, shift = modulation.double().repeat_interleave(3, 0)[..., None, None].chunk(2, 1)
            exact = (plain.double()(x.double()) * (1 + scale) + shift).relu() + add.double()
    error = (ours.cpu().double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < (1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2), f"relative rms error {error:.1e}"


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("channels", [32, 48])
def test_a_frame_block_does_the_same(channels: int, dtype: torch.dtype):
    block = FrameBlock(channels, 16)
    randomise(block)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, channels, 12, 20, generator=generator).contiguous(memory_format=torch.channels_last)
    code = torch.randn(2, 16, generator=generator)
    with torch.no_grad():
        plain = block(x, code)
        ours = fused_cells.FusedFrameBlock(block.to(DEVICE, dtype))(*(t.to(DEVICE, dtype) for t in (x, code)))
    error = (ours.float().cpu() - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert error < (1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps), f"relative rms error {error:.1e}"


def network_and_arguments(config: DiQPConfig, size: tuple[int, int]) -> tuple[DiQP, tuple[Tensor, ...]]:
    network = DiQP(config).prepare()
    randomise(network)
    with torch.no_grad():
        cast(torch.nn.Parameter, network.lost.log_damage)[:, 0] = -4.0
        cast(torch.nn.Parameter, network.lost.log_damage)[:, 1:] *= 0.1
    network.prepare()
    tile, beside, _, _ = scene(config.seen, size)
    # What these networks leave unread.
    rest = [torch.rand(2, 3, 2, *size, generator=torch.Generator().manual_seed(9)) for _ in range(3)]
    places = [network.locate(qp, "hevc", 7, 300, left, 8, 640, 360, *size)[0] for qp, left in ((30, 16), (40, 64))]
    return network, (tile, *rest, torch.stack(places, 1)[..., None], torch.ones(2, 1, 1, 1, 1), beside)


CONFIGS = {"as lite": LITE_LIKE, "as base": BASE_LIKE, "frames together": JOINT, "one beside": ONE_BESIDE}


@pytest.mark.parametrize("dtype", PRECISIONS[:2])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_whole_network_fused_equals_the_plain_one(config: DiQPConfig, dtype: torch.dtype):
    network, arguments = network_and_arguments(config, (32, 64))
    with torch.no_grad():
        plain = network(*arguments) - arguments[0]
        ours = (fused.fuse(network, dtype).to(DEVICE)(*there(*arguments))).cpu() - arguments[0]
    assert isinstance(network.stem, fused_cells.FusedCellStem), "the fused form must be what was run"
    assert plain.abs().max() > 0.01, "the network must do something for this to say something"
    error = (ours - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert error < (1e-5 if dtype == torch.float32 else 4e-3), f"relative rms error {error:.1e}"
