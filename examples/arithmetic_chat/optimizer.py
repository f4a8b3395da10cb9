"""The optimizer, as in nanochat: Muon for the matrices of the blocks, AdamW for everything else.

Muon (Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon/) updates a matrix with the semi-orthogonal matrix
nearest to the momentum of its gradient, so that every direction of a weight learns at the same speed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

MUON_MOMENTUM = 0.95
ADAM_BETAS = (0.8, 0.95)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: singular values end between about 0.7 and 1.2
NEWTON_SCHULZ_ROUNDS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, approximately, to a stack (N, rows, columns) with rows <= columns."""
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # singular values at most 1
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon:
    """Momentum and orthogonal updates for matrices. Matrices of one shape are stacked and updated together."""

    def __init__(self, matrices: list[nn.Parameter], lr: float) -> None:
        self.base_lr = lr
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            rows, columns = matrix.shape
            by_shape[min(rows, columns), max(rows, columns)].append(matrix)
        self._groups = list(by_shape.values())
        self._momenta = [torch.zeros(len(group), *shape) for shape, group in by_shape.items()]

    @torch.no_grad()
    def step(self, lr_scale: float) -> None:
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([_wide(_gradient(matrix)) for matrix in group])
            momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
            updates = orthogonalize(gradient.lerp(momentum, MUON_MOMENTUM))  # Nesterov
            for matrix, update in zip(group, updates, strict=True):
                rows, columns = matrix.shape
                lr = self.base_lr * lr_scale * max(1.0, rows / columns) ** 0.5
                matrix.sub_(update if rows <= columns else update.T, alpha=lr)

    def state(self) -> list[Tensor]:
        return self._momenta

    def load_state(self, state: list[Tensor]) -> None:
        self._momenta = state


def _gradient(matrix: nn.Parameter) -> Tensor:
    assert matrix.grad is not None
    return matrix.grad


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.size(0) <= matrix.size(1) else matrix.T


class Optimizer:
    """Muon and AdamW with one `step`. The learning rates are peaks, which a schedule scales."""

    def __init__(
        self, model: nn.Module, matrix_lr: float, embedding_lr: float, head_lr: float, scalar_lr: float
    ) -> None:
        matrices: list[nn.Parameter] = []
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, weight in model.named_parameters():
            if name.endswith(("_gate.weight", "_lambda", "_lambdas")):
                groups[scalar_lr].append(weight)
            elif name.startswith("transformer.h."):
                matrices.append(weight)
            else:
                groups[head_lr if name == "lm_head.weight" else embedding_lr].append(weight)
        self._muon = Muon(matrices, matrix_lr)
        self._adam = torch.optim.AdamW(
            [{"params": weights, "lr": lr, "base_lr": lr} for lr, weights in groups.items()],
            betas=ADAM_BETAS,
            eps=1e-10,
            weight_decay=0.0,
        )

    def step(self, lr_scale: float) -> None:
        """Update every parameter by its gradient. The learning rates are `lr_scale` times their peaks."""
        for group in self._adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        self._adam.step()
        self._muon.step(lr_scale)

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on with training."""
        return {"muon": self._muon.state(), "adam": self._adam.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._muon.load_state(state["muon"])
        self._adam.load_state_dict(state["adam"])
