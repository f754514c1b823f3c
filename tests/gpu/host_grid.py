"""The CUDA C compiled as C++ for the CPU through host_grid.h: the kernels' own code, without a GPU."""

import ctypes
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from vsdiqp.clip import ClipFormat, FrameColour, Planes
from vsdiqp.kernels import layouts, program, sources
from vsdiqp.kernels.program import Launch, PlaneProgram
from vsdiqp.tiles import TilePlan


@lru_cache(maxsize=1)
def _folder() -> Path:
    return Path(mkdtemp(prefix="vsdiqp-host-grid-"))


FLAGS = [
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-shared",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-unused-parameter",
    "-Wno-unused-function",
    "-Werror",
    # The kernels read bytes as words, and round where they say so.
    "-fno-strict-aliasing",
    "-ffp-contract=off",
]


def compile_for_host(
    sample: int, network: int, source: str = sources.PLANES, seen: int = 0, lanes: int = 1
) -> ctypes.CDLL:
    """A source's kernels. ``lanes``: threads that work together as a warp; then a block is a warp of so many."""
    macros = {"SAMPLE": sample, "NETWORK": network, "SEEN": seen, "LANES": lanes}
    return compile_with(source, tuple(f"-D{name}={value}" for name, value in macros.items()))


@lru_cache(maxsize=48)
def compile_with(source: str, macros: tuple[str, ...]) -> ctypes.CDLL:
    """A source's kernels, with macros as compilers are given them."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or clang++) to run the CUDA kernels on the CPU with")
    library = _folder() / f"{Path(source).stem}_{'_'.join(macro.rpartition('=')[2] for macro in macros)}.so"
    command = [compiler, "-x", "c++", *FLAGS, f"-I{Path(__file__).parent}", "-DVSDIQP_HOST_GRID", *macros]
    command += ["-", "-o", str(library)]
    subprocess.run(command, input=sources.text(source), text=True, check=True)
    return ctypes.CDLL(str(library))


class HostKernels:
    """Runs a group's kernels over ordinary memory, as the CUDA backend runs them over a slot's."""

    def __init__(self, clip: ClipFormat, plan: TilePlan, thumbnail: tuple[int, int], network_colour: str, half: bool):
        self.library = compile_for_host(layouts.sample_macro(clip), int(half))
        self.number = np.float16 if half else np.float32
        self.clip, self.plan, self.thumbnail = clip, plan, thumbnail
        self.tables = program.tables(plan, thumbnail)
        addresses = {name: table.ctypes.data for name, table in self.tables.items()}
        self.program = PlaneProgram(clip, plan, thumbnail, network_colour, addresses)

    def launch(self, launch: Launch, threads: int) -> None:
        run = getattr(self.library, f"{launch.kernel}_launch")
        run(ctypes.c_void_p(launch.record.ctypes.data), *launch.grid, threads)

    def stage(self, frames: list[Planes]) -> tuple[np.ndarray, list[int]]:
        staged = self.program.staged
        memory = np.zeros((len(frames), staged.samples), layouts.sample_dtype(self.clip))
        for row, frame in zip(memory, frames, strict=True):
            for view, plane in zip(staged.views(row), frame, strict=True):
                view[:] = plane
        return memory, [row.ctypes.data for row in memory]

    def prepare(self, colour: FrameColour, frames: list[Planes], first: int, count: int, threads: int = 1):
        """Tiles (count, 3, 3, h, w) and look-ahead tiles (count, 3, 2, h, w)."""
        memory, bases = self.stage(frames)
        side = self.plan.rows.side, self.plan.columns.side
        tile = np.full((count, 3, 3, *side), np.nan, self.number)
        ahead = np.full((count, 3, 2, *side), np.nan, self.number)
        at = ahead.ctypes.data if len(frames) == 4 else 0
        self.launch(self.program.prepare(colour, bases, first, count, tile.ctypes.data, at), threads)
        del memory
        return tile, ahead

    def shrink(self, colour: FrameColour, frames: list[Planes], threads: int = 1):
        """Thumbnails around (3, 2, h, w) and ahead (3, 2, h, w)."""
        memory, bases = self.stage(frames)
        around, ahead = (np.full((3, 2, *self.thumbnail), np.nan, self.number) for _ in range(2))
        launch = self.program.thumbnails(colour, bases, around.ctypes.data, ahead.ctypes.data)
        assert launch is not None
        self.launch(launch, threads)
        del memory
        return around, ahead

    def finish(
        self,
        colour: FrameColour,
        frames: list[Planes],
        prediction: np.ndarray,
        strength: float,
        wanted=(0, 1, 2),
        threads: int = 1,
        chroma: float = 1.0,
    ) -> list[Planes | None]:
        """Restored planes of the wanted frames."""
        memory, bases = self.stage(frames)
        out = np.zeros((3, self.program.staged.samples), memory.dtype)
        targets = [out[i].ctypes.data if i in wanted else 0 for i in range(3)]
        assert prediction.dtype == np.float32 and prediction.flags.c_contiguous
        self.launch(self.program.finish(colour, bases, prediction.ctypes.data, targets, strength, chroma), threads)
        return [self.program.staged.views(out[i]) if i in wanted else None for i in range(3)]
