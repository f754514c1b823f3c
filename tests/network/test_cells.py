"""The compiled steps between picture and convolutions give what the torch module says they are."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.network.small import SMALL_LITE, arguments, neighbours, network, picture, run
from vsdiqp.errors import DiqpError
from vsdiqp.library import open_library
from vsdiqp.network import DiQP, cells
from vsdiqp.network.stem import FrameBlock, seen_beside

PRECISIONS = [torch.float32, torch.bfloat16]


def scene(net: DiQP, height: int = 64, width: int = 192) -> tuple[Tensor, Tensor]:
    """Two tiles with parts that are flat or of two levels, neighbours of which some samples lie far off, as where
    motion was not found."""
    tile = picture(height, width, batch=2)
    tile[0, :, :, :40, :56] = 0.3
    tile[1, 1] = 0.5
    generator = torch.Generator().manual_seed(7)
    tile[1, 0, :, :, 96:160] = 0.2 + 0.5 * torch.rand(3, height, 64, generator=generator).round()
    tile[1, 0, 0, 20, 100], tile[1, 0, 1, 20, 100] = 0.212, 0.3  # hardly and clearly between the two
    beside = neighbours(net.config, tile)
    off = torch.rand(beside.shape, generator=generator)
    return tile, beside + 0.3 * (off - 0.5) * (off > 0.8)


def parts(net: DiQP, tile: Tensor) -> tuple[Tensor, Tensor]:
    """Pattern and damage of two tiles at different QPs."""
    places = [net.locate(qp, codec, 1, 9, 0, 64, 640, 360, 64, 64)[0] for qp, codec in ((27, "hevc"), (180, "av1"))]
    location = torch.stack(places, 1)[..., None]
    return net.lost(location).to(net.body_dtype), net.lost.damage(location).float()  # type: ignore[operator]


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "usable", lambda *_: False)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("count", "first_pass"), [(1, ""), (2, ""), (3, ""), (1, "lite"), (3, "lite")])
def test_stem_and_head_are_the_plain_ones(dtype: torch.dtype, count: int, first_pass: str) -> None:
    net = network(dataclasses.replace(SMALL_LITE, neighbours=count, first_pass=first_pass))
    net.to_precision(dtype)
    tile, beside = scene(net)
    pattern, damage = parts(net, tile)
    others = seen_beside(tile, beside, damage)
    with torch.no_grad():
        inputs = net.stem.inputs(tile, pattern, damage, others)  # type: ignore[operator]
        compiled = cells.stem_inputs(tile, beside, pattern, damage)
        assert compiled.shape == inputs.shape and compiled.dtype == dtype
        torch.testing.assert_close(compiled, inputs, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-5)
        shape = (6, net.head.project.out_channels, 32, 96)  # type: ignore[union-attr]
        answer = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        expected = net.head.residual(answer, tile, damage, others)  # type: ignore[operator]
        residual = cells.residual(answer, tile, beside, damage)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(residual, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(residual == 0, expected == 0), "what is flat is left alone to the bit"
    assert (residual == 0).any()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-3)])
def test_a_network_gives_the_same_with_and_without(
    dtype: torch.dtype, limit: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(SMALL_LITE)
    net.to_precision(dtype)
    tile = scene(net)[0][:batch]
    result = run(net, tile)
    plain(monkeypatch)
    expected = run(net, tile)
    assert (expected - tile).abs().max() > 0.01
    torch.testing.assert_close(result, expected, rtol=0, atol=limit)


def test_threads_change_nothing() -> None:
    net = network(SMALL_LITE)
    tile, beside = scene(net)
    pattern, damage = parts(net, tile)
    before, results = torch.get_num_threads(), []
    answer = torch.randn(6, net.head.project.out_channels, 32, 96)  # type: ignore[union-attr]
    try:
        for threads in (1, 2, 5, 64):
            torch.set_num_threads(threads)
            made = cells.stem_inputs(tile, beside, pattern, damage), cells.residual(answer, tile, beside, damage)
            results.append(torch.cat([part.flatten() for part in made]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_gradients_and_traces_take_the_plain_way() -> None:
    net = network(SMALL_LITE).train()
    tile = picture(64, 64)
    assert not cells.usable(tile, torch.float32)
    net(*arguments(net, tile)).sum().backward()
    assert net.stem.project.weight.grad is not None  # type: ignore[union-attr]
    with torch.no_grad():
        assert cells.usable(tile, torch.float32)
        assert not cells.usable(tile, torch.float16)
        exported = torch.export.export(net.eval(), arguments(net, tile))
    assert "convolution" in str(exported.graph) or "conv2d" in str(exported.graph)


def test_modulated_weights_are_a_modulated_result() -> None:
    torch.manual_seed(0)
    block = FrameBlock(8, 16)
    torch.nn.init.normal_(block.modulate.weight)
    x, code = torch.randn(3, 8, 12, 20), torch.randn(1, 16)
    with torch.no_grad():
        torch.testing.assert_close(block(x, code), block(x.repeat(2, 1, 1, 1), code.expand(2, -1))[:3])


def test_sizes_that_do_not_fit_are_refused() -> None:
    net = network(SMALL_LITE)
    tile, beside = scene(net)
    pattern, damage = parts(net, tile)
    with pytest.raises(ValueError, match="sizes do not fit"):
        cells.stem_inputs(tile[..., :-4], beside[..., :-4], pattern, damage)
    with pytest.raises(ValueError, match="sizes do not fit"):
        cells.residual(torch.zeros(6, 16, 32, 96), tile, beside[:, :, :, :-8], damage)


def test_a_missing_library_is_named() -> None:
    with pytest.raises(DiqpError, match=r"libnone\.so.*scripts/build_plugin"):
        open_library("network", "libnone.so", {})
