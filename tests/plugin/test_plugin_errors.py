"""What users are told when something is not accepted or fails, and that the filter survives it."""

import logging
import re
import signal
import time

import pytest
import vapoursynth as vs
from plugin_support import first_samples, numbered

from vsdiqp import host
from vsdiqp.errors import DiqpError


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"qp": 52, "codec": "hevc"}, "QP 52 is out of range: .* 0 to 51"),
        ({"qp": -1, "codec": "hevc"}, "QP -1 is out of range: .* 0 to 51"),
        ({"qp": 256, "codec": "av1"}, "QP 256 is out of range: .* 0 to 255"),
        (
            {"qp": 256},
            r"qp is 256, which is out of range: HEVC's QP 0 to 51 and AV1's base_q_idx 0 to 255; codec= says",
        ),
        ({"qp": -1}, r"qp is -1, which is out of range: HEVC's QP 0 to 51"),
        ({"qp": float("nan")}, r"qp is nan, which is out of range: HEVC's QP 0 to 51"),
        ({"qp": [30, 30, 30, 99, 30, 30], "codec": "hevc"}, r"qp\[3\]: QP 99 is out of range"),
        ({"qp": [30] * 5}, "qp has 5 values and the clip 6 frames"),
        ({"qp": [30] * 7}, "qp has 7 values and the clip 6 frames"),
        ({"qp": 30, "codec": "h264"}, "unknown codec 'h264': give one of av1, hevc"),
        ({"qp": 30, "codec": ""}, "codec is empty"),
        ({"qp": 30, "codec": b"h\xff"}, r"unknown codec 'h\\+xff': give one of av1, hevc"),
        ({"qp": 30, "qp_offset": float("inf")}, "qp_offset is inf"),
        ({"qp": 30, "model": ""}, "model is empty"),
        ({"qp": 30, "strength": 1.5}, "strength is 1.5: give 0 .* to 1"),
        ({"qp": 30, "strength": -0.1}, "strength is -0.1"),
        ({"qp": 30, "strength": float("nan")}, "strength is nan"),
        ({"qp": 30, "look_ahead": -1}, "look_ahead is -1: give 0 or more"),
        ({"qp": 30, "look_ahead": 2**31}, "look_ahead is 2147483648: give 0 or more, up to 2147483647"),
        ({"qp": 30, "overlap": -8}, "overlap is -8: give 0 or more"),
        ({"qp": 30, "batch": 0}, "batch is 0: give 1 or more"),
        ({"qp": 30, "tile": [128, 128, 128]}, r"tile is \[128, 128, 128\]: give \[width, height\]"),
        ({"qp": 30, "tile": 0}, r"tile is \[0\]"),
        ({"qp": 30, "backend": "metal"}, "backend is 'metal': give one of auto, cpu, cuda, tensorrt"),
        ({"qp": 30, "precision": "int8"}, "precision is 'int8': give one of auto, fp32, fp16, bf16"),
        ({"qp": 30, "device": -1}, r"device is \[-1\]: give the index of a GPU"),
        ({"qp": 30, "device": [0, 0]}, r"device is \[0, 0\]"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value))[:40],
)
def test_arguments_are_refused_when_the_script_is_read(engine, arguments, text):
    with pytest.raises(vs.Error, match=f"^diqp.Restore: {text}"):
        numbered(6).diqp.Restore(**arguments)


@pytest.mark.parametrize("format", [vs.GRAY32, vs.core.query_video_format(vs.YUV, vs.INTEGER, 24, 1, 1).id])
def test_formats_that_no_codec_has_are_refused(engine, format):
    with pytest.raises(vs.Error, match=r"^diqp.Restore: the clip has \d+-bit integer samples; accepted are 8 to 16"):
        vs.core.std.BlankClip(format=format, width=64, height=64).diqp.Restore(qp=30)


@pytest.mark.parametrize(("width", "height"), [(15, 64), (64, 15)])
def test_clips_that_are_too_small_are_refused(engine, width, height):
    with pytest.raises(vs.Error, match=f"^diqp.Restore: the clip is {width}x{height}; accepted are sizes from 16x16"):
        numbered(3, vs.GRAY8, width, height).diqp.Restore(qp=30)


@pytest.mark.parametrize("other", [{"width": 48}, {"format": vs.GRAY16}], ids=["size", "format"])
def test_clips_that_change_are_refused(engine, other):
    blank = vs.core.std.BlankClip(format=vs.GRAY8, width=32, height=32, length=3)
    clip = vs.core.std.Splice([blank, blank.std.BlankClip(**other)], mismatch=True)
    with pytest.raises(vs.Error, match=r"^diqp.Restore: the clip changes its format or size"):
        clip.diqp.Restore(qp=30)


def test_what_the_engine_refuses_is_refused_when_the_script_is_read(engine):
    engine("Refuses")
    with pytest.raises(vs.Error, match=r"^diqp.Restore: no model 'nothing': give another one$"):
        numbered(3).diqp.Restore(qp=30, model="nothing")


def test_a_codec_the_model_does_not_know_is_refused_when_the_script_is_read(engine):
    engine("OnlyHevc")
    with pytest.raises(vs.Error, match=r"^diqp.Restore: the model is made for hevc, not for av1"):
        numbered(3).diqp.Restore(qp=30, codec="av1")
    with pytest.raises(vs.Error, match=r"^diqp.Restore: qp\[2\]: QP 60 is out of range.*for hevc alone"):
        numbered(3).diqp.Restore(qp=[30, 30, 60])


