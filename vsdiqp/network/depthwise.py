"""The middle of a feed-forward on the CPU, compiled: GELU, depthwise 3x3, GELU, forward and backward.

What lewin.py says in torch, in one pass over the widest maps of the network; results are the plain module's up to
rounding.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vsdiqp.network.native import PRECISIONS, Compiled, by_processor, eager_on_cpu

LANES = 16
"""Channels that the library takes at once, at most; LANES in lanes.h."""


class _Sizes(ctypes.Structure):
    """DiqpDepthwise in depthwise.cpp."""

    _fields_ = [(name, ctypes.c_int) for name in ("batch", "height", "width", "channels", "bf16", "threads")]


_compiled = Compiled(by_processor("libdepthwise"), _Sizes, {"diqp_depthwise_forward": 4, "diqp_depthwise_backward": 7})


def usable(x: Tensor, groups: int) -> bool:
    """Whether a map B, H, W, C can go this way: on the CPU, not traced, fp32 or bf16, channels all apart."""
    fitting = x.dtype in PRECISIONS and x.shape[-1] % LANES == 0 and groups == x.shape[-1]
    return eager_on_cpu(x) and fitting and _compiled.there


def activated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(depthwise(gelu(x)))`` of a map B, H, W, C with zeros around; weight: C, 1, 3, 3. Gradients flow to all."""
    result: Tensor = _Depthwise.apply(x, weight, bias)
    return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        if x.dtype not in PRECISIONS or x.shape[-1] % LANES or weight.shape != (x.shape[-1], 1, 3, 3):
            raise ValueError(f"map {tuple(x.shape)} {x.dtype} and weight {tuple(weight.shape)}: sizes do not fit")
        taps, offset = weight.float().flatten(1).t().contiguous(), bias.float().contiguous()
        sizes = _Sizes(*x.shape, int(x.dtype == torch.bfloat16), torch.get_num_threads())
        out = torch.empty_like(x)
        _compiled.call("diqp_depthwise_forward", sizes, x, taps, offset, out)
        ctx.save_for_backward(x, taps, offset)
        ctx.sizes, ctx.shape, ctx.dtypes = sizes, weight.shape, (weight.dtype, bias.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, taps, offset = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype).contiguous()
        d_x, d_taps, d_offset = (torch.empty_like(t) for t in (x, taps, offset))
        _compiled.call("diqp_depthwise_backward", ctx.sizes, x, taps, offset, gradient, d_x, d_taps, d_offset)
        d_weight = d_taps.t().reshape(ctx.shape)
        return d_x, d_weight.to(ctx.dtypes[0]), d_offset.to(ctx.dtypes[1])
