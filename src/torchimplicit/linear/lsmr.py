"""LSMR: least squares by the products with A and Aᴴ, of any shape and any rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.autograd.transforms import finished
from torchimplicit.linear.augmented import Augmented
from torchimplicit.linear.iteration import Apply, Cycle, IterativeSolver, Products
from torchimplicit.linear.masks import divide

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LSMR(IterativeSolver):
    """The shortest x with the smallest ‖A x − b‖, by bidiagonalisation: two products a step, one with A and one with Aᴴ.

    For ``linear_solve(A, b, shortest=True, solver=LSMR())``, with A of any shape; of any rank, but if it has more columns than rows b
    has to be in its range. Without ``shortest`` a singular system that has no solution is a failure, as it is for every solver. It
    takes no preconditioner. Where the rank is not full there is no derivative in A, and the backward says so.
    Source: Fong and Saunders, SIAM J. Sci. Comput. 33 (2011) 2950-2971.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preconditioner is not None:
            raise TypeError("LSMR takes no preconditioner: scale the columns of A (x = D y) in its place.")

    def cycle(self, A: Products, M: Apply, r: Tensor, tol: Tensor, active: Tensor, budget: int) -> Cycle:
        augmented = A.operator
        if not isinstance(augmented, Augmented):
            return Cycle(*_bidiagonalised(A, A.adjoint, r, tol, active, budget, self.norm, of="r"))
        # r + A z = f, Aᴴ r = g: y is the shortest with Aᴴ y = g, and z the least squares solution for f − y.
        f, g = r.split([augmented.m, augmented.n], -1)
        rows = Products(augmented.A, False)
        no = torch.zeros_like(active)
        y = _Found(torch.zeros_like(f), torch.zeros_like(active, dtype=torch.int64), no, 0, no)
        if not finished(~(self.norm(g) > 0)):
            y = _bidiagonalised(rows.adjoint, rows, g, tol / 2, active, budget, self.norm, of="r")
        z = _bidiagonalised(rows, rows.adjoint, f - y.x, tol / 2, active, budget, self.norm, of="Aᴴr")
        A.count += rows.count
        residual = f - augmented.A.apply(z.x)
        d = torch.where(active.unsqueeze(-1), torch.cat([residual, z.x], -1), 0)
        return Cycle(d, y.steps + z.steps, y.broken | z.broken, max(y.length + z.length, 1), y.cut | z.cut)


class _Found(NamedTuple):
    x: Tensor
    steps: Tensor
    broken: Tensor
    length: int
    cut: Tensor


def _bidiagonalised(
    A: Apply, adjoint: Apply, b: Tensor, tol: Tensor, active: Tensor, budget: int, norm: Norm, of: str
) -> _Found:
    """LSMR for A x = b from 0, until the norm of the residual r ``of`` "r", or of Aᴴ r, is about tol, or Aᴴ r is zero to rounding."""

    def unit(v: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = norm(v)
        grows = where & (size > 0) & size.isfinite()
        return divide(v, size.unsqueeze(-1), grows.unsqueeze(-1)), torch.where(grows, size, 0), grows

    eps = torch.finfo(b.dtype).eps
    u, beta, going = unit(b, active)
    v, alpha, going = unit(adjoint(u), going)
    x, h, h_bar = torch.zeros_like(v), v, torch.zeros_like(v)
    one, zero = torch.ones_like(beta), torch.zeros_like(beta)
    alpha_bar, zeta_bar, rho, rho_bar, c_bar, s_bar = alpha, alpha * beta, one, one, one, zero
    beta_dd, beta_d, rho_d, tau_old, theta_tilde, zeta = beta, zero, one, zero, zero, zero
    size = alpha * alpha  # ‖A‖², from below
    steps = torch.zeros_like(beta, dtype=torch.int64)
    length = 0
    while length < budget and not finished(~going):
        length += 1
        steps = steps + going
        u, beta, _ = unit(A(v) - alpha.unsqueeze(-1) * u, going)
        v, alpha, _ = unit(adjoint(u) - beta.unsqueeze(-1) * v, going)
        size = size + alpha * alpha + beta * beta

        rho_old, rho = rho, torch.where(going, torch.hypot(alpha_bar, beta), 1)
        sound = going & (rho > 0) & rho.isfinite()
        c, s = divide(alpha_bar, rho, sound), divide(beta, rho, sound)
        theta, alpha_bar = s * alpha, c * alpha
        rho_bar_old, zeta_old = rho_bar, zeta
        theta_bar, before = s_bar * rho, c_bar * rho
        rho_bar = torch.where(sound, torch.hypot(before, theta), 1)
        turns = sound & (rho_bar > 0)
        c_bar, s_bar = divide(before, rho_bar, turns), divide(theta, rho_bar, turns)
        zeta, zeta_bar = c_bar * zeta_bar, -s_bar * zeta_bar

        h_bar = h - divide(theta_bar * rho, rho_old * rho_bar_old, turns).unsqueeze(-1) * h_bar
        x = torch.where(turns.unsqueeze(-1), x + divide(zeta, rho * rho_bar, turns).unsqueeze(-1) * h_bar, x)
        h = v - divide(theta, rho, turns).unsqueeze(-1) * h

        beta_hat, beta_dd = c * beta_dd, -s * beta_dd
        theta_tilde_old = theta_tilde
        rho_tilde = torch.hypot(rho_d, theta_bar)
        known = rho_tilde > 0
        c_tilde, s_tilde = divide(rho_d, rho_tilde, known), divide(theta_bar, rho_tilde, known)
        theta_tilde, rho_d = s_tilde * rho_bar, c_tilde * rho_bar
        beta_d = -s_tilde * beta_d + c_tilde * beta_hat
        tau_old = divide(zeta_old - theta_tilde_old * tau_old, rho_tilde, known)
        tau = divide(zeta - theta_tilde * tau_old, rho_d, rho_d != 0)
        residual = torch.hypot(beta_d - tau, beta_dd)

        small = residual if of == "r" else zeta_bar.abs()
        done = (small <= tol) | (zeta_bar.abs() <= eps * size.sqrt() * residual)
        going = turns & ~done & (alpha > eps * size.sqrt())
    return _Found(x, steps, torch.zeros_like(active), length, going)
