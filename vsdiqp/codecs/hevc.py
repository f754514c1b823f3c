"""The QP and the output order of HEVC pictures, from their headers (H.265, the clauses named below)."""

from collections.abc import Iterator
from dataclasses import dataclass

from vsdiqp.codecs.frames import CodedFrame
from vsdiqp.codecs.trace import Section

UNIT_TYPES = "0-9|16-21|32-34"
"""NAL units that are parsed: slices and parameter sets (table 7-1)."""

WANTED = frozenset(
    {
        "nal_unit_type",
        "nuh_layer_id",
        "nuh_temporal_id_plus1",
        "sps_seq_parameter_set_id",
        "log2_max_pic_order_cnt_lsb_minus4",
        "pps_pic_parameter_set_id",
        "pps_seq_parameter_set_id",
        "init_qp_minus26",
        "first_slice_segment_in_pic_flag",
        "slice_pic_parameter_set_id",
        "slice_type",
        "no_output_of_prior_pics_flag",
        "pic_output_flag",
        "slice_pic_order_cnt_lsb",
        "slice_qp_delta",
    }
)

_LENGTH_AT = 21
"""Where hvcC says how many bytes a length has."""
_COMPLETE: dict[str, set[str]] = {
    "Sequence Parameter Set": {"sps_seq_parameter_set_id", "log2_max_pic_order_cnt_lsb_minus4"},
    "Picture Parameter Set": {"pps_pic_parameter_set_id", "pps_seq_parameter_set_id", "init_qp_minus26"},
    "Slice Segment Header": {
        "nal_unit_type",
        "nuh_temporal_id_plus1",
        "first_slice_segment_in_pic_flag",
        "slice_pic_parameter_set_id",
    },
}
"""What a header must hold to be of use; damaged ones may break off before."""

_RADL_RASL = range(6, 10)
_RASL = (8, 9)
_BLA = range(16, 19)
_IDR = (19, 20)
_CRA = 21
_IRAP = range(16, 24)
_END = (36, 37)
"""End of sequence, end of bitstream: FFmpeg parses neither, see `with_ends`."""
_SLICES = range(32)
_START_CODE = b"\0\0\1"
_KINDS = ("B", "P", "I")
"""By slice_type (table 7-7), the freest first."""


@dataclass(slots=True)
class _Picture:
    sequence: int
    poc: int
    slice_qps: list[int]
    slice_types: list[int]
    key: bool
    reference: bool
    packet: int
    output: bool


@dataclass(slots=True)
class _Pps:
    sps: int
    init_qp: int


def with_ends(sections: list[Section], packet: bytes, extradata: bytes) -> list[Section]:
    """``sections`` of a packet, and before or after them one for an end of sequence or bitstream that it holds.

    ``extradata`` of the stream says whether NAL units have start codes (annex B) or their lengths before them.
    """
    kinds = [(unit >> 1) & 63 for unit in _first_bytes(packet, extradata)]
    if not any(kind in _END for kind in kinds):
        return sections
    first = next((at for at, kind in enumerate(kinds) if kind in _SLICES), len(kinds))
    ended = [
        [Section("End", {"nal_unit_type": kind}) for kind in part if kind in _END]
        for part in (kinds[:first], kinds[first:])
    ]
    return [*ended[0], *sections, *ended[1]]


def _first_bytes(packet: bytes, extradata: bytes) -> Iterator[int]:
    """The first byte of every NAL unit."""
    if len(extradata) > _LENGTH_AT and extradata[0] == 1:  # hvcC (ISO/IEC 14496-15, 8.3.3.1)
        size, at = (extradata[_LENGTH_AT] & 3) + 1, 0
        while at + size < len(packet):
            yield packet[at + size]
            at += size + int.from_bytes(packet[at : at + size], "big")
    else:
        at = packet.find(_START_CODE)
        while 0 <= at < len(packet) - len(_START_CODE):
            yield packet[at + len(_START_CODE)]
            at = packet.find(_START_CODE, at + len(_START_CODE))


