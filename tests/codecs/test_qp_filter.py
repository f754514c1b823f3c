"""``core.diqp.ReadQP``: the QPs of a file on the frames that a source filter delivers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qp_streams import FRAMES

from vsdiqp.codecs import read_qps

vs = pytest.importorskip("vapoursynth")

ROOT = Path(__file__).resolve().parents[2]
Streams = Callable[[str], Path]


@pytest.fixture(scope="module")
def core() -> Any:
    """The core with the plugin and bestsource."""
    core = vs.core.core
    if not hasattr(core, "bs"):
        pytest.skip("bestsource is not installed")
    if not hasattr(core, "diqp"):
        subprocess.run([sys.executable, "setup.py", "-q", "build_plugin"], cwd=ROOT, check=True)
        core.std.LoadPlugin(str(ROOT / "build" / "plugin" / "libdiqp.so"))
    return core


def load(core: Any, path: Path) -> Any:
    return core.bs.VideoSource(str(path), cachemode=0, threads=1)


@pytest.mark.parametrize(("name", "codec"), [("open.ts", "hevc"), ("svt.webm", "av1"), ("x264.mp4", "hevc")])
def test_every_frame_carries_its_qp(core: Any, streams: Streams, name: str, codec: str) -> None:
    path = streams(name)
    clip = core.diqp.ReadQP(load(core, path), str(path))
    frames = [frame.props for frame in clip.frames()]
    assert [props["_QP"] for props in frames] == read_qps(path)
    assert {props["_Codec"] for props in frames} == {codec}
    assert all(isinstance(props["_QP"], int) for props in frames)


def test_trimmed_clips_keep_or_find_their_qps(core: Any, streams: Streams) -> None:
    path = streams("open.ts")
    source = load(core, path)
    after = core.diqp.ReadQP(source, str(path))[7:20]
    before = core.diqp.ReadQP(source[7:20], str(path), offset=7)
    for clip in (after, before):
        assert [frame.props["_QP"] for frame in clip.frames()] == read_qps(path)[7:20]


def test_a_clip_of_another_length_is_an_error_when_the_script_is_read(core: Any, streams: Streams) -> None:
    path = streams("open.ts")
    with pytest.raises(vs.Error, match=rf"diqp.ReadQP: .*{FRAMES - 1} frames.* holds {FRAMES}"):
        core.diqp.ReadQP(load(core, path)[1:], str(path))


def test_a_file_that_is_no_video_is_an_error(core: Any, streams: Streams, tmp_path: Path) -> None:
    (tmp_path / "clip.mkv").write_bytes(b"nothing")
    with pytest.raises(vs.Error, match=r"diqp.ReadQP: cannot read .*clip\.mkv"):
        core.diqp.ReadQP(load(core, streams("open.ts")), str(tmp_path / "clip.mkv"))
