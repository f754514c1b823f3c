"""Files as clips: whatever they are called and say of themselves, one format, one size, one meaning of samples."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs
from clips import write_clip, write_interlaced, write_two_sizes

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.evaluate import Reference, Settings, measure
from vsdiqp.evaluation.video import open_video, settle_colour

needs_bs = pytest.mark.skipif(not hasattr(vs.core, "bs"), reason="needs vapoursynth-bestsource")


def coloured(height: int) -> vs.VideoNode:
    """A frame of chroma that changes from line to line, as in 4:2:0 of fields and of frames it lies elsewhere."""
    clip = vs.core.std.BlankClip(width=64, height=height, format=vs.YUV420P8, length=1, color=[120, 128, 128])

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i in (1, 2):
            plane = np.asarray(out[i])
            plane[...] = np.random.default_rng(i).integers(60, 200, (plane.shape[0], 1))
        return out

    return clip.std.ModifyFrame(clip, fill)


@pytest.mark.parametrize("height", [48, 50])
def test_frames_flagged_interlaced_are_measured_as_frames(height: int) -> None:
    """The same samples have the same scores, in heights that fields of 4:2:0 cannot have as well."""
    clean, damaged = coloured(height), coloured(height).std.Expr(["x", "x 9 +", "x 5 -"])
    scores = []
    for flag in (0, 2):
        source = settle_colour(clean.std.SetFrameProps(_FieldBased=flag))
        decoded = settle_colour(damaged.std.SetFrameProps(_FieldBased=0), like=source)
        scores += measure(source, decoded, decoded, Settings())
    assert scores[1] == scores[0]


def test_yuv_takes_no_meaning_from_rgb() -> None:
    rgb = vs.core.std.BlankClip(width=64, height=64, format=vs.RGB24, length=1).std.SetFrameProps(_Matrix=0, _Range=1)
    yuv = vs.core.std.BlankClip(width=64, height=64, format=vs.YUV420P8, length=1).std.SetFrameProps(
        _Matrix=9, _Range=0
    )
    props = settle_colour(yuv, like=rgb).get_frame(0).props
    assert (props["_Matrix"], props["_Range"]) == (9, 0)
    props = settle_colour(rgb, like=yuv).get_frame(0).props
    assert (props["_Matrix"], props["_Range"]) == (0, 1)


@needs_bs
def test_flags_of_interlacing_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vsdiqp"):
        reference = Reference.open(write_interlaced(tmp_path / "fields.mkv"))
        Reference.open(write_clip(tmp_path / "frames.mkv"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'fields.mkv'} is flagged interlaced; it is measured as progressive"
    ]
    assert reference.node.get_frame(0).props["_FieldBased"] == 0


@needs_bs
def test_clips_whose_size_changes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DiqpError, match=r"sizes\.h264 differ in size"):
        open_video(write_two_sizes(tmp_path / "sizes.h264"))


@needs_bs
def test_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    path = write_clip(tmp_path / os.fsdecode(b"caf\xe9.mkv"))
    assert open_video(path).num_frames == 6
