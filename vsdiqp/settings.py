"""The arguments of ``core.diqp.Restore``: checked when the script is read, so that nothing fails hours later."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vsdiqp.clip import ClipFormat, Settings
from vsdiqp.codecs.scales import CODECS, QpScale, scale_of
from vsdiqp.errors import DiqpError

Arguments = Mapping[str, Sequence[int | float | str]]
"""Arguments by name as a VSMap holds them: every value a sequence, absent when not given."""

BACKENDS = ("auto", "cpu", "cuda", "tensorrt")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
DEFAULT_CODEC = "hevc"
"""Whose scale ``qp`` is on when neither the argument ``codec`` nor the frame property ``_Codec`` says it."""
HIGHEST = 2**31 - 1
"""Largest number accepted of anything that is counted: where the plugin's own numbers end."""
SMALLEST = 16
"""Shortest side of a clip in pixels."""


@dataclass(frozen=True, slots=True)
class QpRule:
    """Where the QP of a frame comes from: the argument ``qp``, else the frame property ``_QP``."""

    qps: tuple[float, ...] | None
    """One number for the whole clip, or one for every frame; None: frame properties."""
    codec: str | None
    """The argument ``codec``; None: the frame property ``_Codec``."""
    offset: float
    """Added to the mean QP of a run."""
    assumed: str = DEFAULT_CODEC
    """Whose scale ``qps`` are on where neither ``codec`` nor a frame says it."""

    def for_model(self, codecs: Sequence[str]) -> "QpRule":
        """The same for a model that knows these codecs: of one that knows a single one, that is assumed.

        Raises :class:`DiqpError` where ``codec`` is none of them, or a QP is off the scale of the only one.
        """
        if self.codec and self.codec not in codecs:
            raise DiqpError(
                f"the model is made for {', '.join(codecs)}, not for {self.codec}: give another model= or codec="
            )
        if len(codecs) != 1 or self.qps is None:
            return self
        _check_qps(self.qps, scale_of(codecs[0]), f"; the model is made for {codecs[0]} alone")
        return replace(self, assumed=codecs[0])

    def resolve(self, indices: Sequence[int], stated: Sequence[float | None], codec: str) -> tuple[float, str]:
        """Return the QP of a run and the codec on whose scale it is.

        ``indices`` are the run's frames, ``stated`` their ``_QP`` properties, ``codec`` their ``_Codec``, empty when
        they have none. The QP is the mean of the three plus ``offset``, clamped to the scale. Raises
        :class:`DiqpError` naming the frame when a property is missing or a QP is not on the scale.
        """
        qps = [self._own(index, qp) for index, qp in zip(indices, stated, strict=True)]
        scale = self._scale(indices[0], codec)
        for index, qp in zip(indices, qps, strict=True):
            try:
                scale.check(qp)
            except DiqpError as error:
                hint = "" if self.codec or codec else f"; without codec= and _Codec, {self.assumed} is assumed"
                raise DiqpError(f"frame {index}: {error}{hint}") from None
        return scale.clamp(sum(qps) / len(qps) + self.offset), scale.codec

    def _own(self, index: int, stated: float | None) -> float:
        if self.qps is not None:
            return self.qps[index if len(self.qps) > 1 else 0]
        if stated is None:
            raise DiqpError(
                f"frame {index} has no property _QP: give qp=, or put core.diqp.ReadQP(clip, path) right after the "
                "source filter"
            )
        return stated

    def _scale(self, index: int, codec: str) -> QpScale:
        if self.qps is None and self.codec and codec and codec != self.codec:
            raise DiqpError(
                f"frame {index} has a QP on {codec}'s scale (property _Codec), but codec is {self.codec!r}: leave "
                "codec out, or give qp= with it"
            )
        name = self.codec or codec
        if name:
            try:
                return scale_of(name)
            except DiqpError as error:
                raise DiqpError(f"frame {index}: property _Codec: {error}") from None
        if self.qps is None:
            raise DiqpError(
                f"frame {index} has a property _QP but no _Codec, which says on what scale it is: give codec=, one of "
                f"{', '.join(CODECS)}"
            )
        return CODECS[self.assumed]


def check_clip(clip: ClipFormat) -> None:
    """Raise :class:`DiqpError` for a format or size that cannot be restored."""
    supported = 8 <= clip.bits <= 16 if clip.sample_type == "integer" else clip.bits in (16, 32)
    if not supported:
        raise DiqpError(
            f"the clip has {clip.bits}-bit {clip.sample_type} samples; accepted are 8 to 16 bit integer and 16 or 32 "
            "bit float: convert it with core.resize.Bicubic(clip, format=...)"
        )
    if min(clip.width, clip.height) < SMALLEST:
        raise DiqpError(f"the clip is {clip.width}x{clip.height}; accepted are sizes from {SMALLEST}x{SMALLEST} on")


