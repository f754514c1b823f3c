import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import engine_doubles
import pytest
import vapoursynth as vs
from plugin_support import ROOT

from vsdiqp.host import RESTORER_HOOK


@pytest.fixture(scope="session")
def plugin_folder() -> Path:
    """Where the plugin lies: the one VapourSynth has loaded, else one compiled from the source tree."""
    if not hasattr(vs.core, "diqp"):
        subprocess.run([sys.executable, "setup.py", "-q", "build_plugin"], cwd=ROOT, check=True)
        vs.core.std.LoadPlugin(str(ROOT / "build" / "plugin" / "libdiqp.so"))
    return Path(vs.core.diqp.plugin_path).parent


@pytest.fixture(autouse=True)
def core(plugin_folder: Path) -> Iterator[vs.Core]:
    """The core with the plugin, its settings put back afterwards."""
    core = vs.core.core
    threads, cache = core.num_threads, core.max_cache_size
    yield core
    core.num_threads, core.max_cache_size = threads, cache


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., type[engine_doubles.Recorder]]]:
    """Has ``Restore`` use a class of engine_doubles, which asks for ``neighbours`` if given; returns it."""

    def use(name: str, neighbours: int | None = None) -> type[engine_doubles.Recorder]:
        monkeypatch.setenv(RESTORER_HOOK, f"engine_doubles:{name}")
        if neighbours is None:
            monkeypatch.delenv(engine_doubles.NEIGHBOURS, raising=False)
        else:
            monkeypatch.setenv(engine_doubles.NEIGHBOURS, str(neighbours))
        double: type[engine_doubles.Recorder] = getattr(engine_doubles, name)
        return double

    engine_doubles.Recorder.reset()
    engine_doubles.Fails.bad.clear()
    engine_doubles.Overwrites.refused = 0
    engine_doubles.Waits.started.clear()
    engine_doubles.Waits.go.clear()
    engine_doubles.Keeps.seen.clear()
    engine_doubles.Keeps.addresses.clear()
    use("Recorder")
    yield use
    engine_doubles.Recorder.reset()


@pytest.fixture(scope="session")
def process_environment(plugin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that uses the plugin and engine_doubles, vspipe included."""
    config = tmp_path_factory.mktemp("config")
    environment = {
        **os.environ,
        "XDG_CONFIG_HOME": str(config),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "VAPOURSYNTH_EXTRA_PLUGIN_PATH": str(plugin_folder),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(["vapoursynth", "config"], env=environment, check=True, capture_output=True)
    return environment


@pytest.fixture(scope="session")
def vspipe(process_environment: dict[str, str]) -> str:
    """The path of vspipe."""
    found = shutil.which("vspipe", path=process_environment["PATH"])
    assert found is not None, "vspipe comes with the vapoursynth package"
    return found
