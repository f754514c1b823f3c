import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import vapoursynth as vs

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT, FRAMES, CUT = 128, 96, 11, 5
"""Of the test clip: two scenes, the second beginning at CUT."""

Pipe = Callable[..., bytes]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user's shell in which vspipe finds VapourSynth and the plugin."""
    folder = tmp_path_factory.mktemp("user")
    environment = {
        **os.environ,
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "passive",
        "SVT_LOG": "1",
    }
    if not hasattr(vs.core, "diqp"):
        subprocess.run([sys.executable, "setup.py", "-q", "build_plugin"], cwd=ROOT, check=True)
        environment["VAPOURSYNTH_EXTRA_PLUGIN_PATH"] = str(ROOT / "build" / "plugin")
    subprocess.run(["vapoursynth", "config"], env=environment, check=True, capture_output=True)
    return environment


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of two scenes, encoded by x265 at QP 37 in Matroska."""
    path = tmp_path_factory.mktemp("clip") / "a clip's name.mkv"
    rng = np.random.default_rng(5)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=24)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"x265-params": "qp=37:log-level=error:pools=1", "preset": "medium"}
        pictures = [np.kron(rng.integers(0, 256, (40, 40, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(2)]
        for n in range(FRAMES):
            moved = np.ascontiguousarray(pictures[n >= CUT][n : n + HEIGHT, 2 * n : 2 * n + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def script(tmp_path: Path, clip: Path) -> Callable[[str], Path]:
    """Writes a script whose `clip` is the test clip and whose result is what the given lines leave in `clip`."""

    def write(lines: str) -> Path:
        path = tmp_path / "script.vpy"
        head = f"import vapoursynth as vs\nfrom vapoursynth import core\nclip = core.bs.VideoSource({str(clip)!r})\n"
        path.write_text(f"{head}{lines}\nclip.set_output()\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def vspipe(environment: dict[str, str]) -> Pipe:
    """Runs vspipe with the given arguments; returns its stdout."""
    program = shutil.which("vspipe", path=environment["PATH"])
    assert program is not None, "vspipe comes with the vapoursynth package"

    def run(*arguments: str | Path) -> bytes:
        command = [program, *map(str, arguments)]
        piped = subprocess.run(command, env=environment, capture_output=True, timeout=120)
        assert piped.returncode == 0, piped.stderr.decode()
        return piped.stdout

    return run


@pytest.fixture(scope="session")
def encode(environment: dict[str, str]) -> Callable[[list[str], bytes], None]:
    """Gives y4m to an encoder's command; skips where the encoder is not installed."""

    def run(command: list[str], y4m: bytes) -> None:
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed (scripts/test installs it)")
        # SVT-AV1, when root runs it, would put its threads before all others on the machine.
        if os.geteuid() == 0 and shutil.which("setpriv"):
            command = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice", *command]
        done = subprocess.run(command, env=environment, input=y4m, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()

    return run
