"""A gradient through a singular Jacobian, or through a solve that failed, is never returned without a report."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.status import Status

from ..every_solver import GENERAL
from .problems import randn, well

POLICIES = ["warn", "raise", "nan", "ignore"]


def rank_deficient(n: int, exactly: bool = True) -> Tensor:
    """An asymmetric matrix with one dependent row: exactly so (in integers), or to rounding only."""
    A = (10 * well(n, seed=n)).round() if exactly else well(n, seed=n)
    A[-1] = A[0] + 2 * A[1] if exactly else A[0] / 3 + A[1] * torch.pi
    return A


def zero_of(A: Tensor, x: Tensor, **options: object) -> ti.Solution:
    """z = 0 is a root of A z + z³ + x for x = 0, and the start: only its derivative is in question."""
    return ti.root(lambda z, x: A @ z + z**3 + x, torch.zeros(len(A), dtype=A.dtype), (x,), **options)


def expect_report(policy: str, run: Callable[[], tuple[Tensor, Callable[[], int]]]) -> None:
    """``run`` returns the gradient and a way to ask for the recorded status of the backward."""
    if policy == "raise":
        with pytest.raises(ti.ConvergenceError, match="derivative"):
            run()
    elif policy == "warn":
        with pytest.warns(ti.ConvergenceWarning, match="derivative"):
            run()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            grad, status = run()
        assert status() != Status.CONVERGED
        assert policy == "ignore" or bool(grad.isnan().all())


@pytest.mark.sampled(13)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("exactly", [True, False], ids=["exactly", "to rounding"])
@pytest.mark.parametrize("n", [3, 20, 63, 64, 65, 66])
@pytest.mark.parametrize("solver", ["newton", "newton_krylov", "anderson"])
def test_a_singular_jacobian_at_the_start_is_reported(policy: str, exactly: bool, n: int, solver: str) -> None:
    A = rank_deficient(n, exactly)
    x = torch.zeros(n, dtype=torch.float64, requires_grad=True)

    def run() -> tuple[Tensor, Callable[[], int]]:
        z, info = zero_of(A, x, solver=solver, on_failure=policy)
        z[0].backward()
        return x.grad, lambda: int(info.adjoint.status)

    expect_report(policy, run)


@pytest.mark.parametrize("n", [3, 40, 63, 64])
@pytest.mark.parametrize("solver", ["newton", "newton_krylov"])
def test_a_consistent_right_hand_side_does_not_hide_a_singular_jacobian(n: int, solver: str) -> None:
    A = rank_deficient(n)
    x = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    z = zero_of(A, x, solver=solver).value
    with pytest.warns(ti.ConvergenceWarning, match="derivative"):
        z.backward(A.T @ randn(n, seed=9))


@pytest.mark.parametrize(
    ("n", "solver"), [(5, "newton"), (64, "newton"), (65, "newton"), (80, "newton"), (5, "newton_krylov")]
)
def test_a_singular_jacobian_at_a_root_that_is_only_approached_is_reported(n: int, solver: str) -> None:
    A = rank_deficient(n)
    x = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a triple root, to which all solvers come slowly, if they do
        z = ti.root(lambda z: A @ z + z**3 + x, 0.01 + randn(n, seed=2) / 30, solver=solver).value
    with pytest.warns(ti.ConvergenceWarning, match="derivative"):
        z[0].backward()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_a_double_root_is_reported(solver: str, start: float) -> None:
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def run() -> None:
        ti.root(lambda z: z**2 - x, torch.tensor(start, dtype=torch.float64), solver=solver).value.backward()

    with pytest.warns(ti.ConvergenceWarning):
        run()


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "vmap_grad", "jvp", "forward_ad"])
def test_a_singular_jacobian_is_reported_inside_transforms_and_forward_mode(transform: str) -> None:
    A = rank_deficient(4)
    x = torch.zeros(4, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return zero_of(A, x).value[0]

    def forward_ad() -> None:
        with torch.autograd.forward_ad.dual_level():
            f(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))

    run = {
        "grad": lambda: torch.func.grad(f)(x),
        "jacrev": lambda: torch.func.jacrev(f)(x),
        "jacfwd": lambda: torch.func.jacfwd(f)(x),
        "vmap_grad": lambda: torch.vmap(torch.func.grad(f))(torch.stack([x, x])),
        "jvp": lambda: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
        "forward_ad": forward_ad,
    }
    with pytest.warns(ti.ConvergenceWarning, match="derivative"):
        run[transform]()


def test_the_derivative_of_the_derivative_reports_too() -> None:
    A = rank_deficient(3)
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    z = zero_of(A, x).value
    with pytest.warns(ti.ConvergenceWarning, match="derivative"):
        torch.autograd.grad(z.square().sum() + z.sum(), x, create_graph=True)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["dense", "consistent", "callable", "sparse"])
def test_a_singular_linear_system_is_reported_forward_and_backward(policy: str, kind: str) -> None:
    A = rank_deficient(4)
    b = randn(4, seed=7)
    b = (A @ b if kind == "consistent" else b).requires_grad_()
    matrix = {"callable": lambda z: A @ z, "sparse": A.to_sparse()}.get(kind, A)
    if policy == "raise":
        with pytest.raises(ti.ConvergenceError):
            ti.linear_solve(matrix, b, on_failure=policy)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ti.ConvergenceWarning)
        z, info = ti.linear_solve(matrix, b, on_failure=policy)
    assert not info.converged
    if policy == "nan":
        assert bool(z.isnan().all())
    if policy == "warn":
        with pytest.warns(ti.ConvergenceWarning, match="derivative"):
            z.sum().backward()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            z.sum().backward()
        assert policy == "nan" or not info.adjoint.converged  # nothing is asked of a NaN


@pytest.mark.parametrize("problem", ["minimize", "least_squares"])
def test_a_minimum_that_is_not_isolated_has_no_derivative(problem: str) -> None:
    """Only z₀ + 2 z₁ is determined."""
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([0.2, 0.4], dtype=torch.float64)  # a minimum already
    objective = {"minimize": lambda z: (z[0] + 2 * z[1] - x) ** 2, "least_squares": lambda z: z[:1] + 2 * z[1:] - x}
    z = getattr(ti, problem)(objective[problem], start).value
    with pytest.warns(ti.ConvergenceWarning, match="derivative"):
        z[0].backward()


def test_only_the_singular_system_of_a_batch_is_named_and_the_others_are_exact() -> None:
    x = torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    z, info = ti.root(lambda z: z**2 - x, start, batch_ndim=1)
    with pytest.warns(ti.ConvergenceWarning, match="1 of 3 systems"):
        z.sum().backward()
    assert info.adjoint.status.tolist() == [Status.CONVERGED, Status.SINGULAR, Status.CONVERGED]
    assert torch.allclose(x.grad[[0, 2]], torch.tensor([0.5, 0.25], dtype=torch.float64))


def test_a_black_box_answer_at_a_singular_point_is_reported() -> None:
    solve = ti.implicit(lambda z, x: z**2 - x)(lambda x: x.sqrt())
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    with pytest.warns(ti.ConvergenceWarning, match="derivative"):
        solve(x).sum().backward()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_failed_forward_is_reported_before_any_gradient(policy: str) -> None:
    x = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)

    def solve() -> ti.Solution:
        return ti.root(lambda z: z**2 - x, torch.tensor(0.7, dtype=torch.float64), on_failure=policy)

    if policy == "raise":
        with pytest.raises(ti.ConvergenceError):
            solve()
    elif policy == "warn":
        with pytest.warns(ti.ConvergenceWarning, match="root"):
            solve()
    else:
        z, info = solve()
        assert not info.converged
        assert bool(z.isnan()) == (policy == "nan")


def test_a_curve_of_roots_is_reported_also_where_newton_converges_fast_to_it() -> None:
    def solve(g: Callable[[Tensor, Tensor], Tensor], p: Tensor) -> ti.Solution:
        z, info = ti.root(g, torch.ones(2, dtype=torch.float64), (p,), on_failure="warn")
        z.sum().backward()
        return info

    p = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    with pytest.warns(ti.ConvergenceWarning, match="singular"):  # every (0, z₂) is a root
        solve(lambda z, p: torch.stack([z[0].exp() - 1 - p, z[0] * (z[1] + 2)]), p)
    p.grad = None
    solve(
        lambda z, p: torch.stack([z[0].exp() - 1 - p, z[0] + z[1] + 2]), p
    )  # an unknown that is zero is nothing unusual
    assert p.grad is not None
    assert abs(p.grad) < 1e-9


# Plain steps diverge here.
@pytest.mark.parametrize("solver", [name for name in GENERAL if name != "picard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4])
def test_a_loose_solve_of_a_regular_root_is_not_called_singular(solver: str, dtype: torch.dtype, rtol: float) -> None:
    A = well(5, dtype=dtype)
    x = randn(5, seed=4, dtype=dtype).requires_grad_()
    z, info = ti.root(lambda z: A @ z + z**3 + x.sin(), torch.zeros_like(x), solver=solver, rtol=rtol)
    z.sum().backward()
    assert info.adjoint.converged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_ill_conditioned_regular_root_is_not_called_singular(dtype: torch.dtype) -> None:
    U, _, Vh = torch.linalg.svd(well(5, dtype=dtype))
    A = U @ torch.diag(torch.logspace(0, -2 if dtype == torch.float32 else -6, 5, dtype=dtype)) @ Vh
    x = randn(5, seed=4, dtype=dtype).requires_grad_()
    z, info = ti.root(lambda z: A @ z + (A @ z) ** 3 - A @ x, torch.zeros_like(x))
    z.sum().backward()
    assert info.adjoint.converged
