"""What the engine is told about frames, and what comes back of them."""

import itertools

import numpy as np
import pytest
import vapoursynth as vs
from plugin_support import numbered, samples

from vsdiqp.clip import FrameColour

FORMATS = [
    *(vs.GRAY8, vs.GRAY10, vs.GRAY16, vs.GRAYH, vs.GRAYS, vs.RGB24, vs.RGB30, vs.RGB48, vs.RGBH, vs.RGBS),
    *(vs.YUV410P8, vs.YUV411P8, vs.YUV440P8, vs.YUV420P8, vs.YUV422P8, vs.YUV444P8),
    *(vs.YUV420P9, vs.YUV420P10, vs.YUV422P10, vs.YUV444P10, vs.YUV420P12, vs.YUV444P12, vs.YUV422P14, vs.YUV420P16),
    *(vs.YUV444P16, vs.YUV420PH, vs.YUV444PH, vs.YUV420PS, vs.YUV422PS, vs.YUV444PS),
]


def pattern(format: vs.PresetVideoFormat, width: int, height: int, frames: int = 3) -> vs.VideoNode:
    """A clip of a few frames in which every sample of every plane is different from those beside it."""
    blank = vs.core.std.BlankClip(format=format, width=width, height=height, length=frames)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for p in range(f.format.num_planes):
            plane = np.asarray(out[p])
            noise = np.random.default_rng([n, p]).random(plane.shape)
            plane[...] = noise if f.format.sample_type == vs.FLOAT else noise * (1 << f.format.bits_per_sample)
        return out

    return blank.std.ModifyFrame(blank, fill)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_all_formats_pass_through_the_engine(engine, format):
    double = engine("Recorder")
    id_ = vs.core.get_video_format(format)
    width, height = 53 >> id_.subsampling_w << id_.subsampling_w, 37 >> id_.subsampling_h << id_.subsampling_h
    source = pattern(format, width, height)
    clip = source.diqp.Restore(qp=30)
    assert (clip.format, clip.width, clip.height, clip.num_frames) == (source.format, width, height, 3)
    for n in range(3):
        before, after = samples(source.get_frame(n)), samples(clip.get_frame(n))
        before[0] = before[0] + before[0].dtype.type(1)
        for old, new in zip(before, after, strict=True):
            assert old.dtype == new.dtype
            assert np.array_equal(old, new)
    told = double.made[0].clip
    assert (told.family, told.sample_type, told.bits, told.subsampling_w, told.subsampling_h) == (
        id_.color_family.name,
        id_.sample_type.name.lower(),
        id_.bits_per_sample,
        id_.subsampling_w,
        id_.subsampling_h,
    )
    assert (told.width, told.height, told.frames) == (width, height, 3)


@pytest.mark.parametrize("format", [vs.GRAY8, vs.YUV420P10, vs.RGBS], ids=lambda f: f.name)
def test_neighbours_arrive_whole(engine, format):
    double = engine("Keeps", neighbours=2)
    source = pattern(format, 54, 38, frames=9)
    source.diqp.Restore(qp=30).get_frame(4)
    assert len(double.seen) == 1
    for n, planes in enumerate(double.seen[0], start=1):
        wanted = samples(source.get_frame(n))
        assert len(planes) == len(wanted)
        for found, plane in zip(planes, wanted, strict=True):
            assert found.dtype == plane.dtype
            assert np.array_equal(found, plane)


def test_neighbours_that_are_one_frame_lie_in_one_place(engine):
    double = engine("Keeps", neighbours=2)
    source = pattern(vs.YUV420P8, 54, 38, frames=4)
    source.diqp.Restore(qp=30).get_frame(0)
    first, _, frame, second, third, last, end = double.addresses[0]
    assert double.addresses[0] == [frame, frame, frame, second, third, end, end]
    assert len({first, second, third, last}) == 4


def test_source_frames_are_read_only(engine):
    double = engine("Overwrites", neighbours=2)
    source = numbered(3)
    source.diqp.Restore(qp=30).get_frame(0)
    assert double.refused == 3 + 1 + 2 * 2
    assert [int(source.get_frame(n)[0][0, 0]) for n in range(3)] == [0, 1, 2]


def test_properties_of_each_frame_pass_through(engine):
    engine("Recorder")
    source = numbered(
        7, vs.YUV420P8, props=lambda n: {"Number": n, "Share": n / 4, "Name": f"frame {n}", "_SceneChangePrev": n == 4}
    )
    clip = source.diqp.Restore(qp=30)
    for n in range(7):
        assert dict(clip.get_frame(n).props) == dict(source.get_frame(n).props)


