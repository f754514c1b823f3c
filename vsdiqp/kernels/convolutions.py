"""3x3 convolutions of few channels with all that follows them, as a Triton kernel; `vsdiqp.backends.fused_cells`
launches it.

Libraries choose among kernels that were made for hundreds of channels: of 48 inputs and outputs cuDNN's took three
times as long on an H200, and each needed a pass over its result for what follows. Here nine products of shifted views
of the map are summed on chip, and bias, modulation, ReLU and residual sum go in before the result is rounded, once.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

TAPS = tl.constexpr(9)


@triton.jit
def convolve(
    x,
    weight,
    bias,
    modulation,
    add,
    out,
    height,
    width,
    images_an_item,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SIZE_A: tl.constexpr,
    SIZE_B: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BIAS: tl.constexpr,
    MODULATE: tl.constexpr,
    RELU: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """A 3x3 convolution with zeros around, then what is asked for of bias, modulation, ReLU and a sum.

    Grid: (rectangles of DOWN x ACROSS cells of an image, images). x: images, height, width, INPUTS; weight: 9, OUTPUTS,
    INPUTS; bias: OUTPUTS; modulation: items, 2, OUTPUTS: what to multiply by, less one, and what to add; add, out:
    images, height, width, OUTPUTS. SIZE_A and SIZE_B: powers of two (or 0) that cover INPUTS together, because 48 is
    none, of 16 at least; BLOCK_OUT covers OUTPUTS. An image's numbers stay below 2^31.
    """
    across = tl.cdiv(width, ACROSS)
    top = tl.program_id(0) // across * DOWN
    left = tl.program_id(0) % across * ACROSS
    image = tl.program_id(1)
    size = height * width
    cell = tl.arange(0, DOWN * ACROSS)
    row = top + cell // ACROSS
    column = left + cell % ACROSS
    inside = (row < height) & (column < width)
    cell = row * width + column
    output = tl.arange(0, BLOCK_OUT)
    written = output < OUTPUTS
    a = tl.arange(0, SIZE_A)
    total = tl.zeros((DOWN * ACROSS, BLOCK_OUT), dtype=tl.float32)
    for tap in tl.range(0, TAPS):
        down = tap // 3 - 1
        right = tap % 3 - 1
        seen = inside & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        at = x + image.to(tl.int64) * size * INPUTS + (cell + (down * width + right))[:, None] * INPUTS
        taps = weight + (tap * OUTPUTS + output)[None, :] * INPUTS
        if SIZE_A > INPUTS:
            known = a < INPUTS
            values = tl.load(at + a[None, :], mask=seen[:, None] & known[None, :], other=0.0)
            weights = tl.load(taps + a[:, None], mask=written[None, :] & known[:, None], other=0.0)
        else:
            values = tl.load(at + a[None, :], mask=seen[:, None], other=0.0)
            weights = tl.load(taps + a[:, None], mask=written[None, :], other=0.0)
        total = tl.dot(values, weights, total, input_precision=PRECISION)
        if SIZE_B > 0:
            b = SIZE_A + tl.arange(0, SIZE_B)
            known = b < INPUTS
            values = tl.load(at + b[None, :], mask=seen[:, None] & known[None, :], other=0.0)
            weights = tl.load(taps + b[:, None], mask=written[None, :] & known[:, None], other=0.0)
            total = tl.dot(values, weights, total, input_precision=PRECISION)

    if BIAS:
        total += tl.load(bias + output, mask=written, other=0.0).to(tl.float32)[None, :]
    if MODULATE:
        factors = modulation + image // images_an_item * (2 * OUTPUTS) + output
        scale = 1 + tl.load(factors, mask=written, other=0.0).to(tl.float32)
        total = total * scale[None, :] + tl.load(factors + OUTPUTS, mask=written, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.maximum(total, 0.0)
    to = image.to(tl.int64) * size * OUTPUTS + cell[:, None] * OUTPUTS + output[None, :]
    stored = inside[:, None] & written[None, :]
    if ADD:
        total += tl.load(add + to, mask=stored, other=0.0).to(tl.float32)
    tl.store(out + to, total.to(out.dtype.element_ty), mask=stored)
