"""How methods are named on the command line, and that a frame function becomes a filter."""

from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation import classics
from vsdiqp.evaluation.evaluate import with_bits
from vsdiqp.evaluation.restorers import Diqp, Input, parse_method, parse_methods
from vsdiqp.evaluation.video import map_luma, plane, settle_colour


def ramp(bits: int = 8, frames: int = 5) -> vs.VideoNode:
    """Frame n has luma n."""
    clip_format = vs.core.query_video_format(vs.YUV, vs.INTEGER, bits, 1, 1)
    return vs.core.std.Splice(
        [
            vs.core.std.BlankClip(width=32, height=16, format=clip_format.id, length=1, color=[n, 7, 9])
            for n in range(frames)
        ]
    )


def luma(clip: vs.VideoNode, n: int) -> int:
    plane = np.asarray(clip.get_frame(n)[0])
    assert plane.min() == plane.max()
    return int(plane[0, 0])


def test_models_take_filter_arguments() -> None:
    method = parse_method("diqp:lite,strength=0.5,backend=cpu,batch=2")
    assert method == Diqp("lite", {"strength": 0.5, "backend": "cpu", "batch": 2})
    assert method.name == "diqp:lite,strength=0.5,backend=cpu,batch=2"


def test_the_input_is_always_measured_and_first() -> None:
    assert [m.name for m in parse_methods([])] == ["input"]
    assert [m.name for m in parse_methods(["diqp:a.safetensors", "input", "diqp:a.safetensors"])] == ["input", "diqp:a"]


def test_files_of_one_name_are_told_apart_by_their_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def names(*texts: str) -> list[str]:
        return [m.name for m in parse_methods(texts)[1:]]

    assert names("diqp:a/best.safetensors", "diqp:b/best.safetensors") == ["diqp:a/best", "diqp:b/best"]
    assert names("diqp:r/a/best.pt", "diqp:s/a/best.pt") == ["diqp:r/a/best", "diqp:s/a/best"]
    assert names("diqp:a/x.pt", "diqp:a/x.safetensors") == ["diqp:x.pt", "diqp:x.safetensors"]
    assert names("diqp:lite", "diqp:mine/lite.safetensors") == ["diqp:lite", "diqp:mine/lite"]
    # What differs in arguments as well is told apart all the same.
    assert names("diqp:a/x.pt,strength=0.5", "diqp:b/x.pt") == ["diqp:a/x,strength=0.5", "diqp:b/x"]
    # The same file twice is one method, however its path is written.
    assert names("diqp:a/best.pt", f"diqp:{tmp_path}/c/../a/best.pt", "diqp:a/last.pt") == ["diqp:best", "diqp:last"]


def test_closed_forms_are_told_apart() -> None:
    from vsdiqp.evaluation.closed_form import SHIPPED

    assert [m.name for m in parse_methods(["closed-form", f"closed-form:{SHIPPED}"])] == [
        "input",
        "closed-form",
        f"closed-form:{SHIPPED.stem}",
    ]


def test_names_that_are_no_text_are_spelled_out() -> None:
    assert Diqp("caf\udce9.safetensors").name == r"diqp:caf\udce9"


@pytest.mark.parametrize("text", ["dpir", "input:3", "", "deblock:5"])
def test_unknown_methods_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(DiqpError, match="known: input, diqp:MODEL, closed-form, smooth"):
        parse_method(text)


def test_the_qp_comes_from_the_request_or_the_stream() -> None:
    assert parse_method("diqp:lite,qp=stream") == Diqp("lite", {"qp": "stream"})
    with pytest.raises(DiqpError, match="asked or stream"):
        parse_method("diqp:lite,qp=37")


def test_arguments_need_a_value() -> None:
    with pytest.raises(DiqpError, match="NAME=VALUE"):
        parse_method("diqp:lite,strength")


def test_input_changes_nothing() -> None:
    clip = ramp()
    assert Input().restore(clip, "hevc", 37) is clip


