"""Builds the wheel: the Python package, and the VapourSynth plugin where VapourSynth loads plugins from.

The plugin is one library for every Python from 3.12 on (it finds Python at run time), so the wheel is py3-none.

``python setup.py build_plugin`` compiles the plugin alone into ``build/plugin``, for work in the source tree: point
VAPOURSYNTH_EXTRA_PLUGIN_PATH there and PYTHONPATH at the tree, and nothing needs to be installed again.
"""

import importlib.util
import platform
import re
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

if sys.platform != "linux":
    raise SystemExit(f"vsdiqp builds on Linux only, and this is {sys.platform}; on Windows use WSL 2")

PLUGIN = "vapoursynth.plugins.diqp.libdiqp"
SOURCES = Path("vsdiqp/plugin")
COMMON = ["-std=c++17", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
LANES = ["vsdiqp/network/native.h", "vsdiqp/network/lanes.h"]
PROCESSORS = {
    "avx2": ["-DDIQP_LANES=8", "-mavx2", "-mfma"],
    "avx512": ["-DDIQP_LANES=16", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}
"""Flags for the kinds of processors that `vsdiqp.network.native` knows: what torch asks of one that it calls so."""
LIBRARIES: dict[str, tuple[str, list[str], list[str]]] = {
    "vsdiqp.alignment.libmotion": ("vsdiqp/alignment/library.cpp", ["vsdiqp/alignment/motion.cuh"], []),
    "vsdiqp.network.libcells": ("vsdiqp/network/cells.cpp", ["vsdiqp/network/native.h"], []),
}
"""What Python opens itself (`vsdiqp.library`), beside its modules: source, headers and flags."""
if platform.machine() == "x86_64":
    for processor, flags in PROCESSORS.items():
        for part in ("attention", "depthwise"):
            LIBRARIES[f"vsdiqp.network.lib{part}-{processor}"] = (f"vsdiqp/network/{part}.cpp", LANES, flags)
DEVELOPMENT = Path("build/plugin")


def project_version() -> str:
    """Return the version that the package declares."""
    text = Path("vsdiqp/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
    if match is None:
        raise SystemExit("vsdiqp/__init__.py declares no __version__")
    return match[1]


def vapoursynth_headers() -> str:
    """Return the folder of the headers that come with the vapoursynth package."""
    found = importlib.util.find_spec("vapoursynth")
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in folders:
        headers = Path(folder) / "include"
        if (headers / "VapourSynth4.h").is_file():
            return str(headers)
    raise SystemExit("building needs VapourSynth's headers: pip install 'vapoursynth>=74'")


class BuildPlugin(build_ext):
    """Libraries without Python's suffix: not Python opens them. The plugin has a manifest beside it."""

    def get_ext_filename(self, ext_name: str) -> str:
        """Return the path of the library under the root of the wheel."""
        return str(Path(*ext_name.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile, and write the manifest that tells VapourSynth which file of the folder is the plugin."""
        if ext.name == PLUGIN:
            ext.include_dirs = [vapoursynth_headers()]
        super().build_extension(ext)
        if ext.name != PLUGIN:
            return
        library = Path(self.get_ext_fullpath(ext.name))
        self._manifest(library).write_text(f"[VapourSynth Manifest V1]\n{library.stem}\n", encoding="utf-8")

    def get_outputs(self) -> list[str]:
        """Return every file written."""
        libraries = super().get_outputs()
        plugins = [Path(library) for library in libraries if Path(library).stem == PLUGIN.rpartition(".")[2]]
        return [*libraries, *(str(self._manifest(plugin)) for plugin in plugins)]

    def copy_extensions_to_source(self) -> None:
        """Copy the libraries into the source tree; the plugin not into a folder that would hide vapoursynth's own."""
        DEVELOPMENT.mkdir(parents=True, exist_ok=True)
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            beside = DEVELOPMENT if ext.name == PLUGIN else Path(ext.sources[0]).parent
            self.copy_file(str(built), str(beside), level=0)

    @staticmethod
    def _manifest(library: Path) -> Path:
        return library.with_name("manifest.vs")


class DevelopPlugin(Command):
    """``build_plugin``: the plugin alone, in ``build/plugin``."""

    description = f"compile the VapourSynth plugin into {DEVELOPMENT}"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        """No options."""

    def finalize_options(self) -> None:
        """No options."""

    def run(self) -> None:
        """Build in place and say how to use it."""
        build = self.reinitialize_command("build_ext", inplace=True)
        build.ensure_finalized()
        build.run()
        print(f"to use it: export VAPOURSYNTH_EXTRA_PLUGIN_PATH={DEVELOPMENT.resolve()} PYTHONPATH={Path.cwd()}")


class AnyPythonWheel(bdist_wheel):
    """The plugin depends on the platform, not on Python's version."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return py3-none-platform."""
        return "py3", "none", super().get_tag()[2]


version = project_version()
major, minor = version.split(".")[:2]

setup(
    cmdclass={"build_ext": BuildPlugin, "build_plugin": DevelopPlugin, "bdist_wheel": AnyPythonWheel},
    ext_modules=[
        Extension(
            PLUGIN,
            sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
            depends=sorted(str(path) for path in SOURCES.glob("*.h")),
            define_macros=[
                ("DIQP_VERSION", version),
                ("DIQP_VERSION_MAJOR", major),
                ("DIQP_VERSION_MINOR", minor),
            ],
            extra_compile_args=[*COMMON, "-O2"],
            # The core closes plugins at exit, when threads may still be on their way out of this one.
            extra_link_args=["-Wl,-z,nodelete", "-Wl,-z,defs"],
            language="c++",
        ),
        *(
            Extension(
                name,
                sources=[source],
                depends=headers,
                extra_compile_args=[*COMMON, "-O3", "-pthread", *flags],
                extra_link_args=["-pthread"],
                language="c++",
            )
            for name, (source, headers, flags) in LIBRARIES.items()
        ),
    ],
)
