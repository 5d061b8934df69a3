"""Roots, minima, fits and fixed points with sparse Jacobians: values and gradients against SciPy and dense linear algebra, and what
they cost in factorisations and products."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.sparse as sparse
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import torchimplicit as ti
from torchimplicit.linear import Memory

from .bratu import M, bratu, by_hand, laplacian, rates, start


def convection(u: Tensor, lam: Tensor) -> Tensor:
    """With a wind, which makes the Jacobian asymmetric."""
    p = torch.nn.functional.pad(u, (1, 1, 1, 1))
    return bratu(u, lam) + 0.6 * (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) * (1 + u)


OPTIONS = {
    "by default": dict,
    "found": lambda: {"sparsity": "detect"},
    "given": lambda: {"sparsity": five_points(M)},
    "by Newton's method": lambda: {"sparsity": "detect", "solver": "newton"},
    "not at all": lambda: {"sparsity": "off"},
}


def five_points(m: int) -> Any:
    line = sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(m, m))
    return sparse.kronsum(line, line)


@pytest.mark.parametrize("how", OPTIONS)
def test_value_and_gradient_are_those_by_scipy(how: str) -> None:
    lam = rates()
    z, info = ti.root(bratu, start(), (lam,), rtol=1e-11, **OPTIONS[how]())
    z.sum().backward()
    value, gradient = by_hand(lam)
    torch.testing.assert_close(z.detach(), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(lam.grad, gradient, rtol=1e-9, atol=1e-12)
    assert ("CHOLMOD" in info.linear) == (how != "not at all")


def test_an_asymmetric_jacobian_and_its_transpose() -> None:
    lam = rates()
    z, info = ti.root(convection, start(), (lam,), rtol=1e-11)
    weights = torch.randn(M, M, dtype=torch.float64)
    (z * weights).sum().backward()
    J = torch.autograd.functional.jacobian(lambda u: convection(u, lam.detach()), z.detach()).reshape(M * M, -1)
    u = torch.linalg.solve(J.T, weights.reshape(-1)).view(M, M)
    torch.testing.assert_close(lam.grad, u * z.detach().exp() / (M + 1) ** 2, rtol=1e-9, atol=1e-11)
    assert "GMRES, preconditioned by SuperLU" in info.linear


def burgers(u: Tensor, source: Tensor) -> Tensor:
    """A flow that carries itself: at rest its Jacobian is symmetric, and elsewhere it is not."""
    p = torch.nn.functional.pad(u, (1, 1, 1, 1))
    return laplacian(u) + 0.5 * u * (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) - source


def test_a_jacobian_that_is_symmetric_at_the_start_only() -> None:
    torch.manual_seed(0)
    source = (0.05 * torch.rand(M, M, dtype=torch.float64)).requires_grad_()
    weights, tangent = torch.randn(2, M, M, dtype=torch.float64)
    z, info = ti.root(burgers, start(), (source,), rtol=1e-11)
    (gradient,) = torch.autograd.grad(z, source, weights)
    J = torch.autograd.functional.jacobian(lambda u: burgers(u, source.detach()), z.detach()).reshape(M * M, -1)
    torch.testing.assert_close(gradient, torch.linalg.solve(J.T, weights.reshape(-1)).view(M, M), rtol=1e-8, atol=1e-9)
    assert info.steps < 10
    assert "pattern found" in info.linear
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(source.detach(), tangent)
        moved = forward_ad.unpack_dual(ti.root(burgers, start(), (dual,), rtol=1e-11).value).tangent
    torch.testing.assert_close(moved, torch.linalg.solve(J, tangent.reshape(-1)).view(M, M), rtol=1e-8, atol=1e-9)


def test_a_negative_definite_jacobian_is_for_conjugate_gradients_too() -> None:
    lam = rates()
    z, info = ti.root(lambda u, lam: -bratu(u, lam), start(), (lam,), rtol=1e-11)
    z.sum().backward()
    torch.testing.assert_close(lam.grad, by_hand(lam)[1], rtol=1e-9, atol=1e-12)
    assert info.linear.startswith("CG")


def test_an_indefinite_symmetric_jacobian() -> None:
    """Helmholtz' equation: conjugate gradients break down, and GMRES goes on."""
    torch.manual_seed(0)
    shift = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    source = torch.randn(M, M, dtype=torch.float64)

    def g(u: Tensor, shift: Tensor) -> Tensor:
        return laplacian(u) - shift * u - source

    z, info = ti.root(g, start(), (shift,), rtol=1e-11)
    (gradient,) = torch.autograd.grad(z.sum(), shift)
    J = torch.autograd.functional.jacobian(lambda u: g(u, shift.detach()), start()).reshape(M * M, -1)
    inverse = torch.linalg.inv(J)
    torch.testing.assert_close(gradient, (inverse @ (inverse @ source.reshape(-1))).sum(), rtol=1e-8, atol=0)
    assert "GMRES" in info.linear


