"""The half-resolution stem and head with the Triton kernels of `vsdiqp.kernels.cells`; `vsdiqp.backends.fused` installs
them. They read the weights where they lie, so networks are rounded before.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from vsdiqp.backends.pipelines import stages
from vsdiqp.kernels import cells, convolutions
from vsdiqp.network.config import FRAMES
from vsdiqp.network.diqp import DiQP
from vsdiqp.network.stem import CELL_INPUTS, QUIET, CellHead, CellStem, FrameBlock, beside_inputs, near_and_far

WARPS = 4


@dataclass(frozen=True, slots=True)
class ConvolutionSizes:
    """Of a program of the convolution kernel: the rectangle of cells that it makes, and how."""

    down: int
    across: int
    warps: int
    stages: int


CONVOLUTION = ConvolutionSizes(8, 32, 8, 3)
"""The fastest, or near it, for `base` and `lite` on an H200. Its copy engine was slower: it reads 64 channels of 48."""


class Convolution(nn.Module):
    """A 3x3 convolution of channels-last images and what follows it, in one launch."""

    weight: Tensor
    bias: Tensor

    def __init__(self, plain: nn.Conv2d):
        super().__init__()
        assert plain.bias is not None
        # Tap by tap a matrix.
        self.register_buffer("weight", plain.weight.detach().permute(2, 3, 0, 1).flatten(0, 1).contiguous(), False)
        self.register_buffer("bias", plain.bias.detach(), False)

    def forward(
        self,
        x: Tensor,
        *,
        bias: bool = True,
        modulation: Tensor | None = None,
        relu: bool = False,
        add: Tensor | None = None,
        sizes: ConvolutionSizes | None = None,
    ) -> Tensor:
        """x: images, C, h, w; modulation: B, 2 C'; add: as the result. Returns images, C', h, w.

        ``sizes``: others than the default.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        images, inputs, height, width = x.shape
        outputs = self.weight.shape[1]
        y = x.new_empty((images, height, width, outputs)).permute(0, 3, 1, 2)
        sizes = sizes or CONVOLUTION
        first = max(16, 1 << (inputs.bit_length() - 1))
        rectangles = triton.cdiv(height, sizes.down) * triton.cdiv(width, sizes.across)
        convolutions.convolve[rectangles, images](
            x, self.weight, self.bias, self.bias if modulation is None else modulation.contiguous(),
            x if add is None else add.contiguous(memory_format=torch.channels_last), y, height, width, FRAMES,
            INPUTS=inputs, OUTPUTS=outputs, SIZE_A=first, SIZE_B=_least_power(max(0, inputs - first)),
            BLOCK_OUT=_least_power(outputs),
            BIAS=bias, MODULATE=modulation is not None, RELU=relu, ADD=add is not None,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",  # means nothing to half precision
            DOWN=sizes.down, ACROSS=sizes.across, num_warps=sizes.warps, num_stages=stages(x.device, sizes.stages),
        )  # fmt: skip
        return y


class FusedFrameBlock(nn.Module):
    """A frame block of two launches."""

    def __init__(self, block: FrameBlock):
        super().__init__()
        self.conv1, self.conv2, self.modulate = Convolution(block.conv1), Convolution(block.conv2), block.modulate

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """As `FrameBlock`."""
        y = self.conv1(x, modulation=self.modulate(code), relu=True)
        z: Tensor = self.conv2(y, add=x)
        return z


class FusedCellStem(CellStem):
    """A stem of fused frame blocks."""

    def __init__(self, plain: CellStem):
        nn.Module.__init__(self)
        self.seen, self.first, self.blocks = plain.seen, Convolution(plain.project), _fused_blocks(plain.blocks)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """As `CellStem`."""
        features: Tensor = self.first(x, relu=True)
        for block in self.blocks:
            features = block(features, code)
        return features


class FusedCellHead(CellHead):
    """A head of fused frame blocks. The last convolution's bias is left to `FusedCellSteps.residual`."""

    def __init__(self, plain: CellHead):
        nn.Module.__init__(self)
        self.seen, self.last, self.blocks = plain.seen, Convolution(plain.project), _fused_blocks(plain.blocks)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """As `CellHead`, less the last bias."""
        for block in self.blocks:
            features = block(features, code)
        answer: Tensor = self.last(features, bias=False)
        return answer


class FusedCellSteps:
    """What `DiQP.predict` does before the stem's convolutions and after the head's."""

    def __init__(self, head: FusedCellHead):
        self._last = head.last

    def stem_inputs(self, tile: Tensor, beside: Tensor, pattern: Tensor, damage: Tensor) -> Tensor:
        """`CellStem.inputs` of tiles B, 3, 3, H, W and aligned luma B, 3, N, H, W: B * 3, C, H / 2, W / 2."""
        return stem_inputs(tile, beside, pattern, damage)

    def residual(self, answer: Tensor, tile: Tensor, beside: Tensor, damage: Tensor) -> Tensor:
        """`CellHead.residual` of what `FusedCellHead` answers: B, 3, 3, H, W, fp32."""
        return residual(answer, self._last.bias, tile, beside, damage)


