"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan et al., 2024).

Damage lives in the directions of image patches that vary least; plain gradients are dominated by those that vary most.
An orthogonalised update moves along all directions alike, which matters when a run has thousands of steps, not
millions. Meant for weight matrices; biases, norms, tables and depthwise filters belong to AdamW (`split`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration; they favour speed near zero over exact convergence to one."""


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end in about 0.7..1.2. Shape (rows, columns)."""
    a, b, c = COEFFICIENTS
    x = matrix.float()
    wide = x.shape[0] <= x.shape[1]
    if not wide:
        x = x.t()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.t()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; update RMS about 0.2 x learning rate, as AdamW's, so rates carry over."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Apply one update; parameters of more than two dimensions count as (outputs, everything else)."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer: Tensor = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                update = orthogonalise(direction) * (0.2 * max(direction.shape) ** 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p).to(p.dtype), alpha=-group["lr"])
        return loss


def split(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters for Muon (weight matrices and dense convolutions) and for AdamW (the rest)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in network.named_parameters():
        dense = p.dim() >= 2 and p.flatten(1).shape[1] >= 16 and p.shape[0] >= 16
        (matrices if dense and "table" not in name and "depthwise" not in name else rest).append(p)
    return matrices, rest