@pytest.mark.parametrize("bits", [8, 10])
def test_a_frame_function_sees_its_neighbours_with_the_ends_repeated(bits: int) -> None:
    one = 255 << (bits - 8)
    seen: dict[int, tuple[int, int]] = {}

    def note(before: np.ndarray, current: np.ndarray, after: np.ndarray) -> np.ndarray:
        around = (round(float(before[0, 0]) * one), round(float(after[0, 0]) * one))
        seen[round(float(current[0, 0]) * one)] = around
        return current + np.float32(2.4 / one)

    clip = map_luma(ramp(bits), note)
    assert [luma(clip, n) for n in range(5)] == [2, 3, 4, 5, 6]  # rounded once
    assert seen == {0: (0, 1), 1: (0, 2), 2: (1, 3), 3: (2, 4), 4: (3, 4)}
    assert np.asarray(clip.get_frame(2)[1]).max() == 7


def test_results_are_clipped_to_the_range() -> None:
    clip = map_luma(ramp(), lambda before, current, after: current - 1)
    assert luma(clip, 4) == 0
    clip = map_luma(ramp(), lambda before, current, after: current + 2)
    assert luma(clip, 4) == 255


def test_depths_lie_on_one_scale() -> None:
    clip = ramp().std.Expr(["x 200 +", ""])
    deep = with_bits(clip, 16)
    assert deep.format.bits_per_sample == 16
    for n in range(2):
        assert np.array_equal(plane(deep.get_frame(n), 0), plane(clip.get_frame(n), 0))


def test_colour_is_settled_by_size_where_the_clip_does_not_say() -> None:
    small = settle_colour(vs.core.std.BlankClip(width=64, height=64, format=vs.YUV420P8, length=1))
    large = settle_colour(vs.core.std.BlankClip(width=1280, height=720, format=vs.YUV420P8, length=1))
    assert small.get_frame(0).props["_Matrix"] == 6
    assert large.get_frame(0).props["_Matrix"] == 1
    said = settle_colour(small.std.SetFrameProps(_Matrix=9, _Range=1))
    assert (said.get_frame(0).props["_Matrix"], said.get_frame(0).props["_Range"]) == (9, 1)


def test_a_classic_filter_takes_the_settings_of_the_nearest_qp() -> None:
    rough = classics.Classic("smooth", {"hevc": {22.0: {"amount": 0.0}, 37.0: {"amount": 1.0}}})
    clip = vs.core.std.BlankClip(width=32, height=32, format=vs.YUV420P8, length=1)
    edge = vs.core.std.StackHorizontal([clip, clip.std.Invert()])
    for qp, changed in ((24, False), (35, True)):
        out = rough.restore(edge, "hevc", qp).get_frame(0)
        assert np.array_equal(np.asarray(out[0]), np.asarray(edge.get_frame(0)[0])) != changed
        assert np.array_equal(np.asarray(out[1]), np.asarray(edge.get_frame(0)[1]))
    with pytest.raises(DiqpError, match="no settings for av1"):
        rough.restore(clip, "av1", 100)


def test_a_missing_plugin_is_an_error_with_its_pip_command() -> None:
    absent = classics.Filter(lambda clip: clip, {}, "no_such_plugin", "vapoursynth-nothing")
    with pytest.raises(DiqpError, match="pip install vapoursynth-nothing"):
        absent.apply(ramp(), {})


def test_tuning_finds_the_setting_that_undoes_the_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(clip: vs.VideoNode, amount: float) -> vs.VideoNode:
        return clip.std.Expr([f"x {amount} -", ""])

    monkeypatch.setitem(classics.FILTERS, "shift", classics.Filter(shift, {"amount": (1, 2, 3)}, "std", ""))
    source = ramp().std.Expr(["x 100 +", ""])
    best = classics.tune("shift", "hevc", 37, [(source, source.std.Expr(["x 2 +", ""]))])
    assert best.parameters == {"amount": 2}
    assert best.gain > 10


def test_settings_survive_the_file(tmp_path: Path) -> None:
    best = classics.Tuned("smooth", "hevc", 37, {"amount": 0.2}, 0.1)
    classics.save_table([best], tmp_path / "table.json", "test")
    assert classics.tuned("smooth", tmp_path / "table.json").table == {"hevc": {37.0: {"amount": 0.2}}}
    with pytest.raises(DiqpError, match="tune-classics"):
        classics.tuned("smooth", tmp_path / "none.json")
