"""Factorisations of matrices within g, in a graph: torch.linalg raises where there is none, which a loop cannot."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.linalg import cholesky, inv, lu_factor, lu_solve, slogdet, solve

import torchimplicit as ti
from torchimplicit.private.dynamo import AVAILABLE
from torchimplicit.status import Status

from .graph_models import D, value_and_gradient

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")

FIXED = 2 * torch.eye(3, dtype=D) + 0.1


def matrix(z: Tensor) -> Tensor:
    return torch.diag_embed(2 + z**2) + 0.1


def column(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "solve": lambda z, x: solve(matrix(z), column(x)).squeeze(-1),
    "solve by a constant": lambda z, x: solve(FIXED, column(z * x)).squeeze(-1),
    "solve of an argument": lambda z, x: z * solve(FIXED, column(x)).squeeze(-1),
    "inv": lambda z, x: (inv(matrix(z)) @ column(x)).squeeze(-1),
    "cholesky": lambda z, x: cholesky(matrix(z)).sum(-1) * x,
    "cholesky_solve": lambda z, x: torch.cholesky_solve(column(x), cholesky(matrix(z))).squeeze(-1),
    "lu_solve": lambda z, x: lu_solve(*lu_factor(matrix(z)), column(x)).squeeze(-1),
    "slogdet": lambda z, x: slogdet(matrix(z))[1].unsqueeze(-1) * x,
    "matrix_power": lambda z, x: (torch.linalg.matrix_power(matrix(z), -2) @ column(x)).squeeze(-1),
}


def inputs(rows: int) -> Tensor:
    return torch.rand(rows, 3, dtype=D, generator=torch.Generator().manual_seed(rows)) + 0.5


def solving(which: str) -> Callable[[Tensor], Tensor]:
    f = FUNCTIONS[which]
    return lambda x: (
        ti.root(lambda z, x: z**3 + 2 * z - x + f(z, x) / 4, torch.full_like(x, 0.3), (x,), batch_ndim=1).value
    )


@pytest.mark.parametrize(
    "which", [pytest.param(name, marks=() if name == "solve" else pytest.mark.slow) for name in FUNCTIONS]
)
def test_of_matrices_that_depend_on_z_or_on_its_arguments(which: str) -> None:
    torch._dynamo.reset()
    model = torch.compile(solving(which), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        value_and_gradient(model, inputs(5)), value_and_gradient(solving(which), inputs(5)), rtol=1e-7, atol=1e-7
    )


@pytest.mark.slow
@pytest.mark.parametrize("which", ["solve", "cholesky", "solve of an argument"])
def test_compiled_to_the_end(which: str) -> None:
    torch._dynamo.reset()
    model = torch.compile(solving(which), fullgraph=True)
    torch.testing.assert_close(
        value_and_gradient(model, inputs(5)), value_and_gradient(solving(which), inputs(5)), rtol=1e-7, atol=1e-7
    )


@pytest.mark.slow
@pytest.mark.parametrize("which", ["solve", "cholesky"])
@pytest.mark.parametrize("strict", [True, False])
def test_exported_and_loaded(which: str, strict: bool) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return solving(which)(x)

    file = io.BytesIO()
    torch.export.save(
        torch.export.export(Model(), (inputs(5),), dynamic_shapes={"x": {0: torch.export.Dim("b")}}, strict=strict),
        file,
    )
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (5, 9):
        torch.testing.assert_close(loaded(inputs(rows)), solving(which)(inputs(rows)), rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("factorised", ["cholesky", "solve", "inv"])
def test_a_system_whose_matrix_has_no_factors_is_reported_and_the_others_are_solved(factorised: str) -> None:
    first = torch.tensor([[2.0, 1.0], [1.0, 1.0], [3.0, 0.5]], dtype=D)  # of the second both rows are the same
    a = torch.tensor([[1.5, 0.2], [1.0, 1.0], [2.0, 0.1]], dtype=D)

    def g(z: Tensor, a: Tensor) -> Tensor:
        p, q = z.unbind(-1)
        rows = torch.stack([torch.stack([p, q], -1), torch.stack([q, p], -1)], -2)
        if factorised == "cholesky":
            return cholesky(rows)[..., 0] - torch.stack([a[..., 0].sqrt(), a[..., 1] / a[..., 0].sqrt()], -1)
        inverse = inv(rows)[..., 0] if factorised == "inv" else solve(rows, column(torch.eye(2, dtype=D)[0]))[..., 0]
        return inverse * (a[..., :1] ** 2 - a[..., 1:] ** 2) - a * torch.tensor([1.0, -1.0], dtype=D)

    def solved(a: Tensor) -> Any:
        z, info = ti.root(g, first, (a,), batch_ndim=1, on_failure="ignore")
        return z, info.status

    with pytest.raises(torch.linalg.LinAlgError):  # in plain code g raises for all of them
        solved(a)
    torch._dynamo.reset()
    z, status = torch.compile(solved, fullgraph=True, backend="aot_eager")(a)
    assert status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    torch.testing.assert_close(z[[0, 2]], a[[0, 2]], rtol=1e-7, atol=1e-7)


@pytest.mark.slow
def test_what_looks_at_its_factors_itself_is_left_to_do_so() -> None:
    def g(z: Tensor, x: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(torch.diag_embed(z - 2))  # of no z that is met here
        return z**3 + z - x + torch.where(failed[..., None] > 0, 0.1 * z, factor.sum(-1))

    def solved(x: Tensor) -> Any:
        z, info = ti.root(g, torch.full_like(x, 0.3), (x,), batch_ndim=1)
        return z, info.status

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(solved, fullgraph=True, backend="aot_eager")(inputs(4)), solved(inputs(4)))
