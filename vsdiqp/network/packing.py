"""Convolutions over (frame, y, x) run as 2-D convolutions over packed channels.

A feature map holds all frames of a token in its channels, index ``c * F + f`` (spec/diqp.md, "Layout inside"). A 3-D
convolution whose frame axis is only F = 3 long is then a 2-D convolution with a banded weight. CPU and GPU libraries
run that several times faster than the 3-D form (spec/diqp-details.md, cost), with the same result.

Maps are B, H, W, C tensors (tokens laid out as an image); seen through `permute` they are channels-last images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsdiqp.network.config import FRAMES


def band(weight: Tensor, padding: int = 1, frames: int = FRAMES) -> Tensor:
    """Spread a weight (O, I, T, ...) over packed channels: (O * frames_out, I * frames, ...).

    ``out[o, g] = sum_t weight[o, i, t] x[i, g + t - padding]``; taps beyond the first or last frame see zeros.
    """
    out_channels, in_channels, taps, *rest = weight.shape
    frames_out = frames + 2 * padding - taps + 1
    packed = weight.new_zeros(out_channels, frames_out, in_channels, frames, *rest)
    for g in range(frames_out):
        for t in range(taps):
            f = g + t - padding
            if 0 <= f < frames:
                packed[:, g, :, f] = weight[:, :, t]
    return packed.reshape(out_channels * frames_out, in_channels * frames, *rest)


def to_children(x: Tensor) -> Tensor:
    """B, H, W, 4 * C, ordered child y, child x, channel -> B, 2H, 2W, C."""
    batch, height, width, _ = x.shape
    children = x.view(batch, height, width, 2, 2, -1).transpose(2, 3)
    return children.reshape(batch, 2 * height, 2 * width, -1)


class Packed(nn.Module):
    """A convolution that keeps its 3-D parameters and runs in packed form.

    In training the packed weight is made in every forward, so that gradients reach the parameters; `prepare` makes
    it once for inference and `train` drops it.
    """

    packed_weight: Tensor | None
    packed_bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed_weight", None, persistent=False)
        self.register_buffer("packed_bias", None, persistent=False)

    def pack(self) -> tuple[Tensor, Tensor]:
        """The packed weight and bias, made from the parameters."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the packed form once; the parameters must not change afterwards, except through `train`."""
        with torch.no_grad():
            weight, bias = self.pack()
            if weight.dim() == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            self.packed_weight, self.packed_bias = weight, bias

    def packed(self) -> tuple[Tensor, Tensor]:
        """The prepared weight and bias, or fresh ones in training."""
        if self.packed_weight is not None and self.packed_bias is not None:
            return self.packed_weight, self.packed_bias
        return self.pack()

    def train(self, mode: bool = True) -> "Packed":
        """Back to training: the prepared form would go stale with the next optimiser step."""
        if mode:
            self.packed_weight = self.packed_bias = None
        return super().train(mode)


