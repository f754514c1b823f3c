"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan et al., 2024).

Damage lives in the directions of image patches that vary least; plain gradients are dominated by those that vary most.
An orthogonalised update moves along all directions alike, which matters when a run has thousands of steps, not
millions. Meant for weight matrices; biases, norms, tables and depthwise filters belong to AdamW (`split`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration; they favour speed near zero over exact convergence to one."""


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end in about 0.7..1.2.

    Shape (..., rows, columns).
    """
    a, b, c = COEFFICIENTS
    x = matrix.float()
    wide = x.shape[-2] <= x.shape[-1]
    if not wide:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; update RMS about 0.2 x learning rate, as AdamW's, so rates carry over."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Apply one update; parameters of more than two dimensions count as (outputs, everything else)."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[tuple(p.flatten(1).shape)].append(p)
            for shape, members in alike.items():
                self._update(members, shape, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _update(
        self, members: list[Tensor], shape: tuple[int, ...], rate: float, momentum: float, decay: float
    ) -> None:
        """Matrices of one shape at once: a GPU is done with a small one before it has learnt of the next."""
        gradients = [p.grad for p in members if p.grad is not None]
        for p in members:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers: list[Tensor] = [self.state[p]["momentum"] for p in members]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, buffers, momentum)
        update = orthogonalise(torch.stack([d.flatten(1) for d in directions])) * (0.2 * max(shape) ** 0.5)
        torch._foreach_mul_(members, 1 - rate * decay)
        steps = [one.reshape(p.shape).to(p.dtype) for one, p in zip(update.unbind(), members, strict=True)]
        torch._foreach_add_(members, steps, alpha=-rate)


def split(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters for Muon (weight matrices and dense convolutions) and for AdamW (the rest)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in network.named_parameters():
        dense = p.dim() >= 2 and p.flatten(1).shape[1] >= 16 and p.shape[0] >= 16
        (matrices if dense and "table" not in name and "depthwise" not in name else rest).append(p)
    return matrices, rest
