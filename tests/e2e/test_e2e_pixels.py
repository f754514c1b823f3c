"""What the shipped networks give through vspipe: the same pixels whatever is asked in what order, in every format."""

import json

import numpy as np
import pytest

WIDTH, HEIGHT, FRAMES, CUT = 128, 96, 11, 5
FRAME = WIDTH * HEIGHT * 3 // 2
RESTORE = 'clip = core.diqp.Restore(clip, qp=37, codec="hevc")'
MODELS = {"lite": 3, "base": 6}
"""Shipped networks, and how far the frames lie that a frame's pixels depend on: base sees what lite made of three."""


def frames_of(data: bytes, size: int = FRAME) -> list[bytes]:
    assert len(data) % size == 0
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def restore(model) -> str:
    """A line of a script."""
    return RESTORE.replace(")", f', model="{model}")')


@pytest.fixture(scope="module")
def whole(vspipe, clip, restore, tmp_path_factory) -> list[bytes]:
    """The restored clip, from one linear run."""
    path = tmp_path_factory.mktemp("whole") / "whole.vpy"
    path.write_text(
        f"from vapoursynth import core\nclip = core.bs.VideoSource({str(clip)!r})\n{restore}\nclip.set_output()\n"
    )
    return frames_of(vspipe(path, "-"))


@pytest.fixture(scope="module")
def untouched(vspipe, clip, tmp_path_factory) -> list[bytes]:
    """The clip as it is read."""
    path = tmp_path_factory.mktemp("untouched") / "untouched.vpy"
    path.write_text(f"from vapoursynth import core\ncore.bs.VideoSource({str(clip)!r}).set_output()\n")
    return frames_of(vspipe(path, "-"))


def test_the_restoration_changes_every_frame_a_little(whole, untouched):
    assert len(whole) == len(untouched) == FRAMES
    for before, after in zip(untouched, whole, strict=True):
        difference = np.abs(np.frombuffer(before, np.uint8).astype(int) - np.frombuffer(after, np.uint8))
        assert 0 < difference.mean() < 8


@pytest.mark.parametrize(("first", "last"), [(0, 0), (4, 7), (10, 10)])
def test_a_range_is_that_part_of_the_whole(first, last, whole, restore, vspipe, script):
    part = frames_of(vspipe("-s", str(first), "-e", str(last), script(restore), "-"))
    assert part == whole[first : last + 1]


@pytest.mark.parametrize("skipped", [1, 2])
def test_where_groups_begin_changes_no_pixel(skipped, model, whole, restore, vspipe, script):
    """A frame that has all it depends on becomes the same in whichever group of three it lies."""
    later = frames_of(vspipe(script(f"clip = clip[{skipped}:]\n{restore}"), "-"))
    assert later[MODELS[model] :] == whole[skipped + MODELS[model] :]


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_no_pixel(threads, whole, restore, vspipe, script):
    path = script(f"core.num_threads = {threads}\n{restore}")
    assert frames_of(vspipe("-r", str(2 * threads), path, "-")) == whole


def test_strength_0_passes_the_clip_through(untouched, vspipe, script):
    passed = vspipe(script('clip = core.diqp.Restore(clip, qp=37, codec="hevc", strength=0)'), "-")
    assert frames_of(passed) == untouched


def test_the_qp_matters(whole, restore, vspipe, script):
    assert frames_of(vspipe(script(restore.replace("37", "24")), "-")) != whole


def test_readqp_tells_restore_what_it_would_be_told(model, whole, vspipe, script):
    """With one number for all: the encode is of constant QP, so the mean of what is read is close to it."""
    reading = f"clip = core.diqp.ReadQP(clip, path)\nclip = core.diqp.Restore(clip, model={model!r})"
    path = script("")
    path.write_text(path.read_text().replace("core.bs.VideoSource(", "core.bs.VideoSource(path := "))
    path.write_text(path.read_text().replace("clip.set_output()", f"{reading}\nclip.set_output()"))
    for read, told in zip(frames_of(vspipe(path, "-")), whole, strict=True):
        difference = np.abs(np.frombuffer(read, np.uint8).astype(int) - np.frombuffer(told, np.uint8))
        assert difference.mean() < 1


@pytest.mark.slow
def test_two_filters_in_a_row_do_what_they_do_one_after_the_other(whole, restore, vspipe, script, tmp_path):
    again = 'clip = core.diqp.Restore(clip, qp=160, codec="av1", strength=0.5)'
    chained = vspipe(script(f"{restore}\n{again}"), "-")

    stored = tmp_path / "once.yuv"
    stored.write_bytes(b"".join(whole))
    reading = f"""
stored = open({str(stored)!r}, "rb").read()
def fill(n, f):
    frame = f.copy()
    place = n * {FRAME}
    for plane in frame:
        for row in range(plane.shape[0]):
            for column, value in enumerate(stored[place : place + plane.shape[1]]):
                plane[row, column] = value
            place += plane.shape[1]
    return frame
clip = core.std.ModifyFrame(clip, clip, fill)
{again}"""
    assert vspipe(script(reading), "-") == chained


@pytest.mark.slow
def test_a_marked_cut_separates_what_lies_on_its_sides(restore, vspipe, script):
    mark = f"""
def mark(n, f):
    frame = f.copy()
    frame.props["_SceneChangePrev"] = int(n == {CUT})
    frame.props["_SceneChangeNext"] = int(n == {CUT} - 1)
    return frame
clip = core.std.ModifyFrame(clip, clip, mark)
"""
    whole = frames_of(vspipe(script(mark + restore), "-"))
    blackened = f"black = core.std.BlankClip(clip, keep=True)\nclip = clip[:{CUT}] + black[{CUT}:]\n"
    assert frames_of(vspipe(script(blackened + mark + restore), "-"))[:CUT] == whole[:CUT]
    blackened = f"black = core.std.BlankClip(clip, keep=True)\nclip = black[:{CUT}] + clip[{CUT}:]\n"
    assert frames_of(vspipe(script(blackened + mark + restore), "-"))[CUT:] == whole[CUT:]


FORMATS = {"YUV444P16": 6, "YUV410P8": 1.125, "GRAY8": 1, "RGBS": 12, "YUV422PH": 4}
"""Bytes a pixel."""


@pytest.mark.parametrize("name", FORMATS)
def test_formats_come_back_as_they_are_and_restored(name, vspipe, script):
    resize = {"RGB": ", matrix_in=6", "YUV": "", "GRA": ""}[name[:3]]
    convert = f"clip = core.resize.Bicubic(clip[:4], format=vs.{name}{resize})\n"
    before = vspipe(script(convert), "-")
    after = vspipe(script(convert + RESTORE), "-")
    assert len(before) == len(after) == 4 * int(WIDTH * HEIGHT * FORMATS[name])
    assert before != after


def test_properties_and_format_reach_the_output(vspipe, script, tmp_path):
    written = tmp_path / "properties.json"
    vspipe("-j", written, script(f'clip = core.std.SetFrameProps(clip, mine="kept")\n{RESTORE}'), "--")
    text = written.read_text()
    assert text.count('"mine"') == FRAMES
    json.loads(text)
