"""The derivatives of minima and fits within bounds, in the bounds and in parameters, of all orders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from .test_bounds import D, held, phi, random


def solution(b: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return ti.minimize(phi, torch.zeros_like(b), (b,), bounds=(lower, upper), rtol=1e-13).value


def limits() -> tuple[Tensor, Tensor, Tensor]:
    b = torch.tensor([2.0, -2.0, 0.1, 1.5, -0.2], dtype=D)
    return b, torch.full((5,), -1.0, dtype=D), torch.tensor([0.5, 3.0, 3.0, torch.inf, 2.0], dtype=D)


def test_derivatives_in_parameters_and_bounds_are_those_of_differences() -> None:
    b, lower, upper = limits()
    z = solution(b, lower, upper)
    assert held(z, lower, upper).tolist() == [True, True, False, False, False]
    arguments = [t.clone().requires_grad_() for t in (b, lower, upper)]
    exact = torch.autograd.functional.jacobian(solution, tuple(arguments))
    h = 1e-5
    for k in range(3):
        for j in range(5):
            step = torch.zeros(5, dtype=D)
            step[j] = h
            ends = [
                solution(*(t + sign * step if i == k else t for i, t in enumerate((b, lower, upper))))
                for sign in (1, -1)
            ]
            torch.testing.assert_close(exact[k][:, j], (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    assert exact[2][0, 0] == 1
    assert exact[1][1, 1] == 1


def test_second_derivatives_are_exact_too() -> None:
    b, lower, upper = (t.requires_grad_() for t in limits())
    assert torch.autograd.gradcheck(solution, (b, lower, upper), atol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(solution, (b, lower, upper), atol=1e-5, fast_mode=True)


def test_derivatives_under_vmap_are_those_of_each_system() -> None:
    _, lower, upper = limits()
    b = 2 * random(3, 5)
    together = torch.vmap(torch.func.jacrev(solution, argnums=(0, 2)), in_dims=(0, None, None))(b, lower, upper)
    for i in range(3):
        alone = torch.func.jacrev(solution, argnums=(0, 2))(b[i], lower, upper)
        for part, single in zip(together, alone, strict=True):
            torch.testing.assert_close(part[i], single, rtol=1e-8, atol=1e-10)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("max_inner", [None, 50])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_unrolled_steps_have_the_same_derivatives(max_inner: int | None, checkpoint: bool) -> None:
    arguments = [t.requires_grad_() for t in limits()]
    b, lower, upper = arguments
    z = ti.minimize(
        phi,
        torch.zeros(5, dtype=D),
        (b,),
        bounds=(lower, upper),
        solver=ti.solvers.ProjectedNewton(max_inner=max_inner),
        adjoint=ti.Unrolled(steps=8, checkpoint=checkpoint),
    ).value
    explicit, exact = (torch.autograd.grad(v.square().sum(), arguments) for v in (z, solution(b, lower, upper)))
    for one, other in zip(explicit, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Unrolled(steps=4), ti.OneStep()])
@pytest.mark.parametrize("target", [-3.0, 0.5, 3.0])
def test_between_equal_bounds_the_solution_is_the_bound(target: float, adjoint: object) -> None:
    """z* = b, whichever way the slope there points: derivative 1, and no second one."""
    b = torch.tensor(0.5, dtype=D, requires_grad=True)
    c = torch.tensor(target, dtype=D, requires_grad=True)
    zero = torch.zeros((), dtype=D)
    for z in (
        ti.minimize(lambda z: (z - c) ** 2 + z**4, zero, bounds=(b, b), adjoint=adjoint).value,
        ti.least_squares(lambda z: z + z**3 - c, zero, bounds=(b, b), adjoint=adjoint).value,
    ):
        assert z == 0.5
        first = torch.autograd.grad(z, (b, c), create_graph=True)
        assert [g.item() for g in first] == [1, 0]
        if isinstance(adjoint, ti.Implicit):
            assert not any(torch.autograd.grad(first[0], (b, c), allow_unused=True, materialize_grads=True))


def test_some_unknowns_fixed_by_equal_bounds_are_parameters_of_the_others() -> None:
    """The derivatives in the fixed values are those in a parameter that takes their place; also under vmap, and of second order."""
    b = 2 * random(3)
    fixed = torch.tensor([0.4, -0.3, 0.2], dtype=D)

    def bounded(b: Tensor, fixed: Tensor) -> Tensor:
        free = torch.full((1,), torch.inf, dtype=D)
        lower, upper = torch.cat([fixed[:1], -free, fixed[1:]]), torch.cat([fixed[:1], free, fixed[1:]])
        target = torch.cat([b, b[:1] * b[1:2]])
        return ti.minimize(phi, torch.zeros(4, dtype=D), (target,), bounds=(lower, upper), rtol=1e-14).value

    def reduced(b: Tensor, fixed: Tensor) -> Tensor:
        target = torch.cat([b, b[:1] * b[1:2]])
        whole = lambda z: torch.cat([fixed[:1], z, fixed[1:]])  # noqa: E731
        z = ti.minimize(lambda z: phi(whole(z), target), torch.zeros(1, dtype=D), rtol=1e-14).value
        return whole(z)

    both = {"argnums": (0, 1)}
    for derivative, values in (
        (lambda f: torch.func.jacrev(f, **both), fixed),
        (lambda f: torch.func.jacfwd(f, **both), fixed),
        (lambda f: torch.func.jacrev(torch.func.jacrev(f, argnums=1), **both), fixed),
        (lambda f: torch.vmap(torch.func.jacrev(f, **both), in_dims=(None, 0)), torch.stack([fixed, -fixed])),
    ):
        for one, other in zip(derivative(bounded)(b, values), derivative(reduced)(b, values), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("flat", [False, True])
def test_a_minimum_beside_a_bound_that_holds_another_has_a_derivative_unless_it_is_flat(flat: bool) -> None:
    """What is seen from beside z* says whether there is one; there the bound still holds what it holds."""
    x = torch.tensor([0.25, 3.0], dtype=D, requires_grad=True)
    z, info = ti.minimize(
        lambda z, x: (z[0] - x[0]) ** (4 if flat else 2) + (z[1] - x[1]) ** 2 + z[0] * (z[1] - 1),
        torch.ones(2, dtype=D),
        (x,),
        bounds=(-5.0, 1.0),
        on_failure="ignore",
    )
    assert z[1] == 1
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert (info.converged and info.adjoint.converged) != flat
    if not flat:
        torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0], dtype=D), rtol=1e-7, atol=1e-9)
