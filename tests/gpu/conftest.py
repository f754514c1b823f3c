"""Without a GPU, Triton's kernels run in its interpreter, which has to be asked for before Triton is imported."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton was imported before tests/gpu could ask for its interpreter: set TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu say why they are skipped."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))


@pytest.fixture(autouse=True)
def whole_mantissas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in fp32 are those that results are compared with, on a GPU too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