class PackedConv(Packed):
    """Conv3d over (3 frames, y, x), padded to keep the frames; map B, H, W, I * 3 -> B, H', W', O * 3.

    With a kernel of one tap in time frames don't meet: with ``frames`` 1 it is a 2-D convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int],
        stride: int = 1,
        padding: int = 1,
        frame_major: int = 0,
        frames: int = FRAMES,
    ):
        """``frame_major``: that many leading channels arrive ordered frame * channels + channel (see `to_tokens`)."""
        super().__init__()
        self.frame_major, self.frames = frame_major, frames
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.stride, self.padding = stride, padding

    @property
    def patches(self) -> bool:
        """Whether the kernel just covers its stride: then the convolution is a matrix product over whole patches."""
        return self.stride == self.weight.shape[-1] and self.padding == 0

    def pack(self) -> tuple[Tensor, Tensor]:
        """Banded 2-D weight (a matrix over patches where possible), bias repeated for the frames."""
        weight = band(self.weight, self.weight.shape[2] // 2, self.frames)
        bias = self.bias.repeat_interleave(self.frames)
        if self.frame_major:
            leading = torch.unflatten(weight[:, : self.frame_major * FRAMES], 1, (self.frame_major, FRAMES))
            weight = torch.cat([leading.transpose(1, 2).flatten(1, 2), weight[:, self.frame_major * FRAMES :]], 1)
        return (weight.permute(0, 2, 3, 1).flatten(1) if self.patches else weight), bias

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, I * 3 -> B, H', W', O * 3."""
        weight, bias = self.packed()
        if self.patches:
            batch, height, width, channels = x.shape
            side = self.stride
            cells = x.view(batch, height // side, side, width // side, side, channels).transpose(2, 3)
            return F.linear(cells.reshape(batch, height // side, width // side, -1), weight, bias)
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride=self.stride, padding=self.padding)
        return y.permute(0, 2, 3, 1)


class PackedDepthwise(Packed):
    """Depthwise Conv3d ``taps`` x3x3, padded to keep its shape, as a grouped 2-D convolution.

    With 3 taps in time a group is a channel's 3 frames; with 1 tap frames don't meet and every packed channel is a
    group of its own, which CPU libraries run four times faster.
    """

    def __init__(self, channels: int, taps: int = 3, frames: int = FRAMES):
        super().__init__()
        self.frames = frames
        self.weight = nn.Parameter(torch.empty(channels, 1, taps, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.groups = channels if taps == 3 else channels * frames

    def pack(self) -> tuple[Tensor, Tensor]:
        """(channels * 3, 3 or 1, 3, 3): for every channel a banded 3 frames in, 3 frames out."""
        w = self.weight[:, 0]  # channel, time, y, x
        if w.shape[1] == 1:
            return w.repeat_interleave(self.frames, 0), self.bias.repeat_interleave(self.frames)
        rows = []
        for g in range(FRAMES):
            columns = [w[:, f - g + 1] if abs(f - g) <= 1 else torch.zeros_like(w[:, 0]) for f in range(FRAMES)]
            rows.append(torch.stack(columns, 1))
        return torch.stack(rows, 1).reshape(-1, FRAMES, 3, 3), self.bias.repeat_interleave(FRAMES)

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, channels * 3 -> the same shape."""
        weight, bias = self.packed()
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=self.groups)
        return y.permute(0, 2, 3, 1)


class PackedUpsample(Packed):
    """ConvTranspose3d kernel 2, stride (1, 2, 2) (3 -> 4 frames), then Conv3d (2, 1, 1) (4 -> 3), fused into one.

    Both are linear with nothing between, so together they are one three-tap map from a position's I * 3 channels to the
    O * 3 channels of its four children: one matrix product (spec/diqp-details.md, "The upsampling pair fuses").
    """

    def __init__(self, inputs: int, outputs: int, frame_major: bool = False):
        """``frame_major``: outputs are ordered frame * channels + channel."""
        super().__init__()
        self.frame_major = frame_major
        self.weight = nn.Parameter(torch.empty(inputs, outputs, 2, 2, 2))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.merge_weight = nn.Parameter(torch.empty(outputs, outputs, 2, 1, 1))
        self.merge_bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight.transpose(0, 1), a=5**0.5)
        nn.init.kaiming_uniform_(self.merge_weight, a=5**0.5)

    def pack(self) -> tuple[Tensor, Tensor]:
        """(2 * 2 * O * 3, I * 3) matrix, rows ordered child y, child x, channel, frame."""
        merge = self.merge_weight[..., 0, 0]  # output, middle, tap
        # Output frame g reads four-frame index g + j; that index reads input frame t = g + j - k.
        taps = self.weight.new_zeros(3, *self.weight.shape[:1], merge.shape[0], 2, 2)
        for j in range(2):
            for k in range(2):
                taps[j - k + 1] += torch.einsum("om,imyx->ioyx", merge[..., j], self.weight[:, :, k])
        kernel = taps.permute(2, 1, 0, 3, 4)  # output, input, tap, y, x
        inputs, outputs = self.weight.shape[0], merge.shape[0]
        matrix = band(kernel).reshape(outputs * FRAMES, inputs * FRAMES, 4).permute(2, 0, 1)
        bias = merge.sum(-1) @ self.bias + self.merge_bias
        if self.frame_major:
            matrix = torch.unflatten(matrix, 1, (outputs, FRAMES)).transpose(1, 2)
            return matrix.reshape(-1, inputs * FRAMES), bias.repeat(FRAMES).repeat(4)
        return matrix.reshape(-1, inputs * FRAMES), bias.repeat_interleave(FRAMES).repeat(4)

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, I * 3 -> B, 2H, 2W, O * 3."""
        return to_children(F.linear(x, *self.packed()))


class FrameUpsample(nn.Module):
    """The upsampling of tokens that carry one frame: a matrix from a position's channels to its four children's."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.project = nn.Linear(inputs, 4 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, I -> B, 2H, 2W, O."""
        return to_children(self.project(x))
