"""How far a scan of a file has come."""

from collections.abc import Callable

Progress = Callable[[float], None]
"""Called now and then with the share of the file that has been read, 0..1."""


def report(progress: Progress | None, position: int | None, size: int) -> None:
    """Call ``progress`` for byte ``position`` of a file of ``size`` bytes, when both are known."""
    if progress is not None and position is not None and size > 0:
        progress(min(max(position / size, 0.0), 1.0))
