"""Which frames the engine is given for which output frame: clip ends, neighbours, look-ahead, scene cuts."""

import itertools

import pytest
import vapoursynth as vs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from plugin_support import first_samples, numbered


def expected_run(n: int, frames: int, look_ahead: int, cuts: set[int]) -> tuple[tuple[int, ...], int]:
    """What output frame n must be made from, straight from the promises: (three frames, look-ahead frame)."""
    last = max(min(n // 3 * 3 + 2, frames - 1), min(2, frames - 1))
    group = [max(last - 2, 0), max(last - 2, 0) + 1, max(last - 2, 0) + 2]
    scene = 0

    def same_scene(frame: int) -> bool:
        low, high = sorted((n, frame))
        return not any(low < cut <= high for cut in cuts)

    side = [frame for frame in group if frame < frames and same_scene(frame)]
    given_frames = tuple(min(side, key=lambda own, frame=frame: abs(own - frame)) for frame in group)
    scene = side[-1]
    while scene + 1 < frames and scene + 1 <= side[-1] + look_ahead and scene + 1 not in cuts:
        scene += 1
    return given_frames, scene


def expected_neighbours(n: int, frames: int, count: int, cuts: set[int]) -> tuple[list[int], list[int]]:
    """What output frame n must be seen beside, straight from the promises: (before, after) its group."""
    scenes = [sum(cut <= frame for cut in cuts) for frame in range(frames)]
    scene = [frame for frame in range(frames) if scenes[frame] == scenes[n]]
    group = [frame for frame in range(frames) if frame // 3 == n // 3]
    while len(group) < min(3, frames):
        group.insert(0, group[0] - 1)

    def nearest(position: int) -> int:
        return min(scene, key=lambda frame: abs(frame - position))

    before = [nearest(position) for position in range(group[0] - count, group[0])]
    return before, [nearest(position) for position in range(group[-1] + 1, group[-1] + 1 + count)]


def check_runs(double, frames: int, look_ahead: int, cuts: set[int], neighbours: int = 0) -> None:
    restored = []
    for run in double.runs:
        for frame, wanted in zip(run["frames"], run["targets"], strict=True):
            if wanted:
                assert (tuple(run["frames"]), run["ahead"]) == expected_run(frame, frames, look_ahead, cuts)
                assert (run["before"], run["after"]) == expected_neighbours(frame, frames, neighbours, cuts)
                restored.append(frame)
    assert sorted(restored) == list(range(frames))


@pytest.mark.parametrize("neighbours", [None, 0, 1, 2, 10])
@pytest.mark.parametrize("look_ahead", [0, 1, 4, 50])
@pytest.mark.parametrize("frames", range(1, 9))
def test_every_frame_is_restored_once_from_the_right_frames(engine, frames, look_ahead, neighbours):
    double = engine("Recorder", neighbours)
    clip = numbered(frames).diqp.Restore(qp=30, look_ahead=look_ahead)
    assert first_samples(clip) == {n: n + 1 for n in range(frames)}
    check_runs(double, frames, look_ahead, set(), neighbours or 0)


def test_clip_ends_by_example(engine):
    double = engine("Recorder")
    for frames in (1, 2, 4, 5):
        first_samples(numbered(frames).diqp.Restore(qp=30, look_ahead=1))
    assert [(run["frames"], run["targets"], run["ahead"], run["middle"]) for run in double.runs] == [
        ([0, 0, 0], [True, False, False], 0, 0),
        ([0, 1, 1], [True, True, False], 1, 1),
        ([0, 1, 2], [True, True, True], 3, 1),
        ([1, 2, 3], [False, False, True], 3, 2),
        ([0, 1, 2], [True, True, True], 3, 1),
        ([2, 3, 4], [False, True, True], 4, 3),
    ]


def test_neighbours_by_example(engine):
    double = engine("Recorder", neighbours=2)
    for frames in (1, 2, 8):
        first_samples(numbered(frames).diqp.Restore(qp=30))
    assert [(run["before"], run["frames"], run["after"]) for run in double.runs] == [
        ([0, 0], [0, 0, 0], [0, 0]),
        ([0, 0], [0, 1, 1], [1, 1]),
        ([0, 0], [0, 1, 2], [3, 4]),
        ([1, 2], [3, 4, 5], [6, 7]),
        ([3, 4], [5, 6, 7], [7, 7]),
    ]


def scene_props(n: int, before: set[int], after: set[int]) -> dict[str, int]:
    """Cuts before frames of ``before`` are flagged on the frame that starts, of ``after`` on the one that ends."""
    props = {"_SceneChangePrev": 1} if n in before else {}
    return {**props, "_SceneChangeNext": 1} if n + 1 in after else props


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 20),
    look_ahead=st.integers(0, 8),
    neighbours=st.integers(0, 5),
    before=st.sets(st.integers(1, 19), max_size=6),
    after=st.sets(st.integers(1, 19), max_size=6),
)
@example(frames=6, look_ahead=2, neighbours=2, before={4, 5}, after={1, 2})
@example(frames=7, look_ahead=0, neighbours=3, before=set(), after={5, 6})
def test_nothing_from_beyond_a_cut_is_used(engine, frames, look_ahead, neighbours, before, after):
    double = engine("Recorder", neighbours)
    double.reset()
    clip = numbered(frames, props=lambda n: scene_props(n, before, after)).diqp.Restore(qp=30, look_ahead=look_ahead)
    assert first_samples(clip) == {n: n + 1 for n in range(frames)}
    check_runs(double, frames, look_ahead, {cut for cut in before | after if cut < frames}, neighbours)


def test_a_cut_by_example(engine):
    double = engine("Recorder", neighbours=2)
    clip = numbered(12, props=lambda n: scene_props(n, {4}, {8})).diqp.Restore(qp=30, look_ahead=5)
    first_samples(clip)
    assert [(run["before"], run["frames"], run["after"], run["targets"], run["ahead"]) for run in double.runs] == [
        ([0, 0], [0, 1, 2], [3, 3], [True, True, True], 3),
        ([1, 2], [3, 3, 3], [3, 3], [True, False, False], 3),
        ([4, 4], [4, 4, 5], [6, 7], [False, True, True], 7),
        ([4, 5], [6, 7, 7], [7, 7], [True, True, False], 7),
        ([8, 8], [8, 8, 8], [9, 10], [False, False, True], 11),
        ([8, 8], [9, 10, 11], [11, 11], [True, True, True], 11),
    ]


@pytest.mark.parametrize(
    "props",
    [
        lambda n: {"_Matrix": 1 if n < 4 else 5},
        lambda n: {"_Matrix": 1, "_Range": int(n < 4)},
        lambda n: {"_Codec": "hevc" if n < 4 else "av1"},
    ],
    ids=["matrix", "range", "codec"],
)
def test_frames_that_mean_something_else_are_another_scene(engine, props):
    double = engine("Recorder", neighbours=2)
    first_samples(numbered(9, vs.YUV420P8, props=props).diqp.Restore(qp=30, look_ahead=2))
    check_runs(double, 9, 2, {4}, neighbours=2)


def test_the_longest_look_ahead_reaches_the_end(engine):
    double = engine("Recorder")
    first_samples(numbered(9).diqp.Restore(qp=30, look_ahead=2**31 - 1))
    assert [run["ahead"] for run in double.runs] == [8, 8, 8]


def test_places_in_time_are_counted_from_the_clip_as_the_filter_gets_it(engine):
    double = engine("Recorder")
    first_samples(numbered(12).std.Trim(first=3).diqp.Restore(qp=30))
    assert [run["middle"] for run in double.runs] == [1, 4, 7]
    assert list(itertools.chain(*(run["frames"] for run in double.runs))) == list(range(3, 12))


def test_a_clip_without_end_is_as_good_as_any(engine):
    """std.Loop makes 2^31 - 1 frames of one, whose groups can't be counted by rounding up first."""
    double = engine("Recorder")
    endless = vs.core.std.Loop(numbered(6))
    restored = endless.diqp.Restore(qp=30)
    assert restored.num_frames == endless.num_frames == 2**31 - 1
    for n in (0, 2**31 - 3, 2**31 - 2):
        restored.get_frame(n)
    assert sorted(run["middle"] for run in double.runs) == [1, 2**31 - 4, 2**31 - 3]