def colour_of(engine, format, width=64, height=48, **props) -> FrameColour:
    double = engine("Recorder")
    double.reset()
    clip = numbered(1, format, width, height)
    # BlankClip states some of them.
    clip = clip.std.RemoveFrameProps(["_Matrix", "_Range", "_ColorRange", "_ChromaLocation"])
    clip.std.SetFrameProps(**props).diqp.Restore(qp=30).get_frame(0) if props else clip.diqp.Restore(qp=30).get_frame(0)
    return double.runs[0]["colour"]


def test_stated_colours_are_taken(engine):
    for matrix, full, location in itertools.product((1, 4, 5, 6, 7, 8, 9, 10), (False, True), range(6)):
        stated = {"_Matrix": matrix, "_Range": int(full), "_ChromaLocation": location}
        assert colour_of(engine, vs.YUV420P8, **stated) == FrameColour(matrix, full, location)


@pytest.mark.filterwarnings("ignore:The _ColorRange frame property:DeprecationWarning")
@pytest.mark.parametrize(("old", "full"), [(0, True), (1, False)])
def test_the_range_may_be_stated_in_the_old_way(engine, old, full):
    assert colour_of(engine, vs.YUV420P8, _Matrix=1, _ColorRange=old).full_range is full


@pytest.mark.parametrize("unstated", [{}, {"_Matrix": 2}, {"_Matrix": 3}, {"_Matrix": 0}])
@pytest.mark.parametrize(
    ("width", "height", "matrix"),
    [(720, 480, 6), (640, 360, 6), (720, 576, 5), (1024, 576, 5), (1280, 720, 1), (1920, 816, 1), (4096, 2160, 1)],
)
def test_unstated_matrices_are_guessed_from_the_size(engine, width, height, matrix, unstated):
    assert colour_of(engine, vs.YUV420P8, width, height, **unstated) == FrameColour(matrix, False, 0)


def test_rgb_has_no_matrix_and_full_range_unless_it_says_limited(engine):
    assert colour_of(engine, vs.RGB24) == FrameColour(0, True, 0)
    assert colour_of(engine, vs.RGB24, _Range=0) == FrameColour(0, False, 0)


def test_chroma_that_is_not_subsampled_has_no_location(engine):
    assert colour_of(engine, vs.YUV444P8, _Matrix=1, _ChromaLocation=1) == FrameColour(1, False, 0)


def messages(core, run) -> list[str]:
    found: list[str] = []
    handle = core.add_log_handler(lambda kind, text: found.append(text))
    try:
        run()
    finally:
        core.remove_log_handler(handle)
    return [text for text in found if "diqp" in text]


def play(clip: vs.VideoNode) -> None:
    for n in range(clip.num_frames):
        clip.get_frame(n)


def test_a_guess_is_logged_once(core, engine):
    plain = numbered(9, vs.YUV420P8, props=lambda n: {"_Matrix": 2})
    said = messages(core, lambda: play(plain.diqp.Restore(qp=30)))
    assert len(said) == 1
    assert "diqp.Restore: frame 0 does not say its colour matrix (_Matrix); taking BT.601" in said[0]
    assert messages(core, lambda: play(plain.std.SetFrameProps(_Matrix=1).diqp.Restore(qp=30))) == []


def test_interlaced_frames_are_remarked_on(core, engine):
    fields = numbered(9, props=lambda n: {"_FieldBased": 2})
    said = messages(core, lambda: play(fields.diqp.Restore(qp=30)))
    assert len(said) == 1
    assert "interlaced" in said[0]


def run_of(double, clip, **arguments):
    double.reset()
    play(clip.diqp.Restore(**arguments))
    return [(run["qp"], run["codec"]) for run in double.runs]


def test_the_qp_of_a_group_is_the_mean_of_its_frames(engine):
    double = engine("Recorder")
    clip = numbered(7)
    assert run_of(double, clip, qp=33.5) == [(33.5, "hevc")] * 3
    assert run_of(double, clip, qp=[20, 21, 25, 30, 31, 32, 50]) == [(22, "hevc"), (31, "hevc"), (113 / 3, "hevc")]
    assert run_of(double, clip, qp=200, codec="av1") == [(200, "av1")] * 3
    assert run_of(double, clip, qp=40, qp_offset=-1.5) == [(38.5, "hevc")] * 3
    assert run_of(double, clip, qp=40, qp_offset=30) == [(51, "hevc")] * 3
    assert run_of(double, clip, qp=40, qp_offset=-60) == [(0, "hevc")] * 3


