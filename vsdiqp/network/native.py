"""The compiled parts of the network: C functions of a structure of sizes and of addresses of tensors, and when one may
stand for what it does in torch.
"""

import ctypes
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from vsdiqp.library import find_library, open_library

PRECISIONS = (torch.float32, torch.bfloat16)
"""Of maps that the compiled parts take."""
PROCESSORS = {"AVX512": "avx512", "AVX2": "avx2"}
"""Kinds of processors that some parts are compiled for, each into a library of its own, by torch's name for them."""


def by_processor(name: str) -> str:
    """The file of the library ``name`` for this processor; one that is not there for a processor of another kind."""
    return f"{name}-{PROCESSORS.get(torch.backends.cpu.get_cpu_capability(), 'none')}.so"


def eager_on_cpu(x: Tensor) -> bool:
    """Whether what is made of x is computed on the CPU here and now: nothing is traced."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


def layer_dtype(x: Tensor) -> torch.dtype:
    """What a layer makes of x on the CPU: its own precision, or autocast's."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class Compiled:
    """A library of this package, in the file ``name``. ``functions``: the number of tensors that each takes."""

    def __init__(self, name: str, sizes: type[ctypes.Structure], functions: Mapping[str, int]) -> None:
        self._name, self._sizes, self._functions = name, sizes, functions

    def of(self, name: str) -> "Compiled":
        """The same of another file."""
        return Compiled(name, self._sizes, self._functions)

    @cached_property
    def there(self) -> bool:
        """Whether it is installed."""
        return find_library("network", self._name) is not None

    @cached_property
    def _library(self) -> ctypes.CDLL:
        sizes, address = ctypes.POINTER(self._sizes), ctypes.c_void_p
        types = {name: (None, [sizes, *[address] * tensors]) for name, tensors in self._functions.items()}
        return open_library("network", self._name, types)

    def call(self, function: str, sizes: ctypes.Structure, *tensors: Tensor) -> None:
        """Call a function. Tensors are contiguous, of the types and shapes that it says."""
        getattr(self._library, function)(ctypes.byref(sizes), *(tensor.data_ptr() for tensor in tensors))
