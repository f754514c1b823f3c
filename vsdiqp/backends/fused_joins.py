"""The steps between the stages of a U with the Triton kernels of `vsdiqp.kernels.joins`, and the projections between
levels over padded channels; `vsdiqp.backends.fused` installs them.
"""

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from vsdiqp.kernels import joins
from vsdiqp.network.joins import Beside
from vsdiqp.network.packing import FrameUpsample, PackedConv, PackedUpsample

CHANNELS = 16
"""Channels of maps are padded to multiples of this: a row starts on a 32-byte line in half precision."""
ELEMENTS = 4096
"""Of a map that a program of a joining kernel takes, about."""


def pad(value: int, multiple: int = CHANNELS) -> int:
    """Rounded up to a multiple."""
    return -(-value // multiple) * multiple


def place(source: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``source`` in the low corner of zeros of a larger shape."""
    target = source.new_zeros(shape)
    target[tuple(slice(n) for n in source.shape)] = source
    return target


def widened(x: Tensor, wide: int) -> Tensor:
    """Zeros behind the channels of a map, ``wide`` in all; the map itself where there is nothing to add."""
    return x if x.shape[-1] == wide else F.pad(x, (0, wide - x.shape[-1]))


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


class SummedStage(nn.Module):
    """A stage whose maps are ``padded`` channels wide inside, with the row sums of what it reads beside them."""

    padded: int

    def entered(self, x: Tensor, sums: Tensor) -> Tensor:
        """From a padded map B, H, W, C and its sums 1, rows, 2 on; as `forward`."""
        raise NotImplementedError


class PaddedConv(nn.Module):
    """A packed convolution with padded channels: odd ones keep libraries off the tensor cores.

    Reads maps of its true channels, or of ``wide`` with zeros behind them. ``whole``: results keep their padding, for
    a stage that would add it again.
    """

    def __init__(self, convolution: PackedConv, dtype: torch.dtype, whole: bool = False):
        super().__init__()
        weight, bias = convolution.pack()
        outputs, inputs = weight.shape[:2]
        self.outputs, self.wide, self.whole = outputs, pad(inputs), whole
        self.stride, self.padding = convolution.stride, convolution.padding
        weight = place(weight.detach(), (pad(outputs), self.wide, *weight.shape[2:]))
        self.weight = _fixed(weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.bias = _fixed(place(bias.detach(), (pad(outputs),)).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, I * 3 -> B, H', W', O * 3."""
        x = widened(x, self.wide).permute(0, 3, 1, 2)
        y = F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding).permute(0, 2, 3, 1)
        return y if self.whole else y[..., : self.outputs]


class PaddedPatches(nn.Module):
    """A packed convolution of patches of 2x2 as a matrix over padded channels: B, h, w, 4 ``wide`` -> B, h, w, O."""

    def __init__(self, convolution: PackedConv, dtype: torch.dtype):
        super().__init__()
        if not convolution.patches or convolution.stride != 2:
            raise ValueError(f"a convolution of stride {convolution.stride} has no patches of 2x2")
        weight, bias = convolution.pack()
        apart = torch.unflatten(weight.detach(), 1, (4, -1))
        self.wide = pad(apart.shape[2])
        self.weight = _fixed(place(apart, (*apart.shape[:2], self.wide)).flatten(1).to(dtype))
        self.bias = _fixed(bias.to(dtype))

    def forward(self, patches: Tensor) -> Tensor:
        """See the class."""
        return F.linear(patches, self.weight, self.bias)


class PaddedUpsample(nn.Module):
    """The matrix of an upsampling over padded channels: B, h, w, ``wide`` -> B, h, w, 4 ``child``, of which the first
    ``outputs`` of every child count."""

    def __init__(self, upsample: PackedUpsample | FrameUpsample, dtype: torch.dtype):
        super().__init__()
        if isinstance(upsample, PackedUpsample):
            weight, bias = upsample.pack()
        else:
            weight, bias = upsample.project.weight, upsample.project.bias
        apart, offsets = (torch.unflatten(t.detach(), 0, (4, -1)) for t in (weight, bias))
        self.outputs, self.child, self.wide = apart.shape[1], pad(apart.shape[1]), pad(apart.shape[2])
        self.weight = _fixed(place(apart, (4, self.child, self.wide)).flatten(0, 1).to(dtype))
        self.bias = _fixed(place(offsets, (4, self.child)).flatten().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.linear(x, self.weight, self.bias)


class FusedJoins:
    """See `vsdiqp.network.joins.Joins`; the projections are those of this module. ``concat`` as there."""

    def __init__(self, concat: bool):
        self._concat = concat

    def down(self, down: nn.Module, x: Tensor, beside: Beside) -> Tensor:
        """See `vsdiqp.network.joins.Joins`."""
        assert isinstance(down, PaddedConv | PaddedPatches)
        y: Tensor = down(join(x, beside, down.wide, 2 if isinstance(down, PaddedPatches) else 1))
        return y

    def up(self, up: nn.Module, decode: nn.Module, x: Tensor, skip: Tensor, beside: Beside) -> Tensor:
        """See `vsdiqp.network.joins.Joins`."""
        assert isinstance(up, PaddedUpsample)
        children = up(join(x, beside, up.wide))
        wide = decode.padded if isinstance(decode, SummedStage) else None
        y, sums = enter(children, up.outputs, skip, self._concat, wide)
        if isinstance(decode, SummedStage):
            return decode.entered(y, sums)
        z: Tensor = decode(y)
        return z


def join(x: Tensor, beside: Beside, wide: int, side: int = 1) -> Tensor:
    """`vsdiqp.network.joins.joined`, ``wide`` channels in all; with ``side`` 2 patches: B, H / 2, W / 2, 4 ``wide``."""
    x = _rows(x)
    batch, height, width, channels = x.shape
    guides = [guide.contiguous() for guide in beside.guides]
    first, second, *more = [*guides, x.new_empty(0), x.new_empty(0)][: max(2, len(guides))]
    counts = [guide.shape[-1] for guide in guides] + [0, 0]
    if more or channels + sum(counts) + beside.zeros + 1 > wide or height % side or width % side:
        raise ValueError(f"a map {tuple(x.shape)} with guides of {counts} channels does not fit {wide}")
    pattern = beside.pattern.contiguous()
    rows, block = batch * height * width, triton.next_power_of_2(wide)
    out = x.new_empty((batch, height // side, width // side, side * side * wide))
    per_program = max(1, ELEMENTS // block)
    joins.join[(triton.cdiv(rows, per_program),)](
        x, first, second, pattern, out, rows, height, width,
        CHANNELS=channels, STRIDE=x.stride(2),
        FIRST=counts[0], FIRST_EACH=first.shape[0] > 1, SECOND=counts[1], SECOND_EACH=second.shape[0] > 1,
        ZEROS=beside.zeros, PATTERN_STRIDE=pattern.shape[-1], PATTERN_EACH=pattern.shape[0] > 1,
        OUT=wide, SIDE=side, ROWS=per_program, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def enter(children: Tensor, outputs: int, skip: Tensor, concat: bool, wide: int | None) -> tuple[Tensor, Tensor]:
    """What a stage on the way back reads, B, H, W, C, and its row sums 1, rows, 2.

    children: B, H / 2, W / 2, 4 times what `PaddedUpsample` says, ``outputs`` of each; skip: B, H, W, C'. ``wide``: C,
    and sums are made; None: no channels too many, and no sums.
    """
    skip = _rows(skip)
    batch, height, width, channels = skip.shape
    out_channels = outputs + channels if concat else outputs
    fitting = children.shape[:3] == (batch, height // 2, width // 2) and (concat or channels == outputs)
    if not fitting or out_channels > (wide or out_channels):
        raise ValueError(f"children {tuple(children.shape)} beside {tuple(skip.shape)} do not fit {wide}")
    final = wide or out_channels
    rows, block = batch * height * width, triton.next_power_of_2(final)
    out = skip.new_empty((batch, height, width, final))
    sums = skip.new_empty((1, rows if wide else 0, 2), dtype=torch.float32)
    per_program = max(1, ELEMENTS // block)
    joins.enter[(triton.cdiv(rows, per_program),)](
        children, skip, out, sums, rows, height, width,
        UP=outputs, UP_STRIDE=children.shape[-1] // 4, SKIP=channels, STRIDE=skip.stride(2), ADD=not concat,
        OUT=final, SUMS=wide is not None, ROWS=per_program, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out, sums


def _rows(x: Tensor) -> Tensor:
    """A map whose rows are evenly apart, as a slice of the channels of a contiguous one is."""
    _, height, width, _ = x.shape
    row = x.stride(2)
    even = x.stride() == (height * width * row, width * row, row, 1)
    return x if even else x.contiguous()
