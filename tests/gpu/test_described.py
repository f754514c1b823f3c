"""Products that are given tensor descriptors, as on Hopper, against the same from pointers: on a GPU that has them,
else through Triton's interpreter.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which CUDA builds of torch bring")

from vsdiqp.backends import fused
from vsdiqp.backends.device import describes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KIND = torch.float16
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not describes(torch.device(DEVICE, 0)), reason="this GPU is given pointers"
)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, KIND)


def both_ways(monkeypatch: pytest.MonkeyPatch, work):  # type: ignore[no-untyped-def]
    found = []
    for described in (False, True):
        monkeypatch.setattr(fused, "describes", lambda device, described=described: described)
        found.append(work())
    return found


@pytest.mark.parametrize("rows, inputs, outputs", [(200, 48, 144), (130, 96, 96), (70, 368, 48), (300, 128, 208)])
@pytest.mark.parametrize("stay", [0, 2])
def test_products_are_the_same(monkeypatch: pytest.MonkeyPatch, rows: int, inputs: int, outputs: int, stay: int):
    x, weight, residual = noise(rows, inputs), noise(outputs, inputs) * inputs**-0.5, noise(rows, outputs)
    bias = noise(outputs).float()
    sums = torch.stack([x.float().sum(1), x.float().square().sum(1)], 1)[None].contiguous()
    sizes = fused.Tuning(rows=64, outputs=64, warps=4, stay=stay)

    def work() -> tuple[Tensor, ...]:
        bent = fused._linear(x, weight, bias, gelu=True, norm=(bias, sums, inputs), sizes=sizes)
        return bent, *fused._added(x, weight, bias, residual, sizes)

    pointers, described = both_ways(monkeypatch, work)
    exact = (x.double() @ weight.double().T + bias + residual.double()).to(KIND)
    torch.testing.assert_close(pointers[1], exact, rtol=2e-3, atol=2e-3)
    for ours, theirs in zip(described[:2], pointers[:2], strict=True):
        assert torch.equal(ours, theirs)
    # Sums of rows, which compiled code makes in an order that follows from where the numbers lie.
    torch.testing.assert_close(described[2], pointers[2], rtol=2e-6, atol=2e-5)
