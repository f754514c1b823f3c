"""Real encodes of short clips: the damage the network learns to undo, made by the encoders that users run.

Everything is kept as a bitstream in memory; nothing is decoded until training asks for it.
"""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vsdiqp.errors import DiqpError
from vsdiqp.training.priority import ordinary_threads

Samples = NDArray[Any]

QP_RANGE: dict[str, tuple[float, float]] = {"hevc": (0, 51), "av1": (0, 255)}
"""The codec's own scale: HEVC's QP of 8-bit samples, AV1's base_q_idx."""

HEVC_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
AV1_PRESETS = tuple(str(number) for number in range(14))
HEVC_GOPS: dict[str, str] = {
    "default": "",
    "intra": "keyint=1",
    "low_delay": "bframes=0",
    "flat_b": "b-pyramid=0",
    "long_b": "bframes=8",
    "short": "keyint=8:min-keyint=8:no-open-gop=1",
}
AV1_GOPS: dict[str, str] = {
    "default": "",
    "intra": "keyint=1",
    "low_delay": "pred-struct=1",
    "short_pyramid": "hierarchical-levels=3",
    "tall_pyramid": "hierarchical-levels=4",
    "short": "keyint=8",
}
HEVC_TUNES: dict[str, str] = {
    "default": "",
    "no_sao": "no-sao=1",
    "no_psy": "psy-rd=0:psy-rdoq=0",
    "psy": "psy-rd=3:psy-rdoq=2",
    "soft_deblock": "deblock=-2,-2",
}
AV1_TUNES: dict[str, str] = {"default": "", "visual": "tune=0", "no_cdef": "enable-cdef=0"}

_SVT_COARSEST = {249.0: 62.0, 250.0: 62.25, 251.0: 62.5, 252.0: 62.75, 255.0: 63.0}
"""SVT-AV1's quantisers of indices that are not four times theirs; 248, 253 and 254 have none."""
_RATE = 24
_LAMBDA_PER_QP = 118  # libavutil's FF_QP2LAMBDA, the unit of the encoder's quality side data


@dataclass(frozen=True, slots=True)
class Clip:
    """A run of 4:2:0 frames, limited range, chroma sited left: Y [F,H,W], Cb and Cr [2,F,H/2,W/2].

    8-bit samples are uint8, 10-bit ones uint16. H and W are even.
    """

    y: Samples
    c: Samples
    bits: int = 8

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        frames, height, width = self.y.shape
        if self.c.shape != (2, frames, height // 2, width // 2) or height % 2 or width % 2:
            raise DiqpError(
                f"luma of shape {self.y.shape} and chroma of shape {self.c.shape} do not make a 4:2:0 clip; "
                "give Y [F,H,W] with even H and W, and C [2,F,H/2,W/2]"
            )

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.y.shape[0])

    def cut(self, first: int, count: int) -> "Clip":
        """The frames ``first .. first+count-1``, as views."""
        return Clip(self.y[first : first + count], self.c[:, first : first + count], self.bits)


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """How to encode one clip.

    ``mode`` says what rules the quantiser:

    - ``cqp``: constant QP with the encoder's usual offsets between frame types or pyramid layers (what
      ``x265 --qp`` and ``SvtAv1EncApp --rc 0 --aq-mode 0 --crf`` do); ``flat`` removes the offsets.
    - ``crf``: constant rate factor; x265 without adaptive quantisation, SVT-AV1 as it comes (its CRF has none but
      follows temporal dependency block by block).
    - ``aq``: constant rate factor with adaptive quantisation by block variance (x265's default, SVT-AV1's
      variance boost).

    ``qp`` is in the codec's own scale (HEVC 0..51, AV1 base_q_idx 0..255); for ``crf`` and ``aq`` it's the rate
    factor on that same scale. HEVC's constant QPs are whole numbers; of AV1's indices it becomes the nearest one that
    SVT-AV1 can be asked for: all whole ones but 248, 253 and 254. ``preset`` is x265's name, or SVT-AV1's number as
    text. ``gop`` is a key of ``HEVC_GOPS`` or ``AV1_GOPS``, ``tune`` one of ``HEVC_TUNES`` or ``AV1_TUNES``.
    """

    codec: str
    qp: float
    mode: str = "cqp"
    preset: str = ""
    gop: str = "default"
    flat: bool = False
    tune: str = "default"

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        if self.codec not in QP_RANGE:
            raise DiqpError(f"codec is {self.codec!r}; give one of {', '.join(QP_RANGE)}")
        low, high = QP_RANGE[self.codec]
        if not low <= self.qp <= high:
            raise DiqpError(f"qp is {self.qp:g}; {self.codec} takes {low:g}..{high:g}")
        if self.mode not in ("cqp", "crf", "aq"):
            raise DiqpError(f"mode is {self.mode!r}; give cqp, crf or aq")
        hevc = self.codec == "hevc"
        if hevc and self.mode == "cqp" and self.qp % 1:
            raise DiqpError(f"qp is {self.qp:g}; x265 encodes at whole constant QPs only: give one")
        if not hevc:
            object.__setattr__(self, "qp", _svt_index(self.qp))
        gops, tunes = (HEVC_GOPS, HEVC_TUNES) if hevc else (AV1_GOPS, AV1_TUNES)
        if self.gop not in gops:
            raise DiqpError(f"gop is {self.gop!r}; for {self.codec} give one of {', '.join(gops)}")
        if self.tune not in tunes:
            raise DiqpError(f"tune is {self.tune!r}; for {self.codec} give one of {', '.join(tunes)}")
        if self.preset and self.preset not in (HEVC_PRESETS if hevc else AV1_PRESETS):
            kinds = "one of " + ", ".join(HEVC_PRESETS) if hevc else f"{AV1_PRESETS[0]}..{AV1_PRESETS[-1]}"
            raise DiqpError(f"preset is {self.preset!r}; for {self.codec} give {kinds}")

    @property
    def encoder(self) -> str:
        """FFmpeg's name of the encoder."""
        return "libx265" if self.codec == "hevc" else "libsvtav1"

    def options(self) -> dict[str, str]:
        """The encoder's options, as FFmpeg takes them."""
        return _x265_options(self) if self.codec == "hevc" else _svt_options(self)


