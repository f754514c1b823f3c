"""LeWin transformer blocks: attention inside 8x8 windows, and a feed-forward with a depthwise 3-D convolution.

Maps are B, H, W, C with C = channels * 3 frames, index ``c * 3 + f``; one token holds all three frames of a position
(or a single one, in networks whose frames go through it one by one).
Source: spec/diqp.md, "A block"; the window attention is Swin's, the feed-forward Uformer's with a frame axis.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsdiqp.network import attention, depthwise
from vsdiqp.network.config import FRAMES
from vsdiqp.network.packing import PackedDepthwise

Activated = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``gelu(depthwise(gelu(x)))`` of a map B, H, W, C; weight C, 1, 3, 3; bias C. Gradients flow to all."""
SHIFT_PENALTY = -100.0
"""Added to the attention of tokens that only the cyclic shift made neighbours; exp(-100) is zero in fp32."""


def relative_index(window: int) -> Tensor:
    """(window^2, window^2) rows of the bias table: (dy + w - 1) * (2 w - 1) + dx + w - 1, d = query - key."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device | str = "cpu") -> Tensor:
    """(windows, window^2, window^2): 0, or SHIFT_PENALTY between tokens of different regions of the rolled map.

    Regions along an axis are [0, n - window), [n - window, n - shift), [n - shift, n): Swin's nine in two dimensions.
    """
    # What is made while a graph is traced for export is no real tensor and must not be kept.
    make = _make_shift_mask if torch.compiler.is_compiling() else _kept_shift_mask
    return make(height, width, window, shift, device)


def _make_shift_mask(height: int, width: int, window: int, shift: int, device: torch.device | str) -> Tensor:
    def regions(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window).int() + (index >= size - shift).int()

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    tokens = to_windows(region[None, :, :, None], window)[..., 0]
    return torch.where(tokens[:, :, None] == tokens[:, None, :], 0.0, SHIFT_PENALTY)


# Kept on its device, and for good: making it in every forward would cost more than using it, and recorded work (CUDA
# graphs) knows no more of it than its address.
_kept_shift_mask = cache(_make_shift_mask)


def to_windows(x: Tensor, window: int) -> Tensor:
    """B, H, W, C -> B * windows, window^2, C."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x: Tensor, window: int, batch: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`."""
    x = x.view(batch, height // window, width // window, window, window, -1)
    return x.transpose(2, 3).reshape(batch, height, width, -1)


class WindowAttention(nn.Module):
    """Multi-head attention inside a window, with a relative position bias; heads are contiguous in the channels."""

    index: Tensor
    bias: Tensor | None

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("index", relative_index(window), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def gather_bias(self) -> Tensor:
        """(heads, window^2, window^2) from the table."""
        tokens = self.window * self.window
        return self.bias_table[self.index.flatten()].view(tokens, tokens, self.heads).permute(2, 0, 1)

    def prepare(self) -> None:
        """Gather the bias once, for inference."""
        with torch.no_grad():
            self.bias = self.gather_bias().contiguous()

    def train(self, mode: bool = True) -> "WindowAttention":
        """Drop the prepared bias, which training would make stale."""
        if mode:
            self.bias = None
        return super().train(mode)

    def on_map(self, x: Tensor, shift: int) -> Tensor | None:
        """A whole map B, H, W, C in one compiled step, where there is one for it; windows shifted by so many tokens."""
        if not attention.usable(x, self.window):
            return None
        bias = self.gather_bias() if self.bias is None else self.bias
        y = attention.window_attention(self.to_q(x), self.to_kv(x), bias, shift, SHIFT_PENALTY)
        return self.proj(y)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """B * windows, window^2, C -> the same shape. ``mask``: (windows, window^2, window^2), added to the scores."""
        rows, tokens, channels = x.shape
        size = channels // self.heads
        q = self.to_q(x).view(rows, tokens, self.heads, size).transpose(1, 2)
        k, v = self.to_kv(x).view(rows, tokens, 2, self.heads, size).permute(2, 0, 3, 1, 4)
        bias = (self.gather_bias() if self.bias is None else self.bias)[None]
        if mask is not None:
            bias = bias + mask[:, None]
            bias = bias.repeat(rows // mask.shape[0], 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).expand(rows, -1, -1, -1))
        return self.proj(y.transpose(1, 2).reshape(rows, tokens, channels))


class FeedForward(nn.Module):
    """Linear, GELU, depthwise 3x3x3 over (frame, y, x), GELU, linear (Uformer's LeFF with frames)."""

    def __init__(self, channels: int, ratio: int, taps: int, frames: int = FRAMES):
        super().__init__()
        self.expand = nn.Linear(channels, channels * ratio)
        self.depthwise = PackedDepthwise(channels * ratio // frames, taps, frames)
        self.contract = nn.Linear(channels * ratio, channels)
        self.activated: Activated | None = None
        """A device's own way of ``gelu(depthwise(gelu(x)))``, for tokens that carry one frame."""

    @property
    def alone(self) -> bool:
        """Whether every channel of the depthwise step is a group of its own."""
        return self.depthwise.groups == self.expand.out_features

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, C -> the same shape."""
        hidden = self.expand(x)
        if self.activated is not None and self.alone:
            return self.contract(self.activated(hidden, *self.depthwise.packed()))
        if depthwise.usable(hidden, self.depthwise.groups):
            return self.contract(depthwise.activated(hidden, *self.depthwise.packed()))
        return self.contract(F.gelu(self.depthwise(F.gelu(hidden))))


class LeWinBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); odd blocks of a stage shift by half a window."""

    def __init__(self, channels: int, heads: int, window: int, ratio: int, taps: int, shift: int, frames: int = FRAMES):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, ratio, taps, frames)

    def attend(self, x: Tensor) -> Tensor:
        """The attention branch on a normed map."""
        done = self.attn.on_map(x, self.shift)
        if done is not None:
            return done
        batch, height, width, _ = x.shape
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(height, width, self.window, self.shift, x.device)
        y = from_windows(self.attn(to_windows(x, self.window), mask), self.window, batch, height, width)
        return y.roll((self.shift, self.shift), (1, 2)) if self.shift else y

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, C -> the same shape; H and W multiples of the window."""
        x = x + self.attend(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Stage(nn.Module):
    """The blocks of one level. ``side``: the level's side for the tile the network was built for, which decides whether
    blocks shift: a map of one window has nothing to shift (spec/diqp-details.md, "Shift").
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        heads: int,
        window: int,
        ratio: int,
        taps: int,
        side: int,
        frames: int = FRAMES,
    ):
        super().__init__()
        shift = window // 2 if side > window else 0
        self.blocks = nn.ModuleList(
            LeWinBlock(channels, heads, min(window, side), ratio, taps, shift * (j % 2), frames) for j in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, C -> the same shape."""
        for block in self.blocks:
            x = block(x)
        return x