def test_qps_and_codecs_may_come_from_properties(engine):
    double = engine("Recorder")
    clip = numbered(6, props=lambda n: {"_QP": 100 + n, "_Codec": "av1"})
    assert run_of(double, clip) == [(101, "av1"), (104, "av1")]
    assert run_of(double, clip, qp=30) == [(30, "av1")] * 2
    assert run_of(double, clip, codec="av1") == [(101, "av1"), (104, "av1")]
    assert run_of(double, clip, qp=30, codec="hevc") == [(30, "hevc")] * 2
    assert run_of(double, numbered(3, props=lambda n: {"_QP": 20.5}), codec="hevc") == [(20.5, "hevc")]


def test_a_cut_separates_qps(engine):
    double = engine("Recorder")
    clip = numbered(3, props=lambda n: {"_QP": (20, 30, 40)[n], "_Codec": "hevc", "_SceneChangePrev": int(n == 1)})
    assert run_of(double, clip) == [(20, "hevc"), (pytest.approx((30 + 30 + 40) / 3), "hevc")]


def test_settings_reach_the_engine(engine):
    double = engine("Recorder")
    numbered(1).diqp.Restore(
        qp=30,
        model="other.safetensors",
        look_ahead=3,
        tile=[256, 128],
        overlap=16,
        strength=0.5,
        backend="cuda",
        device=[1, 0],
        precision="fp16",
        batch=4,
    )
    settings = double.made[0].settings
    assert (settings.model, settings.look_ahead, settings.tile, settings.overlap) == (
        "other.safetensors",
        3,
        (256, 128),
        16,
    )
    assert (settings.strength, settings.backend, settings.device) == (0.5, "cuda", (1, 0))
    assert (settings.precision, settings.batch) == ("fp16", 4)


def test_read_qp_puts_qp_and_codec_on_every_frame(engine, monkeypatch):
    asked = []

    def frame_qps(path: str, frames: int, offset: int, size: tuple[int, int]) -> tuple[str, list[int], int]:
        asked.append((path, frames, offset, size))
        return "av1", [offset + 10 * n for n in range(frames)], 0

    monkeypatch.setattr("vsdiqp.codecs.frame_qps", frame_qps, raising=False)
    source = numbered(4)
    clip = source.diqp.ReadQP("a file.mkv", offset=2)
    assert asked == [("a file.mkv", 4, 2, (source.width, source.height))]
    assert [(f.props["_QP"], f.props["_Codec"]) for f in clip.frames()] == [(2 + 10 * n, "av1") for n in range(4)]
    assert [int(f[0][0, 0]) for f in clip.frames()] == [0, 1, 2, 3]
    assert not any("_QPOffset" in f.props for f in clip.frames())
    double = engine("Recorder")
    assert run_of(double, clip) == [(12, "av1"), (22, "av1")]


def test_what_the_encoder_is_known_for_is_added_to_qps_of_properties_alone(engine, monkeypatch):
    found = ("hevc", [20, 30, 1], -3)
    monkeypatch.setattr("vsdiqp.codecs.frame_qps", lambda *_: found, raising=False)
    clip = numbered(3).diqp.ReadQP("a file.mkv")
    assert [(f.props["_QP"], f.props["_QPOffset"]) for f in clip.frames()] == [(20, -3), (30, -3), (1, -3)]
    double = engine("Recorder")
    assert run_of(double, clip) == [(pytest.approx((17 + 27 + 0) / 3), "hevc")]
    assert run_of(double, clip, qp_offset=1.5) == [(pytest.approx((17 + 27 + 0) / 3 + 1.5), "hevc")]
    assert run_of(double, clip, qp=40, codec="hevc") == [(40, "hevc")]


@pytest.mark.parametrize(
    ("codec", "qp", "offset", "used"), [("hevc", 49, 4, 51), ("av1", 249, 4, 253), ("hevc", 1, -3, 0)]
)
def test_an_offset_of_a_property_ends_where_the_scale_ends(engine, codec, qp, offset, used):
    clip = numbered(3, props=lambda n: {"_QP": qp, "_QPOffset": offset, "_Codec": codec})
    assert run_of(engine("Recorder"), clip) == [(used, codec)]


def test_version_says_what_there_is():
    found = vs.core.diqp.Version()
    assert {"plugin", "engine", "python", "torch", "vapoursynth", "vapoursynth_api"} <= set(found)
    assert found["plugin"] == found["engine"]
    assert "cpu" in found["backends"]
