"""Packed convolutions give what torch's own 3-D convolutions give."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vsdiqp.network.packing import Packed, PackedConv, PackedDepthwise, PackedUpsample, band

SIZES = [(8, 8), (8, 12), (16, 4)]


def to_volume(x: Tensor) -> Tensor:
    """Tokens B, H, W, C * 3 -> B, C, 3, H, W."""
    return x.unflatten(3, (-1, 3)).permute(0, 3, 4, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    return x.permute(0, 3, 4, 1, 2).flatten(3)


def agree(module: Packed, x: Tensor, reference: Tensor) -> None:
    """In training, prepared, and prepared in double precision."""
    expected = to_tokens(reference)
    torch.testing.assert_close(module.train()(x), expected, rtol=0, atol=1e-5)
    module.eval().prepare()
    with torch.inference_mode():
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tokens(size: tuple[int, int], channels: int) -> Tensor:
    return torch.randn(2, *size, channels * 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), 1, 1), ((3, 4, 4), 2, 1), ((3, 2, 2), 2, 0), ((3, 1, 1), 1, 0)],
)
def test_convolution(size: tuple[int, int], kernel: tuple[int, int, int], stride: int, padding: int) -> None:
    module = PackedConv(5, 7, kernel, stride, padding)
    torch.nn.init.normal_(module.bias)
    x = tokens(size, 5)
    reference = F.conv3d(
        to_volume(x), module.weight, module.bias, stride=(1, stride, stride), padding=(1, padding, padding)
    )
    agree(module, x, reference)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("taps", [3, 1])
def test_depthwise(size: tuple[int, int], taps: int) -> None:
    module = PackedDepthwise(6, taps)
    torch.nn.init.normal_(module.bias)
    x = tokens(size, 6)
    agree(module, x, F.conv3d(to_volume(x), module.weight, module.bias, padding=(taps // 2, 1, 1), groups=6))


@pytest.mark.parametrize("size", SIZES)
def test_upsampling(size: tuple[int, int]) -> None:
    module = PackedUpsample(4, 5)
    torch.nn.init.normal_(module.bias)
    torch.nn.init.normal_(module.merge_bias)
    x = tokens(size, 4)
    four = F.conv_transpose3d(to_volume(x), module.weight, module.bias, stride=(1, 2, 2))
    assert four.shape[2] == 4
    agree(module, x, F.conv3d(four, module.merge_weight, module.merge_bias))


def test_gradients_reach_the_parameters() -> None:
    x, reference = tokens((8, 8), 5), PackedConv(5, 7, (3, 4, 4), 2, 1)
    volume = F.conv3d(to_volume(x), reference.weight, reference.bias, stride=(1, 2, 2), padding=(1, 1, 1))
    (wanted,) = torch.autograd.grad(volume.square().sum(), reference.weight)
    (got,) = torch.autograd.grad(reference(x).square().sum(), reference.weight)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def test_training_drops_what_was_prepared() -> None:
    module = PackedConv(5, 7, (3, 2, 2), 2, 0)
    module.eval().prepare()
    x = tokens((8, 8), 5)
    before = module(x)
    module.train()
    with torch.no_grad():
        module.weight.mul_(2)
    module.eval()
    torch.testing.assert_close(module(x), 2 * before, rtol=0, atol=1e-5)


def test_a_band_sees_no_frame_beyond_the_ends() -> None:
    weight = torch.ones(1, 1, 3)
    assert band(weight).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
