"""Motion between the frames of a decoded stream, for training: the vectors that the filter would find."""

import threading
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vsdiqp.alignment import BLOCK, Aligner, Vectors
from vsdiqp.training.degrade import Samples

OFTEN = 3
"""Looks at a stream from which on it pays to know all of its motion: a search of whole frames costs about four of a
usual sample's region."""

Pair = tuple[int, int]
"""A frame, and the one that it is seen beside."""


class Motion:
    """Vectors between frames of one stream (luma [F,H,W], ``bits`` deep), up to ``reach`` frames apart.

    May be asked from several threads.
    """

    def __init__(self) -> None:
        self._looks = 0
        self.known: dict[Pair, Vectors] | None = None
        """All of them, once they are."""
        self._lock = threading.Lock()

    def vectors(
        self, luma: Samples, bits: int, reach: int, pairs: Iterable[Pair], region: tuple[int, int, int, int]
    ) -> dict[Pair, Vectors]:
        """Vectors of ``pairs``, right inside ``region`` (left, top, right, bottom) at least."""
        self._looks += 1
        if self.known is None and self._looks >= OFTEN:
            self.learn(luma, bits, reach)
        wanted = dict.fromkeys(pairs)
        known = self.known
        if known is not None and known.keys() >= wanted.keys():
            return {pair: known[pair] for pair in wanted}
        return _search(luma, bits, wanted, region)

    def learn(self, luma: Samples, bits: int, reach: int) -> None:
        """Find the motion of all frames now."""
        with self._lock:
            if self.known is not None:
                return
            self.known = _search(luma, bits, _pairs(len(luma), reach), None)


def motion_bytes(frames: int, height: int, width: int, reach: int) -> int:
    """Memory of all vectors of a stream, once they are known."""
    return len(_pairs(frames, reach)) * -(-height // BLOCK) * -(-width // BLOCK) * 2 * np.dtype(np.int16).itemsize


def _pairs(frames: int, reach: int) -> list[Pair]:
    steps = [step for step in range(-reach, reach + 1) if step]
    return [(n, n + step) for n in range(frames) for step in steps if 0 <= n + step < frames]


def _search(
    luma: Samples, bits: int, pairs: Iterable[Pair], region: tuple[int, int, int, int] | None
) -> dict[Pair, Vectors]:
    aligner = Aligner(luma.shape[2], luma.shape[1])
    prepared: dict[int, NDArray[np.uint8]] = {}
    found: dict[Pair, Vectors] = {}
    for pair in pairs:
        for frame in pair:
            if frame not in prepared:
                prepared[frame] = aligner.prepare(_eight_bits(luma[frame], bits))
        found[pair] = aligner.search(prepared[pair[0]], prepared[pair[1]], region)
    return found


def _eight_bits(luma: Samples, bits: int) -> NDArray[np.uint8]:
    """Luma as vectors are searched on: code values of 8 bits, halves rounded up (`vsdiqp.alignment.search_luma`)."""
    if bits == 8:
        return np.ascontiguousarray(luma, np.uint8)
    shift = bits - 8
    rounded = (luma.astype(np.int32) + (1 << (shift - 1))) >> shift
    return np.minimum(rounded, 255).astype(np.uint8)
