"""What to launch for one group: records and grids of planes.cu's kernels for a clip, a plan of tiles and addresses.

Knows no GPU: the CUDA backend launches what this makes through CuPy, the tests through a CPU stand-in for the grid.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsdiqp.clip import ClipFormat, FrameColour
from vsdiqp.kernels import colours, layouts
from vsdiqp.kernels.layouts import FRAMES, GROUP, Record, StagedFrame
from vsdiqp.planes import chroma_weighed
from vsdiqp.tiles import Axis, TilePlan

THREADS: Final = 256
"""Threads a block."""
_BLOCK_WIDTH, _BLOCK_HEIGHT = 64, 16  # planes.cu's BLOCK_WIDTH, BLOCK_HEIGHT


class Launch(NamedTuple):
    """One kernel launch: name, argument by value, blocks."""

    kernel: str
    record: Record
    grid: tuple[int, int, int]


def tables(plan: TilePlan, thumbnail: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Constant arrays that the kernels read: where tiles lie and their weights, taps and weights of the thumbnails."""
    found: dict[str, NDArray[Any]] = {}
    for name, axis in (("columns", plan.columns), ("rows", plan.rows)):
        starts = np.asarray(axis.starts, np.int32)
        found[f"{name}.start"] = starts
        covered = np.searchsorted(starts + axis.side, np.arange(axis.length), side="right")
        found[f"{name}.first"] = covered.astype(np.int32)
        found[f"{name}.weight"] = _weights(axis)
    for name, length, size in (
        ("thumbnail.column", plan.columns.length, thumbnail[1]),
        ("thumbnail.row", plan.rows.length, thumbnail[0]),
    ):
        first, weights = colours.cubic_taps(length, size)
        found[f"{name}.first"], found[f"{name}.weight"] = first.astype(np.int32), weights.astype(np.float32)
    return found