def _x265_options(settings: EncodeSettings) -> dict[str, str]:
    if settings.mode == "cqp":
        quantiser = f"qp={settings.qp:g}"
        if settings.flat:
            quantiser += ":ipratio=1:pbratio=1"
    else:
        quantiser = f"crf={settings.qp:g}" + (":aq-mode=0" if settings.mode == "crf" else "")
    shape = [HEVC_GOPS[settings.gop], HEVC_TUNES[settings.tune]]
    # One thread an encode: the pool runs one encode a process, which is the better use of few cores.
    params = [quantiser, *shape, "pools=none", "frame-threads=1", "log-level=none", "info=0"]
    return {"preset": settings.preset or "medium", "x265-params": ":".join(p for p in params if p)}


def _svt_index(qp: float) -> float:
    """The base_q_idx nearest to ``qp`` that SVT-AV1 has a quantiser for: up to 247 four times its number."""
    return min((float(round(min(qp, 247.0))), *_SVT_COARSEST), key=lambda index: abs(index - qp))


def _svt_options(settings: EncodeSettings) -> dict[str, str]:
    # SVT-AV1 takes quarters of its 0..63 scale. With aq-mode 0 its "crf" is a constant QP.
    params = ["rc=0", f"crf={_SVT_COARSEST.get(settings.qp, settings.qp / 4):g}", "lp=1"]
    if settings.mode == "cqp":
        params.append("aq-mode=0")
        if settings.flat:
            params.append("use-fixed-qindex-offsets=1")
    elif settings.mode == "aq":
        params.append("enable-variance-boost=1")
    params += [AV1_GOPS[settings.gop], AV1_TUNES[settings.tune]]
    return {"preset": settings.preset or "6", "svtav1-params": ":".join(p for p in params if p)}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A bitstream (Matroska) and its frames' QPs in the codec's own scale, in display order."""

    data: bytes
    qps: tuple[float, ...]
    """What the frame headers say: what the filter and ``vsdiqp probe`` read."""
    mean_qps: tuple[float, ...]
    """What the encoder reports as mean over the frame's blocks; differs from ``qps`` where blocks adapt."""


def encode(clip: Clip, settings: EncodeSettings) -> Encoded:
    """Encode ``clip`` in memory. Raises DiqpError when FFmpeg lacks the encoder."""
    data, quality = _encode(clip, settings.encoder, settings.options())
    unit = 4.0 if settings.codec == "av1" else 1.0
    mean = tuple(min(quality[pts] * unit, QP_RANGE[settings.codec][1]) for pts in sorted(quality))
    return Encoded(data, header_qps(data), mean)


