"""The QP scales the networks are trained on, and how other codecs' quantisers are put on them.

HEVC's QP, 26 + init_qp_minus26 + slice_qp_delta (H.265, 7.4.7.1), is logarithmic: the quantiser step doubles every 6
(8.6.4.2: levelScale). Its luma range is -QpBdOffset..51, with QpBdOffset = 6 * (bit depth - 8): a 10-bit stream can use
QP -12. Whatever the depth, one QP is about one amount of damage relative to the full range, because the offset cancels
the finer samples. QPs below 0 are nearly lossless and no network has seen any, so readers clamp them to 0.

AV1's base_q_idx is an index 0..255 into a table of steps (AV1 specification, 7.12.2), the same for every depth in
relative terms; 0 may mean lossless.

Codecs that no network is trained on go onto the scale of the nearest relative by equal quantiser step, since the step
is what sets the size of the error, corrected where encodes were measured to differ. HEVC's step is 2^((QP - 4) / 6) in
units of an orthonormal transform (8.6.4.2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vsdiqp.errors import DiqpError


@dataclass(frozen=True, slots=True)
class QpScale:
    """A codec's quantiser scale as users and networks of vsdiqp see it."""

    codec: str
    """Name in arguments and in the frame property ``_Codec``."""
    title: str
    """Name for people, with the quantity meant."""
    low: int
    """Smallest value accepted: the best quality."""
    high: int
    """Largest value accepted: the worst quality."""

    def check(self, qp: float) -> float:
        """Return ``qp`` when it is a finite number in ``low..high``, else raise :class:`DiqpError`."""
        if not (math.isfinite(qp) and self.low <= qp <= self.high):
            raise DiqpError(f"QP {qp:g} is out of range: {self.title} is {self.low} to {self.high}")
        return qp

    def clamp(self, qp: float) -> float:
        """Return the value of ``low..high`` nearest to ``qp``."""
        return min(max(qp, self.low), self.high)


CODECS: dict[str, QpScale] = {
    scale.codec: scale
    for scale in (
        QpScale("hevc", "HEVC's QP", 0, 51),
        QpScale("av1", "AV1's base_q_idx", 0, 255),
    )
}
"""Every scale a network may be trained on, by codec name."""


def scale_of(codec: str) -> QpScale:
    """Return the scale of ``codec``; raise :class:`DiqpError` for a name that is none of ``CODECS``."""
    try:
        return CODECS[codec]
    except KeyError:
        raise DiqpError(f"unknown codec {codec!r}: give one of {', '.join(sorted(CODECS))}") from None


def check_qp(codec: str, qp: float) -> float:
    """Return ``qp`` when it lies on ``codec``'s scale; raise :class:`DiqpError` saying what is accepted."""
    return scale_of(codec).check(qp)


@dataclass(frozen=True, slots=True)
class ForeignScale:
    """How the quantiser of a codec without a network of its own goes onto one of ``CODECS``."""

    codec: str
    """The scale it is put on."""
    convert: Callable[[float, int], float]
    """(mean block quantiser, bit depth) to a value on that scale, not clamped."""


def _from_h264(qp: float, bits: int) -> float:
    """H.264 has HEVC's step (H.264, 8.5.9) and about its damage.

    FFmpeg's block QPs count from 0 at every depth, the standard's from -QpBdOffset (7.4.2.1.1).
    """
    return qp - 6 * (bits - 8)


def _from_vp9(index: float, bits: int) -> float:
    """AV1 took over VP9's tables of steps and the gain of its transforms, so the index is the same."""
    return index


def _from_mpeg2(scale: float, bits: int) -> float:
    """MPEG-2's step is quantiser_scale where the weighting matrix is 16, as for all of inter blocks by default.

    From ISO/IEC 13818-2, 7.4.2.3: F = 2 * QF * W * quantiser_scale / 32, with an orthonormal transform. At equal steps
    MPEG-2 does more damage than HEVC, which has in-loop filters and better prediction: as much as 4 QP, the same at
    every scale (docs/qp.md).
    """
    return 4 + 6 * math.log2(max(scale, 1.0)) + 4


def _from_mpeg4(scale: float, bits: int) -> float:
    """MPEG-4 ASP, whose default quantiser is H.263's with its wide dead zone: 1 QP worse than MPEG-2 (docs/qp.md)."""
    return _from_mpeg2(scale, bits) + 1


FOREIGN: dict[str, ForeignScale] = {
    "h264": ForeignScale("hevc", _from_h264),
    "vp9": ForeignScale("av1", _from_vp9),
    "mpeg1video": ForeignScale("hevc", _from_mpeg2),
    "mpeg2video": ForeignScale("hevc", _from_mpeg2),
    "mpeg4": ForeignScale("hevc", _from_mpeg4),
}
"""By FFmpeg's name of the codec. FFmpeg gives MPEG-1 and MPEG-4 quantisers in MPEG-2's unit."""
