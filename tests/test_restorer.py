"""Promises of the engine: bit-identity where nothing is predicted, no seams, same run same pixels, clear refusals."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
import torch

from tests.stand_ins import Blur, Constant, PlaceBias, Zero, clip_format, colour, empty, make_run, noise, same_bits
from vsdiqp.backends.chroma import SHARE
from vsdiqp.clip import Run, Settings
from vsdiqp.errors import DiqpError
from vsdiqp.planes import rgb_to_yuv
from vsdiqp.restorer import Restorer

SAMPLES = [("integer", bits) for bits in (8, 9, 10, 12, 16)] + [("float", 16), ("float", 32)]
FP32 = Settings(backend="cpu", precision="fp32")


def restore(network, clip, meaning, settings=FP32, **run):
    job = make_run(clip, meaning, **run)
    Restorer(settings, clip, network).restore(job)
    return job


@pytest.mark.parametrize("network_colour", ["rgb", "ycbcr"])
@pytest.mark.parametrize(("sample_type", "bits"), SAMPLES)
def test_zero_prediction_is_bit_identical_in_every_format(network_colour, sample_type, bits):
    kinds = [("GRAY", (0, 0)), ("RGB", (0, 0))]
    kinds += [("YUV", s) for s in [(0, 0), (1, 0), (1, 1), (0, 1), (2, 0), (2, 2), (3, 1), (4, 4)]]
    for (family, subsampling), full, place in zip(
        kinds, itertools.cycle([False, True]), itertools.cycle(range(6)), strict=False
    ):
        size = (96 + (16 if subsampling[0] else 5), 80 if subsampling[1] else 33)
        clip = clip_format(family, bits, subsampling, size, sample_type)
        job = restore(Zero(colour=network_colour), clip, colour(family, None, full, place))
        for source, target in zip(job.frames, job.targets, strict=True):
            assert same_bits(source, target), (family, subsampling)


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 23), (33, 65), (130, 70)])
def test_sizes_down_to_16_are_restored_whole(size):
    clip = clip_format("YUV", 10, (0, 0), size)
    job = restore(Constant(0.1, colour="rgb"), clip, colour(), FP32)
    assert all(np.any(plane) for target in job.targets for plane in target[:1])
    job = restore(Zero(), clip, colour())
    assert same_bits(job.frames[1], job.targets[1])


def test_float_samples_that_are_no_picture_stay_and_hurt_nothing_else():
    clip = clip_format("YUV", 32, (1, 1), (48, 32), "float")
    job = make_run(clip, colour())
    plane = job.frames[1][0].copy()
    plane[3, 5], plane[3, 9], plane[8, 8], plane[9, 9] = np.nan, np.inf, -0.0, 1e30
    frames = (job.frames[0], (plane, *job.frames[1][1:]), job.frames[2])
    job = dataclasses.replace(job, frames=frames)
    for network_colour in ("rgb", "ycbcr"):
        Restorer(FP32, clip, Zero(colour=network_colour)).restore(job)
        assert same_bits(job.frames[1], job.targets[1])
        Restorer(FP32, clip, Blur(colour=network_colour)).restore(job)
        written = job.targets[1][0].copy()
        assert np.isnan(written[3, 5])
        written[3, 5] = written[3, 9] = 0
        assert np.all(np.isfinite(written))


def test_strength_scales_the_residual_and_zero_copies():
    clip = clip_format("GRAY", 16, size=(32, 32))
    meaning = colour("GRAY", 1, True)
    changes = {}
    for strength in (0.0, 0.5, 1.0):
        job = restore(Constant(0.01), clip, meaning, dataclasses.replace(FP32, strength=strength))
        changes[strength] = job.targets[0][0].astype(float) - job.frames[0][0]
        if strength == 0.0:
            assert same_bits(job.frames[2], job.targets[2])
    inside = job.frames[0][0] < 60000
    assert np.all(np.abs(changes[1.0][inside] - 655.35) <= 0.5)
    assert np.all(np.abs(changes[0.5][inside] - 327.675) <= 0.5)


def test_strength_zero_runs_no_network():
    network = Zero()
    restore(network, clip_format(), colour(), dataclasses.replace(FP32, strength=0.0))
    assert not network.tiles


@pytest.mark.parametrize("value", [0.9, -0.9])
def test_results_are_clipped_to_the_code_range(value):
    clip = clip_format("YUV", 10, (1, 1))
    job = restore(Constant(value), clip, colour())
    assert all(plane.max() <= 1023 for plane in job.targets[0])
    edge = 1023 if value > 0 else 0
    assert np.mean(job.targets[0][0] == edge) > 0.5


def test_a_constant_shifts_every_plane_by_its_own_scale():
    clip = clip_format("YUV", 8, (1, 1), (96, 80))
    job = restore(Constant(10 / 219), clip, colour())
    luma, chroma = (job.targets[1][i].astype(int) - job.frames[1][i] for i in (0, 1))
    assert set(luma[job.frames[1][0] < 240]) == {10}
    assert set(chroma[job.frames[1][1] < 240]) == {10}  # 10 / 219 * 224 = 10.2


@pytest.mark.parametrize("subsampling", [(0, 0), (1, 1), (1, 0), (2, 2)])
@pytest.mark.parametrize("size", [(200, 72), (72, 200), (208, 136)])
def test_a_local_network_gives_the_same_in_tiles_as_in_one_piece(subsampling, size):
    clip = clip_format("YUV", 32, subsampling, size, "float")
    for place in (0, 1, 4):
        meaning = colour("YUV", 1, False, place)
        whole = restore(Blur(), clip, meaning, dataclasses.replace(FP32, tile=(208, 208)))
        cut = restore(Blur(), clip, meaning, dataclasses.replace(FP32, tile=(64, 48), overlap=16))
        for a, b in zip(whole.targets, cut.targets, strict=True):
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                if index and min(subsampling) == 0:
                    # Chroma as fine as luma is filtered in tiles, whose ends weigh little, and in those at the frame's
                    # ends lie beside what is beyond it.
                    x, y, tolerance = x[2:-4, 2:-4], y[2:-4, 2:-4], 1e-3
                else:
                    tolerance = 1e-6
                np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def test_tiles_that_disagree_leave_no_step():
    clip = clip_format("GRAY", 32, size=(240, 176), sample_type="float")
    job = restore(PlaceBias(), clip, colour("GRAY"), dataclasses.replace(FP32, tile=(64, 64), overlap=32))
    change = job.targets[1][0].astype(float) - job.frames[1][0]
    assert np.ptp(change) > 0.02
    # Biases differ by at most 0.04; a raised cosine over 16 pixels spreads that so that no step exceeds a tenth.
    for axis in (0, 1):
        assert np.abs(np.diff(change, axis=axis)).max() < 0.0045


def test_pixels_depend_on_the_run_alone():
    clip = clip_format("YUV", 10, (1, 1), (144, 96))
    first = Restorer(FP32, clip, Blur())
    alone = make_run(clip, colour(), seed=5)
    first.restore(alone)
    second = Restorer(FP32, clip, Blur())
    for seed in (9, 1):
        second.restore(make_run(clip, colour(full_range=True), seed=seed))
    again = make_run(clip, colour(), seed=5)
    second.restore(again)
    for a, b in zip(alone.targets, again.targets, strict=True):
        assert same_bits(a, b)


def test_batch_size_does_not_change_pixels():
    clip = clip_format("YUV", 10, (1, 1), (144, 96))
    results = [
        restore(Blur(), clip, colour(), dataclasses.replace(FP32, batch=batch)).targets[0] for batch in (None, 1, 2, 7)
    ]
    assert all(same_bits(results[0], other) for other in results[1:])


def test_only_wanted_frames_are_written_and_the_rest_does_not_matter():
    clip = clip_format("YUV", 8, (1, 1), (144, 96))
    everything = restore(Blur(), clip, colour())
    for targets in ((True, False, False), (False, True, True), (False, False, False)):
        job = restore(Blur(), clip, colour(), targets=targets)
        for wanted, a, b in zip(targets, everything.targets, job.targets, strict=True):
            assert (b is not None) == wanted
            assert not wanted or same_bits(a, b)


def test_a_repeated_frame_is_the_same_to_the_network_as_an_equal_one():
    clip = clip_format("YUV", 8, (1, 1), (80, 48))
    frame = noise(clip, 1)
    copy = tuple(plane.copy() for plane in frame)
    results = []
    for frames, ahead in (((frame, frame, frame), frame), ((frame, copy, frame), copy)):
        network = Zero(uses_around=True, uses_ahead=True)
        run = Run(frames, ahead, (empty(clip), None, None), colour(), 30.0, "hevc", 1)
        Restorer(FP32, clip, network).restore(run)
        results.append([*network.tiles, *network.ahead_tiles, *network.guides[0]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_network_sees_its_inputs_in_the_specified_layout():
    clip = clip_format("RGB", 8, size=(96, 64))
    network = Zero(colour="rgb", uses_around=True, uses_ahead=True, tile=64, overlap=8)
    job = restore(network, clip, colour("RGB", 0, True))
    frames = [torch.stack([torch.from_numpy(p.copy()) for p in f]).float() / 255 for f in (*job.frames, job.ahead)]
    for (left, top), tile, ahead in zip(network.places, network.tiles, network.ahead_tiles, strict=True):
        width = min(tile.shape[-1], 96 - left)
        for index in range(3):
            part = frames[index][:, top : top + 64, left : left + width]
            torch.testing.assert_close(tile[0, :, index, :, :width], part)
        torch.testing.assert_close(ahead[0, :, 0], tile[0, :, 2])
        torch.testing.assert_close(ahead[0, :, 1, :, :width], frames[3][:, top : top + 64, left : left + width])
    around, scaled = network.guides[0]
    assert len(network.guides) == 1
    assert around.shape == scaled.shape == (1, 3, 2, *network.tiles[0].shape[-2:])
    for given, source in ((around[0, :, 0], 0), (around[0, :, 1], 2), (scaled[0, :, 0], 2), (scaled[0, :, 1], 3)):
        expected = torch.nn.functional.interpolate(
            frames[source][None], given.shape[-2:], mode="bicubic", align_corners=False
        )[0].clamp(0, 1)
        torch.testing.assert_close(given, expected, rtol=0, atol=2e-6)


def test_frames_the_network_does_not_use_are_not_read():
    clip = clip_format("YUV", 8, (1, 1), (80, 48))
    job = make_run(clip, colour())
    network = Zero()
    Restorer(FP32, clip, network).restore(dataclasses.replace(job, ahead=()))
    assert network.ahead_tiles[0].numel() == 0
    assert all(guide.numel() == 0 for guide in network.guides[0])


@pytest.mark.parametrize(
    ("asked", "uses", "expected"), [(None, True, 50), (7, True, 7), (0, True, 0), (None, False, 0), (9, False, 0)]
)
def test_look_ahead_is_the_models_unless_said_otherwise(asked, uses, expected):
    network = Zero(uses_ahead=uses, look_ahead_frames=50)
    assert Restorer(dataclasses.replace(FP32, look_ahead=asked), clip_format(), network).look_ahead == expected


def test_low_confidence_weakens_the_residual():
    class Doubtful(Constant):
        def confidence(self, qp, codec):
            return 0.5

    clip = clip_format("GRAY", 32, sample_type="float")
    job = restore(Doubtful(0.2), clip, colour("GRAY"))
    np.testing.assert_allclose(job.targets[0][0] - job.frames[0][0], 0.1, atol=1e-6)


@pytest.mark.parametrize("family", ["YUV", "RGB"])
def test_chroma_may_be_trusted_less(family):
    class Doubtful(Constant):
        def chroma_confidence(self, qp, codec):
            return 0.25

    clip = clip_format(family, 32, (0, 0), sample_type="float")
    job = restore(Doubtful(0.2, colour="ycbcr"), clip, colour(family))
    to_clip = np.eye(3) if family == "YUV" else np.linalg.inv(rgb_to_yuv(1))
    chroma = 0.05 * SHARE  # as fine as luma
    expected = np.stack(job.frames[0]) + (to_clip @ [0.2, chroma, chroma])[:, None, None]
    if family == "RGB":
        expected = expected.clip(0, 1)
    np.testing.assert_allclose(np.stack(job.targets[0]), expected, atol=1e-5)


def test_a_network_that_is_not_trusted_at_a_qp_is_not_asked():
    class Timid(Constant):
        def confidence(self, qp, codec):
            return 0.0

    clip = clip_format("GRAY", 32, sample_type="float")
    job = make_run(clip, colour("GRAY"))
    odd = job.frames[0][0].copy()
    odd[0, :2] = -0.0, np.nan
    job = dataclasses.replace(job, frames=((odd,), *job.frames[1:]))
    network = Timid(0.2)
    Restorer(FP32, clip, network).restore(job)
    assert same_bits(job.frames[0], job.targets[0]) and not network.tiles


def test_a_prediction_that_overflowed_changes_nothing():
    job = restore(Constant(float("nan")), clip_format(), colour())
    assert same_bits(job.frames[0], job.targets[0])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"strength": 1.5}, "strength is 1.5; it may be 0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"backend": "vulkan"}, "backend is 'vulkan'; it may be 'auto' or one of cpu, cuda, tensorrt"),
        ({"precision": "int8"}, "precision is 'int8'; it may be one of auto, fp32"),
        ({"precision": "fp16"}, "CPU"),
        ({"batch": 0}, "batch is 0"),
        ({"device": ()}, "device is"),
        ({"tile": (70, 64)}, "tile's width is 70; this model takes multiples of 16: try 64 or 80"),
        ({"tile": (64, 0)}, "tile's height is 0; this model takes multiples of 16: try 16"),
        ({"tile": (32, 32), "overlap": 32}, "overlap is 32 for a tile width of 32; it may be 0 to 24"),
        ({"overlap": -1}, "overlap is -1"),
        ({"look_ahead": -2}, "look_ahead is -2"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, text):
    with pytest.raises(DiqpError, match=text.replace("(", r"\(")):
        Restorer(dataclasses.replace(FP32, **settings), clip_format(size=(160, 96)), Zero())


@pytest.mark.parametrize(
    ("clip", "network", "text"),
    [
        ({"size": (16, 14)}, {}, "16x14; frames must be 16x16 or larger"),
        ({"size": (130, 64)}, {"max_size": (128, 64)}, "130x64, but model 'stand-in' has location tables .* 128x64"),
        ({"bits": 24}, {}, "24 bit integer"),
        ({"size": (33, 32)}, {}, "33x32, which its chroma subsampling 2x2"),
    ],
)
def test_clips_it_cannot_do_are_refused_by_name_of_the_limit(clip, network, text):
    with pytest.raises(DiqpError, match=text):
        restore(Zero(**network), clip_format(**clip), colour())


def test_a_first_pass_that_there_is_not_is_refused_at_once():
    with pytest.raises(DiqpError, match=r"no model 'nowhere'.*base, lite"):
        Restorer(FP32, clip_format(), Zero(neighbours=1, first_pass="nowhere"))
    assert Restorer(FP32, clip_format(), Zero(neighbours=1, first_pass="lite")).first_pass == "lite"
    without = dataclasses.replace(FP32, strength=0.0)
    assert Restorer(without, clip_format(), Zero(neighbours=1, first_pass="lite")).first_pass == ""


def test_a_run_without_its_first_pass_is_refused():
    restorer = Restorer(FP32, clip_format(), Zero(neighbours=1, first_pass="lite"))
    run = make_run(clip_format(), colour())
    frame = run.frames[0]
    with pytest.raises(DiqpError, match="0 frames of a first pass; model 'stand-in' needs 5"):
        restorer.restore(dataclasses.replace(run, before=(frame,), after=(frame,)))


def test_a_run_that_fails_leaves_the_next_ones_alone():
    clip = clip_format(size=(48, 32))
    restorer = Restorer(FP32, clip, Constant(0.02, colour="rgb"))
    with pytest.raises(DiqpError, match="model 'stand-in' was trained for hevc"):
        restorer.restore(dataclasses.replace(make_run(clip, colour()), codec="av1"))
    with pytest.raises(DiqpError, match="_Matrix is 14"):
        restorer.restore(make_run(clip, colour(matrix=14)))
    with pytest.raises(DiqpError, match="QP of frame 4 is nan"):
        restorer.restore(dataclasses.replace(make_run(clip, colour()), qp=float("nan")))
    job = make_run(clip, colour())
    restorer.restore(job)
    assert not same_bits(job.frames[0], job.targets[0])


def test_a_network_in_ycbcr_needs_no_matrix():
    restore(Constant(0.02), clip_format(), colour(matrix=14))


def test_a_backend_whose_package_is_broken_is_a_reason_not_an_exception(monkeypatch, tmp_path):
    from vsdiqp import backends

    (tmp_path / "broken_backend.py").write_text("import ctypes\nctypes.CDLL('libnothing_of_the_kind.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backends, "MODULES", {"tensorrt": "broken_backend", "cpu": "vsdiqp.backends.cpu"})
    assert backends.available() == ["cpu"]
    assert "libnothing_of_the_kind" in backends.unavailable("tensorrt")
    clip = clip_format()
    assert "cpu" in Restorer(Settings(precision="fp32"), clip, Zero()).describe()
    with pytest.raises(DiqpError, match=r"'tensorrt' can't run here: .*libnothing_of_the_kind"):
        Restorer(Settings(backend="tensorrt"), clip, Zero())


def test_who_has_a_gpu_is_told_why_it_idles(monkeypatch, tmp_path, caplog):
    from vsdiqp import backends

    monkeypatch.setattr(backends, "MODULES", {"cuda": "nothing_of_the_kind", "cpu": "vsdiqp.backends.cpu"})
    for there, level in ((False, "INFO"), (True, "WARNING")):
        caplog.clear()
        monkeypatch.setattr(backends, "GPUS", tmp_path if there else tmp_path / "none")
        with caplog.at_level("INFO"):
            assert backends.candidates("auto") == ["cpu"]
        assert [(r.levelname, "not cuda: it can't be imported" in r.message) for r in caplog.records] == [(level, True)]
    caplog.clear()
    Restorer(Settings(precision="fp32", backend="cpu", batch=4), clip_format(), Constant(0.1))
    assert "batch= and device= are for GPUs" in caplog.text


@pytest.mark.parametrize("kind", ["BackendError", "DiqpError"])
def test_auto_goes_on_where_a_backend_cannot_be_opened_after_all(kind, monkeypatch, tmp_path, caplog):
    """As when an engine can't be built. What a user asked for wrongly is no reason to go on."""
    from vsdiqp import backends

    lines = ["from vsdiqp.errors import *", "def unavailable(): pass"]
    lines += ["def open_backend(task):", "    task.network.value = 7.0", f"    raise {kind}('no engine for you')"]
    (tmp_path / "hopeful_backend.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hopeful_backend", raising=False)
    monkeypatch.setattr(backends, "MODULES", {"tensorrt": "hopeful_backend", "cpu": "vsdiqp.backends.cpu"})
    clip, network = clip_format(), Constant(0.0)
    with pytest.raises(DiqpError, match="no engine for you"):
        Restorer(Settings(backend="tensorrt"), clip, Constant(0.0))
    if kind == "DiqpError":
        with pytest.raises(DiqpError, match="no engine for you"):
            Restorer(Settings(precision="fp32"), clip, network)
        return
    restorer = Restorer(Settings(precision="fp32"), clip, network)
    assert "cpu" in restorer.describe()
    assert "tensorrt can't be used: no engine for you; taking cpu" in caplog.text
    job = make_run(clip, colour())
    restorer.restore(job)
    assert same_bits(job.frames[0], job.targets[0]), "the network was spoilt by the first backend"


