"""The facts of a solve and its auxiliary output survive transforms; the backward's facts are filled in when it runs."""

from __future__ import annotations

import re
import warnings
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


@pytest.mark.sampled(2)
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


APPROXIMATE = {ti.OneStep(): 1, ti.Phantom(3, 0.5): 3}


@pytest.mark.parametrize("adjoint", APPROXIMATE, ids=repr)
def test_an_approximate_gradient_says_what_was_done_and_that_its_error_is_not_known(adjoint: Any) -> None:
    steps = APPROXIMATE[adjoint]
    x = randn(4, N, seed=1).requires_grad_()

    def solve(x: Tensor, **options: Any) -> ti.Solution:
        return ti.fixed_point(lambda z: torch.tanh(z.roll(1, -1)) / 2 + x, 0 * x.detach(), adjoint=adjoint, **options)

    z, info = solve(x, batch_ndim=1)
    assert info.adjoint is None
    z.sum().backward()
    assert info.adjoint.steps.tolist() == [steps] * 4
    assert int(info.adjoint.products) == steps
    assert info.adjoint.residual.isnan().all()
    assert not info.adjoint.converged.any()
    kept = []

    def f(x: Tensor) -> Tensor:
        z, info = solve(x)
        kept.append(info)
        return z.sum()

    plain = x.grad
    torch.testing.assert_close(torch.vmap(torch.func.grad(f))(x.detach()), plain)
    torch.testing.assert_close(torch.func.grad(lambda x: solve(x, batch_ndim=1).value.sum())(x.detach()), plain)
    assert kept[0].adjoint.steps.tolist() == [steps] * 4
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(getattr(kept[0].adjoint, name)) for name in LEAVES)
    z = solve(x, batch_ndim=1).value
    (many,) = torch.autograd.grad(
        z, x, torch.stack([torch.ones_like(z), 2 * torch.ones_like(z)]), is_grads_batched=True
    )
    torch.testing.assert_close(many, torch.stack([plain, 2 * plain]))


def test_the_gauss_newton_gradient_says_what_it_has_solved() -> None:
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    y = torch.stack([2 * torch.exp(-t), 0 * t]).requires_grad_()  # the second fit leaves its rate free
    r = lambda w: w[..., :1] * torch.exp(-w[..., 1:] * t) - y  # noqa: E731
    start = torch.tensor([[1.5, 0.5], [0.0, 0.5]], dtype=torch.float64)
    z, info = ti.least_squares(r, start, batch_ndim=1, adjoint=ti.GaussNewton(), on_failure="ignore")
    assert info.adjoint is None
    z.sum().backward()
    assert info.adjoint.status_names == ["converged", "singular"]
    assert info.adjoint.residual[0] < 1e-12
    assert int(info.adjoint.products) == 7


def info_of(x: Tensor, **options: Any) -> ti.SolveInfo:
    return ti.root(lambda z: z**2 - x, torch.ones_like(x), on_failure="ignore", solver="newton", **options).info


def test_an_info_prints_in_one_line_with_what_it_says() -> None:
    info = info_of(torch.tensor(2.0, dtype=torch.float64))
    assert "\n" not in repr(info)
    assert repr(info).startswith(f"SolveInfo(converged; {int(info.steps)} steps; error ")
    x = torch.linspace(-1, 3, 4001, dtype=torch.float64)
    x[2000:] = x[2000:].clamp(min=0.1)
    info = info_of(x, batch_ndim=1)
    assert len(repr(info)) < 250
    failed = int((~info.converged).sum())
    assert 0 < failed <= 2000
    assert f"4001 systems: {4001 - failed} converged, " in repr(info)
    assert f"steps {int(info.steps.min())} to {int(info.steps.max())}, median {int(info.steps.median())}" in repr(info)
    assert f"residual {float(info.residual[~info.residual.isnan()].max()):.2g}" in repr(info)
    assert info.status_names[4000] == "converged"
    assert info.status_names == [ti.Status(code).name.lower() for code in info.status.tolist()]
    assert len(info.summary()) < 3000
    assert "local minimum" in info.summary()


def test_an_info_prints_inside_a_transform_and_after_it() -> None:
    inside = []

    def f(x: Tensor) -> ti.SolveInfo:
        info = info_of(x)
        inside.append(repr(info))
        return info

    info = torch.vmap(f)(torch.tensor([[2.0, 3.0], [4.0, 5.0]], dtype=torch.float64))
    assert "inside a transform" in inside[0]
    assert "2 systems: 2 converged" in repr(info)
    assert info.status_names == ["converged", "converged"]


