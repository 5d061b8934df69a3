"""What the forward solve of a linear system knows serves its backward: factors, promises, a preconditioner, a user's own solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import CG, Dense, Diagonal, LinearOperator, MatrixFree, Sparse
from torchimplicit.linear.superlu import SuperLU

n = 200


def ring() -> tuple[Tensor, Tensor]:
    """The places of a periodic, nonsymmetric stencil: no band."""
    i = torch.arange(n)
    index = torch.stack([i.repeat(3), torch.cat([i, (i + 1) % n, (i - 1) % n])])
    return index, torch.cat([torch.full((n,), 4.0), torch.full((n,), -1.0), torch.full((n,), -2.0)]).double()


def test_a_sparse_matrix_is_factorised_once_for_value_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    factorise = SuperLU._factorised
    monkeypatch.setattr(SuperLU, "_factorised", lambda self, values: made.append(1) or factorise(self, values))
    index, values = ring()
    b = torch.randn(3, n).double().requires_grad_()
    z, info = ti.linear_solve(torch.sparse_coo_tensor(index, values.requires_grad_(), (n, n), check_invariants=True), b)
    z.square().sum().backward()
    assert len(made) == 1
    assert info.adjoint.products.max() <= 2
    A = torch.zeros(n, n).double().index_put((index[0], index[1]), values.detach(), accumulate=True)
    u = torch.linalg.solve(A.mT, 2 * z.detach().mT).mT
    torch.testing.assert_close(b.grad, u, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(values.grad, -(u[:, index[0]] * z.detach()[:, index[1]]).sum(0), rtol=1e-9, atol=1e-12)


class Own:
    """A direct solver of somebody else's."""

    def __init__(self) -> None:
        self.calls: list[bool] = []

    def factorize(self, operator: LinearOperator) -> Any:
        self.A = operator.to_dense()
        return self

    def solve(self, b: Tensor, adjoint: bool = False) -> Tensor:
        self.calls.append(adjoint)
        return torch.linalg.solve(self.A.mH if adjoint else self.A, b.unsqueeze(-1)).squeeze(-1)


def test_a_direct_solver_of_the_users_own_solves_the_backward_too() -> None:
    own = Own()
    A = (torch.eye(n) * 3 + torch.randn(n, n) / n).double().requires_grad_()
    z, info = ti.linear_solve(Dense(A), torch.ones(n).double(), solver=own)
    z.sum().backward()
    assert own.calls[-1] is True
    assert info.adjoint.converged
    torch.testing.assert_close(
        A.grad, -torch.outer(torch.linalg.solve(A.detach().mT, torch.ones(n).double()), z.detach())
    )


def test_a_definite_matrix_is_solved_by_conjugate_gradients_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    cycles: list[str] = []
    cycle = CG.cycle
    monkeypatch.setattr(CG, "cycle", lambda self, *args: cycles.append("CG") or cycle(self, *args))
    d = (1 + torch.rand(n)).double().requires_grad_()
    operator = MatrixFree(lambda x: d * x, n=n, dtype=d.dtype, positive_definite=True)
    z, info = ti.linear_solve(operator, torch.ones(n).double())
    forward = len(cycles)
    z.sum().backward()
    assert forward
    assert len(cycles) > forward
    assert info.adjoint.converged


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_an_operator_is_a_preconditioner_forward_and_backward(dtype: torch.dtype) -> None:
    """Of a batch whose matrices differ in scale by much: without it there are many more steps."""
    d = torch.logspace(0, 6, n).double() * torch.tensor([[1.0], [100.0]]).double()
    d = d.to(dtype).requires_grad_()
    b = torch.ones(2, n, dtype=dtype)

    def solve(solver: CG) -> Any:
        near = torch.diag_embed(d) + 0.01 * torch.ones(n, n, dtype=dtype)
        return ti.linear_solve(Dense(near, positive_definite=True), b, solver=solver)

    z, info = solve(CG(preconditioner=Diagonal(d.detach())))
    z.abs().square().sum().backward()
    assert info.converged.all()
    assert info.steps.max() <= 10
    assert info.adjoint.steps.max() <= 10
    with pytest.warns(ti.ConvergenceWarning, match="was not found"):
        solve(CG(max_steps=200))


def test_an_operator_without_a_direct_solve_is_no_preconditioner() -> None:
    products = MatrixFree(lambda x: 2 * x, n=3)
    with pytest.raises(TypeError, match=r"which has no direct solve"):
        CG(preconditioner=products).factorize(Dense(torch.eye(3)))


def test_scipy_matrices_and_operators_are_constant_operators() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    index, values = ring()
    S = sparse.coo_array((values.numpy(), index.numpy()), shape=(n, n))
    b = torch.randn(n).double().requires_grad_()
    operator = sparse.linalg.aslinearoperator(S.tocsr())
    for A in (S, S.tocsr(), operator):
        z = ti.linear_solve(A, b, rtol=1e-12).value
        torch.testing.assert_close(torch.from_numpy(S @ z.detach().numpy()), b.detach(), rtol=1e-9, atol=1e-9)
        (grad,) = torch.autograd.grad(z.sum(), b)
        torch.testing.assert_close(torch.from_numpy(S.T @ grad.numpy()), torch.ones(n).double(), rtol=1e-8, atol=1e-8)
    assert isinstance(ti.linear.as_operator(S), Sparse)
