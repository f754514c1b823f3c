"""Studies: what they measure, and that they write it."""

import csv
import os
import re
from pathlib import Path

import av
import numpy as np
import pytest
from material import moving_clip

from vsdiqp.cli import main
from vsdiqp.errors import DiqpError
from vsdiqp.training.degrade import Clip, encode_lossless
from vsdiqp.training.settings import CONFIGS
from vsdiqp.training.study import frame_differences, luma_frames


def test_differences_of_a_clip_that_brightens() -> None:
    frames = (np.full((4, 6), 10 + 3 * n, np.uint8) for n in range(6))
    assert frame_differences("x", frames, 4).values == pytest.approx([3, 6, 9, 12])


def test_differences_end_with_the_clip() -> None:
    frames = [np.full((4, 6), value, np.uint8) for value in (200, 0, 200)]
    assert frame_differences("x", iter(frames), 50).values == pytest.approx([200, 0])
    with pytest.raises(DiqpError, match="x has fewer than two frames"):
        frame_differences("x", iter(frames[:1]), 3)


@pytest.mark.parametrize("bits", [8, 10])
def test_luma_of_a_file_is_in_8_bit_steps(bits: int, tmp_path: Path) -> None:
    clip = moving_clip(5, 64, bits)
    (tmp_path / "a.mkv").write_bytes(encode_lossless(clip))
    frames = list(luma_frames(tmp_path / "a.mkv", 4))
    assert len(frames) == 4
    assert np.array_equal(np.stack(frames) * (1 if bits == 8 else 4), clip.y[:4])


@pytest.mark.parametrize("packed", ["yuyv422", "uyvy422"])
def test_packed_formats_count_luma_alone(packed: str, tmp_path: Path) -> None:
    clip = moving_clip(3, 64)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("rawvideo", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, packed
        for luma in clip.y:
            samples = np.full((64, 64, 2), 90, np.uint8)
            samples[..., 0 if packed == "yuyv422" else 1] = luma
            frame = av.VideoFrame(64, 64, packed)
            frame.planes[0].update(samples)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.array_equal(np.stack(list(luma_frames(tmp_path / "a.mkv", 3))), clip.y)


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    parts = b""
    for side in (64, 32):
        encoded = encode_h264(moving_clip(2, side), tmp_path / "part.h264")
        parts += encoded
    (tmp_path / "two.h264").write_bytes(parts)
    with pytest.raises(DiqpError, match=r"two\.h264 differ in size"):
        list(luma_frames(tmp_path / "two.h264", 9))


def encode_h264(clip: Clip, path: Path) -> bytes:
    """A raw stream."""
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = clip.y.shape[2], clip.y.shape[1], "yuv420p"
        for n, luma in enumerate(clip.y):
            frame = av.VideoFrame.from_ndarray(luma, format="gray").reformat(format="yuv420p")
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("name", ["$a_{$.mkv", "a:b.mkv", os.fsdecode(b"caf\xe9.mkv")])
def test_clips_are_called_as_they_may_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(encode_lossless(moving_clip(3, 64)))
    assert main(["study", "look-ahead", name, "--out", "out"]) == 0
    with Path("out/look-ahead.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1][0] == Path(name).stem.replace("\udce9", r"\udce9")


def test_look_ahead_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.mkv").write_bytes(encode_lossless(moving_clip(6, 64, seed=ord(name))))
    clips = [str(tmp_path / f"{name}.mkv") for name in ("a", "b")]
    assert main(["study", "look-ahead", *clips, "--furthest", "3", "--out", str(tmp_path / "out")]) == 0
    table, picture = (Path(line) for line in capsys.readouterr().out.split())
    with table.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[:2] for row in rows] == [[name, str(t)] for name in ("a", "b") for t in (1, 2, 3)]
    assert all(float(row[2]) > 0 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["study", "look-ahead", str(tmp_path / "none.mkv")]) == 1
    assert "none.mkv" in capsys.readouterr().err


def test_shapes_command(small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sizes of a tiny network; a study that is started again has nothing left to train."""
    text = (CONFIGS / "lite.toml").read_text()
    changes = {"embed_dim": "8", "depths": "[0, 0, 1, 0, 0]", "heads": "[1, 1, 2, 1, 1]"}
    for name, widths in (("thin", "[8, 8, 12]"), ("wide", "[8, 8, 24]")):
        own = text
        for key, value in {**changes, "widths": widths}.items():
            own, found = re.subn(f"^{key} = .*$", f"{key} = {value}", own, flags=re.MULTILINE)
            assert found == 1
        (tmp_path / f"{name}.toml").write_text(own)
    arguments = ["study", "shapes", str(tmp_path / "wide.toml"), str(tmp_path / "thin.toml"), "--steps", "2"]
    arguments += [
        "--pool",
        str(small_pool),
        "--validation",
        str(small_pool),
        "--batch",
        "1",
        "--crop",
        "64",
        "--items",
        "2",
    ]
    arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    table, markdown = (Path(line) for line in capsys.readouterr().out.split())
    before = table.read_text()
    rows = list(csv.DictReader(before.splitlines()))
    assert [row["name"] for row in rows] == ["thin", "wide"] and {row["steps"] for row in rows} == {"2"}
    assert float(rows[0]["kmac"]) < float(rows[1]["kmac"]) and int(rows[0]["parameters"]) < int(rows[1]["parameters"])
    assert all(f"| {row['name']} |" in markdown.read_text() for row in rows)
    assert main(arguments) == 0
    assert table.read_text() == before and "resumed at step 2" in capsys.readouterr().err


def test_configurations_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "shapes", "lite", "lite", "--pool", "p", "--validation", "v"]) == 1
    assert "lite, lite; each needs a name" in capsys.readouterr().err
