"""What a linear solver is given and makes is typed: mypy sees a wrong one of somebody's own."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
import torch

import torchimplicit as ti
from torchimplicit.adjoints import linearised_solver, posed
from torchimplicit.compiling import region
from torchimplicit.linear import PRECONDITIONERS, direct, iteration, solver


@pytest.mark.parametrize("module", [direct, solver, iteration, linearised_solver, posed])
def test_the_protocols_know_no_any(module: Any) -> None:
    names = {node.id for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Name)}
    assert "Tensor" in names
    assert "Any" not in names


def test_what_is_offered_as_a_solver_is_one_and_written_as_it_is_made() -> None:
    with pytest.raises(
        TypeError, match=r"solver must be.* Of torchimplicit.linear: Auto\(\), .*Neumann\(terms\)"
    ) as refused:
        ti.linear_solve(torch.eye(2), torch.ones(2), solver=3)  # type: ignore[arg-type]
    for name in PRECONDITIONERS:
        assert f"{name}(" not in str(refused.value)
    with pytest.raises(TypeError, match=r"linear_solver must be.*Call the class\. Of"):
        ti.Implicit(ti.linear.LU)  # type: ignore[arg-type]


def test_a_graph_takes_the_linear_solvers_whose_class_says_so() -> None:
    A = torch.eye(2)
    for name in region.LINEAR:
        assert region.refusal("linear_solve", A, solver=ti.linear.SOLVERS[name]()) is None
    why = region.refusal("linear_solve", A, solver=ti.linear.BiCGStab())
    assert why is not None
    assert "the solver BiCGStab is not one of Auto, CG, Cholesky, GMRES, LU, Large, MINRES, QR" in why
    why = region.refusal("linear_solve", A, solver=ti.linear.GMRES(preconditioner=ti.linear.LU()))
    assert why is not None
    assert "without a preconditioner" in why
