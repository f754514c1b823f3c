"""CRF with adaptive quantisation: the QP and the type of every frame are those of the encoder's own log."""

import re
from pathlib import Path

import pytest
from qp_streams import FRAMES, X265_QUIET, encode

from vsdiqp.codecs import frame_qps, probe
from vsdiqp.codecs.frames import CUTREE_OFFSET, MPEG2_OFFSET

_LOGGED = re.compile(r"^in:(\d+) out:\d+ type:(\w) q:([\d.-]+) ", re.MULTILINE)


@pytest.mark.parametrize(
    ("params", "pixel_format"),
    [
        ("crf=28", "yuv420p"),
        ("crf=20:aq-mode=3:aq-strength=1.4:bframes=8:b-adapt=2", "yuv420p"),
        ("crf=35:keyint=10:min-keyint=5:open-gop=1", "yuv420p"),
        ("crf=24:b-pyramid=0", "yuv420p10le"),
        ("bitrate=150", "yuv420p"),
        ("crf=28:interlace=bff", "yuv420p"),
    ],
)
def test_x265_log(tmp_path: Path, params: str, pixel_format: str) -> None:
    log = tmp_path / "log"
    options = {"preset": "fast", "x265-params": f"{params}:pass=1:slow-firstpass=1:stats={log}:{X265_QUIET}"}
    path = encode(tmp_path / "clip.mkv", "libx265", options, pixel_format=pixel_format)

    logged = sorted((int(number), kind.upper(), float(qp)) for number, kind, qp in _LOGGED.findall(log.read_text()))
    frames = probe(path).frames
    assert len(frames) == len(logged) == FRAMES
    assert [frame.kind.upper() for frame in frames] == [kind for _, kind, _ in logged]
    # The header has the nearest whole number; the log has two digits of what is rounded.
    assert all(abs(frame.qp - qp) <= 0.505 for frame, (_, _, qp) in zip(frames, logged, strict=True))
    assert len({frame.qp for frame in frames}) > 1


@pytest.mark.parametrize(
    ("params", "known"),
    [("crf=28", True), ("bitrate=150", True), ("crf=28:cutree=0", False), ("qp=30", False)],
)
def test_cutree_is_known_from_the_settings(tmp_path: Path, params: str, known: bool) -> None:
    """It alone parts the header's QP from the damage (docs/qp.md), and only the encoder's own words tell of it."""
    path = encode(tmp_path / "clip.mkv", "libx265", {"x265-params": f"{params}:info=1:{X265_QUIET}"})
    scan = probe(path)
    assert scan.qp_offset == (CUTREE_OFFSET if known else 0)
    assert frame_qps(str(path), FRAMES) == ("hevc", scan.qps, scan.qp_offset)


def test_mpeg2_has_an_offset_of_its_own(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", "mpeg2video", {"qmin": "8", "qmax": "8"})
    assert probe(path).qp_offset == MPEG2_OFFSET == frame_qps(str(path), FRAMES)[2]


def test_without_the_settings_nothing_is_added(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", "libx265", {"x265-params": f"crf=28:info=0:{X265_QUIET}"})
    assert probe(path).qp_offset == 0
