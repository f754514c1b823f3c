"""The same frame has the same pixels, whoever asks for it, when and in which company."""

import os
import random
import subprocess

import numpy as np
import pytest
import vapoursynth as vs
from engine_doubles import NEIGHBOURS
from plugin_support import numbered, samples

from vsdiqp.host import RESTORER_HOOK

FRAMES = 47
CUTS = (7, 20, 21, 40)


def restored() -> vs.VideoNode:
    source = numbered(FRAMES, vs.YUV420P10, props=lambda n: {"_SceneChangePrev": int(n in CUTS)})
    return source.diqp.Restore(qp=30, look_ahead=6)


@pytest.fixture(params=[None, 2], ids=["alone", "neighbours"])
def reference(engine, request) -> list[list[np.ndarray]]:
    engine("Mixer", request.param)
    clip = restored()
    return [samples(clip.get_frame(n)) for n in range(FRAMES)]


def same(found: vs.VideoFrame, wanted: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(samples(found), wanted, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_random_order(core, reference, seed):
    order = [random.Random(seed).randrange(FRAMES) for _ in range(3 * FRAMES)]
    clip = restored()
    assert all(same(clip.get_frame(n), reference[n]) for n in order)


def test_backwards(core, reference):
    clip = restored()
    assert all(same(clip.get_frame(n), reference[n]) for n in reversed(range(FRAMES)))


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_many_at_once(core, reference, threads):
    core.num_threads = threads
    clip = restored()
    order = [n % FRAMES for n in range(0, 7 * FRAMES, 7)] * 2
    futures = [(n, clip.get_frame_async(n)) for n in order]
    assert all(same(future.result(), reference[n]) for n, future in futures)


def test_downstream_filters_that_jump_about(core, reference):
    clip = restored()
    jumping = vs.core.std.Interleave([clip, clip.std.Reverse(), clip[20:] + clip[:20]])
    for n, frame in enumerate(jumping.frames(prefetch=4)):
        inner = n // 3
        assert same(frame, reference[(inner, FRAMES - 1 - inner, (inner + 20) % FRAMES)[n % 3]])


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_plugin_order import restored
restored().set_output()
"""


def test_parts_of_a_clip_through_vspipe(core, reference, vspipe, process_environment, tmp_path, request):
    script = tmp_path / "part.vpy"
    script.write_text(SCRIPT.format(folder=str(request.path.parent)), encoding="utf-8")
    doubles = {name: os.environ[name] for name in (RESTORER_HOOK, NEIGHBOURS) if name in os.environ}
    environment = {**process_environment, **doubles}
    for first, last in ((5, 5), (22, 40)):
        command = [vspipe, "-s", str(first), "-e", str(last), str(script), "-"]
        piped = subprocess.run(command, env=environment, capture_output=True, timeout=60)
        assert piped.returncode == 0, piped.stderr.decode()
        wanted = b"".join(plane.tobytes() for n in range(first, last + 1) for plane in reference[n])
        assert piped.stdout == wanted