class HevcReader:
    """Collects pictures in decoding order, gives them in the order a decoder outputs them.

    Output order is that of the picture order count within each coded video sequence, so timestamps are not needed.
    Not output: pictures with pic_output_flag 0, RASL pictures whose references were never sent (8.3.3), pictures before
    the first IRAP picture, layers above the base layer, and packets the container marks as outside its edit list.

    A stream of parts joined without an end of sequence between them has no such order: picture order counts of the
    next part begin somewhere, and what is output when depends on how far a decoder reorders. `ordered` is False then.
    Where a new sequence has a decoder drop what it has not output yet (a CRA picture after an end of sequence,
    no_output_of_prior_pics_flag; C.5.2.2), how much that is depends on the same; `complete` is False then.
    """

    def __init__(self) -> None:
        self._pocs_bits: dict[int, int] = {}
        self._pps: dict[int, _Pps] = {}
        self._sequence = -1
        self._restart = True
        self._drop_rasl = True
        self._previous_poc = 0
        self._highest_poc = self._irap_poc = 0
        self._broken = self._dropped = False
        self._current: _Picture | None = None
        self._pictures: list[_Picture] = []

    def read(self, sections: list[Section], packet: int, shown: bool) -> None:
        """Take the headers of one packet; ``packet`` is its index in the stream, ``shown`` False hides its pictures."""
        for section in sections:
            elements = section.elements
            if not _COMPLETE.get(section.heading, set()) <= elements.keys():
                continue
            if elements.get("nuh_layer_id", 0) > 0:
                continue
            if section.heading == "Sequence Parameter Set":
                self._pocs_bits[elements["sps_seq_parameter_set_id"]] = (
                    elements["log2_max_pic_order_cnt_lsb_minus4"] + 4
                )
            elif section.heading == "Picture Parameter Set":
                self._pps[elements["pps_pic_parameter_set_id"]] = _Pps(
                    elements["pps_seq_parameter_set_id"], 26 + elements["init_qp_minus26"]
                )
            elif section.heading == "Slice Segment Header":
                self._read_slice(elements, packet, shown)
            elif elements.get("nal_unit_type") in _END:
                self._restart = True

    @property
    def ordered(self) -> bool:
        """Whether `frames` is the order that decoders output; else only a decoder knows."""
        return not self._broken

    @property
    def complete(self) -> bool:
        """Whether decoders output all of `frames`; else only one of them knows."""
        return not self._dropped

    def frames(self) -> list[tuple[int, CodedFrame]]:
        """Return (packet index, frame) for every picture that is output, in output order."""
        return self._described(sorted(self._pictures, key=lambda picture: (picture.sequence, picture.poc)), False)

    def coded(self) -> list[tuple[int, CodedFrame]]:
        """Return (packet index, frame) for every picture, whether it is output or not, in coding order."""
        return self._described(self._pictures, True)

    @staticmethod
    def _described(pictures: list[_Picture], hidden: bool) -> list[tuple[int, CodedFrame]]:
        return [
            (
                picture.packet,
                CodedFrame(
                    round(sum(picture.slice_qps) / len(picture.slice_qps)),
                    _kind(picture),
                    picture.key,
                ),
            )
            for picture in pictures
            if picture.slice_qps and (picture.output or hidden)
        ]

    def _read_slice(self, elements: dict[str, int], packet: int, shown: bool) -> None:
        if elements["first_slice_segment_in_pic_flag"]:
            self._current = self._start_picture(elements, packet, shown)
        picture = self._current
        pps = self._pps.get(elements["slice_pic_parameter_set_id"])
        # Dependent slice segments take both from the segment before.
        if picture is None or pps is None or not {"slice_qp_delta", "slice_type"} <= elements.keys():
            return
        picture.slice_qps.append(pps.init_qp + elements["slice_qp_delta"])
        picture.slice_types.append(elements["slice_type"])

    def _start_picture(self, elements: dict[str, int], packet: int, shown: bool) -> _Picture | None:
        nal, temporal_id = elements["nal_unit_type"], elements["nuh_temporal_id_plus1"] - 1
        pps = self._pps.get(elements["slice_pic_parameter_set_id"])
        if pps is None or pps.sps not in self._pocs_bits:
            return None
        if nal in _IRAP:
            # NoRaslOutputFlag (8.1.3): this picture starts a coded video sequence.
            starts = nal != _CRA or self._restart
            self._drop_rasl = starts
            if starts:
                dropped = nal == _CRA or elements.get("no_output_of_prior_pics_flag", 0) > 0
                self._dropped |= dropped and self._sequence >= 0
                self._sequence += 1
            self._restart = False
        elif self._restart:
            return None
        else:
            starts = False

        # Picture order count (8.3.1).
        lsb, modulus = elements.get("slice_pic_order_cnt_lsb", 0), 1 << self._pocs_bits[pps.sps]
        if starts:
            msb = 0
        else:
            previous_lsb = self._previous_poc % modulus
            msb = self._previous_poc - previous_lsb
            if lsb < previous_lsb and previous_lsb - lsb >= modulus // 2:
                msb += modulus
            elif lsb > previous_lsb and lsb - previous_lsb > modulus // 2:
                msb -= modulus
        poc = msb + lsb
        sub_layer_non_reference = nal < 16 and nal % 2 == 0
        if temporal_id == 0 and nal not in _RADL_RASL and not sub_layer_non_reference:
            self._previous_poc = poc

        self._follow(nal, poc, starts)
        output = shown and bool(elements.get("pic_output_flag", 1)) and not (nal in _RASL and self._drop_rasl)
        picture = _Picture(self._sequence, poc, [], [], nal in _IRAP, not sub_layer_non_reference, packet, output)
        self._pictures.append(picture)
        return picture

    def _follow(self, nal: int, poc: int, starts: bool) -> None:
        """See whether output order is what it has to be: an IRAP picture comes after all that is coded before it, its
        leading pictures before it and all others after it (7.4.2.2)."""
        if nal in _IRAP:
            self._broken |= not starts and poc <= self._highest_poc
            self._irap_poc = self._highest_poc = poc
        elif nal in _RADL_RASL:
            self._broken |= poc >= self._irap_poc
        else:
            self._broken |= poc <= self._irap_poc
            self._highest_poc = max(self._highest_poc, poc)


def _kind(picture: _Picture) -> str:
    kind = _KINDS[min(picture.slice_types)]
    return "b" if kind == "B" and not picture.reference else kind
