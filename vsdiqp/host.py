"""The one door between the native plugin and Python: addresses in, arrays over them, errors out.

The plugin calls :func:`create` when a script calls ``core.diqp.Restore``, :meth:`Engine.process` for every group of
frames and :meth:`Engine.close` when the filter is freed; :func:`read_qp` and :func:`version_pairs` for ``ReadQP`` and
``Version``; :func:`explain` for what they raise. It calls from any thread, several at once.

Importing this module is cheap; torch comes with the first :func:`create`.
"""

import _thread
import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

import vsdiqp
from vsdiqp.clip import ClipFormat, FrameColour, Planes, Run, Settings
from vsdiqp.errors import DiqpError
from vsdiqp.settings import Arguments, QpRule, check_clip, parse_qp, parse_settings
from vsdiqp.threads import EngineThreads, shared_thread, stdout_to_stderr

log = logging.getLogger("vsdiqp")

RESTORER_HOOK = "VSDIQP_TEST_RESTORER"
"""Environment variable of the tests, "module:Class": what :func:`create` makes instead of a real restorer."""

RawPlanes = Sequence[tuple[int, int]]
"""The planes of a frame as the plugin passes them: address and stride in bytes of each."""

RawRun = tuple[
    tuple[RawPlanes, RawPlanes, RawPlanes],
    RawPlanes,
    tuple[RawPlanes | None, RawPlanes | None, RawPlanes | None],
    tuple[int, bool, int],
    tuple[float | None, float | None, float | None],
    str,
    tuple[int, int, int, int],
    int,
    tuple[RawPlanes, ...],
    tuple[RawPlanes, ...],
    tuple[RawPlanes, ...],
]
"""A run as the plugin passes it: frames n-1, n, n+1; look-ahead frame; targets; matrix, full range and chroma location;
the properties _QP of the frames and their common _Codec; clip indices of the frames and the look-ahead frame; n; the
neighbours before and after; neighbours, frames, neighbours after a first pass, or nothing."""


class Restorer(Protocol):
    """What the engine needs of :class:`vsdiqp.restorer.Restorer`.

    Five attributes are optional: ``concurrency``, how many threads may call :meth:`restore` at once (1); ``codecs``,
    names of the codecs it is made for (any); ``neighbours``, how many frames on each side of a group it is given (0);
    ``first_pass``, the model that restores these beforehand ("": none); ``reads_matrix``, whether the colour matrix of
    YUV clips makes a difference (it does).
    """

    look_ahead: int
    """Frames between a group's last frame and its look-ahead frame."""

    def restore(self, run: Run) -> None:
        """Fill the targets of ``run``. Its arrays are views of the core's memory and end with the call."""

    def close(self) -> None:
        """Give everything back."""


class Engine:
    """What stands behind one ``core.diqp.Restore`` in a script."""

    def __init__(self, settings: Settings, clip: ClipFormat, qp: QpRule) -> None:
        self._clip = clip
        self._qp = qp
        self._dtype = _sample_dtype(clip)
        self._shapes = _plane_shapes(clip)
        self._threads = shared_thread()
        self._restorer = self._threads.run(lambda: _make_restorer(settings, clip))
        try:
            known: Sequence[str] | None = getattr(self._restorer, "codecs", None)
            if known:
                self._qp = qp.for_model(known)
            concurrency = int(getattr(self._restorer, "concurrency", 1))
            if concurrency > 1:
                self._threads = EngineThreads(concurrency, "vsdiqp-device")
        except BaseException:
            self.close()
            raise
        self.look_ahead = int(self._restorer.look_ahead)
        """Frames between a group's last frame and its look-ahead frame."""
        self.neighbours = int(getattr(self._restorer, "neighbours", 0))
        """Frames on each side of a group that its runs are given."""
        self.reads_matrix = bool(getattr(self._restorer, "reads_matrix", True))
        """Whether the colour matrix of YUV clips makes a difference to the result."""
        self.first_pass = str(getattr(self._restorer, "first_pass", ""))
        """Model whose restored frames its runs are given, too; empty: none."""

    def process(self, runs: Sequence[RawRun]) -> None:
        """Restore the runs of one group: returns when all their targets are filled.

        The memory behind the addresses must stay valid until then and is not touched afterwards. Raises
        :class:`DiqpError` when a frame says no QP where one is needed, and whatever the restorer raises.
        """
        prepared = [self._run(run) for run in runs]
        self._threads.run(lambda: self._restore(prepared))

    def close(self) -> None:
        """Have the restorer freed; nothing may be asked of the engine any more.

        Does not wait: the garbage collector may free a filter in any thread, the one that would do the work included.
        A restorer that is made later is made after it.
        """
        threads, shared = self._threads, shared_thread()
        with contextlib.suppress(DiqpError):
            shared.submit(self._restorer.close).add_done_callback(_log_failure)
        if threads is not shared:
            threads.stop()

    def _restore(self, runs: list[Run]) -> None:
        for run in runs:
            self._restorer.restore(run)

    def _run(self, run: RawRun) -> Run:
        frames, ahead, targets, colour, stated, codec, indices, middle, before, after, first = run
        qp, codec = self._qp.resolve(indices[:3], stated, codec)
        return Run(
            frames=(self._planes(frames[0]), self._planes(frames[1]), self._planes(frames[2])),
            ahead=self._planes(ahead),
            targets=(self._target(targets[0]), self._target(targets[1]), self._target(targets[2])),
            colour=FrameColour(*colour),
            qp=qp,
            codec=codec,
            middle=middle,
            before=tuple(self._planes(planes) for planes in before),
            after=tuple(self._planes(planes) for planes in after),
            first=tuple(self._planes(planes) for planes in first),
        )

    def _target(self, planes: RawPlanes | None) -> Planes | None:
        return None if planes is None else self._planes(planes, writeable=True)

    def _planes(self, planes: RawPlanes, writeable: bool = False) -> Planes:
        return tuple(
            _view(address, stride, shape, self._dtype, writeable)
            for (address, stride), shape in zip(planes, self._shapes, strict=True)
        )


