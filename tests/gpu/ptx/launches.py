"""Launches on the machine; Triton's kernels as compiled for a GPU that is not here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ptx.code import Kernel, parse
from ptx.instructions import prepare
from ptx.machine import Descriptor, Machine, Memory

THREADS = 1 << 15
"""At a time, at most, but a program at least."""


def launch(
    kernel: Kernel, grid: Sequence[int], threads: int, parameters: list[Any], tensors: Sequence[torch.Tensor],
    shared: int = 0,
) -> None:  # fmt: skip
    """Run a launch of programs of so many ``threads``.

    parameters: integers, NumPy records or `Descriptor`; tensors: all that may be read or written; shared: bytes.
    Raises Fault.
    """
    x, y, z = (*grid, 1, 1)[:3]
    memory, programs, step = Memory(tensors), x * y * z, max(1, THREADS // threads)
    prepare(kernel)
    for first in range(0, programs, step):
        places = np.arange(first, min(first + step, programs), dtype=np.int64)
        Machine(kernel, places, (x, y, z), memory, parameters, shared, threads).run()


class _Driver:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, architecture: int):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _flat(made: Any, values: dict[str, Any]) -> tuple[list[Any], list[torch.Tensor]]:
    """A compiled kernel's parameters, as Triton's launcher hands them over, and the tensors among them."""
    parameters: list[Any] = []
    tensors: list[torch.Tensor] = []
    moved = iter(getattr(made.metadata, "tensordesc_meta", None) or [])
    for name, kind in made.src.signature.items():
        value = values[name]
        if kind == "constexpr":
            continue
        if isinstance(value, torch.Tensor):
            parameters.append(value.data_ptr())
            tensors.append(value)
        elif hasattr(value, "block_shape"):
            high, wide = value.shape
            block = next(moved)["block_size"]
            descriptor = Descriptor(value.base.data_ptr(), high, wide, value.strides[0], (block[0], block[1]))
            parameters += [descriptor, high, wide, *value.strides]
            tensors.append(value.base)
        else:
            parameters.append(np.float32(value).view(np.uint32) if kind == "fp32" else value)
    return parameters, tensors


@contextmanager
def compiled_for(architecture: int) -> Iterator[list[str]]:
    """Launches run as compiled for sm_``architecture``, on tensors of the CPU; the result lists the kernels."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiling, launched = JITFunction.run, []
    kernels: dict[str, Kernel] = {}

    def run(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        made = compiling(function, *args, grid=grid, warmup=True, **options)
        parameters, tensors = _flat(made, dict(zip(function.arg_names, args, strict=False)) | options)
        text = made.asm["ptx"]
        kernel = kernels.get(text) or kernels.setdefault(text, parse(text))
        parameters += [0] * (len(kernel.parameters) - len(parameters))  # scratch memory, of which none is used
        launch(kernel, grid, 32 * made.metadata.num_warps, parameters, tensors, made.metadata.shared)
        launched.append(function.__name__)
        return made

    before = driver._active
    driver.set_active(_Driver(architecture))
    JITFunction.run = run
    try:
        yield launched
    finally:
        JITFunction.run = compiling
        driver._active = before
