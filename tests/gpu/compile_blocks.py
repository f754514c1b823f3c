"""Compiles the Triton kernels for GPUs that are not here, and prints what each takes. Run by test_blocks_compile.py."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vsdiqp.backends import pipelines
from vsdiqp.backends.fused import Tuning, depthwise_block, joined_block, tuning
from vsdiqp.backends.fused_cells import CONVOLUTION, WARPS
from vsdiqp.kernels import blocks, cells, convolutions, depthwise, joins

HALF, FULL, COUNT, SIXTEENS = "*fp16", "*fp32", "i32", "i32:16"
SIZES = {"height": COUNT, "width": COUNT}
LINEAR = {"x": HALF, "weight": HALF, "bias": FULL, "column_sums": FULL, "sums": FULL, "residual": HALF, "out": HALF}
LINEAR |= {"out_sums": FULL, "rows": COUNT}
NORMED = {"WIDTH": 360, "PARTS": 3, "NORM": True, "GELU": True, "RESIDUAL": False, "SUMS": False, "PRECISION": "tf32"}
ADDED = {"WIDTH": 720, "PARTS": 1, "NORM": False, "GELU": False, "RESIDUAL": True, "SUMS": True, "PRECISION": "tf32"}
WIDE = {"x": HALF, "weight": FULL, "bias": FULL, "out": HALF, **SIZES}
NARROW_TYPES = {"x": HALF, "weight": FULL, "bias": FULL, "linear_weight": HALF, "linear_bias": FULL, "residual": HALF}
NARROW_TYPES |= {"out": HALF, "out_sums": FULL, **SIZES}

SUMS = {"x": HALF, "sums": FULL, "rows": COUNT}

SIDES = {"height": SIXTEENS, "width": SIXTEENS}
STEM = {"tile": FULL, "beside": FULL, "means": FULL, "pattern": HALF, "damage": FULL, "out": HALF, **SIDES}
HEAD = {"answer": HALF, "bias": HALF, "tile": FULL, "beside": FULL, "damage": FULL, "shares": FULL, "out": FULL}
HEAD |= SIDES
LITE, BASE = ({"NEAR": n, "FAR": 2, "NEAR_BLOCK": block, "FAR_BLOCK": 2} for n, block in ((4, 4), (5, 8)))
EXTREMES = {"tile": FULL, "out": FULL, "planes": COUNT, **SIDES}
SHARES = {"extremes": FULL, "out": FULL, "blocks": COUNT, "down": COUNT, "across": COUNT}
CONVOLVE = dict.fromkeys(("x", "weight", "bias", "modulation", "add", "out"), HALF)
CONVOLVE |= {"height": COUNT, "width": COUNT, "images_an_item": COUNT}
CONVOLVED = {"BIAS": True, "MODULATE": True, "RELU": True, "ADD": True, "PRECISION": "tf32"}
CONVOLVED |= {"DOWN": CONVOLUTION.down, "ACROSS": CONVOLUTION.across}
DESCRIBED = ", described"
"""Behind the name of what is given tensor descriptors, which the backend does on Hopper."""

PLACED = {"rows": COUNT, "height": SIXTEENS, "width": SIXTEENS}
JOIN = {"x": HALF, "first": HALF, "second": HALF, "pattern": HALF, "out": HALF, **PLACED}
GUIDED = {"CHANNELS": 90, "STRIDE": 96, "FIRST": 17, "FIRST_EACH": False, "SECOND": 0, "SECOND_EACH": False, "ZEROS": 0}
GUIDED |= {"PATTERN_STRIDE": 1, "PATTERN_EACH": True, "OUT": 112, "SIDE": 1, "ROWS": 32, "BLOCK": 128}
ENTER = {"children": HALF, "skip": HALF, "out": HALF, "sums": FULL, **PLACED}
ENTERED = {"UP": 45, "UP_STRIDE": 48, "SKIP": 45, "STRIDE": 48, "ADD": False, "OUT": 96, "SUMS": True, "ROWS": 32}
ENTERED |= {"BLOCK": 128}

STAGES = Tuning().stages

BRAIN = "*bf16"
TRAINED = {"x": BRAIN, "weight": FULL, "bias": FULL, "out": BRAIN, **SIZES}
INNER = {"x": BRAIN, "weight": FULL, "bias": FULL, "gradient": BRAIN, "out": BRAIN, **SIZES}
OUTER = {"x": BRAIN, "weight": FULL, "inner": BRAIN, "out": BRAIN, "parts": FULL, **SIZES, "patches": COUNT}
TRAINED_SIZES = {"WIDE": 288, "BLOCK": depthwise.CHANNELS}

Case = tuple[str, triton.JITFunction, dict[str, str], dict[str, object], int, int]


def single(types: dict[str, str]) -> dict[str, str]:
    """The same in single precision."""
    return {name: FULL if of == HALF else of for name, of in types.items()}


def product(name: str, inputs: int, outputs: int, kind: dict[str, object], half: bool = True) -> list[Case]:
    """A product in the block sizes that the backend takes for it, from pointers and, of halves, from descriptors."""
    found = []
    for described in (False, True)[: 1 + half]:
        sizes = tuning(inputs, outputs, bool(kind["GELU"]), bool(kind["RESIDUAL"]), half, described)
        block = {"BLOCK_ROWS": sizes.rows, "BLOCK_OUT": sizes.outputs, "BLOCK_IN": sizes.inputs, "GROUP": sizes.group}
        block |= {"DESCRIBED": described, "STAY": sizes.stay > 0}
        types = LINEAR if half else single(LINEAR)
        if described:
            types = {**types, "x": described_type(sizes.rows, sizes.inputs)}
            types |= {"weight": described_type(sizes.outputs, sizes.inputs)}
            types |= dict.fromkeys(("residual", "out"), described_type(sizes.rows, sizes.outputs))
        constants = {"INPUTS": inputs, "OUTPUTS": outputs, **kind, **block}
        found.append((name + DESCRIBED * described, blocks.linear, types, constants, sizes.warps, sizes.stages))
    return found


def described_type(*block: int) -> str:
    """Of a tensor descriptor."""
    return f"tensordesc<fp16[{', '.join(map(str, block))}]>"


def mixed(name: str, channels: int, frames: int, half: bool = True) -> Case:
    """The depthwise kernel, likewise."""
    block, warps = depthwise_block(channels, frames)
    constants = {"CHANNELS": channels, "BLOCK": block, "FRAMES": frames}
    return name, blocks.depthwise, WIDE if half else single(WIDE), constants, warps, STAGES


def joined(name: str, channels: int, frames: int) -> Case:
    """The depthwise kernel with the projection behind it, likewise."""
    outputs = triton.next_power_of_2(channels)
    constants = {"CHANNELS": channels, "OUTPUTS": channels, "PRECISION": "tf32", "BLOCK_OUT": outputs}
    constants |= {"BLOCK": joined_block(channels, frames), "FRAMES": frames}
    return name, blocks.depthwise_linear, NARROW_TYPES, constants, 4, STAGES


def convolved(name: str, inputs: int, outputs: int, sizes: tuple[int, int], block: int) -> Case:
    """A 3x3 convolution, likewise; ``sizes``: SIZE_A and SIZE_B."""
    constants = {**CONVOLVED, "INPUTS": inputs, "OUTPUTS": outputs, "BLOCK_OUT": block}
    constants |= {"SIZE_A": sizes[0], "SIZE_B": sizes[1]}
    return name, convolutions.convolve, CONVOLVE, constants, CONVOLUTION.warps, CONVOLUTION.stages


CASES = [
    ("training, depthwise", depthwise.forward_kernel, TRAINED, TRAINED_SIZES, 4),
    ("training, inner gradient", depthwise.inner_gradient_kernel, INNER, TRAINED_SIZES, 4),
    (
        "training, outer gradient",
        depthwise.outer_gradient_kernel,
        OUTER,
        {**TRAINED_SIZES, "COUNT": depthwise.PATCHES},
        4,
    ),
    *product("linear norm gelu", 368, 1104, NORMED),
    *product("linear residual", 2160, 720, ADDED),
    *product("linear, narrow", 48, 144, NORMED),
    *product("linear, narrow and not bent", 96, 288, {**NORMED, "GELU": False}),
    *product("linear residual, narrow", 96, 96, ADDED),
    *product("single precision, norm gelu", 368, 1104, {**NORMED, "PRECISION": "ieee"}, half=False),
    *product("single precision, residual", 2160, 720, {**ADDED, "PRECISION": "ieee"}, half=False),
    (
        "attention",
        blocks.window_attention,
        {"qkv": HALF, "bias": FULL, "out": HALF, **SIZES},
        {"HEADS": 8, "SIZE_A": 32, "SIZE_B": 16, "SHIFT": 4, "PRECISION": "tf32"},
        4,
    ),
    mixed("single precision, depthwise", 368, 3, half=False),
    mixed("depthwise", 368, 3),
    mixed("depthwise, wide", 720, 3),
    mixed("depthwise, tokens of one frame", 384, 1),
    joined("depthwise linear", 96, 3),
    joined("depthwise linear, narrow", 48, 3),
    joined("depthwise linear, tokens of one frame", 96, 1),
    joined("depthwise linear, narrow tokens of one frame", 48, 1),
    joined("depthwise linear, tokens of one frame, a power of two", 64, 1),
    joined("depthwise linear, widest tokens of one frame", 128, 1),
    (
        "row sums",
        blocks.row_sums,
        {"x": HALF, "sums": FULL, "rows": COUNT},
        {"CHANNELS": 48, "ROWS": 64, "BLOCK": 64},
        4,
    ),
    ("stem inputs, lite", cells.stem_inputs, STEM, {**LITE, "PATTERN": 5, "PATTERN_BLOCK": 8}, WARPS),
    ("stem inputs, base", cells.stem_inputs, STEM, {**BASE, "PATTERN": 17, "PATTERN_BLOCK": 32}, WARPS),
    ("head residual, lite", cells.head_residual, HEAD, {**LITE, "CHANNELS": 16}, WARPS),
    ("head residual, base", cells.head_residual, HEAD, {**BASE, "CHANNELS": 32}, WARPS),
    ("block extremes", cells.block_extremes, EXTREMES, {"BLOCK": cells.BLOCKS}, WARPS),
    ("block shares", cells.block_shares, SHARES, {"BLOCK": cells.SHARES}, WARPS),
    convolved("convolution, 32 channels", 32, 32, (32, 0), 32),
    convolved("convolution, 48 channels", 48, 48, (32, 16), 64),
    convolved("convolution, head of lite", 32, 16, (32, 0), 16),
    convolved("convolution, head of base", 48, 32, (32, 16), 32),
    convolved("convolution, few channels", 8, 8, (16, 0), 16),
    ("join", joins.join, JOIN, GUIDED, WARPS),
    ("join, patches", joins.join, JOIN, {**GUIDED, "SIDE": 2, "SECOND": 3}, WARPS),
    ("enter", joins.enter, ENTER, ENTERED, WARPS),
]
POINTWISE = (
    "training",
    "single precision",
    "depthwise",
    "row sums",
    "stem inputs",
    "head residual",
    "block extremes",
    "block shares",
    "join",
    "enter",
)
"""What needs no tensor cores, by the name before the comma."""


def compile_for(architecture: int) -> dict[str, dict[str, object]]:
    """Shared memory, registers, bytes of stack (spills) and whether tensor cores are used, by kernel."""
    found = {}
    pipelines.reads_on_its_own = lambda _: architecture // 10 in pipelines.ON_THEIR_OWN  # as if it were here
    for name, kernel, types, constants, warps, *stages in CASES:
        if name.endswith(DESCRIBED) and architecture != 90:
            continue
        signature = {a: "constexpr" if a in constants else types[a].partition(":")[0] for a in kernel.arg_names}
        fixed = {(i,): constants[a] for i, a in enumerate(kernel.arg_names) if a in constants}
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, a in enumerate(kernel.arg_names)
            if signature[a].startswith("*") or types.get(a) == SIXTEENS
        }
        count = stages[0] if stages else STAGES
        if kernel in (blocks.linear, convolutions.convolve) and not name.endswith(DESCRIBED):
            count = pipelines.stages(torch.device("cuda"), count)
        made = triton.compile(
            ASTSource(kernel, signature, fixed, aligned),
            target=GPUTarget("cuda", architecture, 32),
            options={"num_warps": warps, "num_stages": count},
        )
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        found[name] = {
            "shared": made.metadata.shared,
            "registers": registers,
            "stack": stack,
            "tensor_cores": "mma" in made.asm["ptx"],
            "pointwise": name.partition(",")[0] in POINTWISE,
        }
    return found


if __name__ == "__main__":
    print(json.dumps({architecture: compile_for(int(architecture)) for architecture in sys.argv[1:]}))
