"""What the GPU backends ask of a GPU: page-locked memory, streams, kernels. The tests have a CPU stand-in for it.

Everything that touches CuPy or CUDA is here; nothing else of the package imports CuPy.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vsdiqp.clip import ClipFormat
from vsdiqp.errors import BackendError
from vsdiqp.kernels import layouts, program, sources
from vsdiqp.kernels.program import Launch

Launcher = Callable[[Launch], None]


class PageLocked(Protocol):
    """Memory of the host that a GPU copies from and to on its own, while the CPU does something else."""

    array: NDArray[np.uint8]

    def free(self) -> None:
        """Give it back; no work may be using it."""
        ...


class Stream(Protocol):
    """A queue of work in order."""

    def use(self) -> AbstractContextManager[None]:
        """Queue what the block launches, by torch or by a kernel, on this stream."""
        ...

    def wait(self) -> None:
        """Sleep, without the GIL, until everything queued so far is done. Other streams run on."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work of fixed tensors that has run before; the result queues all of it at once."""
        ...


class Device(Protocol):
    """A GPU."""

    torch: torch.device
    name: str

    def page_locked(self, nbytes: int) -> PageLocked:
        """Allocate page-locked memory. Torch's copies between it and this device don't block where told not to."""
        ...

    def stream(self) -> Stream:
        """Open a new stream."""
        ...

    def launcher(self, clip: ClipFormat, half_tiles: bool, seen: int) -> Launcher:
        """Compile the CUDA C for a clip; the result queues a kernel on the stream in use."""
        ...

    def trim(self) -> None:
        """Give back what is kept for later: what one stream has no use for just now, others may."""
        ...

    def free_memory(self) -> int:
        """Bytes that may be allocated now."""
        ...

    def watch_memory(self) -> Callable[[], int]:
        """Start watching; the result tells the bytes that were in use at once since, beyond those in use now."""
        ...


class CudaDevice:
    """An NVIDIA GPU through CuPy (kernels, page-locked memory) and torch (everything else)."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.torch = torch.device("cuda", index)
        self.name = torch.cuda.get_device_name(self.torch)

    def page_locked(self, nbytes: int) -> "CudaPageLocked":
        """See `Device.page_locked`."""
        return CudaPageLocked(nbytes, self.index)

    def stream(self) -> "CudaStream":
        """See `Device.stream`."""
        return CudaStream(self)

    def launcher(self, clip: ClipFormat, half_tiles: bool, seen: int) -> Launcher:
        """See `Device.launcher`."""
        options = layouts.compile_options(clip, half_tiles, seen)
        kernels: dict[str, Any] = {}
        for source, names in layouts.modules(seen).items():
            kernels |= _compiled(self.index, source, names, options)

        def launch(launch: Launch) -> None:
            kernels[launch.kernel](launch.grid, (program.THREADS,), (launch.record,))

        return launch

    def trim(self) -> None:
        """See `Device.trim`."""
        with suppress(Exception):  # after an illegal access this fails, too; the error that counts is the first
            torch.cuda.empty_cache()

    def free_memory(self) -> int:
        """See `Device.free_memory`: what the driver has. Not what torch has reserved beyond: graphs hold that."""
        self.trim()
        return int(torch.cuda.mem_get_info(self.torch)[0])

    def watch_memory(self) -> Callable[[], int]:
        """See `Device.watch_memory`."""
        torch.cuda.reset_peak_memory_stats(self.torch)
        before = torch.cuda.memory_allocated(self.torch)
        return lambda: int(torch.cuda.max_memory_allocated(self.torch) - before)


@contextmanager
def _current(index: int) -> Iterator[None]:
    """Makes a GPU this thread's current one. Going back is torch's part: CuPy's would take hold of a GPU 0 that nobody
    asked for."""
    import cupy

    with torch.cuda.device(index):
        cupy.cuda.Device(index).use()  # torch would leave it at that if it were the current one in name only
        yield


def _compiled(index: int, source: str, names: Iterable[str], options: tuple[str, ...]) -> dict[str, Any]:
    """A source's kernels for a GPU, as CuPy calls them."""
    import cupy

    with _current(index):
        module = cupy.RawModule(code=sources.text(source), options=options)
        return {name: module.get_function(name) for name in names}


@cache
def network_kernel(
    device: torch.device, source: str, name: str, options: tuple[str, ...], threads: int
) -> Callable[[Launch], None]:
    """A kernel that is part of a network, compiled once for a GPU (``device`` has an index); the result queues it
    beside what torch queues there, on torch's current stream, and so becomes part of graphs that torch captures.
    """
    import cupy

    kernel = _compiled(device.index, source, [name], options)[name]

    def launch(launch: Launch) -> None:
        # Named at the call: CuPy's own current stream is another thing, and stays as it is.
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream)
        kernel(launch.grid, (threads,), (launch.record,), stream=stream)

    return launch


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one for a block; nothing for other devices."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def describes(device: torch.device) -> bool:
    """Whether Triton kernels are given tensor descriptors: on Hopper, where that was measured to be faster."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 2 where Triton's interpreter stands in for one."""
    return _as_if.get() or _multiprocessors(device)


@contextmanager
def as_if_small() -> Iterator[None]:
    """Has kernels launched in this block, by this thread, as on a GPU of two multiprocessors: where a large GPU gives
    each piece of a small tile a program of its own, programs then go on from piece to piece as they do with many."""
    token = _as_if.set(2)
    try:
        yield
    finally:
        _as_if.reset(token)


_as_if: ContextVar[int] = ContextVar("vsdiqp multiprocessors", default=0)


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 2


class CudaPageLocked:
    """Memory that is page-locked for every GPU of the process.

    CuPy's call, since torch would round up to powers of two and keep what is given back. Torch's copies need not know
    that it is page-locked: the driver does, and a copy that must not block is the driver's asynchronous one.
    """

    def __init__(self, nbytes: int, index: int) -> None:
        from cupy.cuda import runtime

        self._runtime = runtime
        self._address = 0
        try:
            with _current(index):
                self._address = int(runtime.hostAlloc(nbytes, runtime.hostAllocPortable))
        except runtime.CUDARuntimeError as error:
            raise BackendError(
                f"{nbytes / 2**20:.0f} MiB of page-locked memory can't be had ({error}); close programs that hold much "
                "of the machine's memory, or use backend='cpu'"
            ) from error
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self._address))

    def free(self) -> None:
        """See `PageLocked.free`."""
        if self._address:
            self._runtime.freeHost(self._address)
            self._address = 0


class CudaStream:
    """A stream that CuPy owns and torch borrows, with the event that its host thread sleeps on."""

    def __init__(self, device: CudaDevice) -> None:
        import cupy

        self._device = device
        with _current(device.index):
            self._cupy = cupy.cuda.Stream(non_blocking=True)
        self._torch: Any = torch.cuda.ExternalStream(self._cupy.ptr, device=device.torch)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    @contextmanager
    def use(self) -> Iterator[None]:
        """See `Stream.use`."""
        with _current(self._device.index), self._cupy, torch.cuda.stream(self._torch):
            yield

    def wait(self) -> None:
        """See `Stream.wait`."""
        self._done.record(self._torch)
        self._done.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Stream.capture`: a CUDA graph. Other threads of the process may go on using CUDA meanwhile."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(Exception):  # it fails where work has; what counts is why
                graph.capture_end()
            raise
        graph.capture_end()
        replay: Any = graph.replay
        return lambda: replay()