def test_the_default_model_is_the_one_made_for_where_it_runs(monkeypatch, tmp_path):
    """base on a GPU, lite on a CPU, also where the CPU takes over from a GPU; a model asked for is taken everywhere."""
    from vsdiqp import backends

    lines = ["from vsdiqp.errors import *", "def unavailable(): pass"]
    lines += ["def open_backend(task): raise BackendError('no memory at all')"]
    (tmp_path / "small_backend.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backends, "MODULES", {"cuda": "small_backend", "cpu": "vsdiqp.backends.cpu"})
    loaded = []
    monkeypatch.setattr("vsdiqp.network.load_checkpoint", lambda model: loaded.append(model) or Zero(name=model))
    for asked, expected in ((Settings(), ["base", "lite"]), (Settings(model="own.pt"), ["own.pt"] * 2)):
        loaded.clear()
        restorer = Restorer(dataclasses.replace(asked, precision="fp32"), clip_format())
        assert loaded == expected
        assert restorer.describe().startswith(expected[-1])
        restorer.restore(make_run(clip_format(), colour()))


def test_the_number_of_threads_can_be_set_from_outside(monkeypatch):
    monkeypatch.setenv("VSDIQP_THREADS", "none")
    with pytest.raises(DiqpError, match="VSDIQP_THREADS is 'none'"):
        Restorer(FP32, clip_format(), Zero())
    before = torch.get_num_threads()
    monkeypatch.setenv("VSDIQP_THREADS", "1")
    restore(Zero(), clip_format(), colour())
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_network_gives_what_calling_it_by_hand_gives(precision):
    from vsdiqp.network import DiQP, DiQPConfig

    torch.manual_seed(1)
    config = DiQPConfig(
        name="small", embed_dim=4, depths=(1, 1, 1, 1, 1), heads=(1, 1, 1, 1, 1), look_around=(4, 4), look_ahead=(4, 4)
    )
    network = DiQP(config).prepare()
    clip = clip_format("RGB", 32, size=(96, 64), sample_type="float", frames=40)
    job = make_run(clip, colour("RGB"), middle=7)
    restorer = Restorer(dataclasses.replace(FP32, precision=precision), clip, network)
    restorer.restore(job)
    assert restorer.look_ahead == 50

    frames = [torch.stack([torch.from_numpy(p.copy()) for p in f]) for f in (*job.frames, job.ahead)]
    tile = torch.stack(frames[:3], 1)[None]
    location, decay = network.locate(job.qp, job.codec, job.middle, clip.frames, 0, 0, 96, 64, 64, 96)
    with torch.inference_mode():
        expected = network(
            tile,
            tile[:, :, [0, 2]],
            torch.stack(frames[2:], 1)[None],
            torch.stack(frames[2:], 1)[None],
            location.view(6, 1, 1),
            torch.full((1, 1, 1, 1, 1), decay),
        )
    assert (expected - tile).abs().max() > 0.01
    expected = torch.minimum(torch.maximum(expected, tile.clamp(max=0)), tile.clamp(min=1))
    for index, target in enumerate(job.targets):
        np.testing.assert_allclose(np.stack(target), expected[0, :, index], atol=2e-5 if precision == "fp32" else 2e-2)
