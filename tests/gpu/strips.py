"""depthwise.cu as compiled, on the machine of `ptx`."""

from collections.abc import Callable
from functools import cache

import torch
from nvrtc import compile_ptx
from ptx.code import Kernel, parse
from ptx.launches import launch
from torch import Tensor

from vsdiqp.kernels import depthwise_cuda, sources

MULTIPROCESSORS = 132
"""Of the GPU that it pretends to be."""
Strips = Callable[[Tensor, Tensor, Tensor, Tensor, depthwise_cuda.Shape], None]


@cache
def _kernel(architecture: str, options: tuple[str, ...]) -> Kernel:
    return parse(compile_ptx(sources.DEPTHWISE, architecture, options))


def strips_for(architecture: str) -> Strips:
    """In place of `vsdiqp.backends.fused`'s: the depthwise step as compiled for an architecture (compute_90, say)."""

    def strips(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, shape: depthwise_cuda.Shape) -> None:
        frames, channels = shape[3:]
        kernel = _kernel(architecture, depthwise_cuda.options(frames, channels, x.dtype == torch.bfloat16))
        addresses = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr())
        one = depthwise_cuda.depthwise(*addresses, shape, MULTIPROCESSORS)
        launch(kernel, one.grid, depthwise_cuda.FORMS[frames].threads, [one.record], [x, weight, bias, out])

    return strips
