"""The network with its blocks replaced by the Triton kernels of `vsdiqp.kernels.blocks` (and one in CUDA C,
depthwise.cu), and convolutions padded for tensor cores.

`fuse` rewrites a prepared `DiQP` in place. Weights are folded, reordered and padded once, in fp64, and rounded once:
LayerNorm into the projection behind it, the attention scale into the queries, heads to a multiple of 16 channels,
everything else to multiples of 16 (8 for convolutions).
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn
from triton.tools.tensor_descriptor import TensorDescriptor

from vsdiqp.backends.device import describes, multiprocessors, network_kernel
from vsdiqp.backends.fused_cells import fuse_cells
from vsdiqp.backends.fused_joins import (
    FusedJoins,
    PaddedConv,
    PaddedPatches,
    PaddedUpsample,
    SummedStage,
    pad,
    place,
    widened,
)
from vsdiqp.backends.pipelines import stages
from vsdiqp.kernels import blocks, depthwise_cuda, sources
from vsdiqp.network.config import FRAMES
from vsdiqp.network.diqp import DiQP
from vsdiqp.network.lewin import LeWinBlock, Stage
from vsdiqp.network.packing import FrameUpsample, PackedConv, PackedUpsample
from vsdiqp.network.stem import PixelHead, PixelStem

NARROW = 128
"""Outputs up to which the feed-forward's last projection can join the Triton kernel before it; wider ones spill."""
HEAD_SIZES = ((16, 0), (32, 0), (32, 16), (64, 0), (64, 16), (64, 32))
"""Padded head dimensions as two powers of two."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Block sizes of the matrix kernel."""

    rows: int = 128
    outputs: int = 128
    inputs: int = 64
    group: int = 8
    warps: int = 8
    stages: int = 3
    stay: int = 0
    """Programs of every multiprocessor that take block after block; 0: a program a block."""


def block_outputs(outputs: int) -> int:
    """Outputs of a program of the matrix kernel: 64 instead of 128 where that leaves out a sixth of the work or more.

    What lies beyond the last output is multiplied, bent and thrown away like the rest: of 144 outputs in blocks of 128
    that is 112 more, in blocks of 64 it is 48.
    """
    return 64 if 6 * pad(outputs, 64) <= 5 * pad(outputs, 128) else 128


def tuning(inputs: int, outputs: int, gelu: bool, residual: bool, half: bool = True, described: bool = False) -> Tuning:
    """Block sizes for a product: in half precision near the fastest that spill no registers, of up to twenty-five
    timed for each product of the released network, on an H100, ``described`` on an H200 (benchmarks/2026-11-27).

    A short product is over before large blocks pay, and what waits for a residual waits better in small ones.
    """
    if not half:
        return Tuning(outputs=64, inputs=32)  # shared memory and registers hold half as many numbers
    block = block_outputs(outputs)
    if described:
        if residual:
            if inputs > 1536:
                return Tuning(outputs=256)
            return Tuning(outputs=64 if inputs <= 192 else block, warps=4, stages=2 if inputs <= 192 else 3)
        if inputs > 192:
            return Tuning(outputs=block, warps=4)
        return Tuning(outputs=64, warps=4, stages=2, stay=3)
    if residual:
        return Tuning(outputs=64, warps=4) if inputs <= 800 or block == 64 else Tuning(stages=4)
    if inputs <= 96:
        return Tuning(outputs=64, warps=4) if gelu else Tuning(outputs=64, inputs=32, warps=4, stages=4)
    return Tuning(outputs=block)


def depthwise_block(channels: int, frames: int) -> tuple[int, int]:
    """Channels of a program of the depthwise kernel and its warps: what was faster on an H100 for most sizes of the
    released network; with one frame a token nothing was timed."""
    return (64, 8) if frames == FRAMES and channels < 512 else (32, 4)


def joined_block(outputs: int, frames: int, half: bool = True) -> int:
    """Channels at once of the depthwise kernel that has the projection behind it in it, likewise; with one frame a
    token on an H200. (In single precision, which is for checks, it spills registers with any.)"""
    if not half:
        return 16
    if frames == FRAMES:
        return 32 if outputs > 64 else 16
    return 64 if outputs == triton.next_power_of_2(outputs) else 32


