"""Launches of depthwise.cu, the depthwise step of wide maps in half precision; `vsdiqp.backends.fused` queues them."""

from typing import Final

import numpy as np

from vsdiqp.kernels.program import Launch

THREADS: Final = 128
"""Threads a block."""
BLOCKS: Final = 4
"""Blocks at once on a multiprocessor: its registers are enough for no more."""
ROWS: Final = (4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 43, 64)
"""Rows that a strip may have: 1 more than a multiple of 3."""
START: Final = 3
"""What a strip costs beside its rows, in rows: weights to load, and the rows above and below."""
MOST: Final = 2**31
"""Pairs of numbers of a map, fewer than which the kernel can count."""
_FRAMES, _ACROSS = 3, 2  # depthwise.cu's

DEPTHWISE = np.dtype(
    [
        ("x", np.uint64),
        ("weight", np.uint64),
        ("bias", np.uint64),
        ("out", np.uint64),
        ("height", np.int32),
        ("width", np.int32),
        ("rows", np.int32),
    ],
    align=True,
)
"""depthwise.cu's structure, field for field (see `vsdiqp.kernels.layouts`)."""


def lanes(channels: int) -> int:
    """Threads side by side in a token's channels: 32, whose reads are whole lines of the cache, unless so many would
    idle beyond the last channel that 16 are better."""
    pairs = channels // 2
    return 32 if -pairs % 32 == -pairs % 16 else 16


def options(channels: int, brain: bool) -> tuple[str, ...]:
    """NVRTC options for maps of so many channels, half or (``brain``) bfloat16."""
    macros = {"CHANNELS": channels, "BRAIN": int(brain), "LANES": lanes(channels)}
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in macros.items()))


def fits(images: int, height: int, width: int, channels: int) -> bool:
    """Whether the kernel takes maps of this size."""
    return channels % 16 == 0 and images * height * width * _FRAMES * channels // 2 < MOST


def strip_rows(blocks_across: int, height: int, at_once: int) -> int:
    """Rows of a strip: few strips start seldom and share little, many fill a GPU evenly that does ``at_once`` blocks at
    a time. ``blocks_across``: blocks of a row of strips in all images."""

    def cost(rows: int) -> int:
        return -(-blocks_across * -(-height // rows) // at_once) * (min(rows, height) + START)

    return min(ROWS, key=cost)


def depthwise(
    x: int, weight: int, bias: int, out: int, shape: tuple[int, int, int, int], multiprocessors: int
) -> Launch:
    """Convolution over frame, y and x with zeros around, bias and GELU of a map, from addresses.

    shape: images, height, width and channels of ``x`` and ``out``, whose tokens carry three frames (in half precision);
    weight: frame before, same, after; 3, 3, channels, fp32; bias: channels, fp32.
    """
    images, height, width, channels = shape
    side = lanes(channels)
    across = -(-channels // (2 * side)) * -(-width // (THREADS // side * _ACROSS))
    rows = strip_rows(across * images, height, BLOCKS * multiprocessors)
    record = np.zeros(1, DEPTHWISE)
    record["x"], record["weight"], record["bias"], record["out"] = x, weight, bias, out
    record["height"], record["width"], record["rows"] = height, width, rows
    return Launch("depthwise", record, (across, -(-height // rows), images))
