"""The solver is never differentiated: autograd does not touch it, neither in the forward nor in any derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import torchimplicit as ti

from .problems import randn, well


class Untouchable(torch.autograd.Function):
    """The identity; to differentiate it is an error."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        raise AssertionError("the solver was differentiated")

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        raise AssertionError("the solver was differentiated")


def condition(z: Tensor, W: Tensor, x: Tensor) -> Tensor:
    return W @ z + z**3 - x


def guarded(W: Tensor, x: Tensor) -> Tensor:
    """Newton's method that refuses to be watched."""
    assert not torch.is_grad_enabled()
    assert not W.requires_grad
    assert not x.requires_grad
    assert not torch._C._functorch.is_functorch_wrapped_tensor(x)
    assert torch.autograd.forward_ad.unpack_dual(x).tangent is None
    z = torch.zeros_like(x)
    for _ in range(40):
        J = W + torch.diag(3 * z**2)
        z = z - torch.linalg.solve(J, condition(z, W, x))
    return Untouchable.apply(z)


solve = ti.implicit(condition, vmap="sequential", rtol=1e-10)(guarded)


def inputs() -> tuple[Tensor, Tensor]:
    return well(3).requires_grad_(), randn(3, seed=5).requires_grad_()


def dense(W: Tensor, x: Tensor, z: Tensor) -> Tensor:
    return torch.linalg.inv(W + torch.diag(3 * z**2))


def test_plain_derivatives_leave_it_alone() -> None:
    W, x = inputs()
    assert torch.autograd.gradcheck(solve, (W, x), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(solve, (W, x), fast_mode=True)


def test_transforms_leave_it_alone() -> None:
    W, x = (t.detach() for t in inputs())
    J = dense(W, x, solve(W, x))
    assert torch.allclose(torch.func.jacrev(solve, 1)(W, x), J)
    assert torch.allclose(torch.func.jacfwd(solve, 1)(W, x), J)
    xs = torch.stack([x, -2 * x])
    Js = torch.stack([dense(W, y, solve(W, y)) for y in xs])
    assert torch.allclose(torch.vmap(torch.func.jacrev(solve, 1), (None, 0))(W, xs), Js)
    H = torch.func.hessian(lambda x: solve(W, x).sum())(x)
    z = solve(W, x)
    u = torch.linalg.solve((W + torch.diag(3 * z**2)).T, torch.ones(3, dtype=torch.float64))
    assert torch.allclose(H, -J.T @ torch.diag(6 * z * u) @ J)  # the derivative of Jᵀ1 by hand


@pytest.mark.parametrize("method", ["hybr", "lm", "krylov"])
def test_a_scipy_solver(method: str) -> None:
    @ti.implicit(condition, rtol=1e-6)
    def scipy_root(W: Tensor, x: Tensor) -> Tensor:
        def g(z: np.ndarray) -> np.ndarray:
            return W.numpy() @ z + z**3 - x.numpy()

        found = scipy.optimize.root(g, np.zeros(len(x)), method=method, tol=1e-11)
        return torch.from_numpy(found.x)

    W, x = inputs()
    z = scipy_root(W, x)
    v = randn(3, seed=8)
    grad_W, grad_x = torch.autograd.grad(z @ v, (W, x))
    u = dense(W.detach(), x.detach(), z.detach()).T @ v
    assert torch.allclose(grad_x, u, atol=1e-6)
    assert torch.allclose(grad_W, -torch.outer(u, z.detach()), atol=1e-6)


def test_a_wrong_answer_is_reported() -> None:
    W, x = inputs()
    wrong = ti.implicit(condition)(lambda W, x: torch.zeros_like(x))
    with pytest.warns(ti.ConvergenceWarning):
        wrong(W, x)


def test_nothing_is_recorded_while_a_solver_runs() -> None:
    """Newton's own steps differentiate g in z, with x held fixed; the others do not differentiate at all."""
    x = randn(3, seed=5).requires_grad_()
    graphs: list[bool] = []

    def f(z: Tensor) -> Tensor:
        out = torch.sin(z.flip(0)) / 2 + x
        graphs.append(out.requires_grad)
        return out

    z, info = ti.fixed_point(f, torch.zeros(3, dtype=torch.float64), solver="picard")
    assert int(info.evaluations) > 5
    assert graphs[: int(info.evaluations)] == [False] * int(info.evaluations)
    assert z.requires_grad


class Refuses:
    """A solver of this library's protocol whose steps cannot be differentiated."""

    max_steps = 60
    patience = 10

    def init(self, equations: Any, z: Tensor) -> tuple[Tensor, None]:
        return Untouchable.apply(equations.residual(z)), None

    def step(self, equations: Any, z: Tensor, r: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        z = Untouchable.apply(z - r)
        return z, Untouchable.apply(equations.residual(z)), None


def test_a_solver_in_the_loop_is_never_differentiated() -> None:
    x = randn(3, seed=5).requires_grad_()

    def layer(x: Tensor) -> Tensor:
        zero = torch.zeros(3, dtype=torch.float64)
        return ti.fixed_point(lambda z: torch.sin(z.flip(0)) / 2 + x, zero, solver=Refuses(), rtol=1e-13).value

    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))
    with pytest.raises(AssertionError, match="differentiated"):
        ti.fixed_point(
            lambda z: torch.sin(z.flip(0)) / 2 + x,
            torch.zeros(3, dtype=torch.float64),
            solver=Refuses(),
            adjoint=ti.Unrolled(),
        ).value.sum().backward()
