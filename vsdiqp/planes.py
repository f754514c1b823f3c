"""Pixel formats: a frame's planes to the network's colours, and the network's residual back into the same planes.

Everything here is linear but the limits, so only what the network ADDS travels back: through the matrix of the clip,
down to the chroma grid, onto the original samples, rounded once. Where it adds nothing the samples stay bit-identical.

Numbers of ITU-T H.273: code values of section 8.3 (limited and full range), matrix coefficients of table 4, chroma
sample locations of figure 1. Chroma is interpolated linearly between its samples, edges clamped; the way down is the
transpose of that interpolation with every row of weights normalised to sum one.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsdiqp.clip import ClipFormat, FrameColour, Planes
from vsdiqp.errors import DiqpError

NETWORK_COLOURS: Final = ("rgb", "ycbcr")

_KR_KB: Final = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Red and blue weights of luma by H.273 matrix number: BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020."""

_YCGCO: Final = 8

WILD: Final = 4.0
"""Float samples are read no further from zero than this, which keeps the arithmetic finite whatever a clip holds."""


def rgb_to_yuv(matrix: int) -> NDArray[np.float64]:
    """Linear map from R, G, B to Y, Cb, Cr (Y 0..1, chroma -0.5..0.5) as a 3x3 array (H.273, 8.3).

    Raises DiqpError for matrix numbers that are not linear or need more than the number to be known.
    """
    if matrix == _YCGCO:
        return np.array([[0.25, 0.5, 0.25], [-0.25, 0.5, -0.25], [0.5, 0.0, -0.5]])
    if matrix not in _KR_KB:
        raise DiqpError(
            f"the frame's _Matrix is {matrix}, but this model works in RGB and converts from matrices "
            f"{', '.join(map(str, sorted((*_KR_KB, _YCGCO))))} only; convert with core.resize first, "
            "or set the right _Matrix with core.std.SetFrameProps"
        )
    kr, kb = _KR_KB[matrix]
    luma = np.array([kr, 1.0 - kr - kb, kb])
    blue = (np.array([0.0, 0.0, 1.0]) - luma) / (2.0 * (1.0 - kb))
    red = (np.array([1.0, 0.0, 0.0]) - luma) / (2.0 * (1.0 - kr))
    return np.stack((luma, blue, red))


