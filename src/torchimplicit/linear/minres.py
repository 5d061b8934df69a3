"""MINRES: the smallest residual over a growing Krylov space, for symmetric matrices, by short recurrences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.iteration import Apply, Cycle, IterativeSolver, Products
from torchimplicit.linear.masks import divide


@dataclass(frozen=True)
class MINRES(IterativeSolver):
    """For Hermitian A, definite or not, and a Hermitian positive definite preconditioner, if any: eight vectors, one product a step.

    Of a singular system that has solutions it finds the shortest one.
    Source: Paige and Saunders, SIAM J. Numer. Anal. 12 (1975) 617-629; as written in Elman, Silvester and Wathen, Finite Elements
    and Fast Iterative Solvers (2014), algorithm 4.1.
    """

    approaches: ClassVar[bool] = True  # in the norm of M

    def cycle(self, A: Products, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        inner, norm = self.geometry.inner, self.norm
        eps = torch.finfo(r.dtype).eps
        size = norm(r)
        d = torch.zeros_like(r)
        steps = torch.zeros_like(size, dtype=torch.int64)
        z = M(r)
        square = inner(z, r).real
        going = active & (square > 0) & square.isfinite()
        broken = active & ~going
        gamma = torch.where(going, square, 1).sqrt()
        left = start = gamma  # of the residual, in the norm of M
        wanted = divide(tol * start, size, going)
        before, v = torch.zeros_like(r), divide(r, gamma.unsqueeze(-1), going.unsqueeze(-1))
        z = divide(z, gamma.unsqueeze(-1), going.unsqueeze(-1))
        w_before, w = torch.zeros_like(r), torch.zeros_like(r)
        c_before = c = torch.ones_like(gamma)
        s_before = s = beta = torch.zeros_like(gamma)
        length = 0
        while length < budget and not finished(~going):
            length += 1
            steps = steps + going
            q = A(z)
            delta = inner(z, q).real
            usable = going & delta.isfinite()
            new = torch.where(usable.unsqueeze(-1), q - delta.unsqueeze(-1) * v - beta.unsqueeze(-1) * before, 0)
            z_new = M(new)
            square = inner(z_new, new).real
            sound = usable & (square >= 0) & square.isfinite()
            scale = delta.abs() + beta
            grows = sound & (square > (10 * eps * scale) ** 2)  # otherwise the Krylov space is complete
            gamma = torch.where(grows, torch.where(grows, square, 1).sqrt(), 0)

            diagonal = c * delta - c_before * s * beta
            above, far = s * delta + c_before * c * beta, s_before * beta
            squared = diagonal**2 + gamma**2
            turns = sound & (squared > (eps * scale) ** 2)  # otherwise A maps the space into what is used up
            pivot = torch.where(turns, torch.where(turns, squared, 1).sqrt(), 1)
            c_new, s_new = divide(diagonal, pivot, turns), divide(gamma, pivot, turns)
            w_new = (z - far.unsqueeze(-1) * w_before - above.unsqueeze(-1) * w) / pivot.unsqueeze(-1)
            d = torch.where(turns.unsqueeze(-1), d + (c_new * left).unsqueeze(-1) * w_new, d)
            left = torch.where(turns, -s_new * left, left)

            broken = broken | (going & ~turns)
            going = turns & grows & (left.abs() > wanted)
            onward = going.unsqueeze(-1)
            before, v = v, divide(new, gamma.unsqueeze(-1), onward)
            z = divide(z_new, gamma.unsqueeze(-1), onward)
            w_before, w = w, torch.where(onward, w_new, 0)
            c_before, c, s_before, s, beta = c, c_new, s, s_new, gamma
        return Cycle(d, steps, broken, max(length, 1), going)
