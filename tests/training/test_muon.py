"""Muon: updates that move along all directions alike, at AdamW's scale."""

import pytest
import torch
from torch import nn

from vsdiqp.network import DiQP
from vsdiqp.training.muon import Muon, orthogonalise, split
from vsdiqp.training.settings import load_settings


@pytest.mark.parametrize("shape", [(16, 16), (24, 80), (80, 24), (1, 40), (64, 288)])
def test_singular_values_end_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    for scale in (1e-4, 1.0, 1e4):
        result = orthogonalise(matrix * scale)
        values = torch.linalg.svdvals(result)
        assert result.shape == shape and values.min() > 0.6 and values.max() < 1.3


def test_weak_directions_are_lifted() -> None:
    """Directions a hundred times weaker than the strongest one count nearly as much afterwards."""
    u, v = (torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(s)))[0] for s in (1, 2))
    strengths = torch.logspace(0, -2, 32)
    values = torch.linalg.svdvals(orthogonalise(u @ torch.diag(strengths) @ v))
    assert values.min() / values.max() > 0.3
    agreement = u.t() @ orthogonalise(u @ torch.diag(strengths) @ v) @ v.t()
    assert (agreement.diagonal() > 0.3).all(), "directions are kept"


def test_nothing_comes_of_nothing() -> None:
    assert not orthogonalise(torch.zeros(16, 20)).any()


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 16, 3, 2, 2)])
def test_updates_are_as_large_as_adamws(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape) * 1e-6
    Muon([parameter], lr=0.01).step()
    assert 0.1 < parameter.square().mean().sqrt() / 0.01 < 0.3


def test_weight_decay_shrinks() -> None:
    parameter = nn.Parameter(torch.ones(16, 16))
    parameter.grad = torch.zeros(16, 16)
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(parameter, torch.tensor(0.95))


def test_a_badly_scaled_problem_is_solved() -> None:
    """Least squares whose inputs differ a thousandfold in strength: the weak ones are learnt too."""
    torch.manual_seed(0)
    inputs = torch.randn(512, 16) * torch.logspace(0, -1.5, 16)
    truth = torch.randn(16, 16)
    weight = nn.Parameter(torch.zeros(16, 16))
    optimiser = Muon([weight], lr=0.2)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        optimiser.zero_grad()
        (inputs @ weight - inputs @ truth).square().mean().backward()
        optimiser.step()
    assert (weight - truth).square().mean() < 0.05 * truth.square().mean()


def test_split_takes_matrices_and_leaves_the_rest() -> None:
    network = DiQP(load_settings("lite", {"pool": "none"}).network)
    matrices, rest = split(network)
    names = {id(p): name for name, p in network.named_parameters()}
    assert len(matrices) + len(rest) == len(names) == len({id(p) for p in matrices + rest})
    assert all(p.dim() >= 2 for p in matrices)
    chosen = {names[id(p)] for p in matrices}
    assert {"stem.project.weight", "down.0.weight", "bottleneck.blocks.0.attn.to_q.weight"} <= chosen
    left = {names[id(p)] for p in rest}
    assert any(name.endswith("bias_table") for name in left) and any("depthwise" in name for name in left)
    assert all(p.dim() > 1 for name, p in network.named_parameters() if name in chosen)
