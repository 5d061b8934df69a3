"""Every solver gives the same gradient; every approximate adjoint is what its formula says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from ..every_solver import GENERAL
from .problems import randn

N = 4
EYE = torch.eye(N, dtype=torch.float64)
ZERO = torch.zeros(N, dtype=torch.float64)


def system() -> tuple[Tensor, Tensor]:
    """W (asymmetric, of norm below one) and x for f(z) = tanh(W z + x)."""
    W = randn(N, N, seed=1)
    return (W / (2 * torch.linalg.matrix_norm(W, 2))).requires_grad_(), randn(N, seed=2).requires_grad_()


def f(z: Tensor, W: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(W @ z + x)


V = randn(N, seed=3)


def solved(problem: str = "fixed_point", **options: object) -> tuple[Tensor, Tensor]:
    """The gradient in x and W of V·z*."""
    W, x = system()
    g = f if problem == "fixed_point" else (lambda z, W, x: z - f(z, W, x))
    z = getattr(ti, problem)(g, ZERO, (W, x), **{"rtol": 1e-13, **options}).value
    grads: tuple[Tensor, Tensor] = torch.autograd.grad(z @ V, (x, W))
    return grads


def by_series(coefficients: list[float]) -> tuple[Tensor, Tensor]:
    """Σₖ cₖ (Jᵀ)ᵏ V with J = ∂f/∂z, pulled back to x and W."""
    W, x = system()
    z = ZERO
    for _ in range(200):
        z = f(z, W, x).detach()
    J = torch.func.jacrev(f)(z, W, x).detach()
    u, power = torch.zeros_like(V), V
    for c in coefficients:
        u, power = u + c * power, J.T @ power
    grads: tuple[Tensor, Tensor] = torch.autograd.grad(f(z, W, x), (x, W), u)
    return grads


def exact() -> tuple[Tensor, Tensor]:
    return by_series([1.0] * 200)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...], atol: float = 1e-9) -> bool:
    return all(torch.allclose(p, q, rtol=0, atol=atol) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("problem", ["fixed_point", "root"])
def test_every_solver_gives_the_exact_gradient(problem: str, solver: str) -> None:
    assert same(solved(problem, solver=solver), exact())


@pytest.mark.parametrize("solver", GENERAL)
def test_a_loose_forward_gives_the_gradient_of_its_own_tolerance(solver: str) -> None:
    assert same(solved(solver=solver, rtol=1e-4), exact(), atol=2e-3)


LINEAR = ["LU", "QR", "GMRES", "BiCGStab", "Auto"]


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("problem", ["fixed_point", "root"])
def test_every_linear_solver_gives_the_exact_gradient(problem: str, linear: str) -> None:
    assert same(solved(problem, adjoint=ti.Implicit(getattr(ti.linear, linear)())), exact())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_unrolling_until_convergence_gives_the_exact_gradient(solver: str, checkpoint: bool) -> None:
    adjoint = ti.Unrolled(checkpoint=checkpoint)
    assert same(solved(solver=solver, adjoint=adjoint, max_steps=200), exact(), atol=1e-5)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("solver", GENERAL)
def test_checkpointing_does_not_change_the_unrolled_gradient(solver: str, steps: int) -> None:
    plain = solved(solver=solver, adjoint=ti.Unrolled(steps), on_failure="ignore")
    assert same(solved(solver=solver, adjoint=ti.Unrolled(steps, checkpoint=True), on_failure="ignore"), plain, 1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_unrolled_plain_steps_are_the_chain_rule_over_them(steps: int) -> None:
    W, x = system()
    z = ZERO
    for _ in range(steps):
        z = f(z, W, x)
    expected = torch.autograd.grad(z @ V, (x, W))
    found = solved(solver=ti.solvers.Picard(), adjoint=ti.Unrolled(steps), on_failure="ignore")
    assert same(found, expected, 1e-12)


def test_the_unrolled_error_falls_with_the_steps() -> None:
    errors = [
        float((solved(solver="picard", adjoint=ti.Unrolled(k), on_failure="ignore")[0] - exact()[0]).norm())
        for k in (2, 4, 8, 16, 32)
    ]
    assert all(b < a / 2 for a, b in pairwise(errors))


def test_one_step_replaces_the_inverse_by_the_identity() -> None:
    assert same(solved(adjoint=ti.OneStep()), by_series([1.0]))
    assert same(solved("root", adjoint=ti.OneStep()), by_series([1.0]))


@pytest.mark.parametrize("terms", [1, 2, 6])
def test_neumann_is_the_sum_of_so_many_powers(terms: int) -> None:
    assert same(solved(adjoint=ti.Implicit(ti.linear.Neumann(terms))), by_series([1.0] * terms))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_phantom_is_the_neumann_series_of_the_damped_step(steps: int, damping: float) -> None:
    """damping · Σ_{k < steps} ((1 − damping) I + damping Jᵀ)ᵏ V, expanded in powers of Jᵀ."""
    polynomial, power = [0.0] * steps, [1.0]
    for _ in range(steps):
        polynomial = [p + damping * (power[i] if i < len(power) else 0.0) for i, p in enumerate(polynomial)]
        shifted = [0.0, *(damping * p for p in power)]
        power = [s + (1 - damping) * (power[i] if i < len(power) else 0.0) for i, s in enumerate(shifted)]
    assert same(solved(adjoint=ti.Phantom(steps, damping)), by_series(polynomial))


def test_phantom_tends_to_the_exact_gradient() -> None:
    assert same(solved(adjoint=ti.Phantom(120, 0.9)), exact())


def test_phantom_steps_that_lead_away_do_not_move_the_value() -> None:
    x = torch.tensor(
        41.0, dtype=torch.float64, requires_grad=True
    )  # the root is 1, and plain steps there grow by a factor of 20
    z, info = ti.root(lambda z: 40 * z + z**3 - x, torch.tensor(0.5, dtype=torch.float64), adjoint=ti.Phantom(3, 0.5))
    assert info.converged
    assert abs(z.item() - 1) < 1e-8


@pytest.mark.parametrize("adjoint", [ti.OneStep(), ti.Phantom(3, 0.5), ti.Implicit(ti.linear.Neumann(3))])
def test_the_approximate_adjoints_are_the_same_inside_transforms(adjoint: object) -> None:
    W, x = (t.detach() for t in system())

    def loss(x: Tensor) -> Tensor:
        return ti.fixed_point(f, ZERO, (W, x), rtol=1e-13, adjoint=adjoint).value @ V

    plain = solved(adjoint=adjoint)[0]
    assert torch.allclose(torch.func.grad(loss)(x), plain, atol=1e-9)
    assert torch.allclose(torch.vmap(torch.func.grad(loss))(torch.stack([x, 2 * x]))[0], plain, atol=1e-9)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "solver", [s if s != "newton_krylov" else pytest.param(s, marks=pytest.mark.slow) for s in GENERAL]
)
def test_unrolled_steps_are_differentiated_inside_transforms(solver: str) -> None:
    W, x = (t.detach() for t in system())

    def loss(x: Tensor) -> Tensor:
        return ti.fixed_point(f, ZERO, (W, x), solver=solver, adjoint=ti.Unrolled(6), on_failure="ignore").value @ V

    plain = torch.stack(
        [torch.autograd.grad(loss(y), y)[0] for y in (x.clone().requires_grad_(), (2 * x).requires_grad_())]
    )
    assert torch.allclose(torch.func.grad(loss)(x), plain[0], atol=1e-10)
    assert torch.allclose(torch.vmap(torch.func.grad(loss))(torch.stack([x, 2 * x])), plain, atol=1e-10)


@pytest.mark.parametrize(
    "solver", [s if s != "newton_krylov" else pytest.param(s, marks=pytest.mark.slow) for s in GENERAL]
)
def test_unrolled_steps_under_vmap_are_differentiated_outside(solver: str) -> None:
    W, x = (t.detach() for t in system())
    xs = torch.stack([x, 2 * x]).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return ti.fixed_point(f, ZERO, (W, x), solver=solver, adjoint=ti.Unrolled(6), on_failure="ignore").value @ V

    (found,) = torch.autograd.grad(torch.vmap(loss)(xs).sum(), xs)
    (expected,) = torch.autograd.grad(loss(xs[0]) + loss(xs[1]), xs)
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_checkpointed_steps_are_refused_inside_transforms(transform: str, solver: str) -> None:
    W, x = (t.detach() for t in system())

    def loss(x: Tensor) -> Tensor:
        return ti.fixed_point(f, ZERO, (W, x), solver=solver, adjoint=ti.Unrolled(3, checkpoint=True)).value @ V

    run = {
        "grad": lambda: torch.func.grad(loss)(x),
        "vmap": lambda: torch.vmap(loss)(torch.stack([x, x])),
        "jvp": lambda: torch.func.jvp(loss, (x,), (x,)),
    }
    with pytest.raises(RuntimeError, match=r"checkpoint=True.*recomputes its steps"):
        run[transform]()


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "vmap(grad)"])
@pytest.mark.parametrize("steps", [5, None])
def test_unrolled_inside_a_transform_runs_steps_or_else_max_steps(transform: str, steps: int | None) -> None:
    """Whatever the residual says: the start is a root already, and in plain code no step would be taken."""
    W, x = (t.detach() for t in system())
    z0 = ti.fixed_point(f, ZERO, (W, x), rtol=1e-13, solver="newton").value
    seen: list[int] = []
    adjoint = ti.Unrolled(steps)
    options = {"solver": "picard", "adjoint": adjoint, "max_steps": 9, "callback": lambda k, z, r: seen.append(k)}

    def run(x: Tensor) -> Tensor:
        return ti.fixed_point(f, z0, (W, x), **options).value @ V

    xs = torch.stack([x, x])
    if transform == "vmap":
        torch.vmap(run)(xs)
    elif transform == "grad":
        torch.func.grad(run)(x)
    elif transform == "jvp":
        torch.func.jvp(run, (x,), (x,))
    else:
        torch.vmap(torch.func.grad(run))(xs)
    assert seen == list(range((steps or 9) + 1))


@pytest.mark.parametrize("steps", [None, 12])
@pytest.mark.parametrize(
    "solver", ["newton", "dogleg", "trust_newton", "projected_newton", "gauss_newton", "levenberg_marquardt"]
)
def test_the_explicit_way_from_a_start_that_is_the_solution_of_some_systems_only(
    solver: str, steps: int | None
) -> None:
    """A step of length 0 from there is the Newton step, whose derivative is that of the solution."""
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    W = torch.tensor([[2.0, 0.5], [0.2, 1.0]], dtype=torch.float64)
    start = torch.stack([a.detach()[0], torch.zeros(2).double()])
    how = {"solver": solver, "batch_ndim": 1, "adjoint": ti.Unrolled(steps=steps)}
    solved = [ti.least_squares(lambda z: (z - a) @ W, start, **how)]
    if solver in ("trust_newton", "projected_newton"):
        solved.append(ti.minimize(lambda z: ((z - a) @ W * (z - a)).sum(-1), start, **how))
    else:
        solved.append(ti.root(lambda z: (z - a) @ W, start, **how))
    for z, info in solved:
        assert info.converged.all()
        (gradient,) = torch.autograd.grad(z.sum(), a)
        torch.testing.assert_close(gradient, torch.ones_like(a), rtol=1e-6, atol=0)