def parse_settings(arguments: Arguments) -> Settings:
    """Return what ``arguments`` say about the engine; raise :class:`DiqpError` for what is not accepted."""
    default = Settings()
    return Settings(
        model=_text(arguments, "model", default.model),
        look_ahead=_whole(arguments, "look_ahead", 0),
        tile=_tile(arguments),
        overlap=_whole(arguments, "overlap", 0),
        strength=_strength(arguments, default.strength),
        backend=_choice(arguments, "backend", BACKENDS),
        device=_devices(arguments, default.device),
        precision=_choice(arguments, "precision", PRECISIONS),
        batch=_whole(arguments, "batch", 1),
    )


def parse_qp(arguments: Arguments, frames: int) -> QpRule:
    """Return where QPs come from in a clip of ``frames`` frames; raise :class:`DiqpError` for what is not accepted."""
    codec = _text(arguments, "codec", "") or None
    scale = scale_of(codec) if codec else None
    offset = float(arguments.get("qp_offset", (0.0,))[0])
    if not math.isfinite(offset):
        raise DiqpError(f"qp_offset is {offset}: give a finite number")
    if "qp" not in arguments:
        return QpRule(None, codec, offset)

    qps = tuple(float(value) for value in arguments["qp"])
    if len(qps) not in (1, frames):
        raise DiqpError(
            f"qp has {len(qps)} values and the clip {frames} frames: give one number for all, or exactly one for every "
            "frame"
        )
    if scale:
        _check_qps(qps, scale, "")
    else:  # frames may still say which codec they are from: what is on any scale may be right
        _check_qps_of_any(qps)
    return QpRule(qps, codec, offset)


def _check_qps_of_any(qps: Sequence[float]) -> None:
    """Raise :class:`DiqpError` for the first that is on no codec's scale."""
    low, high = min(one.low for one in CODECS.values()), max(one.high for one in CODECS.values())
    for index, qp in enumerate(qps):
        if not low <= qp <= high:  # as NaN isn't
            name = f"qp[{index}]" if len(qps) > 1 else "qp"
            scales = " and ".join(f"{one.title} {one.low} to {one.high}" for one in CODECS.values())
            raise DiqpError(f"{name} is {qp:g}, which is out of range: {scales}; codec= says whose it is")


def _check_qps(qps: Sequence[float], scale: QpScale, hint: str) -> None:
    """Raise :class:`DiqpError`, ending in ``hint``, for the first that is not on the scale."""
    for index, qp in enumerate(qps):
        try:
            scale.check(qp)
        except DiqpError as error:
            place = f"qp[{index}]: " if len(qps) > 1 else ""
            raise DiqpError(f"{place}{error}{hint}") from None


def _text(arguments: Arguments, name: str, default: str) -> str:
    if name not in arguments:
        return default
    value = str(arguments[name][0])
    if not value:
        raise DiqpError(f"{name} is empty: give a name or leave it out")
    return value


def _choice(arguments: Arguments, name: str, names: tuple[str, ...]) -> str:
    value = _text(arguments, name, names[0])
    if value not in names:
        raise DiqpError(f"{name} is {value!r}: give one of {', '.join(names)}")
    return value


def _whole(arguments: Arguments, name: str, low: int) -> int | None:
    if name not in arguments:
        return None
    value = int(arguments[name][0])
    if not low <= value <= HIGHEST:
        raise DiqpError(f"{name} is {value}: give {low} or more" + (f", up to {HIGHEST}" if value > HIGHEST else ""))
    return value


def _strength(arguments: Arguments, default: float) -> float:
    value = float(arguments.get("strength", (default,))[0])
    if not 0.0 <= value <= 1.0:
        raise DiqpError(f"strength is {value:g}: give 0 (leave the clip as it is) to 1 (restore fully)")
    return value


def _tile(arguments: Arguments) -> tuple[int, int] | None:
    if "tile" not in arguments:
        return None
    sides = [int(value) for value in arguments["tile"]]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise DiqpError(f"tile is {sides}: give [width, height], or one number for a square, in pixels")
    return sides[0], sides[-1]


def _devices(arguments: Arguments, default: tuple[int, ...]) -> tuple[int, ...]:
    if "device" not in arguments:
        return default
    devices = tuple(int(value) for value in arguments["device"])
    if not devices or min(devices) < 0 or len(set(devices)) != len(devices):
        raise DiqpError(f"device is {list(devices)}: give the index of a GPU or several different ones, from 0 up")
    return devices
