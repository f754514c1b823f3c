"""The LeWin block as five Triton kernels (spec/diqp.md, "A block"); `vsdiqp.backends.fused` launches them.

What they save is memory traffic, which eager execution of this network is bound by:

- LayerNorm costs no pass of its own. Its scale and offset are folded into the weights of the projection behind it, and
  mean and deviation come from row sums that the kernel before left behind:
  ``norm(x) W + b = (x W - mean * colsum(W)) / deviation + b``.
- Attention reads its window straight from the map (shifted or not) and writes it back in place: no roll, no window
  copies, no mask tensor; scores never leave the chip.
- The depthwise step takes three frames at once; its GELU and, where a row fits on chip, the projection behind it and
  the residual sum follow in the same kernel.

Maps are (rows, channels) matrices of tokens, channels padded to multiples of 16 by zeros; padded channels stay zero.
Sums are (parts, rows, 2) fp32: sum and sum of squares of a row, in parts that belong to different program instances.
All accumulation is fp32. No kernel's arithmetic for a row depends on how many rows there are, so results do not depend
on the batch.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

WINDOW = 8
TOKENS = tl.constexpr(64)
"""Tokens of a window, and of the 8x8 patch that a program of the depthwise kernels makes."""
SIDE = tl.constexpr(8)
SHIFT_PENALTY = tl.constexpr(-100.0)
EPSILON = tl.constexpr(1e-5)
"""LayerNorm's."""
INVERSE_ROOT_2 = tl.constexpr(0.7071067811865476)


@triton.jit
def _gelu(x, EXACT: tl.constexpr):
    """The GELU, or what is within 6e-5 of it, a quarter of half precision's step at 1: `erf` costs several times as
    much.

    ``x * distribution(x)`` is ``max(x, 0)`` less ``|x|`` times what the distribution leaves beyond ``|x|``; of that,
    the logarithm is so smooth that a cubic is enough (a minimax fit of the GELU's own error). It falls for ever, so
    there is nothing to limit.
    """
    if EXACT:
        return 0.5 * x * (1.0 + tl.erf(x * INVERSE_ROOT_2))
    else:
        t = tl.abs(x)
        p = -0.02488563 * t - 0.49882002
        p = p * t - 1.12924598
        p = p * t - 1.00353172
        return tl.maximum(x, 0.0) - t * tl.exp2(p)


