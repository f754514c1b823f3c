"""A line on stderr that says how far long work has come; stdout stays clean for pipes."""

import sys
import time
from types import TracebackType


class ProgressLine:
    """Called with (done, total, what comes next): one line rewritten on a terminal, else one every ten seconds."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown = float("-inf")
        self._live = sys.stderr.isatty()

    def __enter__(self) -> "ProgressLine":
        """Usable in a ``with`` block, which ends the line."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the line."""
        if self._live:
            print(file=sys.stderr)

    def __call__(self, done: int, total: int, text: str) -> None:
        """Shows the state, not more often than useful."""
        now = time.monotonic()
        if now - self._shown < (0.2 if self._live else 10) and done < total:
            return
        self._shown = now
        left = (now - self._start) / done * (total - done) if done else 0.0
        line = f"[{done}/{total}] {_clock(left) + ' left' if done else 'starting'}  {text}"
        print(f"\r\x1b[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
