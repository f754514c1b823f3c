"""The frames around each frame of a run, luma only and aligned to it: what networks with ``neighbours`` see beside it.

Motion is found once a run on whole frames, so vectors do not depend on the tiles; luma is moved tile by tile.

Memory for frames of W x H pixels and K neighbours on each side: 4.5 (3 + 2K) (W + 256) (H + 256) bytes at most, kept
between runs, and 12 S w h + 4 (w + 152) (h + 152) bytes for a tile of w x h beside which S frames are seen.
"""

import contextlib
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsdiqp.alignment import MARGIN, Aligner, Vectors, compensate, search_luma, seen_steps
from vsdiqp.clip import ClipFormat, Planes, Run
from vsdiqp.planes import FrameMap, identity

_BAND: Final = 128
"""Rows converted at once, so that what is made on the way stays in the processor's cache."""
BYTES: Final = 4.5
"""Upper limit of the memory of a frame prepared for the search, in bytes a pixel of a frame 256 wider and higher."""


class Neighbours:
    """Aligns the frames of one run after the other. ``begin`` a run, then ``fill`` its tiles. For one thread.

    ``seen``: how many frames each frame is seen beside (`vsdiqp.alignment.seen_steps`).
    ``threads``: how many work on a run at once; results do not depend on it.
    """

    def __init__(self, clip: ClipFormat, seen: int, threads: int = 1) -> None:
        self._clip, self._count, self._steps = clip, seen // 2, seen_steps(seen)
        self._aligner = Aligner(clip.width, clip.height)
        self._pool = ThreadPoolExecutor(threads, "vsdiqp-align") if threads > 1 else None
        self._prepared: list[NDArray[np.uint8]] = []
        self._luma = np.empty((clip.height, clip.width), np.uint8)
        self._frames: FrameMap | None = None
        self._sequence: tuple[Planes, ...] = ()
        self._decoded = True
        self._still: Vectors = np.zeros((*self._aligner.blocks, 2), np.int16)
        self._pairs: list[list[tuple[int, int]]] = []
        self._vectors: dict[tuple[int, int], Vectors | None] = {}

    def begin(self, run: Run, frames: FrameMap) -> None:
        """Find the motion between the frames of a run. ``frames`` reads them."""
        self._frames = frames
        sequence = run.sequence
        first: dict[tuple[int, ...], int] = {}
        distinct = [first.setdefault(identity(planes), index) for index, planes in enumerate(sequence)]
        self._sequence, self._decoded = sequence, not run.first
        while len(self._prepared) < len(sequence):
            self._prepared.append(self._aligner.allocate())
        for index in set(distinct):
            self._prepare(sequence[index], frames, self._prepared[index])
        wanted = {
            (distinct[self._count + index], distinct[self._count + index + step])
            for index, target in enumerate(run.targets)
            for step in self._steps
            if target is not None
        }
        self._vectors = dict.fromkeys(wanted)
        moving = sorted(pair for pair in wanted if pair[0] != pair[1])
        prepared = self._prepared

        def search(pair: tuple[int, int]) -> Vectors:
            return self._aligner.search(prepared[pair[0]], prepared[pair[1]])

        self._vectors.update(zip(moving, self._each(search, moving), strict=True))
        self._pairs = [
            [(distinct[self._count + i], distinct[self._count + i + step]) for step in self._steps]
            for i in range(len(run.frames))
        ]

    def fill(self, left: int, top: int, own: Tensor, out: Tensor) -> None:
        """Fill ``out`` (3, ``seen``, h, w) for the tile at ``left``, ``top`` whose frames' luma is ``own`` (3, h, w).

        Frames that are not restored see themselves, and so do frames that have no neighbour there.
        """
        assert self._frames is not None
        height, width = out.shape[2:]
        x0, y0 = max(left - MARGIN, 0), max(top - MARGIN, 0)
        x1, y1 = min(left + width + MARGIN, self._clip.width), min(top + height + MARGIN, self._clip.height)
        jobs: dict[int, list[tuple[Vectors, NDArray[np.float32]]]] = {}
        for index, pairs in enumerate(self._pairs):
            for position, pair in enumerate(pairs):
                vectors = self._vectors.get(pair)
                if vectors is None and self._decoded:
                    out[index, position] = own[index]
                    continue
                seen, vectors = (pair[0], self._still) if vectors is None else (pair[1], vectors)
                jobs.setdefault(seen, []).append((vectors, out[index, position].numpy()))
        luma = torch.empty((y1 - y0, x1 - x0), dtype=torch.float32)
        source = luma.numpy()

        def move(job: tuple[Vectors, NDArray[np.float32]]) -> None:
            compensate(source, (x0, y0), job[0], job[1], left, top)

        for other, targets in sorted(jobs.items()):
            self._frames.read_luma(self._sequence[other], x0, y0, luma)
            self._each(move, targets)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _prepare(self, planes: Planes, frames: FrameMap, memory: NDArray[np.uint8]) -> None:
        height, width = self._clip.height, self._clip.width
        band = torch.empty((min(_BAND, height), width), dtype=torch.float32)
        for top in range(0, height, _BAND):
            rows = band[: min(_BAND, height - top)]
            frames.read_luma(planes, 0, top, rows)
            search_luma(rows.numpy(), self._luma[top : top + len(rows)])
        self._aligner.prepare(self._luma, memory)

    def _each[Given, Made](self, work: Callable[[Given], Made], items: Iterable[Given]) -> list[Made]:
        made: Iterable[Made] = map(work, items)
        if self._pool is not None:
            # Once the main thread has ended no pool takes work any more, but the run under way is to be finished. What
            # was taken before that is done twice then, to the same effect.
            with contextlib.suppress(RuntimeError):
                made = self._pool.map(work, items)
        return list(made)


def memory_bound(clip: ClipFormat, seen: int, tile: tuple[int, int]) -> int:
    """Bytes that aligning takes at most for tiles of ``tile`` (width, height): the formula above."""
    if not seen:
        return 0
    padded = (clip.width + 256) * (clip.height + 256)
    beside = 12 * seen * tile[0] * tile[1]
    read = 4 * (tile[0] + 2 * MARGIN) * (tile[1] + 2 * MARGIN)
    return math.ceil(BYTES * (3 + 2 * (seen // 2)) * padded) + beside + read
