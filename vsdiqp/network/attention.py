"""Attention inside windows on the CPU, compiled: what lewin.py says in torch, without its copies and small products.

Forward and backward. A head's part of a window is computed in fp32 whatever the map's precision; results are the plain
module's up to rounding.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vsdiqp.network.native import PRECISIONS, Compiled, by_processor, eager_on_cpu, layer_dtype

WINDOW = 8


class _Sizes(ctypes.Structure):
    """DiqpAttention in attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("batch", "height", "width", "heads", "size", "shift", "bf16", "threads")),
        ("penalty", ctypes.c_float),
    ]


_compiled = Compiled(by_processor("libattention"), _Sizes, {"diqp_attention_forward": 4, "diqp_attention_backward": 7})


def usable(x: Tensor, window: int) -> bool:
    """Whether what layers make of this map can go this way: on the CPU, not traced, in fp32 or bf16, windows of 8x8."""
    if not eager_on_cpu(x):  # first: what traces cannot see through the rest
        return False
    return layer_dtype(x) in PRECISIONS and window == WINDOW and _compiled.there


def window_attention(q: Tensor, kv: Tensor, bias: Tensor, shift: int, penalty: float) -> Tensor:
    """B, H, W, C queries and B, H, W, 2 C keys and values -> B, H, W, C, in their precision; gradients flow to all.

    bias: heads, 64, 64, added to the scores. shift: the map is seen as if rolled by so many tokens up and left;
    ``penalty`` is added between tokens that only the roll made neighbours. H and W are multiples of 8.
    """
    result: Tensor = _WindowAttention.apply(q, kv, bias, shift, penalty)
    return result


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, bias: Tensor, shift: int, penalty: float) -> Tensor:
        q, kv, table = q.contiguous(), kv.contiguous(), bias.float().contiguous()
        sizes = _sizes(q, kv, table, shift, penalty)
        out = torch.empty_like(q)
        _compiled.call("diqp_attention_forward", sizes, q, kv, table, out)
        ctx.save_for_backward(q, kv, table)
        ctx.sizes, ctx.bias_dtype = sizes, bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, kv, table = ctx.saved_tensors
        gradient = gradients[0].to(q.dtype).contiguous()
        d_q, d_kv, d_table = torch.empty_like(q), torch.empty_like(kv), torch.empty_like(table)
        _compiled.call("diqp_attention_backward", ctx.sizes, q, kv, table, gradient, d_q, d_kv, d_table)
        return d_q, d_kv, d_table.to(ctx.bias_dtype), None, None


def _sizes(q: Tensor, kv: Tensor, bias: Tensor, shift: int, penalty: float) -> _Sizes:
    batch, height, width, channels = q.shape
    heads, tokens = len(bias), WINDOW * WINDOW
    fitting = kv.shape == (batch, height, width, 2 * channels) and bias.shape == (heads, tokens, tokens)
    fitting = fitting and q.dtype == kv.dtype and q.dtype in PRECISIONS
    if not fitting or channels % heads or height % WINDOW or width % WINDOW:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in (q, kv, bias))
        raise ValueError(f"queries, keys with values, and bias are {shapes}: sizes do not fit")
    threads = torch.get_num_threads()
    bf16 = int(q.dtype == torch.bfloat16)
    return _Sizes(batch, height, width, heads, channels // heads, shift, bf16, threads, penalty)
