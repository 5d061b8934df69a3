"""Either side of an automatic choice gives the same gradient; shapes, dtypes and trees do not matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchimplicit as ti
from torchimplicit.condition import Kind
from torchimplicit.layout import Layout
from torchimplicit.solvers import choose

from .problems import randn


def gradients(n: int, solve: str, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """(z, dℓ/dx) of an asymmetric root or fixed point of n unknowns, and dℓ/dx by dense linear algebra."""
    W = randn(n, n, seed=n) / (2 * n**0.5)
    x = randn(n, seed=n + 1).requires_grad_()
    zero = torch.zeros(n, dtype=torch.float64)
    f = {"root": lambda z: z - torch.tanh(W @ z + x), "fixed_point": lambda z: torch.tanh(W @ z + x)}[solve]
    z = getattr(ti, solve)(f, zero, rtol=1e-10, **options).value
    (grad,) = torch.autograd.grad(z.square().sum(), x)
    s = 1 - z.detach() ** 2
    J = torch.eye(n, dtype=torch.float64) - s[:, None] * W
    return z, grad, s * torch.linalg.solve(J.T, 2 * z.detach())


@pytest.mark.parametrize("n", [63, 64, 65, 66])
@pytest.mark.parametrize("solve", ["root", "fixed_point"])
@pytest.mark.parametrize("solver", ["anderson", "newton_krylov", "newton"])
def test_around_the_limit_of_dense_adjoints(n: int, solve: str, solver: str) -> None:
    operator = ti.linear.Jacobian(torch.sin, torch.zeros(n, dtype=torch.float64))
    assert ti.linear.Auto().factorize(operator).choice == ("LU" if n <= 64 else "GMRES")
    _, grad, exact = gradients(n, solve, solver=solver)
    assert torch.allclose(grad, exact, atol=1e-7)


@pytest.mark.parametrize("n", [255, 256, 257])
def test_around_the_limit_of_dense_newton(n: int) -> None:
    kinds = [type(stage) for stage in choose(Kind(), Layout.of(torch.zeros(n), 0)).stages]
    assert (ti.solvers.Newton in kinds) == (n <= 256)
    assert (ti.solvers.NewtonKrylov in kinds) == (n > 256)
    _, grad, exact = gradients(n, "root")
    assert torch.allclose(grad, exact, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4),
    n=st.integers(1, 5),
    m=st.integers(1, 3),
    batch_ndim=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_a_tree_of_unknowns_is_differentiated_like_one_vector(
    rows: int, n: int, m: int, batch_ndim: int, seed: int
) -> None:
    W = randn(n + m, n + m, seed=seed) / (3 * (n + m) ** 0.5)
    x = randn(rows, n + m, seed=seed + 1).requires_grad_()

    def whole(z: Tensor) -> Tensor:
        return torch.tanh(z @ W.T + x)

    def parts(z: dict[str, Tensor]) -> dict[str, Tensor]:
        out = whole(torch.cat([z["a"], z["b"].flatten(1)], dim=1))
        return {"a": out[:, :n], "b": out[:, n:].unsqueeze(-1)}

    zero = torch.zeros(rows, n + m, dtype=torch.float64)
    tree = {"a": zero[:, :n], "b": zero[:, n:].unsqueeze(-1)}
    z = ti.fixed_point(whole, zero, batch_ndim=batch_ndim, rtol=1e-12).value
    parted = ti.fixed_point(parts, tree, batch_ndim=batch_ndim, rtol=1e-12).value
    (expected,) = torch.autograd.grad(z.square().sum(), x)
    (found,) = torch.autograd.grad(parted["a"].square().sum() + parted["b"].square().sum(), x)
    assert torch.allclose(found, expected, atol=1e-8)


def test_complex_conditions_need_not_be_holomorphic() -> None:
    w = torch.tensor(0.7 + 0.4j, dtype=torch.complex128, requires_grad=True)

    def f(w: Tensor) -> Tensor:
        start = torch.zeros((), dtype=torch.complex128)
        return ti.root(lambda z: z**2 * z.conj() + 3 * z - w, start, rtol=1e-13).value

    assert torch.autograd.gradcheck(f, (w,))
    assert torch.autograd.gradgradcheck(f, (w,))
