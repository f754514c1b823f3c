"""What the plugin tells the engine about a clip and its frames: plain data, no behaviour, no heavy imports."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Planes = tuple[NDArray[Any], ...]
"""One or three planes of a frame: 2-D arrays (rows, columns), possibly strided, uint8, uint16, float16 or float32."""


@dataclass(frozen=True, slots=True)
class ClipFormat:
    """The constant format of a clip. Sizes in luma samples; subsampling as log2 factors (4:2:0 is 1, 1)."""

    family: str
    """"YUV", "GRAY" or "RGB"."""
    sample_type: str
    """"integer" or "float"."""
    bits: int
    """8..16 for integer, 16 or 32 for float."""
    subsampling_w: int
    subsampling_h: int
    width: int
    height: int
    frames: int
    """Length of the clip."""


@dataclass(frozen=True, slots=True)
class FrameColour:
    """How samples mean colour, resolved from frame properties (H.273 numbers) and guesses: nothing is unspecified."""

    matrix: int
    """H.273 matrix coefficients; 0 for RGB."""
    full_range: bool
    chroma_location: int
    """0 left, 1 centre, 2 top left, 3 top, 4 bottom left, 5 bottom (VapourSynth's _ChromaLocation)."""


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation of the network: three frames in, up to three restored frames out.

    A group without a scene cut is one run; a cut inside a group makes one run a side, with frames beyond the cut
    replaced by the nearest frame on this side.
    """

    frames: tuple[Planes, Planes, Planes]
    """Frames n-1, n, n+1 (read only)."""
    ahead: Planes
    """The look-ahead frame, n+1+T or its replacement (read only)."""
    targets: tuple[Planes | None, Planes | None, Planes | None]
    """Where to write the restored frames; None where the result is not wanted."""
    colour: FrameColour
    qp: float
    """Mean QP of the three frames in the codec's own scale."""
    codec: str
    """"hevc" or "av1"."""
    middle: int
    """Index n of the middle frame in the clip."""
    before: tuple[Planes, ...] = ()
    """The neighbours before the group, in the clip's order (read only). Beyond a scene cut or the clip's start, the
    nearest frame on this side instead, possibly one of ``frames``: then with the same memory."""
    after: tuple[Planes, ...] = ()
    """The neighbours after the group, as many, in the same way."""
    first: tuple[Planes, ...] = ()
    """Of networks with a first pass: ``before``, ``frames`` and ``after`` as that restored them (read only)."""

    @property
    def sequence(self) -> tuple[Planes, ...]:
        """The frames that neighbours are taken from, in order: those before the group, the group's, those after it."""
        return self.first or (*self.before, *self.frames, *self.after)


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments of ``core.diqp.Restore`` that concern the engine; None means the default of the model or device."""

    model: str = "auto"
    """A shipped name, the path of a checkpoint (.safetensors or a released .pt), or "auto": `default_model`."""
    look_ahead: int | None = None
    """T, frames between the group and its look-ahead frame; None takes the checkpoint's."""
    tile: tuple[int, int] | None = None
    """Width and height of a tile in pixels."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share at least."""
    strength: float = 1.0
    """0..1, scales the residual."""
    backend: str = "auto"
    """"auto", "cpu", "cuda" or "tensorrt"."""
    device: tuple[int, ...] = (0,)
    """GPU indices."""
    precision: str = "auto"
    """"auto", "fp32", "fp16" or "bf16"."""
    batch: int | None = None
    """Tiles evaluated together."""
