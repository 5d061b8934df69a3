"""Quadratic programs by the solvers of others: the same solutions, derivatives and reports."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti
from tests.programs.random_programs import D, known
from torchimplicit import ConvergenceWarning

qpsolvers = pytest.importorskip("qpsolvers", reason="the extra qp is not installed")
SOLVERS = [name for name in ("piqp", "proxqp", "clarabel", "osqp", "highs") if name in qpsolvers.available_solvers]


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=D)


@pytest.mark.parametrize("name", SOLVERS)
def test_solutions_and_multipliers_are_those_that_were_chosen(name: str) -> None:
    data, z, inequality, equality = known(4, 6, 9, 2, held=3)
    solution = ti.quadratic_program(*data, solver=ti.interop.qpsolvers(name))
    assert solution.info.converged.all()
    torch.testing.assert_close(solution.value, z, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.info.dual.inequality, inequality, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.info.dual.equality, equality, rtol=1e-8, atol=1e-8)


@pytest.mark.skipif("piqp" not in SOLVERS, reason="PIQP is not installed")
def test_it_is_the_solver_that_finds_the_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each program, and its options reach it."""
    calls: list[dict[str, Any]] = []
    solve = qpsolvers.solve_problem

    def counted(problem: Any, solver: str, **options: Any) -> Any:
        calls.append({"solver": solver, **options})
        return solve(problem, solver, **options)

    monkeypatch.setattr(qpsolvers, "solve_problem", counted)
    data, z, *_ = known(3, 4, 5, 1, held=2)
    found, info = ti.quadratic_program(*data, solver=ti.interop.qpsolvers("piqp", eps_abs=1e-9))
    torch.testing.assert_close(found, z)
    assert calls == [{"solver": "piqp", "eps_abs": 1e-9}] * 3
    assert (info.steps == 1).all()


@pytest.mark.skipif("piqp" not in SOLVERS, reason="PIQP is not installed")
def test_derivatives_of_every_order_are_ours() -> None:
    (Q, p, *others), *_ = known(2, 2, 2, 1, held=1)
    piqp = ti.interop.qpsolvers("piqp")

    def solved(Q: Tensor, p: Tensor, G: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        z, info = ti.quadratic_program((Q + Q.mT) / 2, p, G, h, *others[2:], solver=piqp)
        return z, *info.dual[:2]

    data = [t.requires_grad_() for t in (Q, p, *others[:2])]
    assert gradcheck(solved, data, fast_mode=True)
    assert gradgradcheck(solved, data, fast_mode=True)

    def of_p(p: Tensor) -> Tensor:
        return ti.quadratic_program(Q[0], p, *(t[0] for t in others), solver=piqp).value

    together = torch.func.vmap(torch.func.jacrev(of_p))(p.detach())
    torch.testing.assert_close(together, torch.stack([torch.func.jacrev(of_p)(v) for v in p.detach()]))


@pytest.mark.parametrize("name", SOLVERS)
def test_each_system_of_a_batch_has_its_own_end(name: str) -> None:
    """Solved, contradictory, unbounded, degenerate, NaN, and with a constraint that is none."""
    eye = torch.eye(2, dtype=D)
    Q = torch.stack([eye, eye, 0 * eye, eye, eye, eye])
    p = tensor([-1, -1], [0, 0], [-1, -1], [-1, 0], [math.nan, 0], [-1, -1]).requires_grad_()
    G = torch.stack([tensor([1, 0], [0, 1], [-1, -1])] * 6)
    G[2] = tensor([1, -1], [-1, 0], [0, -1])
    h = tensor([0.5, 0.7, 3], [-1, -1, 1], [1, 0, 0], [1, 0.5, 3], [1, 1, 1], [math.inf, math.inf, 3])
    with pytest.warns(ConvergenceWarning):
        z, info = ti.quadratic_program(Q, p, G, h, solver=ti.interop.qpsolvers(name))
    solved, primal, dual = "converged", "primal_infeasible", "dual_infeasible"
    assert info.status_names == [solved, primal, dual, solved, "nonfinite", solved]
    torch.testing.assert_close(z[[0, 3, 5]], tensor([0.5, 0.7], [1, 0], [1, 1]))
    assert z[[1, 2, 4]].isnan().all()
    y, x = info.certificate.inequality[1], info.certificate.z[2]
    torch.testing.assert_close(G[1].mT @ y, tensor(0, 0), rtol=0, atol=1e-6)
    torch.testing.assert_close(h[1] @ y, tensor(-1)[0])
    torch.testing.assert_close(p.detach()[2] @ x, tensor(-1)[0])
    with pytest.warns(ConvergenceWarning, match="degenerate"):
        z[info.converged].sum().backward()
    assert info.adjoint.status_names[3] == "degenerate"


def test_what_is_no_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="finds no solver 'simplex' here; it finds"):
        ti.interop.qpsolvers("simplex")
    with pytest.raises(TypeError, match="one for quadratic programs"):
        ti.quadratic_program(torch.eye(2), torch.ones(2), solver="piqp")
