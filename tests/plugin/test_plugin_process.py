"""The plugin in processes of their own: pipes, the end of the program, hosts without Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import vapoursynth as vs
from plugin_support import ROOT

FRAME = 32 * 16
CLIP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import vapoursynth as vs
from plugin_support import numbered
core = vs.core
clip = numbered(60, vs.GRAY8).diqp.Restore(qp=30, look_ahead=4)
"""


def run(command: list[str], environment: dict[str, str], **doubles: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, env={**environment, **doubles}, capture_output=True, timeout=60)


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "clip.vpy"
    path.write_text(CLIP + "clip.set_output()\n", encoding="utf-8")
    return str(path)


def test_what_the_engine_prints_stays_out_of_the_pipe(vspipe, process_environment, script):
    piped = run([vspipe, "-c", "y4m", script, "-"], process_environment, VSDIQP_TEST_RESTORER="engine_doubles:Prints")
    assert piped.returncode == 0, piped.stderr.decode()
    header, _, frames = piped.stdout.partition(b"\n")
    assert header.startswith(b"YUV4MPEG2 ")
    assert frames == b"".join(b"FRAME\n" + bytes([n + 1]) * FRAME for n in range(60))
    assert piped.stderr.count(b"a word from the engine") == 20
    assert piped.stderr.count(b"another") == 20


def test_a_script_may_print_while_the_engine_works(process_environment):
    code = CLIP + "for n in range(30):\n    clip.get_frame(n)\n    print('frame', n)\n"
    done = run([sys.executable, "-c", code], process_environment, VSDIQP_TEST_RESTORER="engine_doubles:Prints")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n") == [*(f"frame {n}" for n in range(30)), ""]


def test_an_error_ends_vspipe_with_its_text(vspipe, process_environment, tmp_path):
    script = tmp_path / "bad.vpy"
    script.write_text(CLIP.replace("qp=30", "qp=30, tile=[1, 2, 3]"), encoding="utf-8")
    piped = run([vspipe, str(script), "-"], process_environment, VSDIQP_TEST_RESTORER="engine_doubles:Recorder")
    assert piped.returncode == 1
    assert b"diqp.Restore: tile is [1, 2, 3]: give [width, height]" in piped.stderr


def test_a_part_through_vspipe_restores_the_groups_of_that_part_alone(vspipe, process_environment, script, tmp_path):
    log = tmp_path / "runs"
    piped = run(
        [vspipe, "-s", "31", "-e", "36", script, "-"],
        process_environment,
        VSDIQP_TEST_RESTORER="engine_doubles:Logs",
        STANDIN_LOG=str(log),
    )
    assert piped.stdout == b"".join(bytes([n + 1]) * FRAME for n in range(31, 37)), piped.stderr.decode()
    runs = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert sorted(run["middle"] for run in runs) == [31, 34, 37]


@pytest.mark.parametrize("double", ["Sleeps", "Slow"])
@pytest.mark.parametrize("threads", [1, 8])
def test_programs_end_with_frames_in_flight(process_environment, double, threads):
    code = CLIP + f"core.num_threads = {threads}\n"
    code += "futures = [clip.get_frame_async(n) for n in range(40)]\nfutures[4].result()\nprint('end')\n"
    for _ in range(3):
        done = run([sys.executable, "-c", code], process_environment, VSDIQP_TEST_RESTORER=f"engine_doubles:{double}")
        assert (done.returncode, done.stdout) == (0, b"end\n"), done.stderr.decode()


REAL = """
import sys, vapoursynth as vs
clip = vs.core.std.BlankClip(None, 320, 192, vs.YUV420P8, length=60, color=[90, 100, 120])
clip = clip.diqp.Restore(qp=37, codec="hevc", model="lite", backend="cpu")
futures = [clip.get_frame_async(n) for n in range(40)]
futures[0].result()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "del clip, futures", "sys.exit(0)"], ids=["runs out", "drops", "exits"])
def test_programs_end_quietly_with_real_frames_in_flight(process_environment, ending):
    """The run under way is finished, also where it wants threads of Python's own, whose time is over then."""
    done = run([sys.executable, "-c", REAL + ending], process_environment, VSDIQP_THREADS="2")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"Error" not in done.stderr and b"Traceback" not in done.stderr, done.stderr.decode()


def test_programs_end_that_fail_or_keep_their_clips(process_environment):
    for ending, status in (("sys.exit(3)", 3), ("raise RuntimeError", 1), ("core.keep = clip.get_frame(5)", 0)):
        code = CLIP + "clip.get_frame(0)\n" + ending.replace("core.keep", "sys.keep") + "\n"
        done = run([sys.executable, "-c", code], process_environment, VSDIQP_TEST_RESTORER="engine_doubles:Recorder")
        assert done.returncode == status, done.stderr.decode()


HOST = """
#include <cstdio>
#include <dlfcn.h>
#include <VapourSynth4.h>

int main(int, char **argv) {
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        return std::puts(dlerror()), 2;
    const auto get = reinterpret_cast<VSGetVapourSynthAPI>(dlsym(library, "getVapourSynthAPI"));
    const VSAPI *api = get(VAPOURSYNTH_API_VERSION);
    VSCore *core = api->createCore(ccfDisableAutoLoading);
    const auto call = [&](const char *space, const char *name, VSMap *arguments) {
        VSMap *result = api->invoke(api->getPluginByNamespace(space, core), name, arguments);
        api->freeMap(arguments);
        if (const char *error = api->mapGetError(result))
            std::puts(error);
        return result;
    };
    VSMap *arguments = api->createMap();
    api->mapSetData(arguments, "path", argv[2], -1, dtUtf8, maReplace);
    api->freeMap(call("std", "LoadPlugin", arguments));
    VSMap *clip = call("std", "BlankClip", api->createMap());
    api->freeMap(call("diqp", "Restore", clip));
    api->freeMap(call("diqp", "Version", api->createMap()));
    api->freeCore(core);
    return 0;
}
"""


def test_a_host_without_python_gets_a_clear_error(plugin_folder, tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = Path(vs.__file__).parent
    source, program = tmp_path / "host.cpp", tmp_path / "host"
    source.write_text(HOST, encoding="utf-8")
    subprocess.run([compiler, f"-I{library / 'include'}", str(source), "-o", str(program), "-ldl"], check=True)
    done = run(
        [str(program), str(library / "libvapoursynth.so.4"), str(plugin_folder / "libdiqp.so")], dict(os.environ)
    )
    assert done.returncode == 0, done.stderr.decode()
    errors = done.stdout.decode().splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("diqp.Restore: this filter runs on Python 3.12 or newer, which this process does not")
    assert errors[1].startswith("diqp.Version: this filter runs on Python")


def test_the_tree_is_what_is_tested(process_environment):
    code = "import vsdiqp; print(vsdiqp.__file__)"
    done = run([sys.executable, "-c", code], process_environment)
    assert Path(done.stdout.decode().strip()) == ROOT / "vsdiqp" / "__init__.py"
