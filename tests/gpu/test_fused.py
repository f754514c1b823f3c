"""The fused blocks against the plain module: on a GPU where there is one, else through Triton's interpreter."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from networks import LITE_LIKE
from torch import nn

from vsdiqp.network import DiQP, DiQPConfig
from vsdiqp.network.lewin import Stage

pytest.importorskip("triton", reason="needs Triton, which CUDA builds of torch bring")

import triton
import triton.language as tl

from vsdiqp.backends import fused
from vsdiqp.kernels import blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights that make every term count, also those that start at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 25
        values = torch.randn(parameter.shape, generator=generator) * fan**-0.5
        with torch.no_grad():
            parameter.copy_(values + 1 if "norm" in name and name.endswith("weight") else values)


def run_stage(channels: int, heads: int, size: tuple[int, int], taps: int = 3, frames: int = 3, dtype=torch.float32):
    """A stage of a plain and a shifted block: what the plain module and the fused one make of the same map."""
    stage = Stage(channels, 2, heads, 8, 3, taps, 64, frames).eval()
    randomise(stage)
    x = torch.randn(1, *size, channels, generator=torch.Generator().manual_seed(1)) + 0.5
    with torch.no_grad():
        plain = stage(x)
        ours = fused.FusedStage(stage, dtype).to(DEVICE)(x.to(DEVICE, dtype)).float().cpu()
    return plain, ours


SHAPES = {
    "a head of 45": (45, 1, (8, 16), 3, 3),
    "two heads of 18": (36, 2, (16, 8), 3, 3),
    "wide: projection apart from the depthwise step": (144, 3, (8, 8), 3, 3),
    "frames that the depthwise step keeps apart": (24, 2, (8, 8), 1, 3),
    "tokens of one frame": (20, 2, (16, 8), 1, 1),
    "wide tokens of one frame": (136, 2, (8, 8), 1, 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_fused_stage_equals_the_plain_one(name: str):
    channels, heads, size, taps, frames = SHAPES[name]
    plain, ours = run_stage(channels, heads, size, taps, frames)
    torch.testing.assert_close(ours, plain, rtol=0, atol=2e-6 * plain.abs().max().item())


@pytest.mark.parametrize(
    "dtype",
    # Triton's interpreter takes the bits of a bfloat16 for an integer.
    [pytest.param(torch.float16, id="fp16"), pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu)],
)
def test_half_precision_is_as_exact_as_its_numbers(dtype: torch.dtype):
    plain, ours = run_stage(45, 1, (8, 8), dtype=dtype)
    error = (ours - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert error < torch.finfo(dtype).eps, f"relative rms error {error:.1e}"


@pytest.mark.gpu  # the interpreter multiplies with NumPy, whose sums depend on where in a matrix a row lies
def test_an_item_does_not_depend_on_its_batch():
    stage = Stage(15, 1, 1, 8, 3, 3, 64).eval()
    randomise(stage)
    ours = fused.FusedStage(stage, torch.float32).to(DEVICE)
    x = torch.randn(2, 8, 8, 15, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with torch.no_grad():
        assert torch.equal(ours(x)[1:], ours(x[1:]))


RELEASED_LIKE = DiQPConfig(
    embed_dim=5, depths=(1, 2, 1), heads=(1, 2, 2), look_around=(3,), look_ahead=(4,), tile=32, name="tiny"
)
TOGETHER = dataclasses.replace(LITE_LIKE, joint=True)
ALONE = dataclasses.replace(TOGETHER, neighbours=0)
CONFIGS = {"as released": RELEASED_LIKE, "no neighbours": ALONE, "frames together": TOGETHER, "as lite": LITE_LIKE}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_whole_network_fused_equals_the_plain_one(config: DiQPConfig):
    network = DiQP(config).prepare()
    randomise(network)
    network.prepare()
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(1, 3, frames, 32, 32, generator=generator) for frames in (3, 2, 2, 2)]
    location, decay = network.locate(30, "hevc", 7, 300, 16, 8, 640, 360, 32, 32)
    place = (location.view(6, 1, 1), torch.full((1, 1, 1, 1, 1), decay))
    beside = [torch.rand(1, 3, config.seen, 32, 32, generator=generator)] if config.neighbours else []
    arguments = (*images, *place, *beside)
    with torch.no_grad():
        plain = network(*arguments)
        ours = fused.fuse(network, torch.float32).to(DEVICE)(*(x.to(DEVICE) for x in arguments)).cpu()
    change = (plain - images[0]).abs().max().item()
    assert change > 0.01, "the network must do something for this to say something"
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5 * max(1.0, change))


@pytest.mark.parametrize("outputs", [16, 48, 96, 144, 192, 368, 720, 2304])
def test_blocks_of_outputs_waste_little(outputs: int) -> None:
    block = fused.block_outputs(outputs)
    assert block in (64, 128)
    # A third at most, but where even the small block is larger than all there is.
    assert fused.pad(outputs, block) <= max(1.34 * outputs, 64)


@triton.jit
def gelu_kernel(x, out, EXACT: tl.constexpr):
    at = tl.arange(0, 1024)
    tl.store(out + at, blocks._gelu(tl.load(x + at), EXACT))


@pytest.mark.parametrize("exact, limit", [(True, 1e-6), (False, 8e-5)])
def test_the_gelu_is_within_what_it_says(exact: bool, limit: float) -> None:
    x = torch.cat([torch.linspace(-6, 6, 1016), torch.tensor([0.0, 1e-4, -1e-4, 30.0, -30.0, 1e4, -1e4, 4.2])])
    x, out = x.to(DEVICE), torch.empty(1024, device=DEVICE)
    gelu_kernel[(1,)](x, out, EXACT=exact)
    expected = F.gelu(x.double())
    assert ((out.double() - expected).abs() <= limit + 1e-6 * expected.abs()).all()
