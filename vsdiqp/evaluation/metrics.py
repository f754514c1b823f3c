"""Quality of frames and of clips, in the conventions of the DiQP paper (RGB) and of the MFQE papers (luma).

All pictures here are float arrays scaled so that the format's range is 1: luma and RGB 0..1, chroma -0.5..0.5 (only
differences of chroma are used, so any offset does). PSNR is then ``-10 log10(mse)``; on the MFQE papers' 8-bit scale it
is the same number, because peak and error scale together.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]

PSNR_CEILING = 100.0
"""dB given to equal pictures and to anything closer than this, so that means stay finite."""


def psnr(picture: Picture, source: Picture) -> float:
    """PSNR in dB of two arrays of one shape with range 1, at most `PSNR_CEILING`."""
    error = float(np.mean(np.square(picture.astype(np.float64) - source)))
    return PSNR_CEILING if error <= 10 ** (-PSNR_CEILING / 10) else -10 * math.log10(error)


SSIM_WINDOW = 11
"""Least rows and columns of a picture whose SSIM is measured."""


def ssim(picture: Picture, source: Picture) -> float:
    """Mean SSIM of two planes (rows, columns) with range 1: Wang et al. 2004, Gaussian window of sigma 1.5.

    Raises ValueError for planes smaller than the window (11x11).
    """
    from skimage.metrics import structural_similarity

    value = structural_similarity(
        picture, source, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(value)


@dataclass(frozen=True, slots=True)
class FrameScores:
    """Measures of one frame against its source. None: not measured (grey clips, frames left out of SSIM)."""

    y_psnr: float
    """dB, luma."""
    c_psnr: float | None
    """dB, mean of the two chroma planes' PSNR."""
    rgb_psnr: float
    """dB, mean of the three channels' PSNR (the paper's mean)."""
    y_ssim: float | None
    rgb_ssim: float | None
    """Mean over the three channels."""
    change: float | None
    """How far this frame's luma residual (restored - input) is from the previous frame's: mean absolute difference in
    8-bit steps."""

    def to_json(self) -> dict[str, float | None]:
        """As plain numbers, rounded to what the measures can bear."""
        return {k: None if v is None else round(v, 6) for k, v in asdict(self).items()}


def fluctuation(values: Sequence[float]) -> tuple[float, float]:
    """Standard deviation and peak-valley difference (PVD) of per-frame PSNR, in dB.

    PVD after MFQE (Yang et al., CVPR 2018; Guan et al., TPAMI 2019): the mean difference between each peak frame and
    its nearest valley frames, peaks and valleys being frames above and below both neighbours. 0 where a clip has no
    peak or no valley.
    """
    series = np.asarray(values, np.float64)
    if series.size == 0:
        return 0.0, 0.0
    inner, before, after = series[1:-1], series[:-2], series[2:]
    peaks = np.flatnonzero((inner > before) & (inner > after)) + 1
    valleys = np.flatnonzero((inner < before) & (inner < after)) + 1
    if not peaks.size or not valleys.size:
        return float(series.std()), 0.0
    differences = []
    for peak in peaks:
        left, right = valleys[valleys < peak], valleys[valleys > peak]
        nearest = [*left[-1:], *right[:1]]
        differences.append(float(series[peak] - series[nearest].mean()))
    return float(series.std()), float(np.mean(differences))


def border_flicker(changes: Sequence[float | None], group: int = 3) -> tuple[float, float] | None:
    """How much the residual changes from frame to frame: (mean across group borders, mean within groups).

    ``changes[n]`` is `FrameScores.change` of frame n. A border lies before every frame whose index is a multiple of
    `group`. A restorer whose groups cannot be seen has about equal means. None where a clip is too short to compare.

    Frames less than a group from either end of the clip are left out. They have fewer neighbours, so residuals change
    less there, and the ends lie within groups: any filter's borders, even those of one that works frame by frame, would
    look worse than the rest.
    """
    inner = [(n, c) for n, c in enumerate(changes) if c is not None and group < n < len(changes) - group]
    across = [c for n, c in inner if n % group == 0]
    within = [c for n, c in inner if n % group != 0]
    return (float(np.mean(across)), float(np.mean(within))) if across and within else None


@dataclass(frozen=True, slots=True)
class ClipScores:
    """Measures of one clip: means over its frames, and how they vary. None: not measured."""

    y_psnr: float
    c_psnr: float | None
    rgb_psnr: float
    y_ssim: float | None
    rgb_ssim: float | None
    sd: float
    """dB, standard deviation of per-frame luma PSNR."""
    pvd: float
    """dB, peak-valley difference of per-frame luma PSNR."""
    across: float | None
    """8-bit steps, see `border_flicker`; None, as the next, of clips too short to compare."""
    within: float | None
    vmaf: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """As plain numbers."""
        return {k: None if v is None else round(v, 6) for k, v in asdict(self).items()}


def summarise(frames: Sequence[FrameScores], vmaf: float | None = None) -> ClipScores:
    """Means over the frames of a clip (at least one)."""
    sd, pvd = fluctuation([f.y_psnr for f in frames])
    across, within = border_flicker([f.change for f in frames]) or (None, None)
    return ClipScores(
        y_psnr=float(np.mean([f.y_psnr for f in frames])),
        c_psnr=mean_known([f.c_psnr for f in frames]),
        rgb_psnr=float(np.mean([f.rgb_psnr for f in frames])),
        y_ssim=mean_known([f.y_ssim for f in frames]),
        rgb_ssim=mean_known([f.rgb_ssim for f in frames]),
        sd=sd,
        pvd=pvd,
        across=across,
        within=within,
        vmaf=vmaf,
    )


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None, or None."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def frame_scores_from_json(data: dict[str, Any]) -> FrameScores:
    """Inverse of `FrameScores.to_json`."""
    return FrameScores(**{f.name: data[f.name] for f in fields(FrameScores)})
