"""Frames come out in the order, and in the number, in which decoders and source filters deliver them."""

import random
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import av
import av.error
import pytest
from qp_streams import FRAMES, remux

from vsdiqp.codecs import frame_qps, probe
from vsdiqp.codecs.decoding import packets
from vsdiqp.errors import DiqpError

Streams = Callable[[str], Path]

NAMES = [
    *(f"{stem}.{kind}" for stem in ("closed", "open", "fields") for kind in ("mkv", "mp4", "ts", "hevc")),
    "ten.mkv",
    "ten.hevc",
    *(f"{stem}.{kind}" for stem in ("svt", "aom") for kind in ("mkv", "mp4", "webm", "ivf", "obu")),
    "x264.mkv",
    "x264.ts",
    "x264.h264",
    "vp9.webm",
    "mpeg2.ts",
]


def decoder_order(path: Path) -> list[int]:
    """The packets, by their number in the file, whose frames FFmpeg's decoder outputs."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        context.copy_opaque, context.thread_count = True, 1
        order: list[int] = []
        for number, packet in enumerate(packets(container, container.streams.video[0])):
            packet.opaque = number
            # Decoders may refuse frames before the first key frame.
            with suppress(av.error.InvalidDataError):
                order += [frame.opaque for frame in context.decode(packet)]
        return order + [frame.opaque for frame in context.decode(None)]


def packet_order(path: Path) -> list[int]:
    """The packets by number, in the order of the headers."""
    from vsdiqp.codecs import scan

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        headers = scan._HEADERS["hevc" if "hevc" in stream.codec_context.name else "av1"]
        return [number for number, _ in scan._read_headers(container, stream, headers, None)[0].frames()]


def source_types(path: Path) -> str:
    """The type of every frame that bestsource delivers."""
    vapoursynth = pytest.importorskip("vapoursynth")
    if not hasattr(vapoursynth.core, "bs"):
        pytest.skip("bestsource is not installed")
    clip = vapoursynth.core.bs.VideoSource(str(path), cachemode=0, threads=1)
    return "".join(str(frame.props["_PictType"]) for frame in clip.frames())


def types(path: Path) -> str:
    return "".join(frame.kind for frame in probe(path).frames).upper()


@pytest.mark.parametrize("name", NAMES)
def test_every_container_gives_what_the_source_filter_delivers(streams: Streams, name: str) -> None:
    path = streams(name)
    assert types(path) == source_types(path)
    assert len(frame_qps(str(path), FRAMES)[1]) == FRAMES


@pytest.mark.parametrize("name", ["open.mkv", "open.hevc", "fields.ts", "svt.obu", "aom.mp4"])
def test_header_order_is_decoder_order(streams: Streams, name: str) -> None:
    path = streams(name)
    assert packet_order(path) == decoder_order(path)


@pytest.mark.parametrize("name", ["open.mkv", "open.mp4", "open.ts", "open.hevc", "svt.mkv", "svt.mp4"])
def test_streams_cut_anywhere_at_the_start(streams: Streams, tmp_path: Path, name: str) -> None:
    """Leading pictures without their references, and inter frames before the first key frame, are not shown."""
    path = streams(name)
    for first in (3, 10, 16):
        cut = remux(path, tmp_path / f"{first}_{name}", first=first)
        assert packet_order(cut) == decoder_order(cut)
        assert types(cut) == source_types(cut)
        assert len(probe(cut).frames) < FRAMES


@pytest.mark.parametrize("name", ["closed.mp4", "open.mp4", "svt.mp4", "x264.mp4"])
def test_edit_lists_hide_frames(streams: Streams, tmp_path: Path, name: str) -> None:
    cut = remux(streams(name), tmp_path / "edited.mp4", shift=7)
    assert types(cut) == source_types(cut)
    assert len(probe(cut).frames) < FRAMES


def test_two_streams_in_one_file(streams: Streams, tmp_path: Path) -> None:
    end_of_sequence = b"\0\0\1\x48\1"
    stream = streams("open.hevc").read_bytes()
    for between in (b"", end_of_sequence):
        path = tmp_path / f"twice{len(between)}.hevc"
        path.write_bytes(stream + between + stream)
        assert types(path) == source_types(path)
        assert probe(path).qps == probe(streams("open.hevc")).qps * 2


def from_second_cra(stream: bytes) -> bytes:
    """A stream with start codes from its second CRA picture on, with the parameter sets of its beginning."""
    starts = [match.start() for match in re.finditer(b"\0\0\1", stream)]
    kinds = [stream[at + 3] >> 1 & 63 for at in starts]
    first_slice = next(at for at, kind in zip(starts, kinds, strict=True) if kind < 32)
    cuts = [at for at, kind in zip(starts, kinds, strict=True) if kind == 21]
    return stream[:first_slice] + stream[cuts[1] :]


@pytest.mark.parametrize("joint", ["cut", "end of sequence", "ends everywhere"])
@pytest.mark.parametrize(("name", "container"), [("open", "hevc"), ("low", "hevc"), ("low", "mp4")])
def test_parts_joined_at_open_groups(streams: Streams, tmp_path: Path, name: str, joint: str, container: str) -> None:
    """What is output, and when, depends there on how far a decoder reorders; offset or not."""
    stream = streams(f"{name}.hevc").read_bytes()
    end = b"\0\0\1\x48\1"
    part = from_second_cra(stream)
    if joint == "ends everywhere":
        stream = re.sub(rb"\x00\x00\x01(?=\x2a)", end + b"\0\0\1", stream)  # before every CRA picture
    path = tmp_path / "joined.hevc"
    path.write_bytes(stream + (b"" if joint == "cut" else end) + part)
    if container == "mp4":
        path = remux(path, tmp_path / "joined.mp4")
    shown = source_types(path)
    decoded = probe(path, order="decoder", use_cache=False)
    assert "".join(frame.kind for frame in decoded.frames).upper() == shown
    assert frame_qps(str(path), len(shown))[1] == decoded.qps
    assert frame_qps(str(path), len(shown) - 3, offset=3)[1] == decoded.qps[3:]


@pytest.mark.parametrize("name", ["open.mkv", "open.ts", "open.hevc", "svt.ivf", "svt.obu", "svt.webm", "x264.ts"])
def test_files_that_break_off(streams: Streams, tmp_path: Path, name: str) -> None:
    data = streams(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: len(data) * 6 // 10])
    shown = source_types(path)
    assert 0 < len(shown) < FRAMES
    assert len(frame_qps(str(path), len(shown))[1]) == len(shown)


@pytest.mark.parametrize("name", ["open.hevc", "open.ts"])
def test_frames_that_damage_made_undecodable_are_left_out(streams: Streams, tmp_path: Path, name: str) -> None:
    data = streams(name).read_bytes()
    rng = random.Random(2)
    lost = 0
    for number in range(4):
        damaged = bytearray(data)
        for _ in range(8):
            damaged[rng.randrange(len(data) // 4, len(data) * 3 // 4)] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{number}_{name}"
        path.write_bytes(damaged)
        shown = source_types(path)
        assert len(frame_qps(str(path), len(shown))[1]) == len(shown)
        lost += FRAMES - len(shown)
    assert lost > 0


def test_a_trimmed_clip_takes_its_part(streams: Streams) -> None:
    path = str(streams("closed.mkv"))
    codec, qps, more = frame_qps(path, FRAMES)
    assert codec == "hevc"
    assert frame_qps(path, 10, offset=5) == (codec, qps[5:15], more)
    assert frame_qps(path, FRAMES - 5, offset=5) == (codec, qps[5:], more)
    assert frame_qps(path, 10, offset=0) == (codec, qps[:10], more)


def test_a_clip_of_another_size_is_remarked_on(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    path = str(streams("closed.mkv"))
    found = probe(path)
    own = (found.width, found.height)
    for size in (own, own[::-1], (0, 0)):
        frame_qps(path, FRAMES, 0, size)
    assert not caplog.records
    assert frame_qps(path, FRAMES, 0, (own[0] // 2, own[1])) == frame_qps(path, FRAMES)
    assert f"the clip is {own[0] // 2}x{own[1]}" in caplog.text and f"is {own[0]}x{own[1]}: " in caplog.text


@pytest.mark.parametrize(
    ("frames", "offset"), [(FRAMES - 1, None), (FRAMES + 1, None), (FRAMES + 1, 0), (FRAMES, 1), (3, -1)]
)
def test_a_count_that_does_not_fit_names_both_numbers_and_the_way_out(
    streams: Streams, frames: int, offset: int | None
) -> None:
    with pytest.raises(DiqpError, match=rf"{frames} frames.* holds {FRAMES}.*offset="):
        frame_qps(str(streams("closed.mkv")), frames, offset)
