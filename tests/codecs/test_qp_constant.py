"""Streams encoded at one QP read back as exactly that QP, every frame."""

from pathlib import Path

import pytest
from qp_streams import FRAMES, SVT_QUIET, X265_QUIET, encode, encode_libaom

from vsdiqp.codecs import probe, read_qps


@pytest.mark.parametrize(
    ("qp", "pixel_format"), [(1, "yuv420p"), (22, "yuv420p"), (37, "yuv420p10le"), (51, "yuv420p"), (30, "yuv444p")]
)
def test_x265(tmp_path: Path, qp: int, pixel_format: str) -> None:
    params = f"qp={qp}:ipratio=1:pbratio=1:{X265_QUIET}"
    path = encode(tmp_path / "clip.mkv", "libx265", {"x265-params": params}, pixel_format=pixel_format)
    assert read_qps(path) == [qp] * FRAMES


def test_x265_with_slices_and_a_pps_that_carries_the_qp(tmp_path: Path) -> None:
    # x265 makes slices of rows that run in parallel: not without its thread pools.
    params = "qp=33:ipratio=1:pbratio=1:slices=3:opt-qp-pps=1:repeat-headers=1:keyint=8:log-level=none:pools=2"
    path = encode(tmp_path / "clip.hevc", "libx265", {"x265-params": params}, width=160, height=256)
    assert read_qps(path) == [33] * FRAMES


@pytest.mark.parametrize(
    "structure", ["pred-struct=1", "pred-struct=2", "superres-mode=1:superres-denom=13", "tile-columns=1:tile-rows=1"]
)
def test_svt_av1(tmp_path: Path, structure: str) -> None:
    # SVT-AV1's crf counts quarters of base_q_idx; with these offsets every layer of the pyramid uses the same.
    params = f"{SVT_QUIET}:rc=0:crf=40:aq-mode=0:use-fixed-qindex-offsets=1:{structure}"
    path = encode(tmp_path / "clip.mkv", "libsvtav1", {"preset": "9", "svtav1-params": params}, width=192, height=160)
    assert read_qps(path) == [160] * FRAMES


@pytest.mark.parametrize("alt_ref", ["0", "1"])
def test_libaom(tmp_path: Path, alt_ref: str) -> None:
    # libaom's quantiser 40 of 63 is base_q_idx 160 in its table quantizer_to_qindex.
    how = ("-crf", "40", "-qmin", "40", "-qmax", "40", "-auto-alt-ref", alt_ref, "-lag-in-frames", "19")
    path = encode_libaom(tmp_path / "clip.mkv", *how)
    assert read_qps(path) == [160] * FRAMES


def test_x264(tmp_path: Path) -> None:
    params = "qp=30:ipratio=1:pbratio=1:threads=1"
    path = encode(tmp_path / "clip.mkv", "libx264", {"x264-params": params})
    scan = probe(path)
    assert (scan.codec, scan.qps) == ("hevc", [30] * FRAMES)


def test_ten_bit_x264(tmp_path: Path) -> None:
    params = "qp=30:ipratio=1:pbratio=1:threads=1"
    path = encode(tmp_path / "clip.mkv", "libx264", {"x264-params": params}, pixel_format="yuv420p10le")
    # x264 counts its QP from 0, which is -QpBdOffset of the standard.
    assert read_qps(path) == [30 - 12] * FRAMES


def test_vp9(tmp_path: Path) -> None:
    options = {"crf": "40", "qmin": "40", "qmax": "40", "b": "0", "cpu-used": "8"}
    path = encode(tmp_path / "clip.webm", "libvpx-vp9", options)
    scan = probe(path)
    assert (scan.codec, scan.qps) == ("av1", [160] * FRAMES)


@pytest.mark.parametrize(
    ("encoder", "name", "qp"),
    [("mpeg2video", "clip.ts", 32), ("mpeg1video", "clip.mpg", 32), ("mpeg4", "clip.mkv", 33)],
)
def test_mpeg(tmp_path: Path, encoder: str, name: str, qp: int) -> None:
    path = encode(tmp_path / name, encoder, {"qmin": "8", "qmax": "8", "bf": "2"})
    # Step 16 in all three, HEVC's QP 28, and what they do more damage by.
    scan = probe(path)
    assert (scan.codec, scan.qps) == ("hevc", [qp] * FRAMES)