def fuse_cells(network: DiQP) -> None:
    """Replace stem, head and the steps around them of a network with neighbours, in place; its weights are rounded."""
    assert isinstance(network.stem, CellStem) and isinstance(network.head, CellHead)
    stem, head = FusedCellStem(network.stem), FusedCellHead(network.head)
    for part in (stem, head):
        cast(nn.Module, part).requires_grad_(False)  # what kernels write is no matter for gradients
    network.stem, network.head, network.cell_steps = stem, head, FusedCellSteps(head)


def stem_inputs(tile: Tensor, beside: Tensor, pattern: Tensor, damage: Tensor) -> Tensor:
    """See `FusedCellSteps.stem_inputs`."""
    batch, _, _, height, width = tile.shape
    near, far = near_and_far(beside.shape[2])
    _check(tile, beside)
    tile, beside, pattern, damage = (t.contiguous() for t in (tile, beside, pattern, damage))
    means = F.avg_pool2d(tile.flatten(1, 2), 2)
    channels = CELL_INPUTS + beside_inputs(near + far) + pattern.shape[-1]
    out = pattern.new_empty((batch * FRAMES, height // 2, width // 2, channels))
    cells.stem_inputs[_rectangles(tile)](
        tile, beside, means, pattern, damage, out, height, width,
        NEAR=near, FAR=far, PATTERN=pattern.shape[-1],
        NEAR_BLOCK=triton.next_power_of_2(near), FAR_BLOCK=triton.next_power_of_2(max(far, 1)),
        PATTERN_BLOCK=triton.next_power_of_2(pattern.shape[-1]), num_warps=WARPS,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def shares(tile: Tensor) -> Tensor:
    """`stem.liveliness` of tiles B, 3, 3, H, W a block: B, 3, 3, H / 8, W / 8."""
    tile = tile.contiguous()
    *planes, height, width = tile.shape
    count, down, across = tile.numel() // (height * width), height // QUIET, width // QUIET
    extremes = tile.new_empty((3, *planes, down, across))
    out = torch.empty_like(extremes[0])
    cells.block_extremes[triton.cdiv(across, cells.BLOCKS), down, count](
        tile, extremes, count, height, width, BLOCK=cells.BLOCKS, num_warps=WARPS
    )
    cells.block_shares[(triton.cdiv(out.numel(), cells.SHARES),)](
        extremes, out, out.numel(), down, across, BLOCK=cells.SHARES, num_warps=WARPS
    )
    return out


def residual(answer: Tensor, bias: Tensor, tile: Tensor, beside: Tensor, damage: Tensor) -> Tensor:
    """See `FusedCellSteps.residual`."""
    near, far = near_and_far(beside.shape[2])
    _check(tile, beside)
    tile, beside, damage = (t.contiguous() for t in (tile, beside, damage))
    answer = answer.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(tile)
    cells.head_residual[_rectangles(tile)](
        answer, bias, tile, beside, damage, shares(tile), out, *tile.shape[-2:],
        NEAR=near, FAR=far,
        NEAR_BLOCK=triton.next_power_of_2(near), FAR_BLOCK=triton.next_power_of_2(max(far, 1)),
        CHANNELS=answer.shape[1], num_warps=WARPS,
    )  # fmt: skip
    return out


def _fused_blocks(blocks: nn.ModuleList) -> nn.ModuleList:
    return nn.ModuleList(FusedFrameBlock(cast(FrameBlock, block)) for block in blocks)


def _least_power(count: int) -> int:
    """The least power of two that is not below ``count``, and 16, which tensor cores take at least; 0 for 0."""
    return max(16, triton.next_power_of_2(count)) if count else 0


def _rectangles(tile: Tensor) -> tuple[int, int]:
    """The grid of the kernels that work on cells."""
    batch, _, _, height, width = tile.shape
    down, across = triton.cdiv(height // 2, cells.CELLS_DOWN), triton.cdiv(width // 2, cells.CELLS_ACROSS)
    return down * across, batch * FRAMES


def _check(tile: Tensor, beside: Tensor) -> None:
    batch, _, _, height, width = tile.shape
    sides = height % QUIET == width % QUIET == 0
    fits = beside.shape[:2] == (batch, FRAMES) and beside.shape[3:] == (height, width)
    if not (sides and fits and tile.dtype == beside.dtype == torch.float32):
        raise ValueError(
            f"{tile.dtype} tiles of {tuple(tile.shape)} beside {beside.dtype} {tuple(beside.shape)} do not fit"
        )
