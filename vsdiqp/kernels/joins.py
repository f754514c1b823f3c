"""The steps between the stages of a U as two Triton kernels; `vsdiqp.backends.fused_joins` launches them.

In torch they are concatenations, paddings and copies of whole maps, one after the other, two bytes at a time: odd
numbers of channels stand side by side. Here a map is read once and written once, as what comes next reads it.

Maps are (rows, channels) matrices of tokens, channels of results padded by zeros.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

PERIOD = tl.constexpr(4)
"""Side of LOST's pattern."""


@triton.jit
def _place(row, height, width):
    """Image, y and x of rows of a map."""
    size = height * width
    place = row % size
    return row // size, place // width, place % width


@triton.jit
def _child(image, y, x, height, width):
    """Where a place of a map stands among the four of its patch of 2x2, patch after patch: int64."""
    patch = (image * (height // 2) + y // 2) * (width // 2) + x // 2
    return patch.to(tl.int64) * 4 + (y % 2 * 2 + x % 2)


@triton.jit
def join(
    x,
    first,
    second,
    pattern,
    out,
    rows,
    height,
    width,
    CHANNELS: tl.constexpr,
    STRIDE: tl.constexpr,
    FIRST: tl.constexpr,
    FIRST_EACH: tl.constexpr,
    SECOND: tl.constexpr,
    SECOND_EACH: tl.constexpr,
    ZEROS: tl.constexpr,
    PATTERN_STRIDE: tl.constexpr,
    PATTERN_EACH: tl.constexpr,
    OUT: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`vsdiqp.network.joins.joined`, padded. Grid: rows / ROWS. BLOCK: a power of two, OUT or more.

    x: CHANNELS of rows that are STRIDE apart; first, second: rows (EACH) or those of one image, FIRST and SECOND
    channels, 0 where there is none; pattern: images (EACH) or one, 4, 4, of which every PATTERN_STRIDE-th number
    counts. out: rows, OUT; with SIDE 2 the rows of a patch of 2x2 stand in one: rows / 4, 4 OUT.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows)[:, None]
    image, y, x_at = _place(row, height, width)
    own = row.to(tl.int64)[:, None]
    shared = (y * width + x_at).to(tl.int64)[:, None]
    value = tl.load(x + own * STRIDE + column, mask=inside & (column < CHANNELS), other=0.0)
    if FIRST > 0:
        from_row = own if FIRST_EACH else shared
        behind = column - CHANNELS
        value += tl.load(first + from_row * FIRST + behind, mask=inside & (behind >= 0) & (behind < FIRST), other=0.0)
    if SECOND > 0:
        from_row = own if SECOND_EACH else shared
        behind = column - (CHANNELS + FIRST)
        value += tl.load(
            second + from_row * SECOND + behind, mask=inside & (behind >= 0) & (behind < SECOND), other=0.0
        )
    cell = y % PERIOD * PERIOD + x_at % PERIOD
    if PATTERN_EACH:
        cell += image * (PERIOD * PERIOD)
    last = column == CHANNELS + FIRST + SECOND + ZEROS
    value += tl.load(pattern + cell[:, None] * PATTERN_STRIDE + column * 0, mask=inside & last, other=0.0)
    to = own * OUT
    if SIDE == 2:
        to = _child(image, y, x_at, height, width)[:, None] * OUT
    tl.store(out + to + column, value, mask=inside & (column < OUT))


@triton.jit
def enter(
    children,
    skip,
    out,
    sums,
    rows,
    height,
    width,
    UP: tl.constexpr,
    UP_STRIDE: tl.constexpr,
    SKIP: tl.constexpr,
    STRIDE: tl.constexpr,
    ADD: tl.constexpr,
    OUT: tl.constexpr,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What a stage on the way back reads, and its row sums. Grid: rows / ROWS. BLOCK: a power of two, OUT or more.

    children: rows / 4, 2, 2, UP_STRIDE, the first UP of which `vsdiqp.network.packing.to_children` puts in their place;
    skip: SKIP channels of rows that are STRIDE apart, behind them or with ADD added to them; out: rows, OUT.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows)[:, None]
    image, y, x_at = _place(row, height, width)
    own = row.to(tl.int64)[:, None]
    child = _child(image, y, x_at, height, width)[:, None]
    value = tl.load(children + child * UP_STRIDE + column, mask=inside & (column < UP), other=0.0)
    behind = column if ADD else column - UP
    value += tl.load(skip + own * STRIDE + behind, mask=inside & (behind >= 0) & (behind < SKIP), other=0.0)
    tl.store(out + own * OUT + column, value, mask=inside & (column < OUT))
    if SUMS:
        stored = value.to(tl.float32)
        at = sums + row.to(tl.int64) * 2
        tl.store(at, tl.sum(stored, 1), mask=row < rows)
        tl.store(at + 1, tl.sum(stored * stored, 1), mask=row < rows)