def create(arguments: Arguments, clip: Mapping[str, Any]) -> Engine:
    """Return the engine of a filter called with ``arguments`` on a clip whose :class:`ClipFormat` has fields ``clip``.

    Raises :class:`DiqpError` saying which argument is not accepted, and what is.
    """
    clip_format = ClipFormat(**clip)
    check_clip(clip_format)
    return Engine(parse_settings(arguments), clip_format, parse_qp(arguments, clip_format.frames))


def read_qp(arguments: Arguments, frames: int, width: int, height: int) -> tuple[str, list[int], int]:
    """Return the codec, the QP of each of the ``frames`` frames of the clip that ``ReadQP`` was called on, and what to
    add to them for this encoder's way of spending bits. ``width``, ``height``: the clip's, 0 where they vary.

    ``arguments``: ``path``, the file the clip was read from, and optionally ``offset``, the number of frames trimmed
    from its start; given, 0 included, it says that frames may be missing at the end as well. Raises
    :class:`DiqpError` when the file cannot be read or does not fit the clip.
    """
    path = str(arguments["path"][0])
    offset = int(arguments["offset"][0]) if "offset" in arguments else None
    if not path:
        raise DiqpError("path is empty: give the file the clip was read from")
    if offset is not None and offset < 0:
        raise DiqpError(f"offset is {offset}: give 0 or more, the number of frames trimmed from the start")
    with stdout_to_stderr():
        from vsdiqp.codecs import frame_qps

        return frame_qps(path, frames, offset, (width, height))


def version() -> dict[str, str | list[str]]:
    """Return the versions of what restores, and the backends that would run here."""
    return {
        "engine": vsdiqp.__version__,
        "python": platform.python_version(),
        "vapoursynth": _installed("vapoursynth"),
        "torch": _installed("torch"),
        "numpy": _installed("numpy"),
        "backends": _backends(),
    }


def version_pairs() -> list[tuple[str, str]]:
    """Return :func:`version` as the plugin takes it: keys with several values are repeated."""
    pairs: list[tuple[str, str]] = []
    with stdout_to_stderr():
        for key, value in version().items():
            pairs.extend((key, item) for item in ([value] if isinstance(value, str) else value))
    return pairs


def explain(error: BaseException) -> str:
    """Return the text of ``error`` for a user; what is not meant for users is logged with its traceback.

    Ctrl-C, which the main thread alone gets, is not for whoever catches VapourSynth's errors: that thread is
    interrupted again as soon as it is back.
    """
    if isinstance(error, DiqpError):
        return str(error)
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        _thread.interrupt_main()
        return "interrupted"
    log.error("in the engine", exc_info=error)
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _log_failure(future: Future[None]) -> None:
    error = future.exception()
    if error is not None and not isinstance(error, DiqpError):  # that one: Python has ended, and all with it
        log.error("closing the engine", exc_info=error)


def _make_restorer(settings: Settings, clip: ClipFormat) -> Restorer:
    module, _, name = os.environ.get(RESTORER_HOOK, "vsdiqp.restorer:Restorer").partition(":")
    try:
        # Read once, when torch loads its thread pool: threads that spin while they wait take the cores that the source
        # filter and the encoder behind us need (measured: 1.4 times the frames a second beside other work).
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        restorer = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise DiqpError(
            f"the engine cannot be loaded ({error}): install it again with pip install . in its clone"
        ) from error
    return cast(Restorer, restorer(settings, clip))


def _sample_dtype(clip: ClipFormat) -> np.dtype[Any]:
    kind = "u" if clip.sample_type == "integer" else "f"
    return np.dtype(f"{kind}{1 if clip.bits <= 8 else 2 if clip.bits <= 16 else 4}")


def _plane_shapes(clip: ClipFormat) -> list[tuple[int, int]]:
    luma = (clip.height, clip.width)
    if clip.family == "GRAY":
        return [luma]
    chroma = (clip.height >> clip.subsampling_h, clip.width >> clip.subsampling_w)
    return [luma, chroma, chroma]


def _view(address: int, stride: int, shape: tuple[int, int], dtype: DTypeLike, writeable: bool) -> NDArray[Any]:
    """Return the array of ``shape`` whose rows lie ``stride`` bytes apart from ``address`` on; it owns nothing."""
    height, width = shape
    item = np.dtype(dtype).itemsize
    # Not stride * height: what follows the last row's samples need not exist.
    memory = (ctypes.c_uint8 * (stride * (height - 1) + width * item)).from_address(address)
    view: NDArray[Any] = np.ndarray(shape, dtype, memory, strides=(stride, item))
    view.flags.writeable = writeable
    return view


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _backends() -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return []
    from vsdiqp.backends import available

    return available()
