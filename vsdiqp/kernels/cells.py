"""The steps between picture and convolutions of half-resolution networks, as Triton kernels (`vsdiqp.network.stem` says
them in torch); `vsdiqp.backends.fused_cells` launches them.

What they save are passes over every neighbour's samples: each is read once before the U and once after, like
everything else that has a picture's size.

- The stem's inputs: a program has a rectangle of cells of one frame. Samples are read as the rows of pixels that they
  are, turned to (cells, channels) on chip and written as runs of channels. Local means come from a map of cells' means.
- The head's residual: the same rectangles. Where a picture was drawn as it is (`stem.liveliness`) is known a block: one
  pass over the tile leaves extremes of blocks, a small one makes shares of them.

All arithmetic is fp32, rounded once where it is stored, and no result depends on the batch. Offsets are 64 bits from
item to item and 32 inside one: seen frames times pixels of a tile, and channels times cells, stay below 2^31.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from vsdiqp.network import config, stem

CELLS_DOWN = 4
CELLS_ACROSS = 32
"""The rectangle of a program: rows of 64 pixels are read, 256 bytes, and few cells around it for local means."""
BLOCKS = 32
"""Blocks of a program in `block_extremes`."""
SHARES = 256
"""Blocks of a program in `block_shares`."""

_DOWN = tl.constexpr(CELLS_DOWN)
_ACROSS = tl.constexpr(CELLS_ACROSS)
_CELLS = tl.constexpr(CELLS_DOWN * CELLS_ACROSS)
_PIXELS = tl.constexpr(2 * CELLS_DOWN * CELLS_ACROSS)
"""Of every other row of pixels."""
FRAMES = tl.constexpr(config.FRAMES)
COLOURS = tl.constexpr(3)
GAIN = tl.constexpr(stem.GAIN)
MEAN_SIZE = tl.constexpr(stem.MEAN_SIZE)
REACH = tl.constexpr(stem.MEAN_SIZE // 2)
OWN = tl.constexpr(stem.CELL_INPUTS)
OUTPUTS = tl.constexpr(stem.CELL_OUTPUTS)
NEAR_CLIP = tl.constexpr(stem.CLIPS[0])
WIDE_CLIP = tl.constexpr(stem.CLIPS[1])
FAR_CLIP = tl.constexpr(stem.FAR_CLIP)
QUIET = tl.constexpr(stem.QUIET)
FAR_APART = tl.constexpr(stem.FAR_APART)
BETWEEN = tl.constexpr(stem.BETWEEN)
SIDE = tl.constexpr(4)
"""Of the location's pattern."""


@triton.jit
def _rectangle(program, high, wide):
    """Rows and columns of a program's cells, and which there are."""
    across = tl.cdiv(wide, _ACROSS)
    cell = tl.arange(0, _CELLS)
    y = program // across * _DOWN + cell // _ACROSS
    x = program % across * _ACROSS + cell % _ACROSS
    return y, x, (y < high) & (x < wide)


