"""What a solve costs, counted: operations on tensors, values that Python waits for, factorisations, evaluations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import torchimplicit as ti
from torchimplicit.autograd.transforms import FEW
from torchimplicit.problems.root import Root
from torchimplicit.solvers.equations import Equations

SYNCHRONISATION = "aten._local_scalar_dense.default"  # bool(tensor), tensor.item(): the device has to finish first


class Operations(TorchDispatchMode):
    """Counts the operations that reach the kernels, but not views of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


W = torch.tensor([[0.2, -0.4, 0.1], [0.3, 0.1, 0.2], [-0.1, 0.25, 0.3]], dtype=torch.float64)
B = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(20, 3)
assert len(B) > FEW  # the values of fewer systems are read as a list, which is waiting that no operation shows
EVALUATION = 3  # operations of one evaluation: mm, add, tanh


def cell(z: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(z @ W.T + b)


def counted(steps: int, solver: Any) -> Counter[str]:
    """The operations of a forward solve that takes so many steps and does not get there."""
    with Operations() as operations, torch.no_grad():
        _, info = ti.fixed_point(
            cell,
            torch.zeros_like(B),
            (B,),
            batch_ndim=1,
            solver=solver,
            rtol=0.0,
            atol=1e-300,
            max_steps=steps,
            on_failure="ignore",
        )
    assert info.steps.tolist() == [steps] * len(B)
    return operations.counts


def of_one_step(solver: Any) -> Counter[str]:
    """The operations of a step, as long as every system comes closer."""
    counts = counted(3, solver)
    counts.subtract(counted(2, solver))
    return counts


def total(counts: Counter[str]) -> int:
    return sum(counts.values())


@pytest.mark.parametrize(
    ("solver", "of_method", "waits"),
    [
        ("picard", 1, 0),  # z − r
        (ti.solvers.Picard(damping=0.5), 3, 0),
        ("anderson", 47, 1),  # waits to know whether the residual has grown
    ],
    ids=["picard", "damped", "anderson"],
)
def test_the_loop_adds_few_operations_to_those_of_a_step(solver: Any, of_method: int, waits: int) -> None:
    step = of_one_step(solver)
    residual = EVALUATION + 1
    assert total(step) <= residual + of_method + 17
    assert step[SYNCHRONISATION] <= 3 + waits


def of_anderson(steps: int) -> Counter[str]:
    """The operations of so many steps on 40 unknowns that contract slowly."""
    S = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    S = 0.95 * S @ S.T / torch.linalg.matrix_norm(S, 2) ** 2
    with Operations() as operations, torch.no_grad():
        _, info = ti.fixed_point(
            lambda z: z @ S + 0.1,
            torch.zeros(len(B), 40, dtype=torch.float64),
            batch_ndim=1,
            solver="anderson",
            rtol=1e-15,
            max_steps=steps,
            on_failure="ignore",
        )
    # The start, and what a failure is asked: is it noise, do rows influence each other? None for a safeguard.
    assert int(info.evaluations) <= steps + 5
    return operations.counts


def test_anderson_mixes_at_every_third_step_and_does_little_else() -> None:
    three = of_anderson(9)
    three.subtract(of_anderson(6))
    assert three["aten._linalg_solve_ex.default"] == 1
    assert three["aten.bmm.default"] == 3  # the Gram matrix, its right-hand side, the mixture
    assert three["aten.mm.default"] == 3  # the evaluations
    assert three[SYNCHRONISATION] <= 12
    assert total(three) <= 150


def test_the_loop_adds_thirteen_operations_and_a_substitution_to_a_step_of_newton_in_which_all_come_closer() -> None:
    def g(z: Tensor) -> Tensor:
        return z**3 + z + z @ W.T - B

    start = 0 * B + 9  # from where many steps are far from the root

    def solved(steps: int) -> Counter[str]:
        with Operations() as operations, torch.no_grad():
            _, info = ti.root(
                g, start, solver="newton", batch_ndim=1, rtol=0.0, atol=0.0, max_steps=steps, on_failure="ignore"
            )
        assert info.steps.tolist() == [steps] * len(B)
        return operations.counts

    solver, equations = ti.solvers.Newton(), Equations(g, Root())
    with torch.no_grad():
        r, state = solver.init(equations, start)
        with Operations() as of_method:
            solver.step(equations, start, r, state)
    step = solved(3)  # two steps at least: from then on the loop sees how estimates fall
    step.subtract(solved(2))
    step.subtract(of_method.counts)
    assert step[SYNCHRONISATION] <= 3  # whether all have come closer, whether z is finite, whether something has ended
    assert total(step) - step[SYNCHRONISATION] - step["aten.linalg_lu_solve.default"] <= 13


def test_newton_factorises_once_a_step_and_not_where_it_has_converged() -> None:
    with Operations() as operations, torch.no_grad():
        _, info = ti.root(lambda z: z**3 + z + z @ W.T - B, torch.zeros_like(B), batch_ndim=1, solver="newton")
    assert info.converged.all()
    steps = int(info.steps.max())
    assert operations.counts["aten.linalg_lu_factor_ex.default"] == steps
    assert info.evaluations == steps + 1
    assert info.products == 3 * steps


@pytest.mark.parametrize("every", [2, 3])
def test_a_jacobian_that_serves_several_steps_is_factorised_once_for_them(every: int) -> None:
    solver = ti.solvers.Newton(every=every)
    with Operations() as operations, torch.no_grad():
        _, info = ti.root(lambda z: z**3 + z + z @ W.T - B, torch.zeros_like(B), batch_ndim=1, solver=solver)
    steps = int(info.steps.max())
    assert operations.counts["aten.linalg_lu_factor_ex.default"] == -(-steps // every)


def test_the_backward_factorises_nothing_where_the_forward_left_its_factors() -> None:
    b = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(12, 3).requires_grad_()
    z, info = ti.root(lambda z: z**3 + z + z @ W.T - b, torch.zeros_like(b), batch_ndim=1, solver="newton")
    with Operations() as operations:
        z.sum().backward()
    assert operations.counts["aten.linalg_lu_factor_ex.default"] == 0
    assert info.adjoint is not None
    assert info.adjoint.products <= 3


def test_a_tiny_jacobian_is_factorised_anew_and_one_product_is_all_besides() -> None:
    b = B[:2].clone().requires_grad_()
    z, info = ti.root(lambda z: z**3 + z + z @ W.T - b, torch.zeros_like(b), batch_ndim=1, solver="newton", rtol=1e-14)
    with Operations() as operations:
        z.sum().backward()
    assert operations.counts["aten.linalg_lu_factor_ex.default"] == 1
    assert info.adjoint is not None
    assert info.adjoint.converged.all()
    assert info.adjoint.products == 3 + 1
    assert info.adjoint.residual.max() < 1e-12
    J = torch.diag_embed(3 * z.detach() ** 2 + 1) + W
    expected = torch.linalg.solve(J.mT, torch.ones_like(B[:2]))
    assert torch.allclose(b.grad, expected, rtol=1e-12)


class Counted:
    """A function that counts its evaluations."""

    def __init__(self, f: Any) -> None:
        self.f, self.count = f, 0

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.f(*args)


SMALL = {
    "root": (ti.root, lambda z, b: z**3 + z @ W.T - b, B[0]),
    "fixed point": (ti.fixed_point, lambda z, b: torch.tanh(z @ W.T + b), B[0]),
    "minimum": (ti.minimize, lambda z, b: (z**4).sum() + ((z - b) ** 2).sum() + (W @ z).sin().sum(), B[0]),
    "fit": (ti.least_squares, lambda z, b: torch.cat([z - b, z.exp(), (W @ z).sin()]), B[0]),
}


@pytest.mark.parametrize("name", SMALL)
def test_one_evaluation_beside_those_of_the_search_serves_the_record_and_the_whole_backward(name: str) -> None:
    solve, f, b = SMALL[name]
    g, b = Counted(f), b.clone().requires_grad_()
    z, info = solve(g, torch.full_like(b.detach(), 0.1), (b,))
    assert g.count == int(info.evaluations) + 1
    before = g.count
    z.sum().backward()
    # A fit converges linearly: where the error that is left is about the tolerance, it is worth a look from beside z*.
    assert g.count <= before + (name == "fit")


def test_the_graph_of_a_large_evaluation_does_not_wait_for_the_backward() -> None:
    g, b = Counted(cell), torch.full((2**10, 3), 0.3, dtype=torch.float64, requires_grad=True)
    z, info = ti.fixed_point(g, torch.ones_like(b.detach()), (b,), batch_ndim=1)
    assert g.count == int(info.evaluations) + 1
    z.sum().backward()
    assert g.count == int(info.evaluations) + 2


def test_what_a_call_adds_to_its_steps_is_few_operations() -> None:
    def g(z: Tensor, b: Tensor) -> Tensor:
        return z - torch.tanh(W @ z + b)

    def call(b: Tensor) -> tuple[Tensor, int]:
        with Operations() as operations:
            z = ti.root(g, torch.zeros_like(B[0]), (b,)).value
        return z, total(operations.counts)

    _, alone = call(B[0])
    b = B[0].clone().requires_grad_()
    with torch.no_grad():
        _, value = call(b)
    z, recorded = call(b)
    with Operations() as operations:
        z.sum().backward()
    of_g = 4  # mv, add, tanh, sub
    assert alone - value <= of_g + 4
    assert recorded - value <= of_g + 6
    assert total(operations.counts) <= 46  # twenty-three of them ask how far z is from the root


def test_one_jacobian_is_all_that_broyden_from_it_needs() -> None:
    solver = ti.solvers.Broyden(start="jacobian")
    with Operations() as operations, torch.no_grad():
        _, info = ti.root(lambda z: z**3 + z + z @ W.T - B, torch.zeros_like(B), batch_ndim=1, solver=solver)
    assert info.converged.all()
    assert operations.counts["aten.linalg_lu_factor_ex.default"] == 1
    assert info.products == 3
    assert info.evaluations == int(info.steps.max()) + 1


def test_a_step_of_broyden_reads_its_windows_twice() -> None:
    assert of_one_step("broyden")["aten.bmm.default"] == 4  # a product with (I + Σ u vᵀ), and one with its transpose


def test_what_does_not_depend_on_z_is_computed_once() -> None:
    U = torch.randn(200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 40
    x = torch.linspace(-1, 1, 400, dtype=torch.float64).reshape(2, 200)
    with Operations() as operations, torch.no_grad():
        _, info = ti.fixed_point(
            lambda z, x: torch.tanh(z @ U.T / 2 + x @ U), 0 * x, (x,), batch_ndim=1, solver="picard"
        )
    assert operations.counts["aten.mm.default"] == info.evaluations + 1
