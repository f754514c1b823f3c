"""The structures that planes.cu and alignment.cu take by value, field for field, as numpy record types.

A size-one record array is passed to a kernel by value (CuPy's rule), and its bytes are the C structure: numpy's
``align=True`` places fields as C does. A test compares the sizes with the compiler's.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsdiqp.clip import ClipFormat
from vsdiqp.kernels import sources

GROUP: Final = 3
"""Frames restored together."""
FRAMES: Final = 4
"""The group and the look-ahead frame."""

Record = NDArray[np.void]

LAYOUT = np.dtype(
    [
        ("width", np.int32),
        ("height", np.int32),
        ("planes", np.int32),
        ("step_x", np.int32),
        ("step_y", np.int32),
        ("site_x", np.float32),
        ("site_y", np.float32),
        ("luma_pitch", np.int32),
        ("chroma_pitch", np.int32),
    ],
    align=True,
)

COLOUR = np.dtype(
    [
        ("zero", np.float32, (3,)),
        ("scale", np.float32, (3,)),
        ("to_network", np.float32, (3, 3)),
        ("bias", np.float32, (3,)),
        ("from_network", np.float32, (3, 3)),
        ("low", np.float32),
        ("high", np.float32),
        ("wild", np.float32),
        ("least", np.float32),
        ("most", np.float32),
    ],
    align=True,
)

TILING = np.dtype(
    [
        ("width", np.int32),
        ("height", np.int32),
        ("columns", np.int32),
        ("rows", np.int32),
        ("left", np.uint64),
        ("top", np.uint64),
        ("first_column", np.uint64),
        ("first_row", np.uint64),
        ("weight_x", np.uint64),
        ("weight_y", np.uint64),
    ],
    align=True,
)

PREPARE = np.dtype(
    [
        ("layout", LAYOUT),
        ("colour", COLOUR),
        ("tiling", TILING),
        ("source", np.uint64, (FRAMES, 3)),
        ("first_tile", np.int32),
        ("tile", np.uint64),
        ("ahead", np.uint64),
    ],
    align=True,
)

SHRINK = np.dtype(
    [
        ("layout", LAYOUT),
        ("colour", COLOUR),
        ("source", np.uint64, (FRAMES, 3)),
        ("width", np.int32),
        ("height", np.int32),
        ("first_column", np.uint64),
        ("first_row", np.uint64),
        ("weight_x", np.uint64),
        ("weight_y", np.uint64),
        ("around", np.uint64),
        ("ahead", np.uint64),
    ],
    align=True,
)

FINISH = np.dtype(
    [
        ("layout", LAYOUT),
        ("colour", COLOUR),
        ("tiling", TILING),
        ("source", np.uint64, (FRAMES, 3)),
        ("prediction", np.uint64),
        ("target", np.uint64, (GROUP, 3)),
        ("strength", np.float32),
    ],
    align=True,
)

KERNELS: Final = {"prepare_tiles": PREPARE, "thumbnails": SHRINK, "finish_planes": FINISH}
"""planes.cu's."""

LEVELS: Final = 4
"""Sizes that are searched for motion: motion.cuh's LEVELS."""

SEARCH_PLANE = np.dtype(
    [
        ("origin", np.int64),
        ("width", np.int32),
        ("height", np.int32),
        ("stride", np.int32),
    ],
    align=True,
)