def test_a_chain_has_band_factors() -> None:
    n = 600
    c = torch.linspace(1, 2, n, dtype=torch.float64, requires_grad=True)

    def step(u: Tensor, c: Tensor) -> Tensor:
        flow = torch.nn.functional.pad(u[1:] - u[:-1], (1, 1))
        return u - 50 * flow.diff() + 0.1 * u**3 - c

    z, info = ti.root(step, torch.zeros(n, dtype=torch.float64), (c,), rtol=1e-11)
    z.square().sum().backward()
    J = torch.autograd.functional.jacobian(lambda u: step(u, c.detach()), z.detach())
    torch.testing.assert_close(c.grad, torch.linalg.solve(J.T, 2 * z.detach()), rtol=1e-8, atol=1e-10)
    assert "band LDLᵀ" in info.linear
    assert info.products < 40


def test_second_derivatives_are_exact() -> None:
    m = 4
    lam = rates(m)

    def value(lam: Tensor) -> Tensor:
        return ti.root(bratu, start(m), (lam,), rtol=1e-13, sparsity="detect").value.square().sum()

    assert torch.autograd.gradcheck(value, (lam,), fast_mode=True)
    assert torch.autograd.gradgradcheck(value, (lam,), fast_mode=True, atol=1e-7)


@pytest.mark.parametrize("transform", ["grad", "jacrev", "vmap", "jvp"])
def test_transforms_give_the_same(transform: str) -> None:
    m = 5
    lam = rates(m).detach()

    def value(lam: Tensor) -> Tensor:
        return ti.root(bratu, start(m), (lam,), rtol=1e-12, sparsity="detect").value.square().sum()

    expected = torch.autograd.functional.jacobian(value, lam)
    if transform == "grad":
        torch.testing.assert_close(torch.func.grad(value)(lam), expected, rtol=1e-8, atol=1e-12)
    elif transform == "jacrev":
        torch.testing.assert_close(torch.func.jacrev(value)(lam), expected, rtol=1e-8, atol=1e-12)
    elif transform == "vmap":
        both = torch.vmap(torch.func.grad(value))(torch.stack([lam, lam + 1]))
        torch.testing.assert_close(both[0], expected, rtol=1e-8, atol=1e-12)
    else:
        tangent = torch.randn_like(lam)
        _, moved = torch.func.jvp(value, (lam,), (tangent,))
        torch.testing.assert_close(moved, (expected * tangent).sum(), rtol=1e-8, atol=1e-12)


def test_many_right_hand_sides_of_one_backward() -> None:
    m = 5
    lam = rates(m)
    memory = Memory()
    z = ti.root(bratu, start(m), (lam,), rtol=1e-12, sparsity=memory).value
    rows = torch.eye(m * m, dtype=torch.float64).view(-1, m, m)
    (gradients,) = torch.autograd.grad(z, lam, rows, is_grads_batched=True, retain_graph=True)
    for k in (0, 7):
        torch.testing.assert_close(gradients[k], torch.autograd.grad(z, lam, rows[k], retain_graph=True)[0])


