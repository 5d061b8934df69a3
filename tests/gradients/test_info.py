"""The facts of a solve and its auxiliary output survive transforms; the backward's facts are filled in when it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti

from .problems import randn, well

N = 3
W = well(N)
LEAVES = ["converged", "status", "steps", "residual", "evaluations", "products"]
ADJOINTS = [None, ti.OneStep(), ti.Phantom(2), ti.Unrolled(), ti.Unrolled(3)]


def layer(x: Tensor, scale: float = 1.0, **options: Any) -> ti.Solution:
    zero = torch.zeros(N, dtype=torch.float64)
    return ti.root(lambda z: (W @ z + (z**3).flip(0) / 9 - x) * scale, zero, **{"rtol": 1e-10, **options})


def with_aux(x: Tensor, **options: Any) -> ti.Solution:

    def g(z: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return W @ z + z**3 - x, {"norm": z.norm(), "pair": (z * 2, "text"), "x": x}

    return ti.root(g, torch.zeros(N, dtype=torch.float64), rtol=1e-10, has_aux=True, **options)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_info_survives_vmap_and_is_each_samples_own(adjoint: Any) -> None:
    xs = torch.stack([randn(N, seed=1), 10 * randn(N, seed=2), torch.zeros(N, dtype=torch.float64)])
    options = {"adjoint": adjoint, "solver": "newton", "on_failure": "ignore", "max_steps": 20}
    zs, info = torch.vmap(lambda x: layer(x, **options))(xs)
    for i, x in enumerate(xs):
        z, alone = layer(x, **options)
        assert torch.allclose(zs[i], z, atol=1e-8)
        for name in ("converged", "status", "steps"):
            assert getattr(info, name).shape == (3,)
            assert torch.equal(getattr(info, name)[i], getattr(alone, name))
        assert torch.allclose(info.residual[i], alone.residual, rtol=1e-6, atol=1e-14)
        rms = (W @ z + (z**3).flip(0) / 9 - x).square().mean().sqrt()
        assert torch.allclose(info.residual[i], rms, rtol=1e-6, atol=1e-14)
    happened = {ti.Status(int(code)).name.lower() for code in info.status}
    assert {line.partition(":")[0] for line in info.message.splitlines()} == happened


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_info_is_an_auxiliary_output_of_every_transform(adjoint: Any) -> None:
    x = randn(N, seed=1)
    options = {"adjoint": adjoint, "solver": "newton", "on_failure": "ignore", "max_steps": 12}

    def f(x: Tensor) -> tuple[Tensor, ti.SolveInfo]:
        z, info = layer(x, **options)
        return z.sum(), info

    plain = f(x)[1]
    infos = [
        torch.func.grad(f, has_aux=True)(x)[1],
        torch.func.jacrev(f, has_aux=True)(x)[1],
        torch.func.jacfwd(f, has_aux=True)(x)[1],
        torch.func.vjp(f, x, has_aux=True)[2],
        torch.func.jvp(f, (x,), (x,), has_aux=True)[2],
        torch.vmap(torch.func.grad(f, has_aux=True))(torch.stack([x, x]))[1],
    ]
    for info in infos:
        assert isinstance(info, ti.SolveInfo)
        for name in ("converged", "status", "steps"):
            assert bool((getattr(info, name) == getattr(plain, name)).all())
        assert torch.allclose(info.residual, plain.residual, rtol=1e-6, atol=1e-14)
        assert bool((info.evaluations > 0).all())
        assert not any(torch._C._functorch.is_functorch_wrapped_tensor(getattr(info, name)) for name in LEAVES)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("transform", ["none", "vmap"])
def test_no_fact_is_differentiable(adjoint: Any, transform: str) -> None:
    xs = randn(2, N, seed=1).requires_grad_()
    options = {"adjoint": adjoint, "solver": "newton", "on_failure": "ignore", "max_steps": 12}
    if transform == "vmap":
        z, info = torch.vmap(lambda x: layer(x, **options))(xs)
    else:
        z, info = layer(xs[0], **options)
    assert z.requires_grad
    assert not any(getattr(info, name).requires_grad for name in LEAVES)


@pytest.mark.parametrize("problem", ["minimize", "least_squares", "fixed_point", "linear_solve"])
def test_info_of_every_problem_survives_vmap_of_a_gradient(problem: str) -> None:
    A = well(N) / 8
    x = randn(N, seed=1)
    zero = torch.zeros(N, dtype=torch.float64)

    def f(x: Tensor) -> tuple[Tensor, ti.SolveInfo]:
        if problem == "linear_solve":
            z, info = ti.linear_solve(A, x)
        else:
            functions = {
                "minimize": lambda z: (z**4).sum() + (A @ z - x).square().sum(),
                "least_squares": lambda z: torch.cat([A @ z - x, z.sin()]),
                "fixed_point": lambda z: torch.tanh(A @ z + x),
            }
            z, info = getattr(ti, problem)(functions[problem], zero, solver="newton")
        return z.sum(), info

    _, info = torch.vmap(torch.func.grad(f, has_aux=True))(torch.stack([x, 2 * x]))
    assert info.converged.tolist() == [True, True]
    assert info.steps.shape == info.residual.shape == info.status.shape == (2,)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_aux_is_that_at_the_solution_and_detached(adjoint: Any) -> None:
    x = randn(N, seed=1).requires_grad_()
    z, info = with_aux(x, adjoint=adjoint, on_failure="ignore")
    assert torch.allclose(info.aux["norm"], z.norm())
    assert torch.allclose(info.aux["pair"][0], 2 * z)
    assert info.aux["pair"][1] == "text"
    assert z.requires_grad
    assert not any(t.requires_grad for t in (info.aux["norm"], info.aux["pair"][0], info.aux["x"]))


@pytest.mark.parametrize("adjoint", ADJOINTS[:3], ids=repr)
def test_aux_survives_transforms(adjoint: Any) -> None:
    xs = torch.stack([randn(N, seed=1), randn(N, seed=2)])

    def f(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        z, info = with_aux(x, adjoint=adjoint, on_failure="ignore")
        return z.sum(), (z, info.aux["norm"])

    for i, x in enumerate(xs):
        grad, (z, norm) = torch.func.grad(f, has_aux=True)(x)
        grads, (zs, norms) = torch.vmap(torch.func.grad(f, has_aux=True))(xs)
        assert torch.allclose(norm, z.norm())
        assert torch.allclose(norms[i], norm)
        assert torch.allclose(zs[i], z)
        assert torch.allclose(grads[i], grad)
    hessian = torch.func.hessian(lambda x: f(x)[0])(xs[0])
    assert torch.allclose(hessian, torch.vmap(torch.func.hessian(lambda x: f(x)[0]))(xs)[0], atol=1e-8)


def test_aux_has_no_derivative_inside_a_transform_either() -> None:
    x = randn(N, seed=1)
    assert torch.equal(torch.func.grad(lambda x: with_aux(x).info.aux["norm"])(x), torch.zeros(N, dtype=torch.float64))


@pytest.mark.parametrize("solver", ["newton", "anderson"])
def test_the_facts_of_the_backward_appear_when_it_runs(solver: str) -> None:
    x = randn(N, seed=1).requires_grad_()
    z, info = layer(x, 1.0 if solver == "newton" else 0.3, solver=solver)
    assert info.adjoint is None
    (grad,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    assert grad.requires_grad
    assert bool(info.adjoint.converged)
    assert info.adjoint.converged.shape == ()
    assert float(info.adjoint.residual) < 1e-8
    assert int(info.adjoint.products) > 0
    assert not any(getattr(info.adjoint, name).requires_grad for name in LEAVES)


def test_the_facts_of_the_backward_are_filled_in_by_transforms_and_are_plain_tensors() -> None:
    kept = []

    def f(x: Tensor) -> Tensor:
        z, info = layer(x)
        kept.append(info)
        return z.sum()

    torch.func.grad(f)(randn(N, seed=1))
    torch.vmap(torch.func.grad(f))(torch.stack([randn(N, seed=1), randn(N, seed=2)]))
    assert kept[0].adjoint.converged.tolist() is True
    assert kept[1].adjoint.converged.tolist() == [True, True]
    for info in kept:
        assert not any(torch._C._functorch.is_functorch_wrapped_tensor(getattr(info.adjoint, name)) for name in LEAVES)


def test_trace_and_callback_inside_vmap_see_every_sample() -> None:
    seen = []
    xs = torch.stack([randn(N, seed=1), 9 * randn(N, seed=2)])

    def f(x: Tensor) -> Tensor:
        z, info = layer(x, solver="newton", trace=True, callback=lambda k, z, r: seen.append(r), max_steps=20)
        kept.append(info)
        return z

    kept: list[ti.SolveInfo] = []
    torch.vmap(f)(xs)
    trace = kept[0].trace
    assert trace.shape == (len(seen), 2)
    for i, x in enumerate(xs):
        alone = layer(x, solver="newton", trace=True, max_steps=20).info.trace
        assert torch.allclose(trace[: len(alone), i], alone, atol=1e-9)