@cache
def alignment_kernels(seen: int) -> dict[str, np.dtype[np.void]]:
    """alignment.cu's, for a number of frames that each is seen beside (`vsdiqp.alignment.seen_steps`)."""
    pairs = GROUP * seen
    read = np.dtype(
        [
            ("layout", LAYOUT),
            ("colour", COLOUR),
            ("plane", np.uint64, (GROUP + 2 * (seen // 2), 3)),
            ("luma", np.uint64),
            ("pitch", np.int32),
        ],
        align=True,
    )
    motion = np.dtype(
        [
            ("plane", SEARCH_PLANE, (LEVELS + 3,)),
            ("bytes", np.int64),
            ("luma", np.uint64),
            ("pitch", np.int32),
            ("memory", np.uint64),
            ("found", np.uint64, (LEVELS,)),
            ("own", np.int32, (pairs,)),
            ("other", np.int32, (pairs,)),
            ("plane_index", np.int32),
        ],
        align=True,
    )
    move = np.dtype(
        [
            ("tiling", TILING),
            ("width", np.int32),
            ("height", np.int32),
            ("luma", np.uint64),
            ("pitch", np.int32),
            ("vectors", np.uint64),
            ("wide", np.int32),
            ("high", np.int32),
            ("frame", np.int32, (pairs,)),
            ("pair", np.int32, (pairs,)),
            ("first_tile", np.int32),
            ("beside", np.uint64),
        ],
        align=True,
    )
    return {
        "read_luma": read,
        **dict.fromkeys(("search_planes", "halve_planes", "between_planes", "search_blocks"), motion),
        "move_luma": move,
    }


def modules(seen: int) -> dict[str, dict[str, np.dtype[np.void]]]:
    """The sources that a network that sees so many frames beside each needs, and their kernels."""
    found = {sources.PLANES: dict(KERNELS)}
    if seen:
        found[sources.ALIGNMENT] = alignment_kernels(seen)
    return found


def sample_macro(clip: ClipFormat) -> int:
    """pixels.cuh's SAMPLE for a clip."""
    if clip.sample_type == "float":
        return 100 + clip.bits
    return 8 if clip.bits == 8 else 16


def sample_dtype(clip: ClipFormat) -> np.dtype[Any]:
    """numpy's type of a clip's samples."""
    return np.dtype({8: np.uint8, 16: np.uint16, 116: np.float16, 132: np.float32}[sample_macro(clip)])


def compile_options(clip: ClipFormat, half_tiles: bool, seen: int) -> tuple[str, ...]:
    """NVRTC options for one clip format, number type of the tiles, and number of neighbours on each side."""
    macros = {"SAMPLE": sample_macro(clip), "NETWORK": int(half_tiles), "SEEN": seen}
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in macros.items()))


@dataclass(frozen=True, slots=True)
class StagedFrame:
    """Where the planes of a frame lie in staging, on the CPU and on the GPU: offsets and pitches in samples; rows start
    on 64-byte lines."""

    offsets: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    pitches: tuple[int, ...]
    samples: int
    """Length of the frame in staging."""
    itemsize: int
    """Bytes a sample."""

    @classmethod
    def of(cls, clip: ClipFormat) -> "StagedFrame":
        """The layout of a clip's frames."""
        itemsize = sample_dtype(clip).itemsize
        line = 64 // itemsize
        offsets, shapes, pitches, end = [], [], [], 0
        for plane in range(1 if clip.family == "GRAY" else 3):
            shift_w, shift_h = (clip.subsampling_w, clip.subsampling_h) if plane else (0, 0)
            width, height = clip.width >> shift_w, clip.height >> shift_h
            pitch = -(-width // line) * line
            offsets.append(end)
            shapes.append((height, width))
            pitches.append(pitch)
            end += pitch * height
        return cls(tuple(offsets), tuple(shapes), tuple(pitches), end, itemsize)

    @property
    def nbytes(self) -> int:
        """Size of the frame in staging."""
        return self.samples * self.itemsize

    def extent(self, planes: int) -> int:
        """Bytes from the start of the frame to the end of its first ``planes`` planes, or of all it has."""
        return (*self.offsets, self.samples)[min(planes, len(self.offsets))] * self.itemsize

    def views(self, staging: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """The planes as 2-D arrays over one frame's samples (1-D) in staging."""
        return tuple(
            staging[start : start + pitch * height].reshape(height, pitch)[:, :width]
            for start, pitch, (height, width) in zip(self.offsets, self.pitches, self.shapes, strict=True)
        )

    def addresses(self, base: int) -> list[int]:
        """Addresses of three planes from the address of the frame; a missing plane is 0."""
        found = [base + offset * self.itemsize for offset in self.offsets]
        return found + [0] * (3 - len(found))
