"""Pools as networks see them, restored neighbours included: a first pass over the streams by the filter's own engine.

What was restored is kept in the pool, in ``first-NAME-HASH/``: another run, or another process, reads it there.
"""

import contextlib
import logging
import os
import threading
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch

from vsdiqp.backends import cuda
from vsdiqp.clip import ClipFormat, FrameColour, Planes, Run, Settings
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQPConfig, model_hash
from vsdiqp.network.config import FRAMES
from vsdiqp.restorer import Restorer
from vsdiqp.training.dataset import DecodedItem, DecodedStream, PoolDataset
from vsdiqp.training.degrade import Samples


def open_pool(
    folder: Path | str,
    config: DiQPConfig,
    qp: str = "mixed",
    crop: tuple[int, int] = (128, 128),
    cache_bytes: int = 9 << 30,
) -> PoolDataset:
    """The pool in ``folder`` with what a network of ``config`` sees of it; the rest as `PoolDataset` has it."""
    return PoolDataset(
        folder,
        codecs=config.codecs,
        crop=crop,
        look_ahead=config.look_ahead_frames,
        qp=qp,
        cache_bytes=cache_bytes,
        neighbours=config.neighbours,
        first_pass=FirstPass(config.first_pass, folder, qp) if config.first_pass else None,
    )


class FirstPass:
    """Restores streams with the shipped network ``model``, on the GPU where there is one; keeps them in the pool's
    ``folder``.

    ``qp`` as the dataset's; of "mixed" every other item's streams are restored with the QP asked of the encoder, the
    others with the frames' own. Scene cuts are respected. May be called from several threads. Raises DiqpError where
    the folder cannot be written to.
    """

    def __init__(self, model: str, folder: Path | str, qp: str):
        self._model, self._qp = model, qp
        self._kept = Path(folder) / f"first-{Path(model).stem}-{model_hash(model)}"

    def __call__(self, item: DecodedItem, stream: DecodedStream) -> Samples:
        """See `vsdiqp.training.dataset.RestoreStream`."""
        nominal = stream.constant and (self._qp == "nominal" or (self._qp == "mixed" and item.number % 2 == 0))
        # The contents, too: a pool may have been made anew in the same place.
        mark = f"{zlib.crc32(np.ascontiguousarray(stream.clip.y)):08x}"
        path = self._kept / f"{item.number}-{stream.number}-{'nominal' if nominal else 'frames'}-{mark}.npy"
        kept = _read(path)
        if kept is not None and (kept.shape, kept.dtype) == (stream.clip.y.shape, stream.clip.y.dtype):
            return kept
        # A GPU has slots for several runs; on the CPU there is one, and its memory is shared by those who want it.
        if _backend() == "cuda":
            restored = self._restore(item, stream, nominal)
        else:
            with _alone, _all_cores():
                restored = self._restore(item, stream, nominal)
        _write(path, restored)
        return restored

    def _restore(self, item: DecodedItem, stream: DecodedStream, nominal: bool) -> Samples:
        frames, height, width = stream.clip.y.shape
        clip = ClipFormat("YUV", "integer", item.source.bits, 1, 1, width, height, frames)
        with _opening:
            restorer = _restorer(self._model, clip)
        result = np.empty_like(stream.clip.y)
        chroma = np.empty_like(stream.clip.c[:, 0])  # nobody asks for it

        def planes(frame: int) -> Planes:
            return stream.clip.y[frame], stream.clip.c[0, frame], stream.clip.c[1, frame]

        def target(frame: int, last: int) -> Planes | None:
            return (result[frame], chroma[0], chroma[1]) if frame <= last else None

        start = 0
        while start < frames:
            first, last = item.scene(start)
            group = [min(start + step, last) for step in range(FRAMES)]
            steps = range(1, restorer.neighbours + 1)
            restorer.restore(
                Run(
                    frames=(planes(group[0]), planes(group[1]), planes(group[2])),
                    ahead=planes(group[2]),
                    targets=(target(start, last), target(start + 1, last), target(start + 2, last)),
                    colour=FrameColour(item.matrix, full_range=False, chroma_location=0),
                    qp=stream.nominal if nominal else float(stream.qps[group].mean()),
                    codec=stream.codec,
                    middle=group[1],
                    before=tuple(planes(max(start - step, first)) for step in reversed(steps)),
                    after=tuple(planes(min(start + FRAMES - 1 + step, last)) for step in steps),
                )
            )
            start = min(start + FRAMES, last + 1)
        return result


_log = logging.getLogger("vsdiqp")

_alone, _opening = threading.Lock(), threading.Lock()


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """Where a GPU trains, the calling thread is one of many that were given a core each; the others wait for this one.
    Where the CPU trains, the number of threads is the user's."""
    before = torch.get_num_threads()
    if torch.cuda.is_available():
        torch.set_num_threads(max(before, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _backend() -> str:
    reason = cuda.unavailable()
    if reason and torch.cuda.is_available():
        _log.warning("the first pass runs on the CPU, not on the GPU: %s", reason)
    return "cpu" if reason else "cuda"


@cache
def _restorer(model: str, clip: ClipFormat) -> Restorer:
    backend = _backend()
    # LOCAL_RANK is torchrun's: every process has a GPU of its own.
    device = int(os.environ.get("LOCAL_RANK", "0")) if backend == "cuda" else 0
    return Restorer(Settings(model=model, backend=backend, device=(device,)), clip)


def _read(path: Path) -> Samples | None:
    try:
        kept: Samples = np.load(path)
    except (OSError, ValueError, EOFError):  # not there, or damaged: it is made again
        return None
    return kept


def _write(path: Path, samples: Samples) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            with partial.open("wb") as file:
                np.save(file, samples)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DiqpError(
            f"what the first pass made cannot be kept in {path.parent} ({error}): make room there, or copy the pool to "
            f"where it can grow"
        ) from error
