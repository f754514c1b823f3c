"""Bitstream headers, parsed by FFmpeg: its ``trace_headers`` filter logs every syntax element, and this reads the log.

FFmpeg's parsers are maintained against every oddity of real files; the log is their only public output. Each line is
``bit position, element name, the bits, "=", value``, under headings such as ``Slice Segment Header``.

PyAV hands log lines to the thread that caused them, but the level and the suppression of repeated lines are global
to the process. They are raised while at least one :func:`tracing` block is open and put back after the last one, so
scans may run in several threads.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import av
import av.error
import av.logging
from av.bitstream import BitStreamFilterContext

_lock = threading.Lock()
_open_blocks = 0
_saved: tuple[int | None, bool] = (None, True)


@contextmanager
def tracing() -> Iterator[list[tuple[int, str, str]]]:
    """Collect this thread's FFmpeg log as ``(level, filter name, text)``; the caller empties the list as it reads."""
    global _open_blocks, _saved
    with _lock:
        if _open_blocks == 0:
            _saved = (av.logging.get_level(), av.logging.get_skip_repeated())
            av.logging.set_skip_repeated(False)
            av.logging.set_level(av.logging.INFO)
        _open_blocks += 1
    try:
        with av.logging.Capture(local=True) as lines:
            yield lines
    finally:
        with _lock:
            _open_blocks -= 1
            if _open_blocks == 0:
                av.logging.set_level(_saved[0])
                av.logging.set_skip_repeated(_saved[1])


@dataclass(slots=True)
class Section:
    """The wanted syntax elements of one header."""

    heading: str
    """As FFmpeg titles it: "Slice Segment Header", "Frame Header" and so on."""
    elements: dict[str, int] = field(default_factory=dict)
    """Element name to value; the last value where a name is repeated. Elements that are inferred are absent."""


class HeaderTrace:
    """Turns packets of one stream into the headers they carry.

    ``wanted`` names the syntax elements to keep, ``unit_types`` the NAL unit or OBU types that are parsed at all, in
    ``filter_units`` syntax ("1|32-34"): a parameter that none of the readers needs can then not make a packet
    unreadable, and slices' payloads are never looked at.
    """

    def __init__(
        self, stream: av.VideoStream, lines: list[tuple[int, str, str]], unit_types: str, wanted: frozenset[str]
    ) -> None:
        self._lines = lines
        self._wanted = wanted
        lines.clear()
        self._filter = BitStreamFilterContext(f"filter_units=pass_types={unit_types},trace_headers", stream)
        self.initial = self._take()
        """Headers that the container keeps outside of packets (parameter sets, sequence header)."""

    def read(self, packet: av.Packet) -> tuple[list[Section], bool]:
        """Return the headers in ``packet`` in order, and whether FFmpeg could parse all of them.

        Where it could not, the last header is the one it stumbled over and may lack elements.
        """
        self._lines.clear()
        try:
            self._filter.filter(packet)
        except av.error.FFmpegError:
            return self._take(), False
        return self._take(), True

    def _take(self) -> list[Section]:
        sections: list[Section] = []
        wanted = self._wanted
        for _, name, text in self._lines:
            if name != "trace_headers":
                continue
            parts = text.split(None, 2)
            if not parts[0][0].isdigit():
                sections.append(Section(text.strip()))
            elif len(parts) == 3 and parts[1] in wanted and sections:
                sections[-1].elements[parts[1]] = int(text.rsplit("=", 1)[1])
        self._lines.clear()
        return sections
