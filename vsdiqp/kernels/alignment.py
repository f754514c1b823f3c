"""What to launch to align the neighbours of a group's frames: records and grids of alignment.cu's kernels.

Knows no GPU, as `vsdiqp.kernels.program`. The CPU's way is `vsdiqp.neighbours`, and both see the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from vsdiqp.alignment import BLOCK, seen_steps
from vsdiqp.clip import ClipFormat, FrameColour
from vsdiqp.kernels import layouts
from vsdiqp.kernels.layouts import GROUP, LEVELS, StagedFrame
from vsdiqp.kernels.program import Launch, colour_record, layout_record, tiling_record
from vsdiqp.tiles import TilePlan

PAD: Final = 96
"""Samples that planes go on beyond their edges: motion.cuh's PAD."""
_LINE: Final = 64  # bytes that rows of planes are multiples of, as in library.cpp
_BATCH: Final = 8  # alignment.cu's BATCH


class SearchPlane(NamedTuple):
    """A plane of `SearchPlanes`. ``origin``: of sample (0, 0), in bytes; ``stride``: bytes a row."""

    origin: int
    width: int
    height: int
    stride: int

    @property
    def padded_height(self) -> int:
        """Rows with the padding."""
        return self.height + 2 * PAD + BLOCK

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows of blocks, and blocks a row."""
        return -(-self.height // BLOCK), -(-self.width // BLOCK)


@dataclass(frozen=True, slots=True)
class SearchPlanes:
    """What is searched of a frame, in one block of memory as library.cpp lays it out: the levels, then the planes
    between samples across, down and both."""

    planes: tuple[SearchPlane, ...]
    nbytes: int

    @classmethod
    def of(cls, width: int, height: int) -> "SearchPlanes":
        """The planes of frames of a size."""
        planes, end = [], 0
        for level in (*range(LEVELS), 0, 0, 0):
            w, h = ((size + (1 << level) - 1) >> level for size in (width, height))
            stride = -(-(w + 2 * PAD + BLOCK) // _LINE) * _LINE
            planes.append(SearchPlane(end + PAD * stride + PAD, w, h, stride))
            end += stride * planes[-1].padded_height
        return cls(tuple(planes), end)


class Pairs(NamedTuple):
    """Who is looked for in whom, by the places of the frames in staging."""

    moving: tuple[tuple[int, int], ...]
    """Own frame and other frame of every search."""
    seen: tuple[tuple[int, int], ...]
    """For every frame of the group and each of its neighbours: the frame seen, and the search that says how it moved;
    -1: as it lies."""

    @classmethod
    def of(cls, places: Sequence[int], wanted: Sequence[bool], seen: int) -> "Pairs":
        """``places`` of the run's sequence (the frames before the group, the group, those after it); ``wanted``:
        which frames of the group are restored. The others see themselves, unless one has the place of one that is.
        ``seen``: how many frames each is seen beside (`vsdiqp.alignment.seen_steps`).
        """
        before = seen // 2
        pairs = [
            (places[before + frame], places[before + frame + step])
            for frame in range(GROUP)
            for step in seen_steps(seen)
        ]
        moving = {pair: None for index, pair in enumerate(pairs) if wanted[index // seen] and pair[0] != pair[1]}
        number = {pair: index for index, pair in enumerate(moving)}
        return cls(tuple(moving), tuple((o, number[own, o]) if (own, o) in number else (own, -1) for own, o in pairs))


def buffers(clip: ClipFormat, seen: int) -> dict[str, int]:
    """Bytes of the memory that the kernels work in, by name: luma, search planes, vectors."""
    frames, searched = GROUP + 2 * (seen // 2), SearchPlanes.of(clip.width, clip.height)
    blocks = sum(rows * columns for rows, columns in (plane.blocks for plane in searched.planes[:LEVELS]))
    return {
        "luma": frames * clip.height * _pitch(clip) * 4,
        "search": frames * searched.nbytes,
        "vectors": GROUP * seen * blocks * 4,
    }


class AlignmentProgram:
    """Makes the launches. ``addresses`` holds those of `program.tables`' arrays and of `buffers`' memory.

    One run at a time: what `search` finds lies in the buffers until the next search, where `move` takes it from.
    """

    def __init__(
        self, clip: ClipFormat, plan: TilePlan, seen: int, network_colour: str, addresses: Mapping[str, int]
    ) -> None:
        self._clip, self._network_colour = clip, network_colour
        # Rows of blocks, as many as a tile that starts anywhere may touch.
        self._tile_rows = (plan.rows.side + BLOCK - 2) // BLOCK + 1
        self._staged = StagedFrame.of(clip)
        self._searched = SearchPlanes.of(clip.width, clip.height)
        kernels = layouts.alignment_kernels(seen)
        # What every run's records have in common.
        self._read, self._motion, self._move = (
            np.zeros(1, kernels[name]) for name in ("read_luma", "search_planes", "move_luma")
        )
        for record in (self._read, self._motion, self._move):
            record["luma"], record["pitch"] = addresses["luma"], _pitch(clip)
        self._motion["plane"][0] = np.array(list(self._searched.planes), layouts.SEARCH_PLANE)
        self._motion["bytes"], self._motion["memory"] = self._searched.nbytes, addresses["search"]
        at = addresses["vectors"]
        for level in range(LEVELS):
            rows, columns = self._searched.planes[level].blocks
            self._motion["found"][0, level] = at
            at += GROUP * seen * rows * columns * 4
        self._move["tiling"] = tiling_record(plan, addresses)
        self._move["width"], self._move["height"] = clip.width, clip.height
        self._move["vectors"] = addresses["vectors"]
        self._move["high"], self._move["wide"] = self._searched.planes[0].blocks

    def needs_chroma(self, colour: FrameColour) -> bool:
        """Whether the network's luma is made of more than the first plane."""
        record = colour_record(self._clip, colour, self._network_colour)
        return bool(record["to_network"][0, 0, 1:].any())

    def search(self, colour: FrameColour, frames: Sequence[int], pairs: Pairs) -> Iterator[Launch]:
        """Read the staged ``frames`` (addresses of the distinct ones, by place) and find the motion of ``pairs``.

        One by one, so that the first kernel can run while the others' records are still being made.
        """
        count = len(frames)
        read = self._read.copy()
        read["layout"] = layout_record(self._clip, colour)
        read["colour"] = colour_record(self._clip, colour, self._network_colour)
        planes = len(self._staged.offsets) if self.needs_chroma(colour) else 1
        for place, base in enumerate(frames):
            read["plane"][0, place, :planes] = self._staged.addresses(base)[:planes]
        yield Launch("read_luma", read, (self._clip.height, count, 1))
        if not pairs.moving:
            return

        motion = self._motion.copy()
        motion["own"][0, : len(pairs.moving)], motion["other"][0, : len(pairs.moving)] = np.transpose(pairs.moving)
        whole, *smaller = self._searched.planes[:LEVELS]

        def launch(kernel: str, index: int, grid: tuple[int, int, int]) -> Launch:
            record = motion.copy()
            record["plane_index"] = index
            return Launch(kernel, record, grid)

        yield launch("search_planes", 0, (whole.padded_height, count, 1))
        for level, plane in enumerate(smaller, 1):
            yield launch("halve_planes", level, (plane.padded_height, count, 1))
        yield launch("between_planes", LEVELS, (whole.padded_height, count, 2))
        yield launch("between_planes", LEVELS + 2, (whole.padded_height, count, 1))
        for level in reversed(range(LEVELS)):
            rows, columns = self._searched.planes[level].blocks
            yield launch("search_blocks", level, (-(-rows * columns // _BATCH), len(pairs.moving), 1))

    def move(self, pairs: Pairs, first: int, count: int, beside: int) -> Launch:
        """Fill ``beside`` (address of count, 3, ``seen``, h, w fp32) for tiles ``first`` to ``first + count``."""
        record = self._move.copy()
        record["frame"], record["pair"] = np.transpose(pairs.seen)
        record["first_tile"], record["beside"] = first, beside
        return Launch("move_luma", record, (self._tile_rows, len(pairs.seen), count))


def _pitch(clip: ClipFormat) -> int:
    """Samples a row of luma: rows start on 64-byte lines."""
    return -(-clip.width // 16) * 16
