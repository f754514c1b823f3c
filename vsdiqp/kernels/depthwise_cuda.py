"""Launches of depthwise.cu, the depthwise step in half precision; `vsdiqp.backends.fused` queues them."""

import math
from typing import Final, NamedTuple

import numpy as np

from vsdiqp.kernels.program import Launch

ROWS: Final = (4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 43, 64)
"""Rows that a strip may have: 1 more than a multiple of 3."""
START: Final = 3
"""What a strip costs beside its rows, in rows: weights to load, and the rows above and below."""
MOST: Final = 2**31
"""Bound of what a thread's index counts, in 32 bits: a map's numbers over a thread's `Form.numbers`."""
LANES: Final = (32, 24, 16, 12)
"""Threads that may stand side by side in a token's channels, the longest reads first."""


class Form(NamedTuple):
    """Sizes of depthwise.cu."""

    numbers: int
    """Channels of a thread."""
    across: int
    """Tokens side by side of a thread."""
    threads: int
    """Of a block."""
    blocks: int
    """At once on a multiprocessor: its registers are enough for no more."""


FORMS: Final = {3: Form(2, 2, 128, 4), 1: Form(4, 4, 96, 5)}
"""By the frames of a token."""
Shape = tuple[int, int, int, int, int]
"""Of a map: images, height, width, frames of a token, channels of a frame."""

DEPTHWISE = np.dtype(
    [
        ("x", np.uint64),
        ("weight", np.uint64),
        ("bias", np.uint64),
        ("out", np.uint64),
        ("height", np.int32),
        ("width", np.int32),
        ("rows", np.int32),
        ("strips", np.int32),
    ],
    align=True,
)
"""depthwise.cu's structure, field for field (see `vsdiqp.kernels.layouts`)."""


def lanes(frames: int, channels: int) -> int:
    """Threads side by side in a token's channels, of which fewest idle: beyond the last channel, or because a block is
    no multiple of them."""
    threads, parts = FORMS[frames].threads, channels // FORMS[frames].numbers

    def busy(side: int) -> float:
        return parts / (-(-parts // side) * side) * (threads // side * side / threads)

    return max(LANES, key=busy)


def options(frames: int, channels: int, brain: bool) -> tuple[str, ...]:
    """NVRTC options for maps of so many frames and channels, half or (``brain``) bfloat16."""
    macros = {"FRAMES": frames, "CHANNELS": channels, "BRAIN": int(brain), "LANES": lanes(frames, channels)}
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in macros.items()))


def fits(shape: Shape) -> bool:
    """Whether the kernel takes maps of this shape."""
    frames, channels = shape[3:]
    return frames in FORMS and channels % 16 == 0 and math.prod(shape) // FORMS[frames].numbers < MOST


def strip_rows(blocks_across: float, height: int, at_once: int) -> int:
    """Rows of a strip: few strips start seldom and share little, many fill a GPU evenly that does ``at_once`` blocks at
    a time. ``blocks_across``: blocks, not always whole ones, of a row of strips in all images."""

    def cost(rows: int) -> int:
        return math.ceil(math.ceil(blocks_across * -(-height // rows)) / at_once) * (min(rows, height) + START)

    return min(ROWS, key=cost)


def depthwise(x: int, weight: int, bias: int, out: int, shape: Shape, multiprocessors: int) -> Launch:
    """Convolution over frame, y and x with zeros around, bias and GELU of a map, from addresses.

    shape: of ``x`` and ``out`` (in half precision); weight: frame before, same, after (of one frame: same alone); 3, 3,
    channels, fp32; bias: channels, fp32.
    """
    images, height, width, frames, channels = shape
    form, side = FORMS[frames], lanes(frames, channels)
    groups, together = -(-channels // (form.numbers * side)), form.threads // side
    strips_across = images * -(-width // form.across)
    rows = strip_rows(groups * strips_across / together, height, form.blocks * multiprocessors)
    strips = strips_across * -(-height // rows)
    record = np.zeros(1, DEPTHWISE)
    record["x"], record["weight"], record["bias"], record["out"] = x, weight, bias, out
    record["height"], record["width"], record["rows"], record["strips"] = height, width, rows, strips
    return Launch("depthwise", record, (groups * -(-strips // together), 1, 1))
