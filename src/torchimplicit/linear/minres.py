"""MINRES: the smallest residual over a growing Krylov space, for symmetric matrices, by short recurrences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.graph.loop import settle
from torchimplicit.linear.iteration import Apply, Cycle, IterativeSolver, Products
from torchimplicit.linear.masks import divide


class _State(NamedTuple):
    """d, and the last two of everything that the recurrences remember: vectors v and w, rotations (c, s)."""

    d: Tensor
    before: Tensor
    v: Tensor
    z: Tensor
    w_before: Tensor
    w: Tensor
    c_before: Tensor
    c: Tensor
    s_before: Tensor
    s: Tensor
    beta: Tensor
    left: Tensor
    steps: Tensor
    broken: Tensor
    done: Tensor


@dataclass(frozen=True)
class MINRES(IterativeSolver):
    """For Hermitian A, definite or not, and a Hermitian positive definite preconditioner, if any: eight vectors, one product a step.

    Of a singular system that has solutions it finds the shortest one.
    Source: Paige and Saunders, SIAM J. Numer. Anal. 12 (1975) 617-629; as written in Elman, Silvester and Wathen, Finite Elements
    and Fast Iterative Solvers (2014), algorithm 4.1.
    """

    approaches: ClassVar[bool] = True  # in the norm of M
    in_graph: ClassVar[bool] = True
    steps_in_graph: ClassVar[int | None] = None

    def cycle(self, A: Products, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        inner, norm = self.geometry.inner, self.norm
        eps, before = torch.finfo(r.dtype).eps, A.count
        size = norm(r)
        z = M(r)
        square = inner(z, r).real
        going = active & (square > 0) & square.isfinite()
        gamma = torch.where(going, square, 1).sqrt()  # of the residual, in the norm of M
        nothing, zero, one = torch.zeros_like(r), torch.zeros_like(gamma), torch.ones_like(gamma)
        v, z = (divide(vector, gamma.unsqueeze(-1), going.unsqueeze(-1)) for vector in (r, z))
        none = torch.zeros_like(size, dtype=torch.int64)
        vectors, numbers = (nothing, nothing, v, z, nothing, nothing), (one, one, zero, zero, zero, gamma)
        start = _State(*vectors, *numbers, none, active & ~going, ~going)

        def step(state: tuple[Tensor, ...], wanted: Tensor) -> tuple[Tensor, ...]:
            d, before, v, z, w_before, w, c_before, c, s_before, s, beta, left, steps, broken, done = state
            going = ~done
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

            onward = turns & grows & (left.abs() > wanted)
            keep = onward.unsqueeze(-1)
            v_new, z_new = (divide(vector, gamma.unsqueeze(-1), keep) for vector in (new, z_new))
            w_new = torch.where(keep, w_new, 0)
            vectors, numbers = (d, v, v_new, z_new, w, w_new), (c, c_new, s, s_new, gamma, left)
            return _State(*vectors, *numbers, steps + going, broken | (going & ~turns), ~onward)

        end = _State(*settle(step, start, budget, (divide(tol * gamma, size, going),), A.operands))
        return Cycle(end.d, end.steps, end.broken, max(A.count - before, 1), ~end.done)