def test_a_model_that_knows_one_codec_is_told_qps_on_its_scale(engine):
    double = engine("OnlyAv1")
    numbered(3).diqp.Restore(qp=200).get_frame(0)
    assert [(run["qp"], run["codec"]) for run in double.runs] == [(200, "av1")]


@pytest.mark.parametrize(
    ("props", "arguments", "text"),
    [
        ({}, {}, "frame 3 has no property _QP: give qp=, or put core.diqp.ReadQP"),
        ({"_QP": 30}, {}, "frame 3 has a property _QP but no _Codec"),
        ({"_QP": 60, "_Codec": "hevc"}, {}, "frame 3: QP 60 is out of range"),
        ({"_QP": 60, "_QPOffset": 4, "_Codec": "hevc"}, {}, "frame 3: QP 60 is out of range"),
        ({"_QP": 30, "_Codec": "hevc"}, {"codec": "av1"}, "frame 3 has a QP on hevc's scale .* but codec is 'av1'"),
        ({"_QP": 30, "_Codec": "vp8"}, {}, "frame 3: property _Codec: unknown codec 'vp8'"),
        ({}, {"qp": 60}, "frame 3: QP 60 is out of range: .*; without codec= and _Codec, hevc is assumed"),
    ],
)
def test_frames_that_do_not_say_enough_are_named(engine, props, arguments, text):
    clip = numbered(6, props=lambda n: props).diqp.Restore(**arguments)
    with pytest.raises(vs.Error, match=f"^diqp.Restore: {text}"):
        clip.get_frame(4)


def test_an_error_of_the_engine_reaches_all_who_asked_and_later_frames_work(core, engine, caplog):
    double = engine("Fails")
    double.bad[4] = ZeroDivisionError("by nothing")
    core.num_threads = 4
    clip = numbered(9).diqp.Restore(qp=30)
    futures = [clip.get_frame_async(n) for n in range(9)]
    for n, future in enumerate(futures):
        if 3 <= n < 6:
            with pytest.raises(vs.Error, match=r"^diqp.Restore: ZeroDivisionError: by nothing$"):
                future.result()
        else:
            assert int(future.result()[0][0, 0]) == n + 1
    assert any(record.exc_info and record.name == "vsdiqp" for record in caplog.records)

    double.bad.clear()
    assert first_samples(clip) == {n: n + 1 for n in range(9)}


def test_errors_meant_for_users_come_without_a_traceback(engine, caplog):
    double = engine("Fails")
    double.bad[1] = DiqpError("too little memory: give batch=1")
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(vs.Error, match=r"^diqp.Restore: too little memory: give batch=1$"),
    ):
        numbered(3).diqp.Restore(qp=30).get_frame(0)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), ValueError("ä\udcff€")])
def test_any_exception_becomes_an_error_of_the_frame(engine, error):
    double = engine("Fails")
    double.bad[1] = error
    clip = numbered(6).diqp.Restore(qp=30)
    with pytest.raises(vs.Error, match=r"^diqp.Restore: "):
        clip.get_frame(0)
    assert int(clip.get_frame(3)[0][0, 0]) == 4


def test_an_error_of_the_source_comes_through_and_later_frames_work(core, engine):
    engine("Recorder")
    broken = {7}

    def maybe(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n in broken:
            raise RuntimeError("cannot decode this one")
        return f

    base = numbered(30)
    clip = base.std.ModifyFrame(base, maybe).diqp.Restore(qp=30, look_ahead=4)
    for n in range(30):
        group = n // 3 * 3
        if group <= 7 <= group + 6:
            with pytest.raises(vs.Error, match="cannot decode this one"):
                clip.get_frame(n)
        else:
            assert int(clip.get_frame(n)[0][0, 0]) == n + 1
    broken.clear()
    assert first_samples(clip) == {n: n + 1 for n in range(30)}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"path": ""}, "path is empty"),
        ({"path": "no such file.mkv"}, "cannot read no such file.mkv"),
        ({"path": "x.mkv", "offset": -1}, "offset is -1: give 0 or more"),
    ],
)
def test_what_read_qp_refuses(arguments, text):
    with pytest.raises(vs.Error, match=f"^diqp.ReadQP: {text}"):
        numbered(3).diqp.ReadQP(**arguments)


def test_a_file_that_does_not_fit_the_clip(monkeypatch):
    monkeypatch.setattr("vsdiqp.codecs.frame_qps", lambda *_: ("hevc", [30] * 5, 0), raising=False)
    with pytest.raises(vs.Error, match=r"^diqp.ReadQP: the file has 5 QPs, the clip 3 frames"):
        numbered(3).diqp.ReadQP("a.mkv")


def test_a_missing_package_says_how_to_get_it(engine, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vsdiqp.host", None)
    with pytest.raises(vs.Error, match=r"^diqp.Restore: .*vsdiqp.host.*pip install"):
        numbered(3).diqp.Restore(qp=30)


def test_files_whose_name_is_no_text_are_named(engine):
    with pytest.raises(vs.Error, match=r"diqp.ReadQP: .*/nowhere/\\xff.mkv"):
        vs.core.diqp.ReadQP(numbered(6), b"/nowhere/\xff.mkv")


def test_ctrl_c_is_not_for_who_catches_errors():
    """A batch script that goes on after VapourSynth's errors can be stopped while a long file is read."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            assert host.explain(KeyboardInterrupt()) == "interrupted"
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)