class PlaneProgram:
    """Makes the launches of a group. ``addresses`` holds the device address of each of `tables`' arrays.

    Frames are on the device, as `StagedFrame` says. Colours are the network's: "rgb" or "ycbcr".
    """

    def __init__(
        self,
        clip: ClipFormat,
        plan: TilePlan,
        thumbnail: tuple[int, int],
        network_colour: str,
        addresses: Mapping[str, int],
    ) -> None:
        self.staged = StagedFrame.of(clip)
        self._clip, self._plan, self._thumbnail = clip, plan, thumbnail
        self._network_colour, self._at = network_colour, dict(addresses)
        self._tiling = tiling_record(plan, addresses)

    def prepare(
        self, colour: FrameColour, frames: Sequence[int], first: int, count: int, tile: int, ahead: int
    ) -> Launch:
        """Cut tiles ``first`` to ``first + count`` of the staged ``frames`` (addresses of 3 or 4).

        ``tile``, ``ahead``: addresses of the results; ``ahead`` 0 where the network looks at no frame ahead.
        """
        record = np.zeros(1, layouts.PREPARE)
        self._common(record, colour, frames)
        record["tiling"] = self._tiling
        record["first_tile"], record["tile"], record["ahead"] = first, tile, ahead
        return Launch("prepare_tiles", record, (self._plan.rows.side, FRAMES if ahead else GROUP, count))

    def thumbnails(self, colour: FrameColour, frames: Sequence[int], around: int, ahead: int) -> Launch | None:
        """Shrink the staged frames; ``around`` or ``ahead`` is 0 where the network asks for none. None: no launch."""
        if not around and not ahead:
            return None
        record = np.zeros(1, layouts.SHRINK)
        self._common(record, colour, frames)
        record["height"], record["width"] = self._thumbnail
        for field, name in (
            ("first_column", "thumbnail.column.first"),
            ("first_row", "thumbnail.row.first"),
            ("weight_x", "thumbnail.column.weight"),
            ("weight_y", "thumbnail.row.weight"),
        ):
            record[field] = self._at[name]
        record["around"], record["ahead"] = around, ahead
        return Launch("thumbnails", record, (self._thumbnail[0], 3 if ahead else 2, 1))

    def finish(
        self,
        colour: FrameColour,
        frames: Sequence[int],
        prediction: int,
        targets: Sequence[int],
        strength: float,
        chroma: float = 1.0,
    ) -> Launch:
        """Add the predictions of all tiles (fp32) to the staged frames: `FrameMap.add`.

        ``targets``: addresses of three frames in staging, 0 where a frame is not wanted.
        """
        record = np.zeros(1, layouts.FINISH)
        self._common(record, colour, frames)
        record["tiling"] = self._tiling
        record["prediction"], record["strength"] = prediction, strength
        colours = record["colour"]["from_network"]
        colours[...] = chroma_weighed(colours, chroma)
        for index, base in enumerate(targets):
            record["target"][0, index] = self.staged.addresses(base) if base else 0
        width, height = self._clip.width, self._clip.height
        return Launch("finish_planes", record, (-(-width // _BLOCK_WIDTH), -(-height // _BLOCK_HEIGHT), GROUP))

    def _common(self, record: Record, colour: FrameColour, frames: Sequence[int]) -> None:
        record["layout"] = layout_record(self._clip, colour)
        record["colour"] = colour_record(self._clip, colour, self._network_colour)
        for index, base in enumerate(frames):
            record["source"][0, index] = self.staged.addresses(base)


def tiling_record(plan: TilePlan, addresses: Mapping[str, int]) -> Record:
    """Where the tiles lie, for a kernel; ``addresses`` as `PlaneProgram` takes them."""
    record = np.zeros(1, layouts.TILING)
    columns, rows = plan.columns, plan.rows
    record["width"], record["height"] = columns.side, rows.side
    record["columns"], record["rows"] = len(columns.starts), len(rows.starts)
    record["left"], record["top"] = addresses["columns.start"], addresses["rows.start"]
    record["first_column"], record["first_row"] = addresses["columns.first"], addresses["rows.first"]
    record["weight_x"], record["weight_y"] = addresses["columns.weight"], addresses["rows.weight"]
    return record


def _weights(axis: Axis) -> NDArray[np.float32]:
    """tiles x side; zero where a tile lies beyond the frame."""
    weights = np.zeros((len(axis.starts), axis.side), np.float32)
    for row, inside in zip(weights, axis.weights, strict=True):
        row[: len(inside)] = inside
    return weights


@lru_cache(maxsize=8)
def layout_record(clip: ClipFormat, colour: FrameColour) -> Record:
    """How staged frames lie, for a kernel."""
    staged = StagedFrame.of(clip)
    step_x, step_y = 1 << clip.subsampling_w, 1 << clip.subsampling_h
    record = np.zeros(1, layouts.LAYOUT)
    record["width"], record["height"], record["planes"] = clip.width, clip.height, len(staged.offsets)
    record["step_x"], record["step_y"] = step_x, step_y
    record["site_x"], record["site_y"] = colours.chroma_site(clip, colour)
    record["luma_pitch"], record["chroma_pitch"] = staged.pitches[0], staged.pitches[-1]
    return record


@lru_cache(maxsize=8)
def colour_record(clip: ClipFormat, colour: FrameColour, network_colour: str) -> Record:
    """What samples mean, for a kernel. Raises DiqpError as `FrameMap` does."""
    numbers = colours.colour_numbers(clip, colour, network_colour)
    record = np.zeros(1, layouts.COLOUR)
    count = len(numbers.zero)
    record["zero"][0, :count], record["scale"][0, :] = numbers.zero, 1.0
    record["scale"][0, :count] = numbers.scale
    record["to_network"][0, :, :count] = numbers.to_network
    record["from_network"][0, :count] = numbers.from_network
    record["bias"] = numbers.bias
    record["low"], record["high"] = numbers.limits
    record["wild"] = numbers.wild
    record["least"], record["most"] = numbers.legal
    return record
