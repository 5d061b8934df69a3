"""Operators of linear_operator: what they represent is solved, and differentiated in the tensors that represent it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import Dense, Diagonal, Kronecker, LowRankUpdate, Represented, Triangular, as_operator

theirs = pytest.importorskip("linear_operator.operators")

n = 6
PLACES = torch.tensor([1, 2, 0, 3, 5, 4])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def regular(*shape: int, seed: int = 0) -> Tensor:
    return numbers(*shape, seed=seed) + 4 * torch.eye(shape[-1], dtype=torch.float64)


COLUMN = torch.tensor([5.0, 1.0, 0.5, 0.2, 0.1, 0.3], dtype=torch.float64)
WEIGHTS = numbers(n, 1).abs() + 0.5


def kernel(x: Tensor, y: Tensor, length: Tensor) -> Tensor:
    return torch.exp(-(x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1) / length**2)


def kernel_operator(x: Tensor, length: Tensor) -> Any:
    K = theirs.KernelLinearOperator(x, x, covar_func=kernel, length=length, num_nonbatch_dimensions={"length": 0})
    return K.add_diagonal(torch.ones(n, dtype=torch.float64))


def interpolated(c: Tensor, v: Tensor = WEIGHTS) -> Any:
    at = PLACES.unsqueeze(-1)
    return theirs.InterpolatedLinearOperator(theirs.ToeplitzLinearOperator(c), at, v, at, v)


def toeplitz(c: Tensor) -> Tensor:
    i = torch.arange(n)
    return c[(i - i.unsqueeze(-1)).abs()]


class Case(NamedTuple):
    """An operator of tensors, what becomes of it, and the same matrix written out by other means."""

    operator: Callable[..., Any]
    kind: type
    dense: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]


CASES = {
    "dense": Case(theirs.DenseLinearOperator, Dense, lambda A: A, (regular(n, n),)),
    "diagonal": Case(theirs.DiagLinearOperator, Diagonal, torch.diag, (numbers(n).abs() + 1,)),
    "constant": Case(
        lambda c: theirs.ConstantDiagLinearOperator(c, n), Diagonal, lambda c: c * torch.eye(n).double(), (COLUMN[:1],)
    ),
    "triangular": Case(
        lambda A: theirs.TriangularLinearOperator(A.triu(), upper=True), Triangular, torch.triu, (regular(n, n),)
    ),
    "Kronecker": Case(
        theirs.KroneckerProductLinearOperator, Kronecker, torch.kron, (regular(2, 2), regular(3, 3, seed=1))
    ),
    "low rank": Case(
        lambda d, U: theirs.LowRankRootLinearOperator(U) + theirs.DiagLinearOperator(d),
        LowRankUpdate,
        lambda d, U: torch.diag(d) + U @ U.T,
        (numbers(n).abs() + 1, numbers(n, 2)),
    ),
    "sum": Case(
        lambda A, d: theirs.DenseLinearOperator(A).add_diagonal(d),
        Represented,
        lambda A, d: A + torch.diag(d),
        (regular(n, n), numbers(n).abs()),
    ),
    "Toeplitz": Case(theirs.ToeplitzLinearOperator, Represented, toeplitz, (COLUMN,)),
    "Cholesky": Case(
        lambda A: theirs.CholLinearOperator(theirs.TriangularLinearOperator(A.tril())),
        Represented,
        lambda A: A.tril() @ A.tril().T,
        (regular(n, n),),
    ),
    "product": Case(theirs.MatmulLinearOperator, Represented, torch.matmul, (regular(n, n), regular(n, n, seed=1))),
    "blocks": Case(
        lambda A: theirs.BlockDiagLinearOperator(theirs.DenseLinearOperator(A)),
        Represented,
        lambda A: torch.block_diag(*A),
        (regular(2, 3, 3),),
    ),
    "interpolated": Case(
        interpolated, Represented, lambda c: WEIGHTS * toeplitz(c)[PLACES][:, PLACES] * WEIGHTS.T, (COLUMN,)
    ),
    "kernel": Case(
        kernel_operator,
        Represented,
        lambda x, length: kernel(x, x, length) + torch.eye(n).double(),
        (numbers(n, 2), COLUMN[1]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_second_derivative(name: str) -> None:
    case = CASES[name]
    tensors = [t.clone().requires_grad_() for t in case.tensors]
    b = numbers(3, n, seed=2).requires_grad_()
    operator, A = case.operator(*tensors), case.dense(*tensors)
    assert isinstance(as_operator(operator), case.kind)
    torch.testing.assert_close(as_operator(operator).H.to_dense(), A.T)

    def derivatives(z: Tensor) -> list[Tensor]:
        weights = numbers(3, n, seed=3)
        first = torch.autograd.grad((z * weights).sum(), (*tensors, b), create_graph=True)
        second = torch.autograd.grad(sum((d * d.cos()).sum() for d in first), (*tensors, b))
        return [z, *first, *second]

    z, info = ti.linear_solve(operator, b, rtol=1e-12)
    assert info.converged.all()
    for found, truth in zip(derivatives(z), derivatives(torch.linalg.solve(A, b.T).T), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-9)


def test_a_batch_and_transforms() -> None:
    A, d, b = regular(2, n, n), numbers(2, n).abs(), numbers(2, n, seed=1)

    def solve(A: Tensor, d: Tensor, b: Tensor) -> Tensor:
        return ti.linear_solve(theirs.DenseLinearOperator(A).add_diagonal(d), b, rtol=1e-12).value

    def truth(A: Tensor, d: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.solve(A + torch.diag_embed(d), b)

    torch.testing.assert_close(solve(A, d, b), truth(A, d, b))
    torch.testing.assert_close(torch.vmap(solve)(A, d, b), truth(A, d, b))
    tangents = tuple(numbers(*t.shape, seed=5) for t in (A, d, b))
    for found, expected in zip(torch.func.jvp(solve, (A, d, b), tangents), torch.func.jvp(truth, (A, d, b), tangents)):
        torch.testing.assert_close(found, expected)


def test_what_a_kernel_uses_beside_its_tensors_has_its_gradient() -> None:
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    x, b = numbers(n, 2), numbers(n, seed=1)
    one = torch.ones(n, dtype=torch.float64)
    K = theirs.KernelLinearOperator(x, x, covar_func=lambda x, y: scale * kernel(x, y, one[0])).add_diagonal(one)
    found = torch.autograd.grad(ti.linear_solve(K, b, rtol=1e-12).value.sum(), scale)
    truth = torch.linalg.solve(scale * kernel(x, x, one[0]) + torch.eye(n).double(), b)
    torch.testing.assert_close(found, torch.autograd.grad(truth.sum(), scale))


def test_a_promise_is_kept_and_tensors_may_change() -> None:
    x, length, b = numbers(n, 2), COLUMN[1].clone(), numbers(n, seed=1)
    K = Represented(kernel_operator(x, length), positive_definite=True)
    assert ti.linear.Auto(dense_limit=0).factorize(K).choice == "CG"
    for _ in range(2):
        z, _ = ti.linear_solve(K, b, rtol=1e-12)
        torch.testing.assert_close(z, torch.linalg.solve(kernel(x, x, length) + torch.eye(n).double(), b))
        length.mul_(2)  # what an optimizer does between two solves


def test_it_preconditions() -> None:
    units = torch.logspace(-3, 3, 60, dtype=torch.float64)
    noise = 0.02 * numbers(60, 60)
    A = units.unsqueeze(-1) * (torch.eye(60) + noise + noise.T) * units
    b = numbers(60, seed=1)

    def solve(near: Any) -> Any:
        return ti.linear_solve(
            A, b, solver=ti.linear.CG(preconditioner=near), rtol=1e-8, max_steps=30, on_failure="ignore"
        )

    assert solve(theirs.DiagLinearOperator(A.diagonal())).info.converged
    assert not solve(None).info.converged
    with pytest.raises(TypeError, match=r"Represented.*near A, which has no direct solve.*as_operator\(M\)\.inverse"):
        solve(theirs.ToeplitzLinearOperator(b))


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(TypeError, match=r"A is a ZeroLinearOperator that is not made of tensors"):
        as_operator(theirs.ZeroLinearOperator(n, n))
    nested = interpolated(COLUMN, WEIGHTS.clone().requires_grad_()).add_diagonal(COLUMN)
    with pytest.raises(TypeError, match=r"interpolates with weights that need a gradient; detach them"):
        as_operator(nested)
