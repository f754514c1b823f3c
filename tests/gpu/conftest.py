"""Without a GPU, Triton's kernels run in its interpreter, or, with VSDIQP_PTX=90, say, as compiled for sm_90 on the
machine of `ptx`. The interpreter has to be asked for before Triton is imported.
"""

import os
import sys
from collections.abc import Iterator

import pytest
import torch

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
    from ptx.launches import compiled_for
    from strips import strips_for

    from vsdiqp.backends import fused, pipelines
    from vsdiqp.kernels import depthwise_cuda

    monkeypatch.setattr(pipelines, "reads_on_its_own", lambda _: int(PTX) // 10 in pipelines.ON_THEIR_OWN)
    monkeypatch.setattr(fused, "describes", lambda _: int(PTX) // 10 == 9)
    monkeypatch.setattr(fused, "strips_fit", lambda x, shape: x.dtype != torch.float32 and depthwise_cuda.fits(shape))
    monkeypatch.setattr(fused, "_strips", strips_for(f"compute_{PTX}"))
    with compiled_for(int(PTX)):
        yield
