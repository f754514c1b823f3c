"""``vsdiqp probe`` and the files it writes."""

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from qp_streams import FRAMES, HEIGHT, WIDTH, scene

from vsdiqp.cli import main
from vsdiqp.codecs import probe

Streams = Callable[[str], Path]


def test_summary_for_people(streams: Streams, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(streams("ten.mkv"))]) == 0
    out = capsys.readouterr().out
    for expected in ("hevc Main 10, 10 bit", f"96x64, {FRAMES} frames", "x265", "crf=12.0", "aq-mode"):
        assert expected in out


@pytest.mark.parametrize(
    ("name", "codec", "signed"), [("closed.hevc", "hevc", "x265"), ("x264.mkv", "hevc", "x264"), ("svt.mkv", "av1", "")]
)
def test_json(streams: Streams, capsys: pytest.CaptureFixture[str], name: str, codec: str, signed: str) -> None:
    assert main(["probe", "--json", str(streams(name))]) == 0
    said = json.loads(capsys.readouterr().out)
    scan = probe(streams(name))
    assert (said["codec"], said["frames"], said["qps"]) == (codec, FRAMES, scan.qps)
    assert signed in said["encoder"]
    by_type = {kind: values["frames"] for kind, values in said["qp"].items()}
    assert by_type.pop("all") == sum(by_type.values()) == FRAMES


def test_csv_has_a_line_for_every_frame(streams: Streams, tmp_path: Path) -> None:
    assert main(["probe", str(streams("svt.mkv")), "--csv", str(tmp_path / "qp.csv")]) == 0
    with (tmp_path / "qp.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["qp"]) for row in rows] == probe(streams("svt.mkv")).qps
    assert [int(row["frame"]) for row in rows] == list(range(FRAMES))


def test_x265_follows_the_qpfile(streams: Streams, tmp_path: Path) -> None:
    qpfile = tmp_path / "qpfile"
    assert main(["probe", str(streams("open.mkv")), "--qpfile", str(qpfile)]) == 0
    x265 = shutil.which("x265")
    if x265 is None:
        pytest.skip("there is no x265 program, and its library reads no qpfile")
    grey = bytes([128]) * (WIDTH * HEIGHT // 2)
    video = b"".join(picture.tobytes() + grey for picture in scene(FRAMES, WIDTH, HEIGHT))
    source = ("--input", "-", "--input-res", f"{WIDTH}x{HEIGHT}", "--input-csp", "i420", "--fps", "25")
    structure = ("--keyint", "10", "--min-keyint", "10", "--open-gop", "--bframes", "4", "--qpfile", str(qpfile))
    again = tmp_path / "again.hevc"
    subprocess.run([x265, *source, *structure, "-o", str(again)], input=video, check=True, capture_output=True)
    assert probe(again).frames == probe(streams("open.mkv")).frames


def test_a_qpfile_of_av1_is_refused(streams: Streams, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(streams("svt.mkv")), "--qpfile", str(tmp_path / "qpfile")]) == 1
    assert "av1" in capsys.readouterr().err
    assert not (tmp_path / "qpfile").exists()


@pytest.mark.parametrize("name", ["open.mkv", "x$_{$.mkv", os.fsdecode(b"caf\xe9.mkv")])
def test_plot(name: str, streams: Streams, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / name).write_bytes(streams("open.mkv").read_bytes())
    assert main(["probe", str(tmp_path / name), "--plot", str(tmp_path / "qp.png")]) == 0
    assert (tmp_path / "qp.png").read_bytes().startswith(b"\x89PNG")


def test_errors_go_to_stderr_and_set_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.mkv").write_bytes(b"nothing")
    assert main(["probe", str(tmp_path / "clip.mkv")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vsdiqp: ") and "clip.mkv" in captured.err


def test_a_place_that_cannot_be_written_to_is_an_error(
    streams: Streams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(streams("closed.mkv")), "--csv", str(tmp_path / "absent" / "qp.csv")]) == 1
    assert "cannot write" in capsys.readouterr().err
