"""Frames seen from each other: where blocks of one frame lie in another, and that other frame moved into place.

Motion vectors are found on 8-bit luma, hierarchically, to quarter samples; see motion.cuh, which the GPU's kernels
share. Nothing here knows networks or clips.
"""

import ctypes
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsdiqp.library import open_library

BLOCK: Final = 8
"""Side of a block that has one vector; motion.cuh's BLOCK."""
MARGIN: Final = 76
"""Samples around a region that compensating it may read: motion.cuh's REACH, its taps, and a sample for quarters."""

Vectors = NDArray[np.int16]
"""(rows of blocks, blocks, 2): x and y in quarters of a sample, from a block to its place in the other frame."""


class Aligner:
    """Finds motion between frames of one size. Its methods may be called from several threads at once.

    Raises DiqpError where the compiled part is missing.
    """

    def __init__(self, width: int, height: int) -> None:
        self._library = _library()
        self.width, self.height = width, height
        self.blocks = (-(-height // BLOCK), -(-width // BLOCK))
        """Rows of blocks, and blocks a row."""
        self._bytes = int(self._library.diqp_motion_bytes(width, height))

    def allocate(self) -> NDArray[np.uint8]:
        """Memory for `prepare`: about 4.4 bytes a sample of large frames."""
        return np.empty(self._bytes, np.uint8)

    def prepare(self, luma: NDArray[np.uint8], memory: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """What the search needs of a frame, from its luma (height, width); in ``memory`` (`allocate`) if given."""
        if luma.shape != (self.height, self.width) or luma.dtype != np.uint8 or luma.strides[1] != 1:
            raise ValueError(f"luma of {luma.shape} {luma.dtype}; expected ({self.height}, {self.width}) uint8 rows")
        memory = self.allocate() if memory is None else memory
        self._library.diqp_motion_prepare(_at(luma), luma.strides[0], self.width, self.height, _at(memory))
        return memory

    def search(
        self,
        current: NDArray[np.uint8],
        reference: NDArray[np.uint8],
        region: tuple[int, int, int, int] | None = None,
    ) -> Vectors:
        """Vectors from ``current`` to ``reference``, both from `prepare`.

        ``region`` (left, top, right, bottom; left and top multiples of BLOCK) searches there alone, the rest is zero.
        """
        left, top, right, bottom = region or (0, 0, self.width, self.height)
        vectors = np.zeros((*self.blocks, 2), np.int16)
        self._library.diqp_motion_search(
            _at(current), _at(reference), self.width, self.height, left, top, right, bottom, _at(vectors)
        )
        return vectors


def compensate(
    source: NDArray[np.float32], place: tuple[int, int], vectors: Vectors, out: NDArray[np.float32], left: int, top: int
) -> None:
    """Fill ``out`` (h, w), whose first sample is (left, top) of the frame, from ``source`` moved by ``vectors``.

    ``source`` holds the frame's samples from ``place`` (left, top) on. Beyond its edges they are repeated, so an edge
    should be the frame's own or lie MARGIN away. left and top are multiples of BLOCK.
    """
    if source.strides[1] != 4 or out.strides[1] != 4 or left % BLOCK or top % BLOCK:
        raise ValueError("rows must be contiguous, and regions start at multiples of a block")
    height, width = out.shape
    _library().diqp_motion_compensate(
        *(_at(source), source.strides[0] // 4, place[0], place[1], source.shape[1], source.shape[0]),
        *(_at(vectors), vectors.shape[1], vectors.shape[0]),
        *(_at(out), out.strides[0] // 4, left, top, width, height),
    )


def seen_steps(seen: int) -> list[int]:
    """Where the frames that a frame is seen beside lie from it, in the order that networks see them.

    -1, +1, -2, +2, ... for an even number of them; an odd one begins with 0, the frame itself, restored before.
    """
    steps = [step for distance in range(1, seen // 2 + 1) for step in (-distance, distance)]
    return [0, *steps] if seen % 2 else steps


def search_luma(luma: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Luma 0..1 as 8-bit code values of limited range, which vectors are searched on; rounded, halves up."""
    # The thousandth keeps samples of 9 to 16 bits that lie half way from falling by chance of fp32.
    codes: NDArray[np.float32] = np.multiply(luma, np.float32(219.0))
    codes += np.float32(16.501)
    np.copyto(out, np.clip(codes, 0.0, 255.0, out=codes), casting="unsafe")


def _at(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


@cache
def _library() -> ctypes.CDLL:
    pointer, whole, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    return open_library(
        "alignment",
        "libmotion.so",
        {
            "diqp_motion_bytes": (long, [whole, whole]),
            "diqp_motion_prepare": (None, [pointer, long, whole, whole, pointer]),
            "diqp_motion_search": (None, [pointer, pointer, *[whole] * 6, pointer]),
            "diqp_motion_compensate": (
                None,
                [pointer, long, *[whole] * 4, pointer, whole, whole, pointer, long, *[whole] * 4],
            ),
        },
    )