class FusedBlock(nn.Module):
    """A LeWin block over padded maps, five launches (four where the projection joins the depthwise kernel)."""

    qkv_weight: Tensor
    qkv_sums: Tensor
    qkv_bias: Tensor
    bias: Tensor
    proj_weight: Tensor
    proj_bias: Tensor
    expand_weight: Tensor
    expand_sums: Tensor
    expand_bias: Tensor
    depthwise_weight: Tensor
    depthwise_bias: Tensor
    contract_weight: Tensor
    contract_bias: Tensor

    def __init__(self, block: LeWinBlock, dtype: torch.dtype):
        super().__init__()
        attention, feed = block.attn, block.ffn
        width, heads = attention.proj.in_features, attention.heads
        size = width // heads
        self.width, self.heads, self.shift = width, heads, block.shift
        self.size_a, self.size_b = next(pair for pair in HEAD_SIZES if sum(pair) >= size)
        self.frames = frames = feed.depthwise.frames
        self.hidden = feed.expand.out_features // frames
        wide, head, hidden = pad(width), self.size_a + self.size_b, pad(self.hidden)
        self.padded, self.padded_hidden = wide, hidden

        def heads_apart(rows: Tensor) -> Tensor:
            """(k, heads * size, ...) -> (k * heads * padded head, ...)."""
            apart = rows.reshape(len(rows), heads, size, *rows.shape[2:])
            return place(apart, (*apart.shape[:2], head, *apart.shape[3:])).flatten(0, 2)

        def frames_apart(rows: Tensor) -> Tensor:
            """Hidden channels (c, f) -> (f, padded c): a frame's channels become neighbours."""
            apart = rows.reshape(self.hidden, frames, *rows.shape[1:]).transpose(0, 1)
            return place(apart, (frames, hidden, *apart.shape[2:])).flatten(0, 1)

        scale = size**-0.5
        qkv = torch.stack([attention.to_q.weight.double() * scale, *attention.to_kv.weight.double().chunk(2)])
        qkv_bias = torch.stack([attention.to_q.bias.double() * scale, *attention.to_kv.bias.double().chunk(2)])
        self._norm_linear("qkv", block.norm1, heads_apart(qkv), heads_apart(qkv_bias), wide, dtype)
        expand, expand_bias = feed.expand.weight.double(), feed.expand.bias.double()
        self._norm_linear("expand", block.norm2, frames_apart(expand), frames_apart(expand_bias), wide, dtype)

        proj = heads_apart(attention.proj.weight.double().T[None]).T
        self._store("proj_weight", place(proj, (wide, heads * head)), dtype)
        self._store("proj_bias", place(attention.proj.bias.double(), (wide,)), torch.float32)
        self._store("bias", attention.gather_bias().double(), torch.float32)
        contract = frames_apart(feed.contract.weight.double().T).T
        self._store("contract_weight", place(contract, (wide, frames * hidden)), dtype)
        self._store("contract_bias", place(feed.contract.bias.double(), (wide,)), torch.float32)
        taps = feed.depthwise.weight.double()[:, 0]  # channel, time, y, x
        if taps.shape[1] < frames:
            taps = F.pad(taps, (0, 0, 0, 0, 1, 1))  # frames don't meet: nothing from the one before and after
        self._store("depthwise_weight", place(taps.flatten(1).T, (taps[0].numel(), hidden)), torch.float32)
        self._store("depthwise_bias", place(feed.depthwise.bias.double(), (hidden,)), torch.float32)

    def _store(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        self.register_buffer(name, value.detach().to(dtype).contiguous(), persistent=False)

    def _norm_linear(
        self, name: str, norm: nn.LayerNorm, weight: Tensor, bias: Tensor, wide: int, dtype: torch.dtype
    ) -> None:
        folded = (weight * norm.weight.double()).to(dtype)
        self._store(f"{name}_weight", place(folded, (len(weight), wide)), dtype)
        # Of the rounded weights, which are the ones that the mean goes through.
        self._store(f"{name}_sums", folded.double().sum(1), torch.float32)
        self._store(f"{name}_bias", bias + weight @ norm.bias.double(), torch.float32)

    def forward(self, x: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """x: B, H, W, padded channels, contiguous; sums: its row sums. Returns the same of the result."""
        batch, height, width, _ = x.shape
        rows = batch * height * width
        precision = "ieee" if x.dtype == torch.float32 else "tf32"  # means nothing to half precision
        qkv = _linear(x, self.qkv_weight, self.qkv_bias, norm=(self.qkv_sums, sums, self.width))
        attended = x.new_empty((rows, self.heads * (self.size_a + self.size_b)))
        windows = rows // (blocks.WINDOW * blocks.WINDOW)
        blocks.window_attention[windows, self.heads](
            qkv, self.bias, attended, height, width,
            HEADS=self.heads, SIZE_A=self.size_a, SIZE_B=self.size_b, SHIFT=self.shift, PRECISION=precision,
            num_warps=4,
        )  # fmt: skip
        x, sums = _added(attended, self.proj_weight, self.proj_bias, x)
        hidden = _linear(x, self.expand_weight, self.expand_bias, gelu=True, norm=(self.expand_sums, sums, self.width))
        patches = batch * triton.cdiv(height, blocks.WINDOW) * triton.cdiv(width, blocks.WINDOW)
        channels = self.padded_hidden
        shape = (batch, height, width, self.frames, channels)
        strips = strips_fit(hidden, shape)
        if self.padded <= NARROW and not strips:
            out, sums = torch.empty_like(x), x.new_empty((1, rows, 2), dtype=torch.float32)
            blocks.depthwise_linear[(patches,)](
                hidden, self.depthwise_weight, self.depthwise_bias, self.contract_weight, self.contract_bias,
                x, out, sums, height, width,
                CHANNELS=channels, OUTPUTS=self.padded, PRECISION=precision,
                BLOCK=joined_block(self.padded, self.frames, x.dtype != torch.float32),
                BLOCK_OUT=triton.next_power_of_2(self.padded), FRAMES=self.frames, num_warps=4,
            )  # fmt: skip
            return out, sums
        mixed = torch.empty_like(hidden)
        if strips:
            _strips(hidden, self.depthwise_weight, self.depthwise_bias, mixed, shape)
        else:
            block, warps = depthwise_block(channels, self.frames)
            blocks.depthwise[patches, triton.cdiv(channels, block)](
                hidden, self.depthwise_weight, self.depthwise_bias, mixed, height, width,
                CHANNELS=channels, BLOCK=block, FRAMES=self.frames, num_warps=warps,
            )  # fmt: skip
        return _added(mixed, self.contract_weight, self.contract_bias, x)


class FusedStage(SummedStage):
    """The blocks of a level. Maps are padded on entry, if they are not, and cut on exit; between blocks nothing is
    copied. ``whole``: results keep their padding.
    """

    def __init__(self, stage: Stage, dtype: torch.dtype):
        super().__init__()
        self.blocks = nn.ModuleList(FusedBlock(cast(LeWinBlock, block), dtype) for block in stage.blocks)
        first = cast(FusedBlock, self.blocks[0])
        self.channels, self.padded, self.whole = first.width, first.padded, False

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, C -> the same shape."""
        x = widened(x, self.padded).contiguous()
        rows = x.numel() // x.shape[-1]
        sums = x.new_empty((1, rows, 2), dtype=torch.float32)
        block = triton.next_power_of_2(x.shape[-1])
        per_program = max(1, 4096 // block)
        blocks.row_sums[(triton.cdiv(rows, per_program),)](
            x, sums, rows, CHANNELS=x.shape[-1], ROWS=per_program, BLOCK=block, num_warps=4
        )
        return self.entered(x, sums)

    def entered(self, x: Tensor, sums: Tensor) -> Tensor:
        """See `SummedStage`."""
        for fused in self.blocks:
            x, sums = fused(x, sums)
        return x if self.whole else x[..., : self.channels]


def fuse(network: DiQP, dtype: torch.dtype) -> DiQP:
    """Replace the blocks and convolutions of the U, in place; the weights must be fp32 still. Returns the network.

    Stages whose window is not 8 or whose heads are wider than 96 channels stay as they are. In fp16 the stem and head
    of a full-resolution network run in fp16 too: its tiles are fp16 already. bf16 would lose bits of the picture.
    Half-resolution ones are fused where there are neighbours.
    """

    def stage(plain: nn.Module) -> nn.Module:
        assert isinstance(plain, Stage)
        fits = len(plain.blocks) > 0 and all(_fits(block) for block in plain.blocks)
        return FusedStage(plain, dtype) if fits else plain

    def down(plain: nn.Module, after: nn.Module) -> nn.Module:
        assert isinstance(plain, PackedConv)
        return PaddedPatches(plain, dtype) if plain.patches else PaddedConv(plain, dtype, isinstance(after, FusedStage))

    def up(plain: nn.Module) -> nn.Module:
        assert isinstance(plain, PackedUpsample | FrameUpsample)
        return PaddedUpsample(plain, dtype)

    # First all of the new parts, from unrounded weights; then the rest is rounded; then the parts take their places.
    encoder, decoder = ([stage(plain) for plain in parts] for parts in (network.encoder, network.decoder))
    bottleneck = stage(network.bottleneck)
    downs = [down(plain, after) for plain, after in zip(network.down, [*encoder[1:], bottleneck], strict=True)]
    ups = [up(plain) for plain in network.up]
    ends: list[tuple[nn.Module, PaddedConv]] = []
    if dtype == torch.float16 and isinstance(network.stem, PixelStem) and isinstance(network.head, PixelHead):
        ends.append((network.stem, PaddedConv(network.stem.project, dtype, isinstance(encoder[0], FusedStage))))
        ends.append((network.head, PaddedConv(network.head.project, dtype)))
        if isinstance(decoder[-1], FusedStage):
            decoder[-1].whole = True
    network.to_precision(dtype)
    replaced = ((network.encoder, encoder), (network.decoder, decoder), (network.down, downs), (network.up, ups))
    for parts, new in replaced:
        for index, module in enumerate(new):
            parts[index] = module
    network.register_module("bottleneck", bottleneck)
    network.joins = FusedJoins(network.config.skip == "concat")
    for part, projection in ends:
        part.register_module("project", projection)
    if network.config.neighbours:
        fuse_cells(network)
    return network


def _fits(block: nn.Module) -> bool:
    assert isinstance(block, LeWinBlock)
    return block.window == blocks.WINDOW and block.attn.proj.in_features // block.attn.heads <= sum(HEAD_SIZES[-1])


def strips_fit(hidden: Tensor, shape: depthwise_cuda.Shape) -> bool:
    """Whether depthwise.cu makes the depthwise step of a map: in half the instructions of Triton's kernels. Narrow maps
    are written once more for it, and it was still faster than with the projection joined (H200, benchmarks/2026-11-27).
    """
    return hidden.is_cuda and hidden.dtype in (torch.float16, torch.bfloat16) and depthwise_cuda.fits(shape)


def _strips(hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor, shape: depthwise_cuda.Shape) -> None:
    """The depthwise step by depthwise.cu. Where a graph is captured, it must have run before."""
    frames, channels = shape[3:]
    options = depthwise_cuda.options(frames, channels, hidden.dtype == torch.bfloat16)
    threads = depthwise_cuda.FORMS[frames].threads
    kernel = network_kernel(hidden.device, sources.DEPTHWISE, "depthwise", options, threads)
    addresses = (hidden.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr())
    kernel(depthwise_cuda.depthwise(*addresses, shape, multiprocessors(hidden.device)))


def _described(x: Tensor) -> bool:
    """Whether the matrix kernel is given a map, and what goes with it, as tensor descriptors."""
    return x.dtype != torch.float32 and describes(x.device)


def _tuned(x: Tensor, weight: Tensor, gelu: bool = False, residual: bool = False) -> Tuning:
    """`tuning` of a product of a map."""
    outputs, inputs = weight.shape
    return tuning(inputs, outputs, gelu, residual, x.dtype != torch.float32, _described(x))


def _added(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, sizes: Tuning | None = None
) -> tuple[Tensor, Tensor]:
    """A product with a map added to it, of that map's shape, and its row sums. ``sizes``: as `_linear`'s."""
    outputs, inputs = weight.shape
    sizes = sizes or _tuned(x, weight, residual=True)
    parts, rows = triton.cdiv(outputs, sizes.outputs), x.numel() // inputs
    sums = x.new_empty((parts, rows, 2), dtype=torch.float32)
    return _linear(x, weight, bias, residual=residual, out_sums=sums, sizes=sizes).view(residual.shape), sums


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    gelu: bool = False,
    norm: tuple[Tensor, Tensor, int] | None = None,
    residual: Tensor | None = None,
    out_sums: Tensor | None = None,
    sizes: Tuning | None = None,
) -> Tensor:
    """``norm``: column sums of the weight, row sums of x, number of true channels; ``sizes``: others than `tuning`'s.
    Returns rows, outputs.
    """
    outputs, inputs = weight.shape
    x = x.view(-1, inputs)
    rows = len(x)
    out = x.new_empty((rows, outputs))
    described = _described(x)
    sizes = sizes or _tuned(x, weight, gelu=gelu, residual=residual is not None)

    def given(matrix: Tensor, high: int, wide: int) -> Tensor | TensorDescriptor:
        return TensorDescriptor.from_tensor(matrix, [high, wide]) if described else matrix

    count = triton.cdiv(rows, sizes.rows) * triton.cdiv(outputs, sizes.outputs)
    programs = min(count, sizes.stay * multiprocessors(x.device)) if sizes.stay else count
    blocks.linear[(programs,)](
        given(x, sizes.rows, sizes.inputs), given(weight, sizes.outputs, sizes.inputs), bias,
        norm[0] if norm else bias, norm[1] if norm else bias,
        given(out if residual is None else residual.view(rows, outputs), sizes.rows, sizes.outputs),
        given(out, sizes.rows, sizes.outputs), bias if out_sums is None else out_sums,
        rows,
        INPUTS=inputs, OUTPUTS=outputs,
        WIDTH=norm[2] if norm else inputs, PARTS=norm[1].shape[0] if norm else 1,
        NORM=norm is not None, GELU=gelu, RESIDUAL=residual is not None, SUMS=out_sums is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        BLOCK_ROWS=sizes.rows, BLOCK_OUT=sizes.outputs, BLOCK_IN=sizes.inputs, GROUP=sizes.group,
        DESCRIBED=described, STAY=sizes.stay > 0,
        num_warps=sizes.warps,
        num_stages=sizes.stages if described or x.dtype == torch.float32 else stages(x.device, sizes.stages),
    )  # fmt: skip
    return out
