"""A CPU that looks like a GPU to the backends: ordinary memory for page-locked memory, host_grid.h for kernels."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from host_grid import compile_for_host

from vsdiqp.clip import ClipFormat
from vsdiqp.kernels import layouts
from vsdiqp.kernels.program import Launch


class HostPageLocked:
    def __init__(self, nbytes: int):
        self.array = np.full(nbytes, 0xAB, np.uint8)

    def free(self) -> None:
        self.array = np.empty(0, np.uint8)


class HostStream:
    @contextmanager
    def use(self) -> Iterator[None]:
        yield

    def wait(self) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


_GRID = threading.Lock()
"""The emulated launch grid keeps its block in static memory: one launch at a time."""


class HostDevice:
    """``free``: bytes of memory that it says are free."""

    def __init__(self, name: str = "stand-in", free: int = 1 << 40):
        self.torch, self.name, self.free = torch.device("cpu"), name, free
        self.launched: list[str] = []
        self.locked: list[HostPageLocked] = []
        self.trimmed = 0

    def page_locked(self, nbytes: int) -> HostPageLocked:
        self.locked.append(HostPageLocked(nbytes))
        return self.locked[-1]

    def stream(self) -> HostStream:
        return HostStream()

    def launcher(self, clip: ClipFormat, half_tiles: bool, seen: int) -> Callable[[Launch], None]:
        kernels = {}
        for source, names in layouts.modules(seen).items():
            library = compile_for_host(layouts.sample_macro(clip), int(half_tiles), source, seen)
            kernels |= {name: getattr(library, f"{name}_launch") for name in names}

        def launch(launch: Launch) -> None:
            self.launched.append(launch.kernel)
            words = launch.record.view(np.uint64)
            for memory in self.locked:
                beyond = words - np.uint64(memory.array.ctypes.data)
                assert (beyond >= memory.array.nbytes).all(), f"{launch.kernel} is sent over the bus"
            run = kernels[launch.kernel]
            with _GRID:
                run(ctypes.c_void_p(launch.record.ctypes.data), *launch.grid, 1)

        return launch

    def trim(self) -> None:
        self.trimmed += 1

    def free_memory(self) -> int:
        return self.free

    def watch_memory(self) -> Callable[[], int]:
        return lambda: 1 << 30
