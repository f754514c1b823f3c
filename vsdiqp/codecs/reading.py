"""The QP of every frame of a file: what users, the plugin and the command line call."""

import contextlib
import logging
import os
from pathlib import Path

from vsdiqp.codecs import cache
from vsdiqp.codecs.frames import Scan
from vsdiqp.codecs.progress import Progress
from vsdiqp.codecs.scan import Order, scan_file
from vsdiqp.errors import DiqpError
from vsdiqp.progress import ProgressLine

_log = logging.getLogger("vsdiqp")

_PATIENCE = 2.0
"""Seconds a scan may take before anything is shown."""
_FEW_FRAMES, _FEW_PERCENT = 16, 5
"""When no more frames than this are missing from a clip, damage may be why, and the file is worth decoding."""


def probe(
    path: str | os.PathLike[str],
    *,
    order: Order = "headers",
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Scan:
    """Return the QPs and the description of the first video stream of ``path``, from the cache if it is unchanged.

    ``order`` is explained at :func:`vsdiqp.codecs.scan.scan_file`. ``progress`` is called with the share of the file
    that has been read; by default a scan that takes long shows it on stderr. Raises :class:`DiqpError` when the file
    cannot be read or changes while it is.
    """
    file = Path(path)
    with contextlib.suppress(RuntimeError):  # there is no home
        file = file if os.path.exists(file) else file.expanduser()
    try:
        before = cache.stamp(file)
    except (OSError, ValueError) as error:  # ValueError: no name of a file, such as one with a zero in it
        reason = error.strerror if isinstance(error, OSError) else error
        raise DiqpError(f"cannot read {file}: {reason}; give the file that the clip was read from") from error
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no regular file"
        raise DiqpError(f"cannot read {file}, which is {kind}; give the file that the clip was read from")
    if use_cache and (kept := cache.load(file, order)) is not None:
        return kept
    if progress is None:
        with ProgressLine(_PATIENCE) as line:
            text = f"vsdiqp: reading the QP of {file.name}, per cent"
            result = scan_file(file, lambda share: line(int(100 * share), 100, text), order)
    else:
        result = scan_file(file, progress, order)
    if cache.stamp(file) != before:
        raise DiqpError(f"{file} changed while it was read: wait until it is complete, then try again")
    if use_cache:
        cache.store(file, order, result)
    return result


def read_qps(path: str | os.PathLike[str], *, use_cache: bool = True) -> list[int]:
    """Return the QP of every frame of ``path`` in presentation order, as ``Restore(qp=...)`` takes it.

    The scale is the codec's own for HEVC (0..51) and AV1 (base_q_idx 0..255); other codecs are put on one of the two,
    see docs/qp.md. Raises :class:`DiqpError` when the file cannot be read.
    """
    return probe(path, use_cache=use_cache).qps


def frame_qps(
    path: str, frames: int, offset: int | None = None, size: tuple[int, int] = (0, 0)
) -> tuple[str, list[int], int]:
    """Return the scale ("hevc" or "av1"), the QPs of a clip of ``frames`` frames loaded from ``path``, and
    `Scan.qp_offset`.

    ``offset`` is the number of frames that were trimmed from the start. Without it the file must hold exactly
    ``frames`` frames, so that a clip whose length was changed is noticed; with it the clip may also end early. Where
    the file is damaged or joined, it is decoded to see what is left of it. Raises :class:`DiqpError` naming both
    numbers when they do not fit. A warning is logged where the clip's ``size``, width and height, is not the file's: it
    was scaled or cropped, or is of another file.
    """
    result = probe(path)
    # Turned by a quarter, as telephones ask for, is as good; sizes that vary come as zeros.
    if all(size) and sorted(size) != sorted((result.width, result.height)):
        _log.warning(
            "the clip is %dx%d and %s is %dx%d: if that is the right file, call ReadQP and Restore before what scales "
            "or crops, since the damage lies on the codec's grid",
            *size, path, result.width, result.height,
        )  # fmt: skip
    start, whole = offset or 0, offset is None
    missing = len(result.qps) - frames - start
    few = missing <= max(_FEW_FRAMES, len(result.qps) * _FEW_PERCENT // 100)
    if missing > 0 and (not result.complete or (few if whole else result.unreadable > 0)):
        # A decoder passes over what it cannot make sense of in a damaged file, and source filters count what is left.
        _log.warning(
            "the clip has %d frames and %s promises %d: decoding it to see which are missing, as in a damaged or "
            "joined file; if the clip was trimmed, call ReadQP before that",
            frames, path, len(result.qps),
        )  # fmt: skip
        result = probe(path, order="decoder")
    held = len(result.qps)
    if held != frames if whole else held < start + frames or start < 0:
        started = f" from frame {start} on" if start else ""
        raise DiqpError(
            f"the clip has {frames} frames{started}, but {path} holds {held}: call ReadQP on the clip as the source "
            "filter returns it, before Trim and anything else that changes its length, or, where frames were trimmed, "
            "give the number of those before its first one as offset= (0 where only its end was)"
        )
    return result.codec, result.qps[start : start + frames], result.qp_offset
