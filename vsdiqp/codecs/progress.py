"""Progress of a long scan, on stderr: stdout may be a pipe of video."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

Progress = Callable[[float], None]
"""Called now and then with the share of the file that has been read, 0..1."""

_PATIENCE = 2.0
"""Seconds a scan may take before anything is shown."""
_INTERVAL = 0.5
"""Seconds between two updates."""


def report(progress: Progress | None, position: int | None, size: int) -> None:
    """Call ``progress`` for byte ``position`` of a file of ``size`` bytes, when both are known."""
    if progress is not None and position is not None and size > 0:
        progress(min(max(position / size, 0.0), 1.0))


class StderrProgress:
    """Shows how far the scan of ``name`` is once it has taken a while; on a terminal in place, else line by line."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = time.monotonic() + _PATIENCE
        self._shown = -1
        self._in_place = False

    def __enter__(self) -> Self:
        """Start counting the patience."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the line."""
        if self._in_place:
            print(file=sys.stderr)

    def __call__(self, share: float) -> None:
        """Show ``share``, 0..1, unless the last update was a moment ago."""
        now = time.monotonic()
        if now < self._next or sys.stderr is None:
            return
        self._in_place = sys.stderr.isatty()
        # A log is not a terminal: ten lines at most.
        percent = int(share * 100) if self._in_place else int(share * 10) * 10
        if percent == self._shown:
            return
        self._next, self._shown = now + _INTERVAL, percent
        text = f"vsdiqp: reading the QP of {self._name}: {percent} %"
        print(f"\r{text}" if self._in_place else text, end="" if self._in_place else "\n", file=sys.stderr, flush=True)
