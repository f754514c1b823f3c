"""Networks that see restored neighbours: two passes behind one filter."""

import pytest
import vapoursynth as vs
from plugin_support import counted, first_samples, numbered
from test_plugin_groups import check_runs


class Passes:
    """The runs of one of the passes, as a double has them."""

    def __init__(self, double, first: bool) -> None:
        self.runs = [run for run in double.runs if (run["model"] == "first") == first]


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("order", [None, "backwards"])
def test_every_run_is_given_its_frames_as_they_are_and_as_the_first_pass_made_them(engine, frames, neighbours, order):
    double = engine("TwoPasses", neighbours)
    cuts = {5}
    clip = numbered(frames, props=lambda n: {"_SceneChangePrev": 1} if n in cuts else {}).diqp.Restore(qp=30)
    asked = range(frames) if order is None else reversed(range(frames))
    assert first_samples(clip, list(asked)) == {n: n + 1 for n in range(frames)}
    second = Passes(double, first=False)
    check_runs(second, frames, 0, {cut for cut in cuts if cut < frames}, neighbours)
    for run in second.runs:
        sequence = run["before"] + run["frames"] + run["after"]
        assert run["first"] == [number + 1 for number in sequence]


def test_the_first_pass_is_given_frames_as_they_are_and_its_own_neighbours(engine):
    double = engine("TwoPasses", neighbours=2)
    first_samples(numbered(9).diqp.Restore(qp=30))
    first = Passes(double, first=True)
    check_runs(first, 9, 0, set(), neighbours=2)
    assert all(run["first"] == [] for run in first.runs)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_linear_run_asks_for_each_frame_once_and_restores_each_group_once_a_pass(core, engine, threads):
    double = engine("TwoPasses", neighbours=3)
    core.num_threads = threads
    source, counts = counted(numbered(120, vs.GRAY8, 640, 480))
    for frame in source.diqp.Restore(qp=30).frames(prefetch=threads, close=True):
        assert frame.width == 640
    assert counts == [1] * 120
    assert len(Passes(double, first=True).runs) == len(Passes(double, first=False).runs) == 40


@pytest.mark.parametrize("step", [1, 10, -1], ids=["linear", "every-10th", "backwards"])
def test_memory_is_bounded_whatever_the_order(core, engine, step):
    engine("TwoPasses", neighbours=3)
    core.num_threads, core.max_cache_size = 2, 1
    size = 640 * 480
    source = vs.core.std.BlankClip(format=vs.GRAY8, width=640, height=480, length=600)
    source = source.std.ModifyFrame(source, lambda n, f: f.copy())
    clip = source.diqp.Restore(qp=30)
    before, peak = core.used_cache_size, 0
    for n in range(0, 600, step) if step > 0 else range(300, 0, step):
        clip.get_frame(n).close()
        peak = max(peak, core.used_cache_size - before)
    held, finished, at_work = 3 + 3 + 3 + 3 * (2 // 3 + 1 + 4 + 1), 3 * 8, 3 * (3 + 3 + 3 + 3)
    assert peak <= ((1 + 2) * held + 2 * (finished + at_work)) * size


def test_the_first_pass_has_the_same_arguments_but_applies_all_it_finds(engine):
    double = engine("TwoPasses", neighbours=1)
    numbered(3).diqp.Restore(qp=31, codec="av1", model="second", strength=0.25, device=[1], tile=[64, 64])
    settings = {made.settings.model: made.settings for made in double.made}
    assert (settings["second"].strength, settings["first"].strength) == (0.25, 1.0)
    assert settings["first"].device == (1,) and settings["first"].tile == (64, 64)


def test_frames_leave_with_the_properties_they_came_with(engine):
    engine("TwoPasses", neighbours=1)
    clip = numbered(6, props=lambda n: {"Mine": n})
    came, leave = clip.get_frame(4).props, clip.diqp.Restore(qp=30).get_frame(4).props
    assert dict(leave) == dict(came)


def test_a_user_is_told_once_what_is_guessed(engine, core):
    engine("TwoPasses", neighbours=1)
    said: list[str] = []
    handler = core.add_log_handler(lambda kind, text: said.append(text))
    try:
        first_samples(numbered(6, vs.YUV420P8).diqp.Restore(qp=30))
    finally:
        core.remove_log_handler(handler)
    assert len([text for text in said if "_Matrix" in text]) == 1


def test_errors_of_the_first_pass_reach_those_who_asked_and_no_others(engine):
    engine("FirstFails", neighbours=1)
    clip = numbered(30).diqp.Restore(qp=30)
    with pytest.raises(vs.Error, match="out of luck"):
        clip.get_frame(7)
    assert int(clip.get_frame(20)[0][0, 0]) == 21


def test_both_passes_end_with_the_filter(engine):
    double = engine("TwoPasses", neighbours=1)
    clip = numbered(6).diqp.Restore(qp=30)
    clip.get_frame(0).close()
    del clip
    assert len(double.made) == 2
    assert all(made.closed.wait(10) for made in double.made)