def test_a_summary_has_what_was_tried_and_the_backward() -> None:
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    z, info = ti.root(lambda z: z**3 + z - x, torch.ones_like(x.detach()))
    z.backward()
    assert "tried: Newton (1 solved)" in info.summary()
    assert "backward: SolveInfo(converged; 1 step" in info.summary()


SOUGHT = {
    "minimum": (lambda **how: ti.minimize(lambda z: ((z - 3) ** 4).sum(), torch.zeros(3), **how), "trust_newton"),
    "minimum within bounds": (
        lambda **how: ti.minimize(lambda z: (z**4).sum() - z.prod(), torch.full((3,), 2.0), bounds=(-3, 3), **how),
        "trust_newton",
    ),
    "fit": (lambda **how: ti.least_squares(lambda z: z**2 - 3, torch.full((3,), 9.0), **how), "levenberg_marquardt"),
    "fixed point": (lambda **how: ti.fixed_point(lambda z: z.cos(), torch.zeros(3), **how), "anderson"),
    "root": (lambda **how: ti.root(lambda z: z**3 - 3, torch.full((3,), 9.0), **how), "dogleg"),
}


@pytest.mark.parametrize("sought", SOUGHT)
def test_what_is_advised_depends_on_what_was_sought(sought: str) -> None:
    solve, advised = SOUGHT[sought]
    with pytest.warns(ti.ConvergenceWarning, match=f"'{advised}'") as caught:
        info = solve(max_steps=1).info
    assert info.status == ti.Status.MAX_STEPS
    assert f"'{advised}'" in info.message
    assert ("contraction" in str(caught[0].message)) == (sought == "fixed point")
    assert ("valley" in str(caught[0].message)) == sought.startswith("minimum")


def test_a_backward_at_a_z_that_was_not_found_says_so() -> None:
    """An enzyme that takes up at most 2 of the inflow v, and its product: there is no steady state of v = 2.5."""

    def balance(z: Tensor, v: Tensor) -> Tensor:
        s, p = z.unbind(-1)
        rate = 2 * s / (0.5 + s)
        return torch.stack([v - rate, rate - 0.3 * p - 0.1 * p * p], -1)

    def solve(v: Tensor) -> ti.Solution:
        start = torch.full((*v.shape, 2), 0.5, dtype=torch.float64)
        return ti.root(balance, start, (v,), batch_ndim=1, on_failure="ignore")

    v = torch.tensor([0.3, 0.9, 2.5], dtype=torch.float64, requires_grad=True)
    z, info = solve(v)
    assert info.converged.tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(z[:, 0].sum(), v)
    assert torch.allclose(gradient[:2], 1 / (2 - v.detach()[:2]) ** 2)
    assert "1 of them at a z that was not found" in repr(info.adjoint)
    assert "1 of 3 at a z that the forward solve has not found" in info.summary()
    z, info = solve(v[:2])
    z.sum().backward()
    assert "not found" not in info.summary()


class Standing:
    """Says that it has arrived where it starts."""

    max_steps, patience = 5, 5

    def init(self, equations: Any, z: Tensor) -> tuple[Tensor, None]:
        return equations.residual(z), None

    def step(self, equations: Any, z: Tensor, r: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        return z, r, None

    def verdict(self, state: None) -> Tensor:
        return torch.tensor([0, 0])


def test_a_system_that_is_off_and_at_its_bound_is_counted_once() -> None:
    """The nearest z ≥ 0 to x. Both z are off in z₁; of the second, z₀ = x₀ lies at its bound without a force on it."""
    n = 80  # beyond what is looked at again in the end
    x = torch.full((2, n), 1.0, dtype=torch.float64)
    x[:, 0] = torch.tensor([2.0, 0.0])
    start = x.clone()
    start[:, 1] += 0.1
    x.requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        z, info = ti.minimize(
            lambda z, x: (z - x).square().sum(-1) + ((z - x) ** 4).sum(-1),
            start,
            (x,),
            bounds=(0.0, None),
            batch_ndim=1,
            solver=Standing(),
        )
        assert info.converged.all()
        z.sum().backward()
    assert info.adjoint is not None
    assert info.adjoint.status_names == ["inaccurate", "degenerate"]
    said = [str(w.message) for w in caught if issubclass(w.category, ti.ConvergenceWarning)]
    (told,) = [message for message in said if "derivative" in message]
    assert re.findall(r"(\d of 2) systems \(flat index (\d)\): (\w+)", told) == [
        ("1 of 2", "0", "inaccurate"),
        ("1 of 2", "1", "degenerate"),
    ]
