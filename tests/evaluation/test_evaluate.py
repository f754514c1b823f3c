"""From a pristine clip to scores: encodes, decodes, restores, measures, and keeps what it has."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
import vapoursynth as vs
from clips import write_clip, write_two_sizes
from skimage.metrics import peak_signal_noise_ratio

from vsdiqp.cli import main
from vsdiqp.errors import DiqpError
from vsdiqp.evaluation import vmaf
from vsdiqp.evaluation.evaluate import Reference, Settings, check_encodable, evaluate, measure, prepare
from vsdiqp.evaluation.restorers import Input, parse_method
from vsdiqp.evaluation.video import lockstep, settle_colour
from vsdiqp.training.degrade import Clip, EncodeSettings, encode

pytestmark = pytest.mark.skipif(not hasattr(vs.core, "bs"), reason="needs vapoursynth-bestsource")


class OneStep:
    """A restorer whose residual is one 8-bit step of luma on odd frames."""

    name = "step"
    key = "step 1"
    calls = 0

    def restore(self, clip: vs.VideoNode, codec: str, qp: float) -> vs.VideoNode:
        type(self).calls += 1
        lifted = clip.std.Expr(["x 1 +", ""])
        return vs.core.std.Interleave([clip[::2], lifted[1::2]])


class Nothing:
    """Another method than the input, which does nothing either."""

    name = "nothing"
    key = "nothing"

    def restore(self, clip: vs.VideoNode, codec: str, qp: float) -> vs.VideoNode:
        return clip


def test_measures_are_the_frames_own() -> None:
    blank = vs.core.std.BlankClip(width=64, height=48, format=vs.YUV420P8, length=6, color=[100, 120, 130])
    source = settle_colour(blank)
    decoded = source.std.Expr(["x 2 +", "x 1 +"])
    scores = list(measure(source, decoded, OneStep().restore(decoded, "hevc", 37), Settings(ssim_every=2)))
    plane = np.full((48, 64), 100, np.uint8)
    assert scores[0].y_psnr == pytest.approx(peak_signal_noise_ratio(plane, plane + 2), abs=1e-3)
    assert scores[1].y_psnr == pytest.approx(peak_signal_noise_ratio(plane, plane + 3), abs=1e-3)
    assert scores[0].c_psnr == pytest.approx(peak_signal_noise_ratio(plane, plane + 1), abs=1e-3)
    assert [s.y_ssim is not None for s in scores] == [True, False] * 3
    assert scores[0].change is None
    assert [s.change for s in scores[1:]] == pytest.approx([1.0] * 5, abs=1e-4)


def test_restorers_make_every_frame_once() -> None:
    clip = settle_colour(vs.core.std.BlankClip(width=64, height=48, format=vs.YUV420P8, length=30))
    made: list[int] = []

    def note(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        made.append(n)
        return f

    threads = vs.core.num_threads
    vs.core.num_threads = 1  # with more, two readers can ask for a frame in the same instant
    try:
        list(measure(clip, clip, clip.std.ModifyFrame(clip, note), Settings(ssim_every=0)))
    finally:
        vs.core.num_threads = threads
    assert len(made) == 30, "without a cache there would be 60"


def test_pristine_clips_become_what_encoders_take() -> None:
    odd = vs.core.std.BlankClip(width=65, height=33, format=vs.RGB24, length=2)
    clip = prepare(odd)
    assert (clip.width, clip.height, clip.format.id) == (64, 32, vs.YUV420P8)
    deep = prepare(vs.core.std.BlankClip(width=64, height=32, format=vs.YUV444P12, length=2))
    assert deep.format.id == vs.YUV420P10


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_doing_nothing_gains_exactly_nothing(codec: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 10)  # the fewest whose residual's changes can be compared
    qp = {"hevc": 40, "av1": 220}[codec]
    before, after = evaluate([clip], {codec: [qp]}, [Input(), Nothing()], tmp_path / "out")
    assert before.scores == after.scores
    assert before.frames == after.frames
    assert before.scores.y_psnr < 50
    assert (before.scores.across, before.scores.within) == (0, 0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(vs.core, "diqp"), reason="the plugin diqp is not loaded")
def test_the_filter_is_measured_through_the_plugin(tmp_path: Path) -> None:
    import torch

    from vsdiqp.network import DiQP, DiQPConfig, save_checkpoint

    torch.manual_seed(0)
    sizes = {"embed_dim": 4, "depths": (1, 1, 1), "heads": (1, 1, 1), "look_around": (), "look_ahead": ()}
    save_checkpoint(DiQP(DiQPConfig(**sizes, location="continuous", tile=64)), tmp_path / "net.safetensors")
    model = f"diqp:{tmp_path / 'net.safetensors'}"
    methods = [Input(), *(parse_method(model + extra) for extra in (",strength=0.0", "", ",qp=stream"))]
    clip = write_clip(tmp_path / "clip.mkv")
    before, off, asked, stream = evaluate([clip], {"hevc": [40]}, methods, tmp_path / "out", Settings(ssim_every=0))
    assert off.frames == before.frames
    # An untrained network spoils the picture: what is measured is its output.
    assert max(asked.scores.y_psnr, stream.scores.y_psnr) < before.scores.y_psnr


@pytest.mark.slow
def test_scores_are_kept_and_bits_cost_quality(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv")
    OneStep.calls = 0
    first = evaluate([clip], {"hevc": [24, 44]}, [Input(), OneStep()], tmp_path / "out")
    again = evaluate([clip], {"hevc": [24, 44]}, [Input(), OneStep()], tmp_path / "out")
    assert OneStep.calls == 2
    assert [r.scores.y_psnr for r in again] == pytest.approx([r.scores.y_psnr for r in first])
    assert first[0].scores.y_psnr > first[2].scores.y_psnr
    assert first[0].kbps > first[2].kbps


@pytest.mark.slow
def test_the_command_writes_its_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv"), tmp_path / "out"
    command = ["evaluate", str(clip), "--codecs", "hevc", "--qps", "38", "--methods", "input", "--out", str(out)]
    assert main(command) == 0
    assert "input (dB)" in capfd.readouterr().out
    assert json.loads((out / "results.json").read_text())["results"][0]["clip"] == "clip"
    assert (out / "gain-over-qp.png").is_file()


@pytest.mark.slow
def test_compare_reads_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_clip(tmp_path / "source.mkv", width=96, height=80)
    encoded = Reference.open(source).encode("hevc", 45, tmp_path)
    out = tmp_path / "picture.png"
    assert main(["compare", str(encoded), str(source), str(source), "--out", str(out), "--crop", "32"]) == 0
    assert "after: Y 100.00 dB" in capsys.readouterr().out
    assert main(["compare", str(encoded), str(source), "--out", str(out), "--frame", "6"]) == 1
    assert "frames 0 to 5" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_puts_rgb_and_yuv_on_one_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_clip(tmp_path / "source.mkv", width=96, height=80)
    still = tmp_path / "still.png"
    with av.open(str(video)) as container, av.open(str(still), "w", format="image2") as out:
        stream = out.add_stream("png")
        stream.width, stream.height, stream.pix_fmt = 96, 80, "rgb24"
        for packet in stream.encode(next(container.decode(video=0)).reformat(format="rgb24")):
            out.mux(packet)
    odd = tmp_path / "a picture"  # whatever its name
    assert main(["compare", str(video), str(still), str(video), "--out", str(odd), "--crop", "32"]) == 0
    text = capsys.readouterr().out
    assert float(text.split("after: Y ")[1].split()[0]) > 30, text
    small = write_clip(tmp_path / "small.mkv", width=16, height=8)
    assert main(["compare", str(small), str(small), str(small), "--out", str(odd)]) == 1
    assert "16x8; against a source they must be 11x11" in capsys.readouterr().err


@pytest.mark.slow
def test_more_bits_change_no_score_of_the_input(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 3)
    (plain,) = evaluate([clip], {"hevc": [40]}, [Input()], tmp_path, Settings())
    (deep,) = evaluate([clip], {"hevc": [40]}, [Input()], tmp_path, Settings(bits=16))
    assert deep.scores.y_psnr == pytest.approx(plain.scores.y_psnr, abs=1e-4)
    assert deep.scores.rgb_psnr == pytest.approx(plain.scores.rgb_psnr, abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not vmaf.available(), reason="this FFmpeg has no libvmaf")
def test_vmaf_falls_with_quality(tmp_path: Path) -> None:
    reference = Reference.open(write_clip(tmp_path / "clip.mkv", width=192, height=128))
    grades = [
        vmaf.vmaf(lockstep(reference.decode(reference.encode("hevc", qp, tmp_path)), reference.node)) for qp in (15, 48)
    ]
    assert 100 >= grades[0] > grades[1] >= 0


@pytest.mark.parametrize(
    ("codec", "qp", "message"),
    [("hevc", 22.5, "qp is 22.5; x265 encodes at whole constant QPs only"), ("hevc", 52, "HEVC's QP is 0 to 51")]
    + [("av1", qp, f"asked for base_q_idx {qp:g}; give {near}") for qp, near in ((100.5, 100), (248, 247), (254, 255))],
)
def test_qps_that_would_be_encoded_as_others_are_refused(codec: str, qp: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(DiqpError, match=message):
        evaluate([tmp_path / "none.mkv"], {codec: [qp]}, [Input()], tmp_path)


@pytest.mark.parametrize(
    ("codec", "qp"), [("hevc", 0), ("hevc", 23), ("av1", 0), ("av1", 247), ("av1", 250), ("av1", 255)]
)
def test_qps_that_are_taken_are_those_encoded(codec: str, qp: int) -> None:
    samples = Clip(np.full((1, 64, 64), 90, np.uint8), np.full((2, 1, 32, 32), 128, np.uint8))
    check_encodable({codec: [qp]})
    assert encode(samples, EncodeSettings(codec, qp, gop="intra", flat=True)).qps == (qp,)


def test_clips_that_the_encoder_refuses_are_named(tmp_path: Path) -> None:
    reference = Reference.open(write_clip(tmp_path / "tiny.mkv", width=8, height=8))
    with pytest.raises(DiqpError, match="libx265 does not encode tiny, 8x8: Invalid argument"):
        reference.encode("hevc", 30, tmp_path)
    with pytest.raises(DiqpError, match="tiny is 8x8, and SSIM needs 11x11"):
        evaluate([tmp_path / "tiny.mkv"], {"av1": [200]}, [Input()], tmp_path)


def test_clips_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DiqpError, match="different names"):
        evaluate(["a/x.mkv", "b/x.mkv"], {}, [Input()], tmp_path)


def test_folders_whose_names_filters_cannot_be_given_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DiqpError, match="is no UTF-8; give another folder"):
        evaluate([tmp_path / "clip.mkv"], {"hevc": [30]}, [Input()], tmp_path / "caf\udce9")


@pytest.mark.slow
def test_odd_names_and_clips_go_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ["$a_{$.mkv", os.fsdecode(b"caf\xe9.mkv"), "a:b.mkv"]
    clips = [str(write_clip(tmp_path / name, 3)) for name in names]
    arguments = ["--codecs", "hevc", "--qps", "38", "--methods", "input", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *clips, *arguments]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [r["clip"] for r in results] == ["$a_{$", r"caf\udce9", "a:b"]
    capfd.readouterr()
    assert main(["evaluate", str(write_two_sizes(tmp_path / "sizes.h264")), *arguments]) == 1
    assert "differ in size" in capfd.readouterr().err


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(DiqpError, match=r"cannot read .*text\.mkv"):
        Reference.open(tmp_path / "text.mkv")


@pytest.mark.slow
def test_restorers_that_change_the_length_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mkv")
    monkeypatch.setattr(Nothing, "restore", lambda self, node, codec, qp: node[:-1])
    with pytest.raises(DiqpError, match="length"):
        evaluate([clip], {"hevc": [40]}, [Nothing()], tmp_path)
