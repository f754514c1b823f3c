"""Without a GPU, Triton's kernels run in its interpreter, or, with VSDIQP_PTX=90, say, as compiled for sm_90 on the
machine of `ptx`. The interpreter has to be asked for before Triton is imported.
"""

import os
import sys
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

PTX = os.environ.get("VSDIQP_PTX")
"""The architecture to compile for."""

if not torch.cuda.is_available() and not PTX:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton was imported before tests/gpu could ask for its interpreter: set TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu say why they are skipped."""
    if not torch.cuda.is_available() and not PTX:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))


@pytest.fixture(autouse=True)
def whole_mantissas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in fp32 are those that results are compared with, on a GPU too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With VSDIQP_PTX every launch is one of compiled code, as the backend launches it on such a GPU."""
    if not PTX:
        yield
        return
    from nvrtc import compile_ptx
    from ptx.code import Kernel, parse
    from ptx.launches import compiled_for, launch

    from vsdiqp.backends import fused
    from vsdiqp.kernels import depthwise_cuda, sources

    @cache
    def kernel(options: tuple[str, ...]) -> Kernel:
        return parse(compile_ptx(sources.DEPTHWISE, f"compute_{PTX}", options))

    def strips(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, shape: depthwise_cuda.Shape) -> None:
        frames, channels = shape[3:]
        options = depthwise_cuda.options(frames, channels, x.dtype == torch.bfloat16)
        addresses = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr())
        one = depthwise_cuda.depthwise(*addresses, shape, 132)
        threads = depthwise_cuda.FORMS[frames].threads
        launch(kernel(options), one.grid, threads, [one.record], [x, weight, bias, out])

    monkeypatch.setattr(fused, "describes", lambda _: int(PTX) // 10 == 9)
    monkeypatch.setattr(fused, "strips_fit", lambda x, shape: x.dtype != torch.float32 and depthwise_cuda.fits(shape))
    monkeypatch.setattr(fused, "_strips", strips)
    with compiled_for(int(PTX)):
        yield
