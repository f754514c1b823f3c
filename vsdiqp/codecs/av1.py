"""The base_q_idx and output order of AV1 frames, from their headers (AV1 specification, the clauses named below)."""

from dataclasses import dataclass

from vsdiqp.codecs.frames import CodedFrame
from vsdiqp.codecs.trace import Section

UNIT_TYPES = "1|3|6|7"
"""OBUs needed: sequence header, frame header, frame, redundant frame header (6.2.2)."""

WANTED = frozenset(
    {
        "spatial_id",
        "show_existing_frame",
        "frame_to_show_map_idx",
        "frame_type",
        "show_frame",
        "refresh_frame_flags",
        "base_q_idx",
    }
)

_KEY, _INTER, _INTRA_ONLY, _SWITCH = range(4)
_SLOTS = 8
_ALL_SLOTS = 0xFF


@dataclass(slots=True)
class _Slot:
    frame: CodedFrame
    key: bool


class Av1Reader:
    """Collects the frames that are shown; AV1 sends them in the order they are shown.

    A frame is shown by its own header (show_frame) or later by show_existing_frame, which shows a reference slot
    again. Not output: frames before the first key frame, slots that were never filled, all but the highest spatial
    layer of a temporal unit, and packets that the container marks as outside its edit list.
    """

    def __init__(self) -> None:
        self._slots: list[_Slot | None] = [None] * _SLOTS
        self._started = False
        self._frames: list[tuple[int, CodedFrame]] = []

    def read(self, sections: list[Section], packet: int, shown: bool) -> None:
        """Take the headers of one packet; ``packet`` is its index in the stream, ``shown`` False hides its frames."""
        spatial_id = 0
        unit: list[tuple[int, CodedFrame]] = []
        for section in sections:
            if section.heading == "OBU header":
                spatial_id = section.elements.get("spatial_id", 0)
            elif section.heading == "Frame Header":
                frame = self._read_header(section.elements)
                if frame is not None:
                    unit.append((spatial_id, frame))
        if shown and unit:
            top = max(layer for layer, _ in unit)
            self._frames.extend((packet, frame) for layer, frame in unit if layer == top)

    @property
    def ordered(self) -> bool:
        """Whether `frames` is the order that decoders output: always."""
        return True

    @property
    def complete(self) -> bool:
        """Whether decoders output all of `frames`: always."""
        return True

    def frames(self) -> list[tuple[int, CodedFrame]]:
        """Return (packet index, frame) for every frame that is output, in output order."""
        return self._frames

    def coded(self) -> list[tuple[int, CodedFrame]]:
        """As `frames`: what is shown is what a packet can make a decoder output."""
        return self._frames

    def _read_header(self, elements: dict[str, int]) -> CodedFrame | None:
        if elements.get("show_existing_frame", 0):
            slot = self._slots[elements["frame_to_show_map_idx"]]
            if slot is None:
                return None
            if slot.key:
                # Showing a key frame again loads it and refreshes every slot (7.21).
                self._slots = [slot] * _SLOTS
            return slot.frame

        # A copy of a header that was already sent carries no elements; a reduced still picture leaves out its type.
        if "base_q_idx" not in elements:
            return None
        frame_type = elements.get("frame_type", _KEY)
        show = bool(elements.get("show_frame", 1))
        if frame_type in (_KEY, _INTRA_ONLY):
            self._started = True
        if not self._started:
            return None
        kind = "I" if frame_type in (_KEY, _INTRA_ONLY) else "P"
        frame = CodedFrame(elements["base_q_idx"], kind, frame_type == _KEY)
        # Inferred, and so not in the trace, for shown key frames and switch frames (5.9.2).
        refreshed = elements.get("refresh_frame_flags", _ALL_SLOTS)
        for index in range(_SLOTS):
            if refreshed >> index & 1:
                self._slots[index] = _Slot(frame, frame_type == _KEY)
        return frame if show else None
