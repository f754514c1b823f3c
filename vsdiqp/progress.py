"""A line on stderr that says how far long work has come; stdout stays clean for pipes."""

import sys
import time
from types import TracebackType


class ProgressLine:
    """Called with (done, total, what is worked on): one line rewritten on a terminal, else one every ten seconds.

    Nothing is shown before ``patience`` seconds: short work need not be talked of. The time left is judged by what was
    done since the first call.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self._start = time.monotonic()
        self._silent_until = self._start + patience
        self._shown = float("-inf")
        self._first: int | None = None
        # Programs without a console have no stderr at all.
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._open = False

    def __enter__(self) -> "ProgressLine":
        """Usable in a ``with`` block, which ends the line."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the line."""
        if self._open:
            print(file=sys.stderr)

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Shows the state, not more often than useful."""
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if now < self._silent_until or sys.stderr is None:
            return
        if now - self._shown < (0.2 if self._live else 10) and done < total:
            return
        self._shown = now
        made, spent = done - self._first, now - self._start
        if done >= total:
            state = f"took {_clock(spent)}"
        else:
            state = f"{_clock(spent / made * (total - done))} left" if made else "starting"
        line = f"[{done}/{total}] {state}  {text}".rstrip()
        self._open = self._live
        print(f"\r\x1b[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
