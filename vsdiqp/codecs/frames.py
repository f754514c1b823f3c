"""What a scan finds in a file: plain data shared by the readers, the cache and the reports."""

from dataclasses import dataclass, field
from typing import Final

CUTREE_OFFSET: Final = -2
"""What to add to the HEVC QPs in the headers of x265 with cutree, so that the picture gains most (docs/qp.md)."""
MPEG2_OFFSET: Final = 4
"""What to add to MPEG-2's QPs on HEVC's scale for the same reason: its damage is of a coarser kind than HEVC's."""


@dataclass(frozen=True, slots=True)
class CodedFrame:
    """One frame as a decoder outputs it."""

    qp: int
    """The stream's own quantiser in its codec's unit, unclamped: from headers, or the mean of its blocks."""
    kind: str
    """"I", "P", "B" or "b" in x265's naming, by the freest prediction any slice of the frame may use: other frames
    may be predicted from a "B", none from a "b". AV1 and VP9 know I and P only; where frames are decoded, all B are
    "B"."""
    key: bool
    """Decoding can start here."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Everything read from one file."""

    stream_codec: str
    """FFmpeg's name of the codec: "hevc", "av1", "h264", "vp9", "mpeg2video" and so on."""
    codec: str
    """The scale of ``qps``: "hevc" or "av1"."""
    profile: str
    """The stream's profile as FFmpeg names it; empty when unknown."""
    bits: int
    """Bit depth of the samples."""
    width: int
    """Luma samples."""
    height: int
    """Luma samples."""
    encoder: str
    """What the encoder wrote about itself and its settings; empty when it wrote nothing."""
    frames: list[CodedFrame] = field(repr=False)
    """In presentation order, the ones a decoder outputs."""
    qps: list[int] = field(repr=False)
    """For every frame the value on ``codec``'s scale, clamped to it: what ``Restore(qp=...)`` takes."""
    unreadable: int = 0
    """Packets whose headers FFmpeg could not parse."""
    complete: bool = True
    """Whether a decoder is sure to output all of the frames; False where new sequences of HEVC have it drop some."""

    @property
    def qp_offset(self) -> int:
        """What Restore should add to ``qps``, on their scale: 0 unless the codec or the encoder's settings ask for it.

        x265 with cutree spares the blocks that later frames are predicted from and raises the QP in the header to pay
        for it. docs/qp.md has the measurements.
        """
        if self.stream_codec == "mpeg2video":
            return MPEG2_OFFSET
        words = self.encoder.split()
        return CUTREE_OFFSET if self.stream_codec == "hevc" and "x265" in words and "cutree" in words else 0