class ChromaAxis:
    """One axis of a subsampled plane: chroma sample i lies at ``i * factor + offset`` on the luma grid of that axis.

    ``offset`` is 0 for left or top siting, ``(factor - 1) / 2`` for centred, ``factor - 1`` for bottom; ``length``
    counts chroma samples, the luma axis is ``factor`` times as long.
    """

    def __init__(self, factor: int, offset: float, length: int) -> None:
        self.factor, self.offset, self.length = factor, offset, length
        shifts = [(phase - offset) / factor for phase in range(factor)]
        self._phases = [(math.floor(shift), shift - math.floor(shift)) for shift in shifts]
        reach = range(math.floor(offset - factor) + 1, math.ceil(offset + factor))
        self._taps = [(tap, (1.0 - abs(tap - offset) / factor) / factor) for tap in reach]
        # Only the outermost chroma samples differ from the rule: there the interpolation is clamped, so its transpose
        # collects whole luma samples beyond them and lacks those outside the frame.
        end = factor * length
        from_first = np.arange(min(math.ceil(offset + factor), end)) - offset
        last = offset + (length - 1) * factor
        from_last = np.arange(max(0, math.floor(last - factor) + 1), end) - last
        self._first = np.clip(1.0 - from_first / factor, 0.0, 1.0) if length > 1 else np.ones(factor)
        self._last = np.clip(1.0 + from_last / factor, 0.0, 1.0) if length > 1 else np.ones(factor)
        self._first /= self._first.sum()
        self._last /= self._last.sum()

    @property
    def reach(self) -> int:
        """Luma samples beyond a cell of ``factor`` that its chroma sample can depend on or have an effect on."""
        return self.factor - 1

    def window(self, start: int, stop: int) -> tuple[int, int, int, int]:
        """First and last + 1 chroma sample for luma ``start..stop``, and how many more lie outside at each end."""
        if self.factor == 1:
            return start, stop, 0, 0
        first, last = start // self.factor - 1, -(-stop // self.factor) + 1
        return max(first, 0), min(last, self.length), max(-first, 0), max(last - self.length, 0)

    def expand(self, chroma: Tensor, dim: int, start: int, stop: int) -> Tensor:
        """Interpolate the chroma samples of ``window(start, stop)`` to luma positions ``start..stop`` along ``dim``."""
        if self.factor == 1:
            return chroma
        _, _, before, after = self.window(start, stop)
        cells = -(-stop // self.factor) - start // self.factor
        padded = _extend(chroma, dim, before, after)
        shape = list(chroma.shape)
        shape[dim] = cells * self.factor
        luma = chroma.new_empty(shape)
        for phase, (base, fraction) in enumerate(self._phases):
            out = _stride(luma, dim, phase, self.factor, cells)
            low = padded.narrow(dim, 1 + base, cells)
            if fraction == 0.0:
                out.copy_(low)
            else:
                torch.lerp(low, padded.narrow(dim, 2 + base, cells), fraction, out=out)
        return luma.narrow(dim, start % self.factor, stop - start)

    def interpolation(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
        """For luma ``positions`` on this axis: lower chroma index, upper chroma index, weight of the upper one."""
        where = np.clip((positions - self.offset) / self.factor, 0.0, self.length - 1.0)
        low = np.floor(where).astype(np.int64)
        return low, np.minimum(low + 1, self.length - 1), torch.tensor(where - low, dtype=torch.float32)

    def reduce(self, luma: Tensor, dim: int, first: int, start: int, stop: int) -> Tensor:
        """Chroma samples ``start..stop`` of ``luma``, whose index 0 along ``dim`` is luma position ``first``.

        ``luma`` must hold ``reach`` positions beyond the cells ``start..stop`` on both sides where the frame has them.
        """
        if self.factor == 1:
            return luma.narrow(dim, start - first, stop - start)
        end = self.factor * self.length
        shape = list(luma.shape)
        shape[dim] = stop - start
        chroma = luma.new_zeros(shape)
        for tap, weight in self._taps:
            low = max(start, -(tap // self.factor))
            high = min(stop, (end - 1 - tap) // self.factor + 1)
            if low < high:
                source = _stride(luma, dim, low * self.factor + tap - first, self.factor, high - low)
                chroma.narrow(dim, low - start, high - low).add_(source, alpha=weight)
        if start == 0:
            self._edge(chroma.select(dim, 0), luma, dim, -first, self._first)
        if stop == self.length:
            self._edge(chroma.select(dim, -1), luma, dim, end - len(self._last) - first, self._last)
        return chroma

    @staticmethod
    def _edge(out: Tensor, luma: Tensor, dim: int, start: int, weights: NDArray[np.float64]) -> None:
        out.zero_()
        for index, weight in enumerate(weights.tolist()):
            out.add_(luma.select(dim, start + index), alpha=weight)


def _stride(tensor: Tensor, dim: int, start: int, step: int, count: int) -> Tensor:
    index = [slice(None)] * tensor.dim()
    index[dim] = slice(start, start + (count - 1) * step + 1, step)
    return tensor[tuple(index)]


def _extend(tensor: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Repeat the first and last sample along ``dim``."""
    if not before and not after:
        return tensor
    parts = [tensor.narrow(dim, 0, 1)] * before + [tensor] + [tensor.narrow(dim, -1, 1)] * after
    return torch.cat(parts, dim)


@dataclass(frozen=True, slots=True)
class Code:
    """How the code values of one plane mean numbers: ``value = (code - zero) / scale``."""

    zero: float
    scale: float


class FrameMap:
    """Reads frames of one format and colour meaning as network colours, and adds residuals to their planes.

    ``network_colour`` is "rgb" (R, G, B in 0..1, the input limited to that) or "ycbcr" (Y in 0..1, Cb and Cr centred
    at 0.5, 4:4:4, in the clip's own matrix; of an RGB clip BT.709's). A GRAY clip is R = G = B, or Y with neutral
    chroma. Integer samples may lie outside the nominal range; "ycbcr" networks see them as they are.

    ``codes`` (a plane each), ``legal`` (what a residual may make of a sample), ``x`` and ``y`` (chroma axes),
    ``to_network`` (3 x planes), ``to_clip`` (planes x 3), ``bias`` and ``limits`` are the numbers it computes with, for
    those who do it elsewhere.
    """

    def __init__(
        self, clip: ClipFormat, colour: FrameColour, network_colour: str, device: torch.device | str = "cpu"
    ) -> None:
        """Raises DiqpError when the network's colours can't be reached from this format and matrix."""
        if network_colour not in NETWORK_COLOURS:
            raise DiqpError(
                f"the model works in the colours {network_colour!r}, which are not one of {NETWORK_COLOURS}"
            )
        self.width, self.height = clip.width, clip.height
        self._device = torch.device(device)
        self._integer = clip.sample_type == "integer"
        self.legal = _legal(clip)
        self.codes = _codes(clip, colour.full_range)
        self._subsampled = clip.family == "YUV" and clip.subsampling_w + clip.subsampling_h > 0
        factor_w, factor_h = (1 << clip.subsampling_w, 1 << clip.subsampling_h) if clip.family == "YUV" else (1, 1)
        if clip.width % factor_w or clip.height % factor_h:
            raise DiqpError(
                f"the frame is {clip.width}x{clip.height}, which its chroma subsampling {factor_w}x{factor_h} does not "
                "divide; crop or pad it first"
            )
        across = 0.0 if colour.chroma_location in (0, 2, 4) else (factor_w - 1) / 2
        down = {0: (factor_h - 1) / 2, 1: (factor_h - 1) / 2, 2: 0.0, 3: 0.0}.get(colour.chroma_location, factor_h - 1)
        self.x = ChromaAxis(factor_w, across, clip.width // factor_w)
        self.y = ChromaAxis(factor_h, down, clip.height // factor_h)

        self.to_network, self.to_clip = _matrices(clip.family, colour.matrix, network_colour)
        self._identity = clip.family == "YUV" and network_colour == "ycbcr"
        self.bias = (0.0, 0.5, 0.5) if network_colour == "ycbcr" else (0.0, 0.0, 0.0)
        self.limits = (0.0, 1.0)
        if network_colour == "ycbcr":
            # Integer samples lie a little beyond the nominal range at most; only wild floats reach these.
            self.limits = (-math.inf, math.inf) if self._integer else (-0.125, 1.125)

    @property
    def margin(self) -> int:
        """Rows of residual beyond the rows written that ``add`` needs, where the frame has them."""
        return self.y.reach

    @property
    def row_step(self) -> int:
        """Rows are written in multiples of this."""
        return self.y.factor

    def read(self, planes: Planes, left: int, top: int, out: Tensor) -> None:
        """Fill ``out`` (3,h,w fp32) with the network colours at ``left``, ``top``; the frame's edge goes on."""
        height, width = min(out.shape[1], self.height - top), min(out.shape[2], self.width - left)
        inside = out[:, :height, :width]
        native = inside if self._identity else out.new_empty((len(planes), height, width))
        for index, plane in enumerate(planes):
            if index and self._subsampled:
                x0, x1, _, _ = self.x.window(left, left + width)
                y0, y1, _, _ = self.y.window(top, top + height)
                chroma = self._decode(plane[y0:y1, x0:x1], index)
                chroma = self.x.expand(chroma, 1, left, left + width)
                native[index].copy_(self.y.expand(chroma, 0, top, top + height))
            else:
                self._decode(plane[top : top + height, left : left + width], index, native[index])
        self._to_network(native, inside)
        out[:, :height, width:] = inside[:, :, -1:]
        out[:, height:] = out[:, height - 1 : height]

    def read_luma(self, planes: Planes, left: int, top: int, out: Tensor) -> None:
        """Fill ``out`` (h,w fp32) with the first of the network's colours; the region lies inside the frame."""
        height, width = out.shape
        rows, columns = slice(top, top + height), slice(left, left + width)
        if self._identity:
            self._decode(planes[0][rows, columns], 0, out)
            if math.isfinite(self.limits[0]):
                out.clamp_(*self.limits)
            return
        colours = out.new_empty((3, height, width))
        self.read(planes, left, top, colours)
        out.copy_(colours[0])

    def sample(self, planes: Planes, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Tensor:
        """Network colours (3,rows,columns) at the crossings of the given rows and columns of the luma grid only."""
        native = torch.empty((len(planes), len(rows), len(columns)), dtype=torch.float32, device=self._device)
        for index, plane in enumerate(planes):
            if index and self._subsampled:
                y0, y1, fy = self.y.interpolation(rows)
                x0, x1, fx = self.x.interpolation(columns)
                ys, xs = np.union1d(y0, y1), np.union1d(x0, x1)
                chroma = self._decode(plane[np.ix_(ys, xs)], index)
                chroma = _between(chroma, 1, np.searchsorted(xs, x0), np.searchsorted(xs, x1), fx.to(self._device))
                fy = fy.to(self._device)[:, None]
                native[index].copy_(_between(chroma, 0, np.searchsorted(ys, y0), np.searchsorted(ys, y1), fy))
            else:
                self._decode(plane[np.ix_(rows, columns)], index, native[index])
        out = native if self._identity else native.new_empty((3, len(rows), len(columns)))
        self._to_network(native, out)
        return out

    def add(
        self,
        source: Planes,
        target: Planes,
        residual: Tensor,
        first: int,
        start: int,
        stop: int,
        strength: float = 1.0,
        chroma: float = 1.0,
    ) -> None:
        """Write rows ``start..stop`` of ``target``: those of ``source`` plus ``strength`` times the residual, of whose
        second and third colour ``chroma`` counts (`chroma_weighed`).

        ``residual`` is 3,h,width in network colours with its row 0 at frame row ``first``; it must reach ``margin``
        rows beyond ``start..stop`` where the frame has them. ``start`` and ``stop`` are multiples of ``row_step``.
        """
        around = max(first, start - self.margin)
        residual = residual[:, around - first : stop + self.margin - first]
        rows = residual.narrow(1, start - around, stop - start)
        for index, (old, new) in enumerate(zip(source, target, strict=True)):
            weights = chroma_weighed(self.to_clip[index], chroma)
            gain = self.codes[index].scale * strength
            if index and self._subsampled:
                low, high = start // self.y.factor, stop // self.y.factor
                change = _combine(residual, weights)
                change = self.y.reduce(change, 0, around, low, high)
                change = self.x.reduce(change, 1, 0, 0, self.x.length)
                self._encode(old[low:high], new[low:high], change, gain)
            else:
                self._encode(old[start:stop], new[start:stop], _combine(rows, weights), gain)

    def _decode(self, samples: NDArray[Any], index: int, out: Tensor | None = None) -> Tensor:
        """Code values to numbers, biased already where they are network colours as they stand."""
        out = _load(samples, self._device, out)
        code = self.codes[index]
        if self._integer:
            out.sub_(code.zero).mul_(1.0 / code.scale)
        else:
            out.nan_to_num_(0.0, WILD, -WILD).clamp_(-WILD, WILD)
        if self._identity and self.bias[index]:
            out.add_(self.bias[index])
        return out

    def _to_network(self, native: Tensor, out: Tensor) -> None:
        if not self._identity:
            for channel, (weights, bias) in enumerate(zip(self.to_network, self.bias, strict=True)):
                _weigh(native, weights, out[channel])
                if bias:
                    out[channel].add_(bias)
        if math.isfinite(self.limits[0]):
            out.clamp_(*self.limits)

    def _encode(self, old: NDArray[Any], new: NDArray[Any], change: Tensor, gain: float) -> None:
        value = _load(old, self._device)
        least, most = self.legal
        if self._integer and most == np.iinfo(old.dtype).max:
            value.add_(change, alpha=gain).add_(0.5).floor_().clamp_(least, most)
        else:
            # What lies outside already is carried no farther, but not brought in either.
            result = value.add(change, alpha=gain)
            if self._integer:
                result.add_(0.5).floor_()
            if math.isfinite(most):
                torch.minimum(result, value.clamp(min=most), out=result)
                torch.maximum(result, value.clamp(max=least), out=result)
            # Adding +0.0 would turn -0.0 into +0.0: untouched samples stay as they are, to the bit.
            value = result if self._integer else torch.where(change == 0.0, value, result)
        _store(value, new)


def chroma_weighed(weights: NDArray[np.float64], chroma: float) -> NDArray[np.float64]:
    """Weights of the network's colours (last axis: Y, Cb, Cr), those of its chroma times ``chroma``."""
    return weights if chroma == 1.0 else weights * np.array([1.0, chroma, chroma])


def _combine(residual: Tensor, weights: NDArray[np.float64]) -> Tensor:
    nonzero = np.flatnonzero(weights)
    if len(nonzero) == 1 and weights[nonzero[0]] == 1.0:
        return residual[nonzero[0]]
    return _weigh(residual, weights, residual.new_empty(residual.shape[1:]))


def identity(planes: Planes) -> tuple[int, ...]:
    """What tells frames apart for as long as all of them are held: where their planes lie."""
    return tuple(plane.__array_interface__["data"][0] for plane in planes)


@lru_cache(maxsize=8)
def frame_map(
    clip: ClipFormat, colour: FrameColour, network_colour: str, device: torch.device | str = "cpu"
) -> FrameMap:
    """The FrameMap for these formats; colour properties seldom change inside a clip."""
    return FrameMap(clip, colour, network_colour, device)


def _codes(clip: ClipFormat, full_range: bool) -> tuple[Code, ...]:
    planes = 1 if clip.family == "GRAY" else 3
    if clip.sample_type == "float":
        return (Code(0.0, 1.0),) * planes
    step = 2.0 ** (clip.bits - 8)
    peak = 2.0**clip.bits - 1.0
    level = Code(0.0, peak) if full_range else Code(16.0 * step, 219.0 * step)
    if clip.family != "YUV":
        return (level,) * planes
    chroma = Code(128.0 * step, peak if full_range else 224.0 * step)
    return level, chroma, chroma


def _legal(clip: ClipFormat) -> tuple[float, float]:
    """Bounds of what a residual may make of a sample. YUV and GRAY have room beyond black and white in integers, and
    so in float; RGB has none."""
    if clip.sample_type == "integer":
        return 0.0, 2.0**clip.bits - 1.0
    return (0.0, 1.0) if clip.family == "RGB" else (-math.inf, math.inf)


def _matrices(family: str, matrix: int, network_colour: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From the clip's channels to the network's, and from the network's residual to the clip's."""
    eye = np.eye(3)
    if family == "YUV":
        if network_colour == "ycbcr":
            return eye, eye
        to_yuv = rgb_to_yuv(matrix)
        return np.linalg.inv(to_yuv), to_yuv
    if family == "RGB":
        if network_colour == "rgb":
            return eye, eye
        to_yuv = rgb_to_yuv(1)
        return to_yuv, np.linalg.inv(to_yuv)
    if network_colour == "ycbcr":
        return eye[:, :1], eye[:1]
    # A grey frame says how its luma was made only by its matrix, which may be anything: BT.709 unless it is known.
    known = matrix if matrix in _KR_KB or matrix == _YCGCO else 1
    return np.ones((3, 1)), rgb_to_yuv(known)[:1]


def _weigh(channels: Tensor, weights: NDArray[np.float64], out: Tensor) -> Tensor:
    """Weighted sum over the first axis of ``channels``, skipping weights of zero."""
    terms = [(channels[index], float(weight)) for index, weight in enumerate(weights) if abs(weight) > 1e-12]
    if not terms:
        return out.zero_()
    torch.mul(terms[0][0], terms[0][1], out=out)
    for channel, weight in terms[1:]:
        out.add_(channel, alpha=weight)
    return out


def _between(samples: Tensor, dim: int, low: NDArray[np.int64], high: NDArray[np.int64], fraction: Tensor) -> Tensor:
    lower, upper = (samples.index_select(dim, torch.from_numpy(i).to(samples.device)) for i in (low, high))
    return torch.lerp(lower, upper, fraction)


def _load(samples: NDArray[Any], device: torch.device, out: Tensor | None = None) -> Tensor:
    """Samples as fp32 on ``device``. Goes through NumPy because frames are read only, which torch can't express."""
    if out is None:
        out = torch.empty(samples.shape, dtype=torch.float32, device=device)
    if samples.dtype == np.float16:
        # NumPy widens halves one by one, torch with vector instructions.
        bits = torch.empty(samples.shape, dtype=torch.int16)
        np.copyto(bits.numpy(), samples.view(np.int16))
        return out.copy_(bits.view(torch.float16))
    if device.type == "cpu":
        np.copyto(out.numpy(), samples)
        return out
    return out.copy_(torch.from_numpy(samples.copy()))


def _store(values: Tensor, target: NDArray[Any]) -> None:
    if target.dtype == np.float16:
        torch.from_numpy(target).copy_(values)
    else:
        np.copyto(target, values.cpu().numpy(), casting="unsafe")
