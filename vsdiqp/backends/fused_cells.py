"""The half-resolution stem and head with the Triton kernels of `vsdiqp.kernels.cells`; `vsdiqp.backends.fused` installs
them. They read the weights where they lie, so networks are rounded before.
"""

from typing import cast

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from vsdiqp.kernels import cells
from vsdiqp.network.config import FRAMES
from vsdiqp.network.diqp import DiQP
from vsdiqp.network.stem import CELL_INPUTS, QUIET, CellHead, CellStem, FrameBlock, beside_inputs, near_and_far

WARPS = 4


class FusedFrameBlock(nn.Module):
    """A frame block whose convolutions are each followed by one pass."""

    def __init__(self, block: FrameBlock):
        super().__init__()
        self.conv1, self.conv2, self.modulate = block.conv1, block.conv2, block.modulate

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """As `FrameBlock`."""
        y = _convolve(self.conv1, x, modulation=self.modulate(code), relu=True)
        return _convolve(self.conv2, y, add=x)


class FusedCellStem(CellStem):
    """A stem of fused frame blocks."""

    def __init__(self, plain: CellStem):
        nn.Module.__init__(self)
        self.seen, self.project, self.blocks = plain.seen, plain.project, _fused_blocks(plain.blocks)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """As `CellStem`."""
        features = _convolve(self.project, x, relu=True)
        for block in self.blocks:
            features = block(features, code)
        return features


class FusedCellHead(CellHead):
    """A head of fused frame blocks. The last convolution's bias is left to `FusedCellSteps.residual`."""

    def __init__(self, plain: CellHead):
        nn.Module.__init__(self)
        self.seen, self.project, self.blocks = plain.seen, plain.project, _fused_blocks(plain.blocks)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """As `CellHead`, less the last bias."""
        for block in self.blocks:
            features = block(features, code)
        return F.conv2d(features, self.project.weight, padding=1)


class FusedCellSteps:
    """What `DiQP.predict` does before the stem's convolutions and after the head's."""

    def __init__(self, head: FusedCellHead):
        self._project = head.project

    def stem_inputs(self, tile: Tensor, beside: Tensor, pattern: Tensor, damage: Tensor) -> Tensor:
        """`CellStem.inputs` of tiles B, 3, 3, H, W and aligned luma B, 3, N, H, W: B * 3, C, H / 2, W / 2."""
        return stem_inputs(tile, beside, pattern, damage)

    def residual(self, answer: Tensor, tile: Tensor, beside: Tensor, damage: Tensor) -> Tensor:
        """`CellHead.residual` of what `FusedCellHead` answers: B, 3, 3, H, W, fp32."""
        assert self._project.bias is not None
        return residual(answer, self._project.bias, tile, beside, damage)


def fuse_cells(network: DiQP) -> None:
    """Replace stem, head and the steps around them of a network with neighbours, in place; its weights are rounded."""
    assert isinstance(network.stem, CellStem) and isinstance(network.head, CellHead)
    stem, head = FusedCellStem(network.stem), FusedCellHead(network.head)
    for part in (stem, head):
        # Else every call turns the weights; and what kernels write is no matter for gradients.
        cast(nn.Module, part).to(memory_format=torch.channels_last).requires_grad_(False)
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


def _convolve(
    convolution: nn.Conv2d, x: Tensor, modulation: Tensor | None = None, relu: bool = False, add: Tensor | None = None
) -> Tensor:
    """A 3x3 convolution of channels-last images and what follows it. modulation: B, 2 C; add: as the result."""
    # Without its bias, for which torch makes a pass of its own.
    y = F.conv2d(x, convolution.weight, padding=1).contiguous(memory_format=torch.channels_last)
    bias = convolution.bias
    assert bias is not None
    channels = y.shape[1]
    items = y.shape[0] // FRAMES
    size = y.numel() // items
    cells.finish[triton.cdiv(size, cells.VALUES), items](
        y, bias, bias if modulation is None else modulation.contiguous(),
        y if add is None else add.contiguous(memory_format=torch.channels_last), y, size,
        CHANNELS=channels, MODULATE=modulation is not None, RELU=relu, ADD=add is not None,
        BLOCK=cells.VALUES, num_warps=WARPS,
    )  # fmt: skip
    return y


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