@triton.jit
def row_sums(x, sums, rows, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of the rows of a map. Grid: rows / ROWS. BLOCK: a power of two, CHANNELS or more."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    value = tl.load(x + row.to(tl.int64)[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    at = sums + row.to(tl.int64) * 2
    tl.store(at, tl.sum(value, 1), mask=row < rows)
    tl.store(at + 1, tl.sum(value * value, 1), mask=row < rows)


@triton.jit
def _product(
    x, weight, bias, column_sums, sums, residual, out, out_sums, rows, block, row_blocks, out_blocks: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    NORM: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, SUMS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, GROUP: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """One block of `linear`'s result."""
    first = block // (GROUP * out_blocks) * GROUP
    group = tl.minimum(row_blocks - first, GROUP)
    inside_group = block % (GROUP * out_blocks)
    row_block = first + inside_group % group
    out_block = inside_group // group

    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    wide_row = row.to(tl.int64)
    column = out_block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    row_inside = row < rows
    column_inside = column < OUTPUTS

    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype=tl.float32)
    for start in range(0, INPUTS, BLOCK_IN):
        if DESCRIBED:
            a = x.load([row_block * BLOCK_ROWS, start])
            b = tl.trans(weight.load([out_block * BLOCK_OUT, start]))
        else:
            k = start + tl.arange(0, BLOCK_IN)
            k_inside = k < INPUTS
            a = tl.load(
                x + wide_row[:, None] * INPUTS + k[None, :], mask=row_inside[:, None] & k_inside[None, :], other=0.0
            )
            b = tl.load(
                weight + column[None, :] * INPUTS + k[:, None],
                mask=k_inside[:, None] & column_inside[None, :],
                other=0.0,
            )
        total = tl.dot(a, b, total, input_precision=PRECISION)

    if NORM:
        add = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        square = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        for part in tl.static_range(PARTS):
            at = sums + (wide_row + part * rows) * 2
            add += tl.load(at, mask=row_inside, other=0.0)
            square += tl.load(at + 1, mask=row_inside, other=0.0)
        mean = add / WIDTH
        variance = tl.maximum(square / WIDTH - mean * mean, 0.0)
        scale = 1.0 / tl.sqrt(variance + EPSILON)
        colsum = tl.load(column_sums + column, mask=column_inside, other=0.0)
        total = (total - mean[:, None] * colsum[None, :]) * scale[:, None]
    total += tl.load(bias + column, mask=column_inside, other=0.0)[None, :]
    if GELU:
        total = _gelu(total, PRECISION == "ieee")
    at = wide_row[:, None] * OUTPUTS + column[None, :]
    inside = row_inside[:, None] & column_inside[None, :]
    if DESCRIBED:
        if RESIDUAL:
            total += residual.load([row_block * BLOCK_ROWS, out_block * BLOCK_OUT]).to(tl.float32)
        value = total.to(out.dtype)
        out.store([row_block * BLOCK_ROWS, out_block * BLOCK_OUT], value)
    else:
        if RESIDUAL:
            total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        value = total.to(out.dtype.element_ty)
        tl.store(out + at, value, mask=inside)
    if SUMS:
        stored = tl.where(inside, value.to(tl.float32), 0.0)
        at_sums = out_sums + (wide_row + out_block * rows) * 2
        tl.store(at_sums, tl.sum(stored, 1), mask=row_inside)
        tl.store(at_sums + 1, tl.sum(stored * stored, 1), mask=row_inside)


@triton.jit
def linear(
    x,
    weight,
    bias,
    column_sums,
    sums,
    residual,
    out,
    out_sums,
    rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    NORM: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIBED: tl.constexpr,
    STAY: tl.constexpr,
):
    """``out = epilogue(x weight^T)``. Grid: row blocks * output blocks; with STAY any, of which each takes block after
    block and reads the next one's numbers while it bends and writes the last one's.

    x: rows, INPUTS; weight: OUTPUTS, INPUTS; bias, column_sums: OUTPUTS fp32; residual, out: rows, OUTPUTS.
    DESCRIBED: x, weight, residual and out are tensor descriptors of blocks, which Hopper's copy engine reads and
    writes: no addresses and masks to reckon, and zeros beyond the edges.
    NORM: LayerNorm over the first WIDTH channels of x, whose sums are given in PARTS. RESIDUAL: add ``residual``.
    SUMS: leave the sums of ``out`` (one part an output block). Blocks run in groups of GROUP row blocks, so that the
    rows they share stay in the cache.
    """
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    out_blocks: tl.constexpr = (OUTPUTS + BLOCK_OUT - 1) // BLOCK_OUT
    if STAY:
        for block in tl.range(tl.program_id(0), row_blocks * out_blocks, tl.num_programs(0), flatten=True):
            _product(
                x, weight, bias, column_sums, sums, residual, out, out_sums, rows, block, row_blocks, out_blocks,
                INPUTS, OUTPUTS, WIDTH, PARTS, NORM, GELU, RESIDUAL, SUMS, PRECISION,
                BLOCK_ROWS, BLOCK_OUT, BLOCK_IN, GROUP, DESCRIBED,
            )  # fmt: skip
    else:
        _product(
            x, weight, bias, column_sums, sums, residual, out, out_sums, rows, tl.program_id(0), row_blocks, out_blocks,
            INPUTS, OUTPUTS, WIDTH, PARTS, NORM, GELU, RESIDUAL, SUMS, PRECISION,
            BLOCK_ROWS, BLOCK_OUT, BLOCK_IN, GROUP, DESCRIBED,
        )  # fmt: skip


@triton.jit
def window_attention(
    qkv,
    bias,
    out,
    height,
    width,
    HEADS: tl.constexpr,
    SIZE_A: tl.constexpr,
    SIZE_B: tl.constexpr,
    SHIFT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of one head in one 8x8 window. Grid: (windows of the whole batch, HEADS).

    qkv: rows, 3, HEADS, SIZE_A + SIZE_B (queries scaled already); bias: HEADS, 64, 64; out: rows, HEADS, SIZE_A +
    SIZE_B. A head's channels come as SIZE_A (a power of two) and SIZE_B (one, or 0), because 48 is none. SHIFT: the map
    is read as if rolled by so many tokens up and left; neighbours that only the roll made do not see each other.
    """
    SIZE: tl.constexpr = SIZE_A + SIZE_B
    window = tl.program_id(0)
    head = tl.program_id(1)
    across = width // SIDE
    windows = across * (height // SIDE)
    image = window // windows
    place = window % windows
    token = tl.arange(0, TOKENS)
    y = place // across * SIDE + token // SIDE
    x = place % across * SIDE + token % SIDE
    row = (image * height + (y + SHIFT) % height).to(tl.int64) * width + (x + SHIFT) % width

    a = tl.arange(0, SIZE_A)
    at = qkv + row[:, None] * (3 * HEADS * SIZE) + head * SIZE + a[None, :]
    q = tl.load(at)
    k = tl.load(at + HEADS * SIZE)
    v = tl.load(at + 2 * HEADS * SIZE)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if SIZE_B > 0:
        b = SIZE_A + tl.arange(0, SIZE_B)
        at_b = qkv + row[:, None] * (3 * HEADS * SIZE) + head * SIZE + b[None, :]
        q_b = tl.load(at_b)
        k_b = tl.load(at_b + HEADS * SIZE)
        v_b = tl.load(at_b + 2 * HEADS * SIZE)
        scores = tl.dot(q_b, tl.trans(k_b), scores, input_precision=PRECISION)
    scores += tl.load(bias + (head * TOKENS + token[:, None]) * TOKENS + token[None, :]).to(tl.float32)
    if SHIFT > 0:
        # Swin's regions along an axis of the rolled map: before the last window, its first part, its wrapped part.
        down = (y >= height - SIDE).to(tl.int32) + (y >= height - SHIFT).to(tl.int32)
        right = (x >= width - SIDE).to(tl.int32) + (x >= width - SHIFT).to(tl.int32)
        region = 3 * down + right
        scores += tl.where(region[:, None] == region[None, :], 0.0, SHIFT_PENALTY)
    scores = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = (scores / tl.sum(scores, 1)[:, None]).to(v.dtype)
    to = out + row[:, None] * (HEADS * SIZE) + head * SIZE
    tl.store(to + a[None, :], tl.dot(weights, v, input_precision=PRECISION).to(out.dtype.element_ty))
    if SIZE_B > 0:
        tl.store(to + b[None, :], tl.dot(weights, v_b, input_precision=PRECISION).to(out.dtype.element_ty))


@triton.jit
def _patch(program, height, width):
    """Rows and columns of the 64 tokens of an 8x8 patch, and the image they lie in."""
    across = tl.cdiv(width, SIDE)
    patches = across * tl.cdiv(height, SIDE)
    place = program % patches
    token = tl.arange(0, TOKENS)
    y = place // across * SIDE + token // SIDE
    x = place % across * SIDE + token % SIDE
    return program // patches, y, x


@triton.jit
def _depthwise(x, weight, bias, image, y, x_at, channel, height, width, CHANNELS: tl.constexpr):
    """Depthwise 3x3x3 with zeros around, then GELU: results of the three frames, (64, channels of the block) fp32."""
    inside_channels = channel < CHANNELS
    first = tl.load(bias + channel, mask=inside_channels, other=0.0)[None, :]
    zero = tl.zeros((TOKENS, channel.shape[0]), dtype=tl.float32)
    out_0 = zero + first
    out_1 = zero + first
    out_2 = zero + first
    # A loop, and not unrolled: with the loads of all taps in flight at once the registers spill.
    for tap in tl.range(0, 9, num_stages=1, loop_unroll_factor=1):
        ny = y + tap // 3 - 1
        nx = x_at + tap % 3 - 1
        inside = ((ny >= 0) & (ny < height) & (nx >= 0) & (nx < width))[:, None] & inside_channels[None, :]
        row = (image * height + ny).to(tl.int64) * width + nx
        at = x + row[:, None] * (3 * CHANNELS) + channel[None, :]
        taps = weight + tap * CHANNELS + channel
        before = tl.load(taps, mask=inside_channels, other=0.0)[None, :]
        same = tl.load(taps + 9 * CHANNELS, mask=inside_channels, other=0.0)[None, :]
        after = tl.load(taps + 18 * CHANNELS, mask=inside_channels, other=0.0)[None, :]
        value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        out_0 += value * same
        out_1 += value * before
        value = tl.load(at + CHANNELS, mask=inside, other=0.0).to(tl.float32)
        out_0 += value * after
        out_1 += value * same
        out_2 += value * before
        value = tl.load(at + 2 * CHANNELS, mask=inside, other=0.0).to(tl.float32)
        out_1 += value * after
        out_2 += value * same
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    return _gelu(out_0, EXACT), _gelu(out_1, EXACT), _gelu(out_2, EXACT)


@triton.jit
def _convolved_alone(
    x, weight, bias, image, y, x_at, channel, height, width, CHANNELS: tl.constexpr, BENT: tl.constexpr
):
    """Depthwise 3x3 of tokens that carry one frame, or with BENT of their GELU: (64, channels of the block) fp32."""
    inside_channels = channel < CHANNELS
    first = tl.load(bias + channel, mask=inside_channels, other=0.0)[None, :]
    out = tl.zeros((TOKENS, channel.shape[0]), dtype=tl.float32) + first
    for tap in tl.range(0, 9, num_stages=1, loop_unroll_factor=1):
        ny = y + tap // 3 - 1
        nx = x_at + tap % 3 - 1
        inside = ((ny >= 0) & (ny < height) & (nx >= 0) & (nx < width))[:, None] & inside_channels[None, :]
        row = (image * height + ny).to(tl.int64) * width + nx
        value = tl.load(x + row[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        if BENT:
            value = _gelu(value, True)
        out += value * tl.load(weight + tap * CHANNELS + channel, mask=inside_channels, other=0.0)[None, :]
    return out


@triton.jit
def _depthwise_alone(x, weight, bias, image, y, x_at, channel, height, width, CHANNELS: tl.constexpr):
    """Depthwise 3x3 of tokens that carry one frame, then GELU: (64, channels of the block) fp32."""
    out = _convolved_alone(x, weight, bias, image, y, x_at, channel, height, width, CHANNELS, False)
    return _gelu(out, x.dtype.element_ty == tl.float32)


@triton.jit
def depthwise(x, weight, bias, out, height, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, FRAMES: tl.constexpr):
    """Depthwise convolution and GELU of a map. Grid: (patches of the whole batch, CHANNELS / BLOCK).

    x, out: rows, FRAMES, CHANNELS; weight: with 3 FRAMES 3 (frame before, same, after), 3, 3, CHANNELS fp32, with one
    3, 3, CHANNELS; bias: CHANNELS fp32.
    """
    image, y, x_at = _patch(tl.program_id(0), height, width)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = (image * height + y).to(tl.int64) * width + x_at
    at = out + row[:, None] * (FRAMES * CHANNELS) + channel[None, :]
    inside = ((y < height) & (x_at < width))[:, None] & (channel < CHANNELS)[None, :]
    kind = out.dtype.element_ty
    if FRAMES == 3:
        out_0, out_1, out_2 = _depthwise(x, weight, bias, image, y, x_at, channel, height, width, CHANNELS)
        tl.store(at, out_0.to(kind), mask=inside)
        tl.store(at + CHANNELS, out_1.to(kind), mask=inside)
        tl.store(at + 2 * CHANNELS, out_2.to(kind), mask=inside)
    else:
        alone = _depthwise_alone(x, weight, bias, image, y, x_at, channel, height, width, CHANNELS)
        tl.store(at, alone.to(kind), mask=inside)


@triton.jit
def depthwise_linear(
    x,
    weight,
    bias,
    linear_weight,
    linear_bias,
    residual,
    out,
    out_sums,
    height,
    width,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    FRAMES: tl.constexpr,
):
    """Depthwise convolution, GELU, linear layer and residual sum in one; leaves the sums of ``out``. Grid: patches.

    As `depthwise`; linear_weight: OUTPUTS, FRAMES * CHANNELS; residual, out: rows, OUTPUTS. BLOCK_OUT, a power of two,
    covers all OUTPUTS: a row of results stays on chip, so this is for narrow maps.
    """
    image, y, x_at = _patch(tl.program_id(0), height, width)
    row = (image * height + y).to(tl.int64) * width + x_at
    row_inside = (y < height) & (x_at < width)
    column = tl.arange(0, BLOCK_OUT)
    column_inside = column < OUTPUTS
    kind = x.dtype.element_ty
    total = tl.zeros((TOKENS, BLOCK_OUT), dtype=tl.float32)
    for start in tl.range(0, CHANNELS, BLOCK, num_stages=1):
        channel = start + tl.arange(0, BLOCK)
        at = linear_weight + column[None, :] * (FRAMES * CHANNELS) + channel[:, None]
        inside = (channel < CHANNELS)[:, None] & column_inside[None, :]
        w = tl.load(at, mask=inside, other=0.0)
        if FRAMES == 3:
            out_0, out_1, out_2 = _depthwise(x, weight, bias, image, y, x_at, channel, height, width, CHANNELS)
            total = tl.dot(out_0.to(kind), w, total, input_precision=PRECISION)
            w = tl.load(at + CHANNELS, mask=inside, other=0.0)
            total = tl.dot(out_1.to(kind), w, total, input_precision=PRECISION)
            w = tl.load(at + 2 * CHANNELS, mask=inside, other=0.0)
            total = tl.dot(out_2.to(kind), w, total, input_precision=PRECISION)
        else:
            alone = _depthwise_alone(x, weight, bias, image, y, x_at, channel, height, width, CHANNELS)
            total = tl.dot(alone.to(kind), w, total, input_precision=PRECISION)
    total += tl.load(linear_bias + column, mask=column_inside, other=0.0)[None, :]
    to = row[:, None] * OUTPUTS + column[None, :]
    inside = row_inside[:, None] & column_inside[None, :]
    total += tl.load(residual + to, mask=inside, other=0.0).to(tl.float32)
    value = total.to(out.dtype.element_ty)
    tl.store(out + to, value, mask=inside)
    stored = tl.where(inside, value.to(tl.float32), 0.0)
    at_sums = out_sums + row * 2
    tl.store(at_sums, tl.sum(stored, 1), mask=row_inside)
    tl.store(at_sums + 1, tl.sum(stored * stored, 1), mask=row_inside)
