"""The steps between picture and convolutions on the CPU, compiled: what stem.py says in torch, without its passes over
every neighbour's samples. For inference of networks with neighbours; results are the plain module's up to rounding.
"""

import ctypes
from typing import Protocol

import torch
from torch import Tensor

from vsdiqp.network.config import FRAMES
from vsdiqp.network.native import PRECISIONS, Compiled, eager_on_cpu
from vsdiqp.network.stem import (
    BETWEEN,
    CELL_INPUTS,
    CLIPS,
    FAR_APART,
    FAR_CLIP,
    GAIN,
    MEAN_SIZE,
    QUIET,
    beside_inputs,
    near_and_far,
    pattern_channels,
)


class CellSteps(Protocol):
    """What makes the steps between picture and convolutions of a network with neighbours: this module is one."""

    def stem_inputs(self, tile: Tensor, beside: Tensor, pattern: Tensor, damage: Tensor) -> Tensor:
        """What the stem's first convolution reads."""
        ...

    def residual(self, answer: Tensor, tile: Tensor, beside: Tensor, damage: Tensor) -> Tensor:
        """What the head's answer means for the picture."""
        ...


class _Sizes(ctypes.Structure):
    """DiqpCells in cells.cpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("batch", "height", "width", "near", "far", "pattern", "answer")),
        *((name, ctypes.c_int) for name in ("mean_size", "quiet", "bf16", "threads")),
        *((name, ctypes.c_float) for name in ("gain", "near_clip", "wide_clip", "far_clip", "far_apart", "between")),
    ]


_compiled = Compiled("libcells.so", _Sizes, {"diqp_cells_inputs": 5, "diqp_cells_residual": 5})


def usable(tile: Tensor, dtype: torch.dtype) -> bool:
    """Whether these tiles can go this way: on the CPU, no gradients wanted, nothing traced, in fp32 or bf16."""
    return eager_on_cpu(tile) and not torch.is_grad_enabled() and dtype in PRECISIONS and _compiled.there


def stem_inputs(tile: Tensor, beside: Tensor, pattern: Tensor, damage: Tensor) -> Tensor:
    """`stem.CellStem.inputs` of tiles B, 3, 3, H, W and aligned luma B, 3, N, H, W: B * 3, C, H / 2, W / 2."""
    sizes = _sizes(tile, beside, pattern.dtype)
    channels = CELL_INPUTS + beside_inputs(beside.shape[2]) + sizes.pattern
    shape = (FRAMES * sizes.batch, sizes.height // 2, sizes.width // 2, channels)
    out = torch.empty(shape, dtype=pattern.dtype)
    tile, beside, pattern, damage = (t.float().contiguous() for t in (tile, beside, pattern, damage))
    _compiled.call("diqp_cells_inputs", sizes, tile, beside, pattern, damage, out)
    return out.permute(0, 3, 1, 2)


def residual(answer: Tensor, tile: Tensor, beside: Tensor, damage: Tensor) -> Tensor:
    """`stem.CellHead.residual` of the last convolution's B * 3, C, H / 2, W / 2: B, 3, 3, H, W, fp32."""
    sizes = _sizes(tile, beside, answer.dtype, answer.shape[1])
    answer = answer.permute(0, 2, 3, 1).contiguous()
    tile, beside, damage = (t.float().contiguous() for t in (tile, beside, damage))
    out = torch.empty_like(tile)
    _compiled.call("diqp_cells_residual", sizes, tile, beside, answer, damage, out)
    return out


def _sizes(tile: Tensor, beside: Tensor, dtype: torch.dtype, answer: int = 0) -> _Sizes:
    batch, _, _, height, width = tile.shape
    near, far = near_and_far(beside.shape[2])
    if beside.shape != (batch, FRAMES, near + far, height, width) or height % QUIET or width % QUIET:
        raise ValueError(f"tiles of {tuple(tile.shape)} beside {tuple(beside.shape)}: sizes do not fit")
    return _Sizes(
        *(batch, height, width, near, far, pattern_channels(near + far), answer, MEAN_SIZE, QUIET),
        *(int(dtype == torch.bfloat16), torch.get_num_threads()),
        *(GAIN, *CLIPS, FAR_CLIP, FAR_APART, BETWEEN),
    )
