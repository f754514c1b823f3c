"""What the plugin asks of the source and of the engine, and how much it keeps."""

import threading
import time

import pytest
import vapoursynth as vs
from plugin_support import counted, numbered

MIB = 1 << 20


def play(clip: vs.VideoNode, requests: int) -> None:
    """Ask for every frame once, ``requests`` at a time."""
    for frame in clip.frames(prefetch=requests, close=True):
        assert frame.width == clip.width


@pytest.mark.parametrize("cache", [None, 200], ids=["default-cache", "200-MB-cache"])
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("look_ahead", [0, 50])
@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_linear_run_asks_for_each_frame_once(core, engine, neighbours, look_ahead, threads, cache):
    double = engine("Recorder", neighbours)
    core.num_threads = threads
    if cache is not None:
        core.max_cache_size = cache
    source, counts = counted(numbered(200, vs.GRAY8, 640, 480))
    play(source.diqp.Restore(qp=30, look_ahead=look_ahead), threads)
    assert counts == [1] * 200
    assert len(double.runs) == 67


@pytest.mark.parametrize(("neighbours", "look_ahead"), [(0, 50), (2, 0)])
def test_frames_are_asked_for_once_when_the_cache_is_over_its_limit(core, engine, neighbours, look_ahead):
    engine("Recorder", neighbours)
    core.num_threads, core.max_cache_size = 4, 1
    source, counts = counted(numbered(120, vs.YUV444P8, 1280, 720))
    play(source.diqp.Restore(qp=30, look_ahead=look_ahead), 4)
    assert counts == [1] * 120


@pytest.mark.parametrize(("neighbours", "look_ahead"), [(0, 10), (2, 0)])
def test_slow_engines_with_several_threads_restore_each_group_once(core, engine, neighbours, look_ahead):
    double = engine("Slow", neighbours)
    core.num_threads = 8
    source, counts = counted(numbered(90))
    play(source.diqp.Restore(qp=30, look_ahead=look_ahead), 8)
    assert counts == [1] * 90
    assert len(double.runs) == 30
    assert len(double.threads) == 2


def test_a_jump_keeps_the_neighbours_that_are_held(core, engine):
    engine("Recorder", neighbours=2)
    core.num_threads = 1
    source, counts = counted(numbered(100))
    source.std.SetVideoCache(mode=0)
    clip = source.diqp.Restore(qp=30, look_ahead=50)
    clip.get_frame(0).close()
    clip.get_frame(30).close()
    assert counts == [1] * (30 + 2 + 50 + 1) + [0] * 17


def test_neighbours_serve_an_earlier_group_that_comes_later(core, engine):
    double = engine("Waits", neighbours=2)
    core.num_threads = 4
    source, counts = counted(numbered(60))
    source.std.SetVideoCache(mode=0)
    clip = source.diqp.Restore(qp=30)
    later = clip.get_frame_async(30)
    assert double.started.wait(10)
    earlier = clip.get_frame_async(27)
    until = time.monotonic() + 10
    while sum(counts[:28]) < 3 and time.monotonic() < until:
        time.sleep(0.001)
    double.go.set()
    for future in (later, earlier):
        future.result().close()
    assert counts == [0] * 25 + [1] * (2 + 3 + 3 + 2) + [0] * 25


def test_many_callers_of_one_group_wait_for_one_run(core, engine):
    double = engine("Slow")
    core.num_threads = 8
    clip = numbered(3).diqp.Restore(qp=30)
    futures = [clip.get_frame_async(n) for n in (0, 1, 2, 0, 1, 2, 1, 1)]
    assert [int(f.result()[0][0, 0]) for f in futures] == [1, 2, 3, 1, 2, 3, 2, 2]
    assert len(double.runs) == 1


def test_one_thread_of_its_own_serves_all_filters(core, engine):
    double = engine("Recorder")
    core.num_threads = 4
    clips = [numbered(30).diqp.Restore(qp=30, look_ahead=t) for t in (0, 5)]
    play(vs.core.std.Interleave(clips), 4)
    assert len(double.threads) == 1
    assert threading.current_thread().name not in double.threads


@pytest.mark.parametrize("step", [1, 10, 40, -1], ids=["linear", "every-10th", "every-40th", "backwards"])
@pytest.mark.parametrize(("neighbours", "look_ahead"), [(0, 20), (2, 20), (2, 0)])
def test_memory_is_bounded_whatever_the_order(core, engine, neighbours, look_ahead, step):
    engine("Recorder", neighbours)
    core.num_threads, core.max_cache_size = 2, 1
    size = 640 * 480
    source = vs.core.std.BlankClip(format=vs.GRAY8, width=640, height=480, length=900)
    # A copy each: BlankClip hands out one frame again and again.
    source = source.std.ModifyFrame(source, lambda n, f: f.copy())
    clip = source.diqp.Restore(qp=30, look_ahead=look_ahead)
    before, peak = core.used_cache_size, 0
    for n in range(0, 900, step) if step > 0 else range(300, 0, step):
        clip.get_frame(n).close()
        peak = max(peak, core.used_cache_size - before)
    window, spare = neighbours + 3 + max(neighbours, look_ahead), 3 * (2 // 3 + 1 + 4 + 1)
    finished, at_work = 3 * 8, 3 * (window + 3)
    assert peak <= (window + spare + finished + at_work) * size


def test_stepping_back_and_forth_restores_nothing_twice(core, engine):
    double = engine("Recorder")
    clip = numbered(30).diqp.Restore(qp=30)
    for n in (10, 11, 12, 13, 12, 11, 10, 9, 10, 11, 12, 13, 14):
        clip.get_frame(n)
    assert sorted(run["middle"] for run in double.runs) == [10, 13]


@pytest.mark.parametrize("neighbours", [0, 2])
def test_going_backwards_asks_the_source_for_little_more_than_each_frame(core, engine, neighbours):
    engine("Recorder", neighbours)
    core.num_threads, core.max_cache_size = 2, 1
    source, counts = counted(numbered(150, vs.GRAY8, 640, 480))
    clip = source.diqp.Restore(qp=30, look_ahead=20)
    for n in reversed(range(150)):
        clip.get_frame(n).close()
    assert sum(counts) <= 2 * 150


def test_a_filter_that_is_freed_closes_its_engine(core, engine):
    double = engine("Recorder")
    clip = numbered(6).diqp.Restore(qp=30)
    clip.get_frame(0).close()
    assert not double.made[0].closed.is_set()
    del clip
    assert double.made[0].closed.wait(10)


def test_a_filter_may_be_freed_by_the_garbage_collector_in_the_engine(core, engine):
    engine("Collects")
    unreachable = [numbered(6).diqp.Restore(qp=30)]
    unreachable.append(unreachable)
    clip = numbered(6).diqp.Restore(qp=30)
    del unreachable
    assert int(clip.get_frame(0)[0][0, 0]) == 1
