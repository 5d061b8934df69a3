"""GMRES: the smallest residual over a growing Krylov space, for any matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished, inside_functorch
from torchimplicit.linear.iteration import Apply, Cycle, IterativeSolver, Products
from torchimplicit.linear.masks import divide
from torchimplicit.parameters import check_count

PARALLEL = 0.1  # of a vector, left by orthogonalisation: less is not orthogonal any more


@dataclass(frozen=True)
class GMRES(IterativeSolver):
    """Restarted, flexible GMRES; right-preconditioned, so that its residual is the true one.

    Attributes:
        restart: dimension of the Krylov space, after which the method starts again from its x. It holds `restart`
            vectors per system (twice that with a preconditioner).

    The basis is orthogonalised by classical Gram–Schmidt, twice where that is needed; the least-squares problem is
    updated by rotations.
    Source: Saad, Iterative Methods for Sparse Linear Systems (2003), algorithms 6.9 and 9.6.
    """

    in_graph: ClassVar[bool] = True
    restart: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("GMRES: restart", self.restart)

    def cycle(self, A: Products, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        norm = self.norm
        length = min(self.restart, r.shape[-1], budget)
        eps = torch.finfo(r.dtype).eps
        beta = norm(r)
        V = _Basis(divide(r, beta.unsqueeze(-1), active.unsqueeze(-1)), length)  # orthonormal
        Z = []  # the preconditioned basis: x is sought in its span
        R = []  # columns of the triangular factor of the Hessenberg matrix H = Qᴴ R
        Q = torch.ones_like(r[..., :1, None])  # product of the rotations, (..., k + 1, k + 1)
        steps = torch.zeros_like(beta, dtype=torch.int64)
        broken = torch.zeros_like(active)
        going = active
        for k in range(length):
            if finished(~going):
                break
            Z.append(M(V.last))
            w = A(Z[k])
            size = norm(w)
            going_now = going & size.isfinite()
            w = torch.where(going_now.unsqueeze(-1), w, 0)
            basis = V.stacked()
            h = self.inner_products(basis, w)
            w = w - (h.unsqueeze(-2) @ basis).squeeze(-2)
            eta = norm(w)
            if not finished((eta > PARALLEL * size) | ~going_now):  # cancellation: what is left is not orthogonal
                again = self.inner_products(basis, w)
                w = w - (again.unsqueeze(-2) @ basis).squeeze(-2)
                h = h + again
                eta = norm(w)
            grows = going_now & (eta > 10 * eps * size)  # otherwise the Krylov space is complete: w is rounding error
            eta = torch.where(grows, eta, 0)
            V.append(divide(w, eta.unsqueeze(-1), grows.unsqueeze(-1)))

            # Rotate the new column (h, eta) to (column, diagonal, 0). A system that is not going gets an empty column
            # with diagonal 1 and a swap of rows, which leaves its residual as it is and its coefficient zero.
            column = (Q @ h.unsqueeze(-1)).squeeze(-1)
            rho = column[..., k]
            square = (rho.conj() * rho).real + eta * eta
            turns = going_now & (square > (eps * size) ** 2)  # otherwise A maps the space into what is used up
            diagonal = torch.where(turns, torch.where(turns, square, 1).sqrt(), 1)
            c = divide(rho.conj(), diagonal, turns)
            s = torch.where(turns, eta / diagonal, 1)
            R.append(torch.cat([torch.where(turns.unsqueeze(-1), column[..., :k], 0), diagonal.unsqueeze(-1)], -1))
            Q = rotate(Q, c, s)
            steps = steps + going
            broken = broken | (going & ~turns)
            going = turns & grows & (beta * Q[..., -1, 0].abs() > tol)
        m = len(Z)
        if m == 0:
            return Cycle(torch.zeros_like(r), steps, broken, length)
        triangle = torch.stack([torch.nn.functional.pad(column, (0, m - column.shape[-1])) for column in R], -1)
        g = Q[..., :m, :1] * beta[..., None, None]
        y = torch.linalg.solve_triangular(triangle, g, upper=True)
        d = (y.mT @ torch.stack(Z, -2)).squeeze(-2)
        whole = min(self.restart, r.shape[-1])  # after which a restart from the same residual would only repeat itself
        return Cycle(torch.where(active.unsqueeze(-1), d, 0), steps, broken, m, going if m == budget < whole else None)


class _Basis:
    """Vectors (..., n) that become more, in one block of memory (..., k, n) where nothing is recorded."""

    def __init__(self, first: Tensor, length: int) -> None:
        self.vectors: list[Tensor] = []
        recorded = inside_functorch() or (torch.is_grad_enabled() and first.requires_grad)
        self.block = None if recorded else first.new_empty(*first.shape[:-1], length + 1, first.shape[-1])
        self.append(first)

    @property
    def last(self) -> Tensor:
        return self.vectors[-1]

    def append(self, v: Tensor) -> None:
        if self.block is not None and torch.is_grad_enabled() and v.requires_grad:
            self.block = None  # A is recorded, though r is not
        if self.block is not None:
            self.block[..., len(self.vectors), :] = v
        self.vectors.append(v)

    def stacked(self) -> Tensor:
        if self.block is None:
            return torch.stack(self.vectors, -2)
        return self.block[..., : len(self.vectors), :]


def rotate(Q: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """The next Q, one larger: [[c, s], [−s, c̄]] applied to its last two rows."""
    Q = torch.nn.functional.pad(Q, (0, 1, 0, 1))
    above, last = Q[..., :-2, :], Q[..., -2, :]
    unit = torch.zeros_like(last)
    unit = torch.cat([unit[..., :-1], torch.ones_like(unit[..., :1])], -1)
    c, s = c.unsqueeze(-1), s.unsqueeze(-1)
    return torch.cat([above, (c * last + s * unit).unsqueeze(-2), (c.conj() * unit - s * last).unsqueeze(-2)], -2)
