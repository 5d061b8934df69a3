"""A linear system inside torch.compile is solved in the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.compiling import region
from torchimplicit.private.dynamo import AVAILABLE

from .graph_models import D, Model, compiled, value_and_gradient

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")


torch.manual_seed(0)
MATRIX_5 = torch.randn(5, 5, dtype=D) + 4 * torch.eye(5, dtype=D)
LINEAR: dict[str, tuple[Model, Tensor, Tensor]] = {
    "entries": (lambda A, b: ti.linear_solve(A, b)[0], MATRIX_5, torch.randn(5, dtype=D)),
    "right-hand sides": (lambda A, b: ti.linear_solve(A, b)[0], MATRIX_5, torch.randn(3, 5, dtype=D)),
    "matrices": (lambda A, b: ti.linear_solve(A, b)[0], torch.stack([MATRIX_5, 2 * MATRIX_5]), torch.randn(5, dtype=D)),
    "products": (lambda A, b: ti.linear_solve(lambda z: A @ z, b)[0], MATRIX_5, torch.randn(5, dtype=D)),
    "by name": (lambda A, b: ti.linear_solve(A=A, b=b, solver=ti.linear.QR())[0], MATRIX_5, torch.randn(5, dtype=D)),
    "definite": (
        lambda A, b: ti.linear_solve(ti.linear.Dense(A @ A.mT, positive_definite=True), b)[0],
        *(MATRIX_5, torch.randn(5, dtype=D)),
    ),
    "complex": (
        lambda A, b: ti.linear_solve(A + 1j * torch.eye(5, dtype=D), b + 0j)[0],
        *(MATRIX_5, torch.randn(5, dtype=D)),
    ),
    "one tensor twice": (lambda A, _: ti.linear_solve(A, A)[0], MATRIX_5, torch.randn(5, dtype=D)),
    "diagonals": (
        lambda A, b: ti.linear_solve(ti.linear.Diagonal(A.abs() + 1), b)[0],
        *(MATRIX_5[:3], torch.randn(5, dtype=D)),
    ),
    "larger than what is made dense": (
        lambda A, b: ti.linear_solve(A, b)[0],
        *(torch.randn(300, 300, dtype=D) + 40 * torch.eye(300, dtype=D), torch.randn(300, dtype=D)),
    ),
    **{
        name: (
            lambda A, b, name=name: ti.linear_solve(A @ A.mT, b, solver=getattr(ti.linear, name)(), rtol=1e-12)[0],
            *(MATRIX_5, torch.randn(5, dtype=D)),
        )
        for name in region.LINEAR
    },
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "which", [pytest.param(name, marks=[pytest.mark.slow] * (name in region.LINEAR)) for name in LINEAR]
)
def test_a_linear_system_is_solved_in_a_graph(which: str) -> None:
    model, *inputs = LINEAR[which]
    for found, expected in zip(
        value_and_gradient(compiled(model), *inputs), value_and_gradient(model, *inputs), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_linear_system_without_a_solution_is_reported_in_a_graph() -> None:
    A, b = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=D), torch.tensor([1.0, 0.0], dtype=D)
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        _, info = compiled(lambda A, b: ti.linear_solve(A, b))(A, b)
    assert info.status == ti.Status.SINGULAR
    with pytest.warns(ti.ConvergenceWarning, match="solution of the linear system was not found"):
        compiled(lambda b: ti.linear_solve(lambda z: z**3 + z, b)[0])(torch.ones(2, dtype=D))


def test_a_linear_system_keeps_its_step_limit_and_its_checks_in_a_graph() -> None:
    b = torch.ones(5, dtype=D)
    _, info = compiled(lambda A, b: ti.linear_solve(A, b, max_steps=0, on_failure="ignore"))(MATRIX_5, b)
    assert info.status == ti.linear_solve(MATRIX_5, b, max_steps=0, on_failure="ignore")[1].status
    with pytest.raises(Exception, match="on_failure must be"):
        compiled(lambda A, b: ti.linear_solve(A, b, on_failure="rasie")[0])(MATRIX_5, b)


def test_a_sparse_matrix_is_refused_by_name() -> None:
    A = torch.eye(3, dtype=D).to_sparse_coo()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="sparse"):
        compiled(lambda b: ti.linear_solve(A, b)[0])(torch.ones(3, dtype=D))


def test_a_sparse_matrix_breaks_the_graph_where_it_may() -> None:
    A = (4 * torch.eye(3, dtype=D)).to_sparse_coo()
    torch._dynamo.reset()
    found = torch.compile(lambda b: 2 * ti.linear_solve(A, b)[0], backend="aot_eager")(torch.ones(3, dtype=D))
    torch.testing.assert_close(found, torch.full((3,), 0.5, dtype=D))
