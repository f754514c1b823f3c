"""``gelu(depthwise(gelu(x)))`` and its gradients as Triton kernels, for training on a GPU.

Eager execution passes over the widest maps of the network a dozen times for it; here they are read once forward and
twice backward. The same step as the CPU's (network/depthwise.cpp). Maps are B, H, W, C of tokens that carry one frame.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from vsdiqp.kernels.blocks import INVERSE_ROOT_2, TOKENS, WINDOW, _convolved_alone, _gelu, _patch

INVERSE_ROOT_TAU = tl.constexpr(0.3989422804014327)
CHANNELS = 32
"""Channels of a program."""
PATCHES = 8
"""Patches of 8x8 tokens whose part of the weights' gradient a program adds up."""


@triton.jit
def _gelu_slope(x):
    return 0.5 * (1.0 + tl.erf(x * INVERSE_ROOT_2)) + x * tl.exp(-0.5 * x * x) * INVERSE_ROOT_TAU


@triton.jit
def forward_kernel(x, weight, bias, out, height, width, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """x, out: rows, WIDE; weight: 9, WIDE fp32; bias: WIDE fp32. Grid: (patches of the whole batch, WIDE / BLOCK)."""
    image, y, x_at = _patch(tl.program_id(0), height, width)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = (image * height + y).to(tl.int64) * width + x_at
    inside = ((y < height) & (x_at < width))[:, None] & (channel < WIDE)[None, :]
    total = _convolved_alone(x, weight, bias, image, y, x_at, channel, height, width, WIDE, True)
    tl.store(out + row[:, None] * WIDE + channel[None, :], _gelu(total, True).to(out.dtype.element_ty), mask=inside)


@triton.jit
def inner_gradient_kernel(x, weight, bias, gradient, out, height, width, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of what the last GELU was given, from the gradient of what it gave. Grid: as `forward_kernel`."""
    image, y, x_at = _patch(tl.program_id(0), height, width)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = (image * height + y).to(tl.int64) * width + x_at
    inside = ((y < height) & (x_at < width))[:, None] & (channel < WIDE)[None, :]
    at = row[:, None] * WIDE + channel[None, :]
    total = _convolved_alone(x, weight, bias, image, y, x_at, channel, height, width, WIDE, True)
    given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (given * _gelu_slope(total)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def outer_gradient_kernel(
    x, weight, inner, out, parts, height, width, patches,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Gradients of x and, in parts, of the weights and the bias, from ``inner``, `inner_gradient_kernel`'s result.

    parts: programs, 16, WIDE fp32, of which the first nine are taps and the tenth is the bias; programs take COUNT
    patches of all ``patches`` each. Grid: (patches / COUNT, WIDE / BLOCK).
    """
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_channels = channel < WIDE
    number = tl.arange(0, 16)
    found = tl.zeros((16, BLOCK), dtype=tl.float32)
    for step in tl.range(0, COUNT, num_stages=1, loop_unroll_factor=1):
        patch = tl.program_id(0) * COUNT + step
        image, y, x_at = _patch(patch, height, width)
        row = (image * height + y).to(tl.int64) * width + x_at
        there = (y < height) & (x_at < width) & (patch < patches)
        inside = there[:, None] & inside_channels[None, :]
        at = row[:, None] * WIDE + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        bent = _gelu(value, True)
        total = tl.zeros((TOKENS, BLOCK), dtype=tl.float32)
        for tap in tl.range(0, 9, num_stages=1, loop_unroll_factor=1):
            # Where this token was the tap's.
            ny = y - (tap // 3 - 1)
            nx = x_at - (tap % 3 - 1)
            seen = (there & (ny >= 0) & (ny < height) & (nx >= 0) & (nx < width))[:, None] & inside_channels[None, :]
            from_row = (image * height + ny).to(tl.int64) * width + nx
            arrived = tl.load(inner + from_row[:, None] * WIDE + channel[None, :], mask=seen, other=0.0).to(tl.float32)
            total += arrived * tl.load(weight + tap * WIDE + channel, mask=inside_channels, other=0.0)[None, :]
            found += tl.where((number == tap)[:, None], tl.sum(arrived * bent, 0)[None, :], 0.0)
        own = tl.load(inner + at, mask=inside, other=0.0).to(tl.float32)
        found += tl.where((number == 9)[:, None], tl.sum(own, 0)[None, :], 0.0)
        tl.store(out + at, (total * _gelu_slope(value)).to(out.dtype.element_ty), mask=inside)
    to = parts + (tl.program_id(0) * 16 + number).to(tl.int64)[:, None] * WIDE + channel[None, :]
    tl.store(to, found, mask=(number < 10)[:, None] & inside_channels[None, :])


def activated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(depthwise(gelu(x)))`` of a map B, H, W, C with zeros around; weight: C, 1, 3, 3. Gradients flow to all."""
    result: Tensor = _Activated.apply(x, weight, bias)
    return result


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        taps, offset = weight.float().flatten(1).t().contiguous(), bias.float().contiguous()
        out = torch.empty_like(x)
        forward_kernel[_grid(x)](
            x, taps, offset, out, x.shape[1], x.shape[2], WIDE=x.shape[3], BLOCK=CHANNELS, num_warps=4
        )
        ctx.save_for_backward(x, taps, offset)
        ctx.shape, ctx.dtypes = weight.shape, (weight.dtype, bias.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, taps, offset = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype).contiguous()
        height, width, wide = x.shape[1:]
        inner, d_x = torch.empty_like(x), torch.empty_like(x)
        inner_gradient_kernel[_grid(x)](
            x, taps, offset, gradient, inner, height, width, WIDE=wide, BLOCK=CHANNELS, num_warps=4
        )
        patches, blocks = _grid(x)
        programs = triton.cdiv(patches, PATCHES)
        parts = taps.new_empty((programs, 16, wide))
        outer_gradient_kernel[programs, blocks](
            x, taps, inner, d_x, parts, height, width, patches,
            WIDE=wide, BLOCK=CHANNELS, COUNT=PATCHES, num_warps=4,
        )  # fmt: skip
        sums = parts[:, :10].sum(0)
        d_weight = sums[:9].t().reshape(ctx.shape)
        return d_x, d_weight.to(ctx.dtypes[0]), sums[9].to(ctx.dtypes[1])


def _grid(x: Tensor) -> tuple[int, int]:
    batch, height, width, channels = x.shape
    return batch * triton.cdiv(height, WINDOW) * triton.cdiv(width, WINDOW), triton.cdiv(channels, CHANNELS)
