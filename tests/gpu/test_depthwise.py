"""The training step's Triton kernels: what they compute and all of its gradients, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from vsdiqp.kernels import depthwise

WHERE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(
        torch.bfloat16, id="bf16", marks=pytest.mark.gpu
    ),  # Triton's interpreter takes its bits for an integer
]


def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    y = F.conv2d(F.gelu(x).permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1])
    return F.gelu(y.permute(0, 2, 3, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 16, 24, 48), (3, 8, 8, 24), (1, 12, 20, 40)], ids=str)
def test_result_and_gradients(shape: tuple[int, int, int, int], kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    channels = shape[-1]
    x = torch.randn(shape, generator=generator).to(kind)
    weight, bias = torch.randn(channels, 1, 3, 3, generator=generator) / 3, torch.randn(channels, generator=generator)
    arriving = torch.randn(shape, generator=generator).to(kind)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    ours = [t.to(WHERE).requires_grad_() for t in (x, weight, bias)]
    expected, found = plain(*exact), depthwise.activated(*ours)
    expected.backward(arriving.double())
    found.backward(arriving.to(WHERE))
    step = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[kind]
    assert found.dtype == kind and ours[1].grad is not None and ours[1].grad.dtype == torch.float32
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]
    for one, other in pairs:
        assert one is not None and other is not None
        error = (one.detach().cpu().double() - other).square().mean().sqrt() / other.square().mean().sqrt()
        assert error < 2 * step