def header_qps(data: bytes) -> tuple[float, ...]:
    """Each frame's QP as its headers have it, in the codec's own scale and display order."""
    from vsdiqp.codecs import probe

    with tempfile.NamedTemporaryFile(suffix=".mkv") as file:
        file.write(data)
        file.flush()
        return tuple(float(qp) for qp in probe(file.name, use_cache=False, progress=lambda _: None).qps)


def encode_lossless(clip: Clip) -> bytes:
    """A small stream that decodes to the very same samples, quickly."""
    if clip.bits == 8:
        return _encode(clip, "libx264", {"qp": "0", "preset": "ultrafast"})[0]
    return _encode(clip, "ffv1", {"level": "3", "context": "0"})[0]


def decode(data: bytes, first: int = 0, count: int | None = None) -> Clip:
    """Decode a 4:2:0 stream of 8 or 10 bits, frames ``first .. first+count-1`` in display order."""
    luma: list[Samples] = []
    chroma: list[tuple[Samples, Samples]] = []
    bits = 8
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index < first:
                continue
            if count is not None and index >= first + count:
                break
            bits = _bits(frame.format.name)
            y, cb, cr = (plane_array(plane, bits) for plane in frame.planes)
            luma.append(y)
            chroma.append((cb, cr))
    if not luma or (count is not None and len(luma) < count):
        raise DiqpError(f"the stream ends after {len(luma)} of the {count} frames wanted; it is damaged, make it anew")
    c = np.stack([np.stack([pair[i] for pair in chroma]) for i in (0, 1)])
    return Clip(np.stack(luma), c, bits)


def plane_array(plane: Any, bits: int) -> Samples:
    """One plane of a PyAV frame as an array [H,W] of its own."""
    dtype = np.uint8 if bits == 8 else np.dtype("<u2")
    rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)
    return np.ascontiguousarray(rows[:, : plane.width])


def _bits(pixel_format: str) -> int:
    known = {"yuv420p": 8, "yuvj420p": 8, "yuv420p10le": 10}
    if pixel_format not in known:
        raise DiqpError(f"the stream has pixel format {pixel_format}; only {', '.join(known)} are read here")
    return known[pixel_format]


def _frames(clip: Clip) -> Iterator[Any]:
    pixel_format = "yuv420p" if clip.bits == 8 else "yuv420p10le"
    height, width = clip.y.shape[1:]
    for index in range(clip.frames):
        frame = av.VideoFrame(width, height, pixel_format)
        for plane, source in zip(frame.planes, (clip.y[index], clip.c[0, index], clip.c[1, index]), strict=True):
            line = plane.line_size // source.itemsize
            if line == source.shape[1]:
                plane.update(np.ascontiguousarray(source))
            else:
                padded = np.zeros((source.shape[0], line), source.dtype)
                padded[:, : source.shape[1]] = source
                plane.update(padded)
        frame.pts = index
        frame.time_base = Fraction(1, _RATE)
        yield frame


def _encode(clip: Clip, encoder: str, options: dict[str, str]) -> tuple[bytes, dict[int, float]]:
    """The stream, and by display time the mean QP that the encoder reports in its own unit, if it does."""
    # SVT-AV1 tells its life story on stderr for every encode otherwise; 1 leaves errors.
    os.environ.setdefault("SVT_LOG", "1")
    height, width = clip.y.shape[1:]
    output = io.BytesIO()
    quality: dict[int, float] = {}

    def mux(packets: Iterable[Any]) -> None:
        for packet in packets:
            for side in packet.iter_sidedata():
                if side.data_type == "quality_stats":
                    quality[packet.pts] = int.from_bytes(bytes(side)[:4], "little") / _LAMBDA_PER_QP
            container.mux(packet)

    with ordinary_threads(), av.open(output, "w", format="matroska") as container:
        try:
            stream = container.add_stream(encoder, rate=_RATE, options=options)
        except (ValueError, av.FFmpegError) as error:
            raise DiqpError(f"this FFmpeg has no {encoder}; install the PyAV wheel (pip install av)") from error
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if clip.bits == 8 else "yuv420p10le"
        stream.codec_context.thread_count = 1
        for frame in _frames(clip):
            mux(stream.encode(frame))
        mux(stream.encode(None))
    return output.getvalue(), quality
