"""Conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.graph.loop import settle
from torchimplicit.linear.iteration import EUCLIDEAN, Apply, Cycle, IterativeSolver, Products
from torchimplicit.linear.masks import divide, single


class _State(NamedTuple):
    """d, the best one yet and the size of its residual; the residual r, the direction p, and gamma = rᴴ M r."""

    d: Tensor
    best: Tensor
    smallest: Tensor
    r: Tensor
    p: Tensor
    gamma: Tensor
    steps: Tensor
    broken: Tensor
    done: Tensor


@dataclass(frozen=True)
class CG(IterativeSolver):
    """Conjugate gradients, for Hermitian positive definite A (and preconditioner, if any, which has to be a fixed matrix).

    A system whose A turns out not to be (pᴴ A p <= 0) breaks down and keeps its best x. Where the step limit ends it, x is the
    last one: ½ xᴴA x − bᴴx falls in every step, while the residual may grow for a while.
    Source: Saad, Iterative Methods for Sparse Linear Systems (2003), algorithm 9.1.
    """

    approaches: ClassVar[bool] = True
    in_graph: ClassVar[bool] = True
    steps_in_graph: ClassVar[int | None] = None

    def cycle(self, A: Products, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        if self.geometry is EUCLIDEAN and single(r):
            return _of_one_system(A, M, r, float(tol), budget)
        inner, norm, before = self.geometry.inner, self.norm, A.count
        smallest = norm(r.detach())
        z = M(r)
        gamma = inner(r, z).real
        going = active & (gamma > 0)
        p = torch.where(going.unsqueeze(-1), z, 0)
        nothing, none = torch.zeros_like(r), torch.zeros_like(smallest, dtype=torch.int64)
        start = _State(nothing, nothing, smallest, r, p, gamma, none, active & ~going, ~going)

        def step(state: tuple[Tensor, ...], tol: Tensor) -> tuple[Tensor, ...]:
            d, best, smallest, r, p, gamma, steps, broken, done = state
            going = ~done
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
            again = onward & (gamma_new > 0) & gamma_new.isfinite()
            beta = divide(gamma_new, gamma, again).unsqueeze(-1)
            p = torch.where(again.unsqueeze(-1), z + beta * p, 0)
            gamma = torch.where(again, gamma_new, gamma)
            return _State(d, best, smallest, r, p, gamma, steps + going, broken, ~again)

        end = _State(*settle(step, start, budget, (tol,), A.operands))
        d = torch.where(end.done.unsqueeze(-1), end.best, end.d)
        return Cycle(d, end.steps, end.broken, max(A.count - before, 1), ~end.done)


def _of_one_system(A: Products, M: Apply, r: Tensor, tol: float, budget: int) -> Cycle:
    """The same for one real system of which nothing is recorded: numbers in place of masks, and vectors that are overwritten."""
    shape, start = r.shape[:-1], r
    d, r = torch.zeros_like(r), r.clone()
    sizes: list[float] = []  # of the residual after each step
    z = M(r)
    p, gamma = z.clone(), _dot(r, z)
    steps, broken, cut = 0, not gamma > 0, True
    while steps < budget and not broken:
        steps += 1
        q = A(p)
        curvature = _dot(p, q)
        broken = not 0 < curvature < math.inf
        if broken:
            break
        d.add_(p, alpha=gamma / curvature)
        r.sub_(q, alpha=gamma / curvature)
        sizes.append(math.sqrt(_dot(r, r)))
        cut = sizes[-1] > tol
        if not cut:
            break
        z = M(r)
        before, gamma = gamma, _dot(r, z)
        broken = not 0 < gamma < math.inf
        p.mul_(gamma / before).add_(z)
    if broken and sizes:  # the best d again, rather than a copy of it in every step of all solves
        sizes = [math.sqrt(_dot(start, start)), *sizes]
        best = sizes.index(min(sizes))
        d = d if best == len(sizes) - 1 else _of_one_system(A, M, start, tol, best).d
    taken, ended, short = (torch.full(shape, each, device=r.device) for each in (steps, broken, cut and not broken))
    return Cycle(d, taken, ended, max(steps, 1), short, r if not broken and _told(start, sizes, tol) else None)


def _told(start: Tensor, sizes: list[float], tol: float) -> bool:
    """Whether the residual of the recurrence is that of d: after one step, or where what rounding has added, in parts of all that was
    subtracted, is far below the tolerance."""
    if len(sizes) < 2:
        return bool(sizes)
    return tol >= torch.finfo(start.dtype).eps ** 0.5 * (math.sqrt(_dot(start, start)) + 2 * sum(sizes))


def _dot(x: Tensor, y: Tensor) -> float:
    return float(torch.dot(x.flatten(), y.flatten()))
