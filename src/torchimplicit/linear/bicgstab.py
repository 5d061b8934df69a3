"""BiCGStab: a general solver with short recurrences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.iteration import Apply, Cycle, IterativeSolver, Products
from torchimplicit.linear.masks import divide


@dataclass(frozen=True)
class BiCGStab(IterativeSolver):
    """Stabilised biconjugate gradients: any A, eight vectors whatever the number of steps, two products a step.

    Right-preconditioned. A breakdown restarts it with the current residual as the new shadow vector.
    Source: van der Vorst, SIAM J. Sci. Stat. Comput. 13 (1992) 631-644.
    """

    def cycle(self, A: Products, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        inner, norm = self.geometry.inner, self.norm
        eps = torch.finfo(r.dtype).eps
        shadow = p = r
        d = best = torch.zeros_like(r)
        size = smallest = norm(r.detach())
        steps = torch.zeros_like(size, dtype=torch.int64)
        broken = torch.zeros_like(active)
        rho = inner(shadow, r)
        going = active
        length = 0
        while length < budget and not finished(~going):
            length += 1
            steps = steps + going
            y = M(p)
            v = A(y)
            sigma = inner(shadow, v)
            first = going & (sigma.abs() > eps * size * norm(v.detach())) & sigma.isfinite()
            alpha = divide(rho, sigma, first)
            s = torch.where(first.unsqueeze(-1), r - alpha.unsqueeze(-1) * v, 0)
            z = M(s)
            t = A(z)
            tt = inner(t, t).real
            second = first & (tt > 0) & tt.isfinite()
            omega = divide(inner(t, s), tt, second)
            move = alpha.unsqueeze(-1) * y + torch.where(second.unsqueeze(-1), omega.unsqueeze(-1) * z, 0)
            d = torch.where(first.unsqueeze(-1), d + move, d)
            r = torch.where(second.unsqueeze(-1), s - omega.unsqueeze(-1) * t, torch.where(first.unsqueeze(-1), s, r))
            residual = norm(r.detach())
            better = first & (residual < smallest)
            best = torch.where(better.unsqueeze(-1), d, best)
            smallest = torch.where(better, residual, smallest)

            rho_new = inner(shadow, r)
            onward = first & (residual > tol)
            sound = second & (rho_new.abs() > eps * size * residual) & rho_new.isfinite() & (omega != 0)
            broken = broken | (going & ~first) | (onward & ~sound)
            going = onward & sound
            beta = divide(rho_new * alpha, rho * omega, going).unsqueeze(-1)
            p = torch.where(going.unsqueeze(-1), r + beta * (p - omega.unsqueeze(-1) * v), 0)
            rho = torch.where(going, rho_new, rho)
        return Cycle(best, steps, broken, max(length, 1), going)