@triton.jit
def _samples(program, height, width):
    """Offsets of a program's pixels in a plane: (upper and lower row of cells, pixels), and which columns there are.

    Pixels of a row are one axis, not cells and the two columns of each: Triton gives neighbours along the axis that is
    contiguous to neighbouring threads, and of axes that look alike not every version takes the same one first.
    """
    across = tl.cdiv(width, 2 * _ACROSS)
    pixel = tl.arange(0, _PIXELS)
    y = 2 * (program // across * _DOWN + pixel // (2 * _ACROSS))
    x = program % across * (2 * _ACROSS) + pixel % (2 * _ACROSS)
    return tl.arange(0, 2)[:, None] * width + (y * width + x)[None, :], (y < height) & (x < width)


@triton.jit
def _differences(beside, luma, pixel, there, plane, FIRST: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Samples of COUNT seen frames from FIRST on, less the frame's own: (BLOCK, 2, pixels)."""
    n = tl.arange(0, BLOCK)[:, None, None]
    at = beside + (n + FIRST) * plane + pixel[None, :, :]
    return tl.load(at, mask=there[None, None, :] & (n < COUNT), other=0.0) - luma[None, :, :]


@triton.jit
def stem_inputs(
    tile,
    beside,
    means,
    pattern,
    damage,
    out,
    height,
    width,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    PATTERN: tl.constexpr,
    NEAR_BLOCK: tl.constexpr,
    FAR_BLOCK: tl.constexpr,
    PATTERN_BLOCK: tl.constexpr,
):
    """`stem.CellStem.inputs` of frames that others are seen beside. Grid: (rectangles of a frame, frames of the batch).

    tile: B, 3, 3, height, width fp32; beside: B, 3, NEAR + FAR, height, width fp32; means: of the tile's cells, B, 3,
    3, height / 2, width / 2 fp32; pattern: B, 4, 4, PATTERN; damage: B fp32; out: B * 3, height / 2, width / 2,
    channels. The BLOCKs: powers of two, as many as their counts or more.
    """
    CHANNELS: tl.constexpr = OWN + 4 * NEAR + FAR + PATTERN
    image = tl.program_id(1)
    item = image // FRAMES
    high = height // 2
    wide = width // 2
    y, x, inside = _rectangle(tl.program_id(0), high, wide)
    gain = GAIN / tl.load(damage + item)
    plane = height * width
    first = item.to(tl.int64) * (COLOURS * FRAMES) + image % FRAMES
    kind = out.dtype.element_ty

    own = means + first * (high * wide)
    colour = FRAMES * high * wide
    total_0 = tl.zeros((_CELLS,), dtype=tl.float32)
    total_1 = tl.zeros((_CELLS,), dtype=tl.float32)
    total_2 = tl.zeros((_CELLS,), dtype=tl.float32)
    for down in tl.range(0, MEAN_SIZE, num_stages=1, loop_unroll_factor=1):
        ny = y + down - REACH
        for right in tl.static_range(MEAN_SIZE):
            nx = x + right - REACH
            there = (ny >= 0) & (ny < high) & (nx >= 0) & (nx < wide)
            at = own + ny * wide + nx
            total_0 += tl.load(at, mask=there, other=0.0)
            total_1 += tl.load(at + colour, mask=there, other=0.0)
            total_2 += tl.load(at + 2 * colour, mask=there, other=0.0)
    rows = tl.minimum(y + REACH, high - 1) - tl.maximum(y - REACH, 0) + 1
    columns = tl.minimum(x + REACH, wide - 1) - tl.maximum(x - REACH, 0) + 1
    share = 1.0 / tl.maximum(rows * columns, 1).to(tl.float32)
    mean_0 = total_0 * share
    mean_1 = total_1 * share
    mean_2 = total_2 * share
    at = own + y * wide + x
    blue = (tl.load(at + colour, mask=inside, other=0.0) - mean_1) * gain
    red = (tl.load(at + 2 * colour, mask=inside, other=0.0) - mean_2) * gain

    pixel, there = _samples(tl.program_id(0), height, width)
    luma = tl.load(tile + first * plane + pixel, mask=there[None, :], other=0.0)
    fine = tl.reshape(tl.permute(tl.reshape(luma, (2, _CELLS, 2)), (1, 0, 2)), (_CELLS, 4))
    fine = (fine - mean_0[:, None]) * gain
    rest = tl.join(tl.join(blue, mean_0 - 0.5), tl.join(red, mean_1 - 0.5))  # blue, red, mean_0, mean_1
    eight = tl.permute(tl.join(fine, tl.reshape(rest, (_CELLS, 4))), (0, 2, 1))
    to = out + (image.to(tl.int64) * (high * wide) * CHANNELS + (y * wide + x) * CHANNELS)
    tl.store(to[:, None] + tl.arange(0, 8)[None, :], tl.reshape(eight, (_CELLS, 8)).to(kind), mask=inside[:, None])
    tl.store(to + 8, (mean_2 - 0.5).to(kind), mask=inside)

    others = beside + image.to(tl.int64) * (NEAR + FAR) * plane
    near = _differences(others, luma, pixel, there, plane, 0, NEAR, NEAR_BLOCK) * gain
    near = tl.permute(tl.reshape(near, (NEAR_BLOCK, 2, _CELLS, 2)), (2, 0, 1, 3))
    near = tl.reshape(near, (_CELLS, 4 * NEAR_BLOCK))
    channel = tl.arange(0, 4 * NEAR_BLOCK)[None, :]
    tl.store(to[:, None] + OWN + channel, near.to(kind), mask=inside[:, None] & (channel < 4 * NEAR))
    if FAR > 0:
        far = tl.sum(tl.abs(_differences(others, luma, pixel, there, plane, NEAR, FAR, FAR_BLOCK) * gain), 1)
        distance = tl.minimum(tl.sum(tl.reshape(far, (FAR_BLOCK, _CELLS, 2)), 2) * 0.25, 4 * GAIN)
        channel = tl.arange(0, FAR_BLOCK)[None, :]
        told = inside[:, None] & (channel < FAR)
        tl.store(to[:, None] + (OWN + 4 * NEAR) + channel, tl.trans(distance).to(kind), mask=told)
    channel = tl.arange(0, PATTERN_BLOCK)[None, :]
    told = inside[:, None] & (channel < PATTERN)
    phase = (item * SIDE + y % SIDE) * SIDE + x % SIDE
    place = tl.load(pattern + phase[:, None] * PATTERN + channel, mask=told, other=0.0)
    tl.store(to[:, None] + (OWN + 4 * NEAR + FAR) + channel, place.to(kind), mask=told)


@triton.jit
def block_extremes(tile, out, planes, height, width, BLOCK: tl.constexpr):
    """Of 8x8 blocks the highest and the lowest sample, and how far from the nearer of both a sample lies at most.

    Grid: (BLOCK blocks in a row, rows of blocks, planes). tile: planes, height, width fp32; out: 3, planes, height / 8,
    width / 8 fp32.
    """
    across = width // QUIET
    down = height // QUIET
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    plane = tl.program_id(2).to(tl.int64)
    x = tl.program_id(0) * (BLOCK * QUIET) + tl.arange(0, BLOCK * QUIET)
    at = (row * QUIET + tl.arange(0, QUIET))[:, None] * width + x[None, :]
    sample = tl.load(tile + plane * height * width + at, mask=(x < width)[None, :], other=0.0)
    high = tl.max(tl.reshape(tl.max(sample, 0), (BLOCK, QUIET)), 1)
    low = tl.min(tl.reshape(tl.min(sample, 0), (BLOCK, QUIET)), 1)
    half = tl.reshape(tl.broadcast_to(((high - low) / 2)[:, None], (BLOCK, QUIET)), (BLOCK * QUIET,))
    middle = tl.reshape(tl.broadcast_to(((high + low) / 2)[:, None], (BLOCK, QUIET)), (BLOCK * QUIET,))
    inner = tl.max(half[None, :] - tl.abs(sample - middle[None, :]), 0)
    there = block < across
    to = out + (plane * down + row) * across + block
    map_size = planes.to(tl.int64) * down * across
    tl.store(to, high, mask=there)
    tl.store(to + map_size, low, mask=there)
    tl.store(to + 2 * map_size, tl.max(tl.reshape(inner, (BLOCK, QUIET)), 1), mask=there)


@triton.jit
def block_shares(extremes, out, blocks, down, across, BLOCK: tl.constexpr):
    """`stem.liveliness` a block. Grid: blocks / BLOCK. extremes: 3, planes, down, across; out: planes, down, across."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = block // across % down
    x = block % across
    there = block < blocks
    high = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    low = tl.full((BLOCK,), float("inf"), dtype=tl.float32)
    inner = high
    for tap in tl.static_range(9):
        ny = y + (tap // 3 - 1)
        nx = x + (tap % 3 - 1)
        seen = there & (ny >= 0) & (ny < down) & (nx >= 0) & (nx < across)
        at = extremes + block + ((tap // 3 - 1) * across + (tap % 3 - 1))
        high = tl.maximum(high, tl.load(at, mask=seen, other=float("-inf")))
        low = tl.minimum(low, tl.load(at + blocks, mask=seen, other=float("inf")))
        inner = tl.maximum(inner, tl.load(at + 2 * blocks, mask=seen, other=float("-inf")))
    span = high * 255 - low * 255
    apart = tl.minimum(tl.maximum((span - FAR_APART) / 4, 0.0), 1.0)
    filled = tl.minimum(tl.maximum((inner * 255 - BETWEEN) / 2, 0.0), 1.0)
    tl.store(out + block, tl.minimum(span, 1.0) * (1 - apart * (1 - filled)), mask=there)


@triton.jit
def _weights(answer, bias, cell, inside, FIRST: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Weights of COUNT seen frames: (BLOCK, 1, pixels)."""
    n = tl.arange(0, BLOCK)
    there = inside[None, :] & (n < COUNT)[:, None]
    weight = tl.load(answer + cell[None, :] + (n + FIRST)[:, None], mask=there, other=0.0).to(tl.float32)
    weight += tl.load(bias + FIRST + n, mask=n < COUNT, other=0.0).to(tl.float32)[:, None]
    return tl.interleave(weight, weight)[:, None, :]


@triton.jit
def _clip(x, LIMIT: tl.constexpr):
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT)


@triton.jit
def head_residual(
    answer,
    bias,
    tile,
    beside,
    damage,
    shares,
    out,
    height,
    width,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    NEAR_BLOCK: tl.constexpr,
    FAR_BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`stem.CellHead.residual` of frames that others are seen beside. Grid as that of `stem_inputs`.

    answer: B * 3, height / 2, width / 2, CHANNELS: the last convolution's, without its bias, CHANNELS; tile, beside and
    damage as in `stem_inputs`; shares: of blocks, B, 3, 3, height / 8, width / 8 fp32; out: B, 3, 3, height, width
    fp32.
    """
    image = tl.program_id(1)
    item = image // FRAMES
    high = height // 2
    wide = width // 2
    y, x, inside = _rectangle(tl.program_id(0), high, wide)
    unit = tl.load(damage + item)
    per_unit = 1.0 / unit
    plane = height * width
    first = item.to(tl.int64) * (COLOURS * FRAMES) + image % FRAMES
    answer += image.to(tl.int64) * (high * wide) * CHANNELS
    cell = (y * wide + x) * CHANNELS

    four = tl.arange(0, 4)
    change = tl.load(answer + cell[:, None] + four[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    change += tl.load(bias + four).to(tl.float32)[None, :]
    total = tl.reshape(tl.permute(tl.reshape(change, (_CELLS, 2, 2)), (1, 0, 2)), (2, _PIXELS))

    pixel, there = _samples(tl.program_id(0), height, width)
    luma = tl.load(tile + first * plane + pixel, mask=there[None, :], other=0.0)
    others = beside + image.to(tl.int64) * (NEAR + FAR) * plane
    seen = _differences(others, luma, pixel, there, plane, 0, NEAR, NEAR_BLOCK) * per_unit
    weighed = _clip(seen, NEAR_CLIP) * _weights(answer, bias, cell, inside, OUTPUTS, NEAR, NEAR_BLOCK)
    weighed += _clip(seen, WIDE_CLIP) * _weights(answer, bias, cell, inside, OUTPUTS + NEAR, NEAR, NEAR_BLOCK)
    total += tl.sum(weighed, 0)
    if FAR > 0:
        seen = _differences(others, luma, pixel, there, plane, NEAR, FAR, FAR_BLOCK) * per_unit
        weight = _weights(answer, bias, cell, inside, OUTPUTS + 2 * NEAR, FAR, FAR_BLOCK)
        total += tl.sum(_clip(seen, FAR_CLIP) * weight, 0)

    cells: tl.constexpr = QUIET // 2
    blocks = (high // cells) * (wide // cells)
    live = shares + first * blocks + (y // cells) * (wide // cells) + x // cells
    to = out + first * plane + pixel
    share = unit * tl.load(live, mask=inside, other=0.0)
    tl.store(to, total * tl.interleave(share, share)[None, :], mask=there[None, :])
    for colour in tl.static_range(1, COLOURS):
        chroma = tl.load(answer + cell + (3 + colour), mask=inside, other=0.0).to(tl.float32)
        chroma += tl.load(bias + 3 + colour).to(tl.float32)
        chroma *= unit * tl.load(live + colour * FRAMES * blocks, mask=inside, other=0.0)
        rows = tl.zeros((2, _PIXELS), dtype=tl.float32) + tl.interleave(chroma, chroma)[None, :]
        tl.store(to + colour * FRAMES * plane, rows, mask=there[None, :])
