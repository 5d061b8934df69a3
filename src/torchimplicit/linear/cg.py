"""Conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.iteration import Cycle, IterativeSolver, Product
from torchimplicit.linear.masks import divide


@dataclass(frozen=True)
class CG(IterativeSolver):
    """Conjugate gradients, for Hermitian positive definite A (and preconditioner, if any).

    A system whose A turns out not to be (pᴴ A p <= 0) breaks down and keeps its best x.
    Source: Saad, Iterative Methods for Sparse Linear Systems (2003), algorithm 9.1.
    """

    def cycle(self, A: Product, M: Product, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        inner, norm = self.geometry.inner, self.norm
        d = best = torch.zeros_like(r)
        smallest = norm(r.detach())
        steps = torch.zeros_like(smallest, dtype=torch.int64)
        broken = torch.zeros_like(active)
        z = M(r)
        gamma = inner(r, z).real
        going = active & (gamma > 0)
        broken = active & ~going
        p = torch.where(going.unsqueeze(-1), z, 0)
        length = 0
        while length < budget and not finished(~going):
            length += 1
            steps = steps + going
            q = A(p)
            curvature = inner(p, q).real
            turns = going & (curvature > 0) & curvature.isfinite()
            alpha = divide(gamma, curvature, turns).unsqueeze(-1)
            move = turns.unsqueeze(-1)
            d = torch.where(move, d + alpha * p, d)
            r = torch.where(move, r - alpha * q, r)
            residual = norm(r.detach())
            better = turns & (residual < smallest)
            best = torch.where(better.unsqueeze(-1), d, best)
            smallest = torch.where(better, residual, smallest)

            z = M(r)
            gamma_new = inner(r, z).real
            onward = turns & (residual > tol)
            broken = broken | (going & ~turns) | (onward & ~(gamma_new > 0))
            going = onward & (gamma_new > 0) & gamma_new.isfinite()
            beta = divide(gamma_new, gamma, going).unsqueeze(-1)
            p = torch.where(going.unsqueeze(-1), z + beta * p, 0)
            gamma = torch.where(going, gamma_new, gamma)
        return Cycle(best, steps, broken, max(length, 1))
