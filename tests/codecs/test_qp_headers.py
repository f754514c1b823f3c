"""Structures that no encoder here makes, given as the syntax elements of their headers."""

from vsdiqp.codecs.av1 import Av1Reader
from vsdiqp.codecs.hevc import HevcReader, with_ends
from vsdiqp.codecs.trace import Section

_TRAIL, _IDR = 1, 19
_KEY, _INTER = 0, 1


def hevc_parameter_sets(init_qp: int = 26) -> list[Section]:
    return [
        Section("Sequence Parameter Set", {"sps_seq_parameter_set_id": 0, "log2_max_pic_order_cnt_lsb_minus4": 0}),
        Section(
            "Picture Parameter Set",
            {"pps_pic_parameter_set_id": 0, "pps_seq_parameter_set_id": 0, "init_qp_minus26": init_qp - 26},
        ),
    ]


def hevc_slice(qp_delta: int, poc: int = 0, nal: int = _TRAIL, **more: int) -> Section:
    elements = {
        "nal_unit_type": nal,
        "nuh_temporal_id_plus1": 1,
        "first_slice_segment_in_pic_flag": 1,
        "slice_pic_parameter_set_id": 0,
        "slice_type": 2 if nal == _IDR else 1,
        "slice_pic_order_cnt_lsb": poc % 16,
        "slice_qp_delta": qp_delta,
    }
    return Section("Slice Segment Header", elements | more)


def hevc_qps(*packets: list[Section]) -> list[int]:
    reader = HevcReader()
    for number, sections in enumerate(packets):
        reader.read(sections, number, True)
    return [frame.qp for _, frame in reader.frames()]


def test_ten_bit_hevc_may_go_below_zero() -> None:
    assert hevc_qps([*hevc_parameter_sets(20), hevc_slice(-26, nal=_IDR)]) == [-6]


def test_each_picture_uses_the_parameter_set_of_its_time() -> None:
    first = [*hevc_parameter_sets(26), hevc_slice(1, nal=_IDR)]
    second = [*hevc_parameter_sets(30), hevc_slice(1, poc=1)]
    assert hevc_qps(first, second) == [27, 31]


def test_pictures_without_output_are_not_counted() -> None:
    first = [*hevc_parameter_sets(), hevc_slice(1, nal=_IDR)]
    assert hevc_qps(first, [hevc_slice(2, poc=1, pic_output_flag=0)], [hevc_slice(3, poc=2)]) == [27, 29]


def test_the_picture_order_count_outlives_its_field_of_bits() -> None:
    first = [*hevc_parameter_sets(), hevc_slice(0, nal=_IDR)]
    later = [[hevc_slice(poc, poc=poc)] for poc in (4, 2, 8, 6, 12, 10, 16, 14, 20, 18)]
    assert hevc_qps(first, *later) == [26 + poc for poc in range(0, 22, 2)]


def test_the_qp_of_a_picture_is_the_mean_of_its_slices() -> None:
    more = hevc_slice(10, nal=_IDR, first_slice_segment_in_pic_flag=0)
    dependent = Section("Slice Segment Header", dict(more.elements))
    del dependent.elements["slice_qp_delta"], dependent.elements["slice_type"]
    assert hevc_qps([*hevc_parameter_sets(), hevc_slice(4, nal=_IDR), dependent, more]) == [33]


def test_enhancement_layers_are_passed_over() -> None:
    layer = hevc_slice(9, nal=_IDR, nuh_layer_id=1)
    assert hevc_qps([*hevc_parameter_sets(), hevc_slice(1, nal=_IDR, nuh_layer_id=0), layer]) == [27]


def av1_frame(qp: int, kind: int = _INTER, show: int = 1, refresh: int = 0) -> Section:
    elements = {"show_existing_frame": 0, "frame_type": kind, "show_frame": show, "base_q_idx": qp}
    if not (kind == _KEY and show):
        elements["refresh_frame_flags"] = refresh
    return Section("Frame Header", elements)


def av1_show(slot: int) -> Section:
    return Section("Frame Header", {"show_existing_frame": 1, "frame_to_show_map_idx": slot})


def av1_qps(*packets: list[Section]) -> list[int]:
    reader = Av1Reader()
    for number, sections in enumerate(packets):
        reader.read(sections, number, True)
    return [frame.qp for _, frame in reader.frames()]


def test_hidden_av1_frames_count_when_they_are_shown() -> None:
    units = ([av1_frame(90, _KEY)], [av1_frame(120, show=0, refresh=0b100), av1_frame(200)], [av1_show(2)])
    assert av1_qps(*units) == [90, 200, 120]


def test_showing_a_hidden_av1_key_frame_refreshes_every_slot() -> None:
    start = [av1_frame(10, _KEY)]
    hidden_key = [av1_frame(60, _KEY, show=0, refresh=0b1), av1_frame(100)]
    assert av1_qps(start, hidden_key, [av1_show(0)], [av1_show(7)]) == [10, 100, 60, 60]


def test_of_spatial_layers_the_highest_is_shown() -> None:
    low, high = Section("OBU header", {"spatial_id": 0}), Section("OBU header", {"spatial_id": 1})
    assert av1_qps([low, av1_frame(50, _KEY), high, av1_frame(80, refresh=2)]) == [80]


def test_a_repeated_av1_header_is_no_frame() -> None:
    assert av1_qps([av1_frame(50, _KEY), Section("Frame Header")]) == [50]


def test_av1_before_the_first_key_frame_is_not_shown() -> None:
    assert av1_qps([av1_frame(70)], [av1_show(3)], [av1_frame(50, _KEY)]) == [50]


def test_ends_of_sequences_are_found_before_and_after_slices() -> None:
    """FFmpeg's trace passes over them, in both forms of a packet."""
    units = {"end": b"\x48\1", "slice": b"\x02\1slice", "bitstream's end": b"\x4a\1"}
    hvcc = b"\1" + bytes(20) + b"\xff"
    shown = [Section("Slice Segment Header")]
    for packet, expected in (
        (["slice"], ["Slice Segment Header"]),
        (["end", "slice"], ["End", "Slice Segment Header"]),
        (["slice", "slice", "end", "bitstream's end"], ["Slice Segment Header", "End", "End"]),
    ):
        with_codes = b"".join(b"\0\0\1" + units[name] for name in packet)
        with_lengths = b"".join(len(units[name]).to_bytes(4, "big") + units[name] for name in packet)
        assert [section.heading for section in with_ends(shown, with_codes, b"\0\0\1")] == expected
        assert [section.heading for section in with_ends(shown, with_lengths, hvcc)] == expected
    for damaged in (b"", b"\0\0\1", b"\0\0\0", b"\xff\xff\xff\xff\x48"):
        with_ends(shown, damaged, b""), with_ends(shown, damaged, hvcc)