@pytest.mark.parametrize("batch_ndim", [1, 2])
def test_a_batch_has_one_pattern_and_entries_of_its_own(batch_ndim: int) -> None:
    m, batch = 8, (6,) if batch_ndim == 1 else (2, 3)
    lam = (5 + torch.rand(*batch, m, m, dtype=torch.float64)).requires_grad_()
    memory = Memory()
    z0 = torch.zeros(*batch, m, m, dtype=torch.float64)
    z, info = ti.root(bratu, z0, (lam,), rtol=1e-11, sparsity=memory, batch_ndim=batch_ndim)
    z.sum().backward()
    assert memory.setups == 1
    assert info.converged.all()
    grads = lam.grad.reshape(-1, m, m)
    for k in (0, 5):
        value, gradient = by_hand(lam.reshape(-1, m, m)[k])
        torch.testing.assert_close(z.reshape(-1, m, m)[k].detach(), value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(grads[k], gradient, rtol=1e-9, atol=1e-12)


def test_the_products_of_a_batch_do_not_depend_on_its_size() -> None:
    def products(batch: int) -> int:
        lam = 5 + torch.rand(batch, 6, 6, dtype=torch.float64)
        _, info = ti.root(bratu, torch.zeros_like(lam), (lam,), sparsity="detect", batch_ndim=1)
        assert info.converged.all()
        return int(info.products)

    assert products(200) <= products(2) + 8


def test_batches_that_are_gathered() -> None:
    lam = (4 + 2 * torch.rand(5, 8, 8, dtype=torch.float64)).requires_grad_()
    lam.data[0] = 0  # solved at once
    z, info = ti.root(
        bratu, torch.zeros_like(lam), (lam,), rtol=1e-11, sparsity="detect", batch_ndim=1, batched=(True,)
    )
    z.sum().backward()
    assert info.converged.all()
    torch.testing.assert_close(lam.grad[3], by_hand(lam[3])[1], rtol=1e-9, atol=1e-12)


class Largest(TorchDispatchMode):
    """Of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def test_nothing_grows_with_the_square_of_n() -> None:
    n = 50_000
    c = torch.linspace(0, 1, n, requires_grad=True)

    def step(u: Tensor, c: Tensor) -> Tensor:
        return u - 5 * torch.nn.functional.pad(u[1:] - u[:-1], (1, 1)).diff() - c

    with Largest() as largest:
        z, info = ti.root(step, torch.zeros(n), (c,), sparsity="detect")
        z.sum().backward()
    assert info.converged
    assert largest.numel <= 40 * n


@pytest.mark.parametrize("sparsity", [None, "detect"])
def test_single_precision(sparsity: str | None) -> None:
    lam = rates().detach().float()
    z, info = ti.root(bratu, torch.zeros(M, M), (lam,), sparsity=sparsity)
    assert info.converged
    assert float((z - by_hand(lam.double())[0]).abs().max()) < 1e-4


def test_large_solves_a_definite_operator_under_vmap() -> None:
    n = 40
    diagonal = torch.linspace(1, 2, n, dtype=torch.float64)

    def solved(b: torch.Tensor) -> torch.Tensor:
        A = ti.linear.MatrixFree(lambda v: diagonal * v, n=n, dtype=b.dtype, positive_definite=True)
        x: torch.Tensor = ti.linear.Large().factorize(A).solve(b)
        return x

    b = torch.stack([torch.ones(n, dtype=torch.float64), diagonal])
    torch.testing.assert_close(torch.vmap(solved)(b), b / diagonal)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_a_mesh_is_solved_with_few_linear_steps_at_a_time_or_it_is_said(limit: int) -> None:
    m = 20
    b = torch.linspace(-1, 1, m * m, dtype=torch.float64, requires_grad=True)

    def g(u: Tensor) -> Tensor:
        p = torch.nn.functional.pad(u.view(m, m), (1, 1, 1, 1))
        flow = 4 * u.view(m, m) - p[2:, 1:-1] - p[:-2, 1:-1] - p[1:-1, 2:] - p[1:-1, :-2]
        return flow.flatten() + 0.1 * u**3 - b

    solver = ti.solvers.NewtonKrylov(max_inner=limit)
    z, info = ti.root(
        g,
        torch.zeros(m * m, dtype=torch.float64),
        solver=solver,
        on_failure="ignore",
        adjoint=ti.Implicit(max_steps=limit),
    )
    assert info.converged
    assert g(z).abs().max() < 1e-6
    torch.autograd.grad(z.sum(), b)
