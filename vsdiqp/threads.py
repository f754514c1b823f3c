"""Where networks run: threads of our own, apart from those of the program that asks for frames.

torch keeps a pool of OpenMP threads for every thread that calls it. VapourSynth calls filters from all its threads, so
the work is handed to one dedicated thread, or to as many as a restorer says it can use.
"""

import contextlib
import io
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TextIO

from vsdiqp.errors import DiqpError


class EngineThreads:
    """Runs what it is given on ``count`` threads of its own, first come, first served.

    The threads end with :meth:`stop`, or when the main thread has ended: what is running then is finished, what is
    waiting fails. (``atexit`` would be too late: Python waits for threads first.)
    """

    def __init__(self, count: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        # Any allocation may set off the garbage collector, which may free a filter and so come back here from inside.
        self._lock = threading.RLock()
        self._stopped = False
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}") for i in range(count)]
        for thread in self._threads:
            thread.start()
        _stop_after_main(self)

    def run[Result](self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns, or raise what it raises; waits without the GIL."""
        return self.submit(work).result()

    def submit[Result](self, work: Callable[[], Result]) -> "Future[Result]":
        """Queue ``work``, first come, first served; raises :class:`DiqpError` once the threads are stopped."""
        future: Future[Result] = Future()
        with self._lock:
            if self._stopped:
                raise DiqpError("Python is shutting down")
            self._jobs.put((work, future))
        return future

    def stop(self) -> None:
        """End the threads after the jobs they are at; jobs that still wait fail."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            waiting = []
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.append(self._jobs.get_nowait())
            for _ in self._threads:
                self._jobs.put(None)
        for job in waiting:
            if job is not None:
                job[1].set_exception(DiqpError("Python is shutting down"))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future = job
            try:
                with stdout_to_stderr():
                    future.set_result(work())
            except BaseException as error:
                # Whoever waits gets it, whatever it is; a thread that ended would leave all later frames waiting.
                future.set_exception(error)
            # Frames are recycled once the caller has its answer, so nothing may stay referenced here.
            del job, work, future


_shared: EngineThreads | None = None
_shared_lock = threading.RLock()  # as `EngineThreads._lock`


def shared_thread() -> EngineThreads:
    """Return the one thread of the process for restorers that work on one group at a time."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = EngineThreads(1, "vsdiqp")
        return _shared


_all: "weakref.WeakSet[EngineThreads]" = weakref.WeakSet()
_watcher: threading.Thread | None = None


def _stop_after_main(threads: EngineThreads) -> None:
    """Have ``threads`` stopped when the main thread has ended."""
    global _watcher
    with _all_lock:
        _all.add(threads)
        if _watcher is None:
            _watcher = threading.Thread(target=_watch, name="vsdiqp-watcher")
            _watcher.start()


_all_lock = threading.Lock()


def _watch() -> None:
    threading.main_thread().join()
    with _all_lock:
        ending = list(_all)
    for threads in ending:
        threads.stop()


_local = threading.local()


class _Stdout:
    """Stands in for ``sys.stdout``: what some threads write to it goes to stderr, the rest where it always went."""

    def __init__(self, real: TextIO) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        if getattr(_local, "depth", 0):
            return getattr(sys.stderr or io.StringIO(), name)
        return getattr(self.real, name)


_stand_ins: deque[_Stdout] = deque(maxlen=8)
"""The last ones: other threads may be in the middle of a ``print``, which before Python 3.14 borrows ``sys.stdout``
without holding on to it."""
_diverting = 0
_diverting_lock = threading.Lock()


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what this thread prints to stderr: stdout may be the pipe the video goes through.

    Other threads print where they always did. Only Python's ``sys.stdout`` is diverted, not the file descriptor.
    """
    global _diverting
    with _diverting_lock:
        _diverting += 1
        if sys.stdout is not None and not isinstance(sys.stdout, _Stdout):
            if not _stand_ins or _stand_ins[-1].real is not sys.stdout:
                _stand_ins.append(_Stdout(sys.stdout))
            sys.stdout = _stand_ins[-1]
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        yield
    finally:
        _local.depth -= 1
        with _diverting_lock:
            _diverting -= 1
            if not _diverting and isinstance(sys.stdout, _Stdout):
                sys.stdout = sys.stdout.real
