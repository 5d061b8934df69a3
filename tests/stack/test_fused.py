"""compile=True: whole Newton steps, and the backward, as kernels of a graph that torch.compile has read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchimplicit.graphs import NoGraph, graph_of
from torchimplicit.solvers.fused import solve_fused

import torchimplicit as ti

N = 3


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether kernels have found the solution, for every solve."""
    found = []

    def noted(*args: Any) -> Any:
        result = solve_fused(*args)
        found.append(result is not None)
        return result

    monkeypatch.setattr("torchimplicit.solvers.search.solve_fused", noted)
    return found


def matrix() -> Tensor:
    return torch.tensor([[0.2, -0.4, 0.1], [0.3, 0.1, 0.2], [-0.1, 0.25, 0.3]], dtype=torch.float64)


def vectors(batch: int = 4) -> Tensor:
    return torch.linspace(-1, 1, batch * N, dtype=torch.float64).reshape(batch, N)


def dense(W: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The roots of z − tanh(W z + b) and the gradients of Σ v·z in W and b, by Newton's method and the theorem written out."""
    z = torch.zeros_like(b)
    eye = torch.eye(N, dtype=b.dtype)
    for _ in range(50):
        t = torch.tanh(z @ W.T + b)
        z = z - torch.linalg.solve(eye - (1 - t**2)[..., :, None] * W, z - t)
    s = 1 - z**2
    a = s * torch.linalg.solve((eye - s[..., :, None] * W).mT, v)
    return z, a.mT @ z, a


def g(z: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return z - torch.tanh(z @ W.T + b)


def root(W: Tensor, b: Tensor, **options: Any) -> ti.Solution:
    return ti.root(g, torch.zeros_like(b), (W, b), batch_ndim=1, rtol=1e-12, compile=True, **options)


def test_value_and_gradient_are_those_of_dense_linear_algebra(fused: list[bool]) -> None:
    W, b, v = matrix().requires_grad_(), vectors().requires_grad_(), torch.cos(vectors())
    z, info = root(W, b)
    assert fused == [True]
    assert info.tried == ("Newton",)
    torch.testing.assert_close((z, *torch.autograd.grad((v * z).sum(), (W, b))), dense(W.detach(), b.detach(), v))
    assert info.adjoint is not None
    assert info.adjoint.converged.all()


@pytest.mark.slow
def test_each_system_has_its_own_steps() -> None:
    b = torch.stack([torch.zeros(N), torch.full((N,), 1e-9), torch.ones(N)]).double()
    _, info = root(matrix(), b, atol=1e-8)
    alone = [int(root(matrix(), row[None], atol=1e-8).info.steps) for row in b]
    assert info.steps.tolist() == alone
    assert alone[0] == alone[1] == 0 < alone[2]


@pytest.mark.slow
def test_a_graph_is_read_once_and_a_step_is_one_evaluation() -> None:
    W, b = matrix().requires_grad_(), vectors().requires_grad_()
    root(W, b).value.sum().backward()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for k in range(3):
        z, info = root(W, b + k)
        z.sum().backward()
        assert int(info.evaluations) == 4 * -(
            -(int(info.steps.max()) + 1) // 4
        )  # four steps of tiny systems go together
        assert info.adjoint is not None
        # One at z*, and one beside it, where a singular Jacobian would show itself.
        assert int(info.adjoint.evaluations) == int(info.adjoint.products) == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
def test_tensors_that_a_function_captures_get_their_gradients() -> None:
    W, b, v = matrix().requires_grad_(), vectors().requires_grad_(), torch.cos(vectors())
    for _ in range(2):  # the second time from the cache, with a new lambda
        z = ti.root(
            lambda z: z - torch.tanh(z @ W.T + b), torch.zeros_like(b), batch_ndim=1, rtol=1e-12, compile=True
        ).value
        torch.testing.assert_close((z, *torch.autograd.grad((v * z).sum(), (W, b))), dense(W.detach(), b.detach(), v))
        with torch.no_grad():
            W.mul_(0.9)  # as an optimiser does


def test_a_first_call_can_be_checkpointed(fused: list[bool]) -> None:
    b = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def layer(b: Tensor) -> Tensor:
        return ti.root(lambda z: z**3 + z - b, torch.ones_like(b), compile=True).value

    z = checkpoint(layer, b, use_reentrant=False)
    z.sum().backward()
    assert fused == [True, True]
    torch.testing.assert_close(b.grad, 1 / (3 * z.detach() ** 2 + 1))


@pytest.mark.slow
def test_modules_train() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(N, N).double()

        def forward(self, z: Tensor, b: Tensor) -> Tensor:
            return z - torch.tanh(self.linear(z) + b)

    torch.manual_seed(0)
    cell = Residual()
    layers = [ti.nn.Root(cell, compile=c, rtol=1e-12) for c in (True, False)]
    for _ in range(3):
        grads = []
        for layer in layers:
            cell.zero_grad()
            layer(vectors()).square().sum().backward()
            grads.append([p.grad.clone() for p in cell.parameters() if p.grad is not None])
        torch.testing.assert_close(*grads)
        with torch.no_grad():
            for p, grad in zip(cell.parameters(), grads[0], strict=True):
                p -= 0.1 * grad


@pytest.mark.slow
def test_second_derivatives_and_transforms() -> None:
    W, b = matrix(), vectors(2)

    def f(W: Tensor) -> Tensor:
        return root(W, b).value.sin().sum()

    def plain(W: Tensor) -> Tensor:
        g = lambda z: z - torch.tanh(z @ W.T + b)  # noqa: E731
        return ti.root(g, torch.zeros_like(b), batch_ndim=1, rtol=1e-12).value.sin().sum()

    assert torch.autograd.gradcheck(f, W.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(f, W.clone().requires_grad_())
    torch.testing.assert_close(torch.func.grad(f)(W), torch.func.grad(plain)(W))
    torch.testing.assert_close(torch.func.hessian(f)(W), torch.func.hessian(plain)(W))


def test_a_minimum_and_its_gradient(fused: list[bool]) -> None:
    X = torch.sin(torch.arange(60, dtype=torch.float64)).reshape(20, N)

    def phi(w: Tensor, penalty: Tensor) -> Tensor:
        return nn.functional.softplus(-X @ w).mean() + (penalty.exp() * w**2).sum() / 2

    penalty = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    w, info = ti.minimize(phi, torch.zeros(N, dtype=torch.float64), (penalty,), rtol=1e-12, compile=True)
    assert fused == [True]
    assert info.converged
    H = torch.func.hessian(phi)(w.detach(), penalty.detach())
    assert torch.func.grad(phi)(w.detach(), penalty.detach()).abs().max() < 1e-12
    expected = -penalty.detach().exp() * w.detach() * torch.linalg.solve(H, torch.ones(N, dtype=torch.float64))
    torch.testing.assert_close(torch.autograd.grad(w.sum(), penalty)[0], expected)


def test_many_small_systems_are_factorised_side_by_side(fused: list[bool]) -> None:
    W, b, v = matrix().requires_grad_(), vectors(200).requires_grad_(), torch.cos(vectors(200))
    z, info = root(W, b)
    torch.testing.assert_close((z, *torch.autograd.grad((v * z).sum(), (W, b))), dense(W.detach(), b.detach(), v))
    assert fused == [True]
    assert info.adjoint is not None
    assert info.adjoint.converged.all()


@pytest.mark.slow
def test_a_saddle_on_the_way_is_left_to_the_loop() -> None:
    def phi(z: Tensor) -> Tensor:
        return (z**4 / 4 - z**2 / 2).sum(-1)  # a maximum at 0, minima at ±1

    z0 = torch.tensor([[0.1], [2.0], [-0.2]], dtype=torch.float64)
    z, info = ti.minimize(phi, z0, batch_ndim=1, compile=True)
    assert info.converged.all()
    torch.testing.assert_close(z, torch.tensor([[1.0], [1.0], [-1.0]], dtype=torch.float64))


@pytest.mark.parametrize("max_steps", [5, 6, 7])
def test_several_steps_in_one_kernel_are_no_more_than_were_allowed(fused: list[bool], max_steps: int) -> None:
    b = torch.tensor([2.0, 30.0], dtype=torch.float64)
    options: dict[str, Any] = {"solver": "newton", "max_steps": max_steps, "on_failure": "ignore"}
    z, info = ti.root(lambda z: z**3 + z - b, torch.ones_like(b), compile=True, **options)
    plain, expected = ti.root(lambda z: z**3 + z - b, torch.ones_like(b), **options)
    assert fused == [bool(expected.converged), False]
    assert info.steps == expected.steps
    assert info.status == expected.status
    torch.testing.assert_close(z, plain)


def test_a_step_that_is_refused_is_not_forgotten_in_the_same_kernel(fused: list[bool]) -> None:
    def phi(z: Tensor) -> Tensor:
        return ((z**2 - 1) ** 2 + z * b).sum() + 0.3 * (z[0] * z[1]) ** 2

    b, z0 = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, -0.2], [-0.3418911629559211, -0.16013009144867485]))
    z = ti.minimize(phi, z0, compile=True).value
    assert fused == [False]
    torch.testing.assert_close(z, ti.minimize(phi, z0).value)


@pytest.mark.slow
def test_what_full_steps_do_not_solve_is_left_to_the_loop(fused: list[bool]) -> None:
    z, info = ti.root(
        torch.arctan, torch.tensor([[5.0], [0.5]], dtype=torch.float64), batch_ndim=1, compile=True, atol=1e-10
    )
    assert fused == [False]
    assert info.converged.all()
    assert z.abs().max() < 1e-8
    assert info.tried[0] == "Newton"
    assert len(info.tried) > 1


@pytest.mark.slow
def test_a_root_without_derivative_is_reported() -> None:
    a = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    z, info = ti.root(lambda z, a: (z - a) ** 2, torch.ones(1, dtype=torch.float64), (a,), rtol=1e-8, compile=True)
    assert info.converged
    with pytest.warns(ti.ConvergenceWarning, match="singular"):
        z.sum().backward()


def test_a_stochastic_function_is_reported() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ti.root(lambda z: z - torch.rand(N), torch.zeros(N), compile=True)
    messages = [str(warning.message) for warning in caught]
    assert any("it draws random numbers" in message for message in messages)
    assert any("stochastic" in message for message in messages)


def test_a_state_that_changes_is_refused() -> None:
    norm = nn.BatchNorm1d(N).double()
    with pytest.warns(UserWarning, match="no effect"), pytest.raises(ti.CaptureError, match="BatchNorm"):
        ti.root(lambda z: z - norm(z) / 2 - 1, vectors().requires_grad_(), compile=True)


def test_a_function_that_branches_on_values_is_solved_all_the_same() -> None:
    a = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)

    def g(z: Tensor) -> Tensor:
        return z**3 - a if z.sum() > 0 else z - 1

    with pytest.warns(UserWarning, match="no effect"):
        z, info = ti.root(g, torch.tensor([-1.0], dtype=torch.float64), compile=True, rtol=1e-12)
    assert info.converged
    (slope,) = torch.autograd.grad(z.sum(), a)
    torch.testing.assert_close(slope, 1 / (3 * z.detach() ** 2))


@pytest.mark.slow
def test_more_shapes_than_torch_compile_keeps_are_evaluated_as_they_are() -> None:
    with torch._dynamo.config.patch(recompile_limit=2):
        for batch in range(1, 5):
            b = vectors(batch).requires_grad_()
            with pytest.warns(UserWarning, match="no effect") if batch > 2 else nullcontext():
                z, info = root(matrix(), b)
            assert info.converged.all()
            expected = dense(matrix(), b.detach(), torch.ones_like(b))
            torch.testing.assert_close((z, torch.autograd.grad(z.sum(), b)[0]), (expected[0], expected[2]))


@pytest.mark.slow
def test_the_kernels_of_one_solver_are_not_given_the_factors_of_another(fused: list[bool]) -> None:
    v = torch.cos(vectors())
    expected = dense(matrix(), vectors(), v)
    for factors in (ti.linear.LU(), ti.linear.QR(), ti.linear.LU(equilibrate=False)):
        W, b = matrix().requires_grad_(), vectors().requires_grad_()
        z, info = root(W, b, solver=ti.solvers.Newton(linear_solver=factors))
        torch.testing.assert_close((z, *torch.autograd.grad((v * z).sum(), (W, b))), expected)
        assert info.adjoint is not None
        assert info.adjoint.converged.all()
    assert fused == [True] * 3


def test_what_is_auxiliary_in_one_call_is_a_residual_in_the_next() -> None:
    b = torch.tensor([1.0, 3.0], dtype=torch.float64)

    def r(z: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return z - b, z - 3 * b

    for has_aux, exact in ((True, b), (False, 2 * b)):
        z = ti.least_squares(r, torch.zeros_like(b), (b,), has_aux=has_aux, compile=True).value
        torch.testing.assert_close(z, exact)


@pytest.mark.slow
def test_one_function_with_one_unknown_and_many() -> None:
    """The same graph for z (4, 3): as 12 equations in one unknown each, as 4 systems, and as one system."""
    b = vectors().requires_grad_()
    for batch_ndim in (2, 1, 0):
        z, info = ti.root(
            lambda z, b: z**3 + z - b, torch.zeros_like(b), (b,), batch_ndim=batch_ndim, compile=True, rtol=1e-12
        )
        assert info.status.shape == b.shape[:batch_ndim]
        torch.testing.assert_close(torch.autograd.grad(z.sum(), b)[0], 1 / (3 * z.detach() ** 2 + 1))


def test_the_graph_is_that_of_pytrees_and_modules() -> None:
    linear = nn.Linear(N, N).double()
    z = {"a": vectors(), "b": vectors() * 2}
    graph, tensors = graph_of(lambda z, x: {"b": linear(z["a"]) + x, "a": z["b"].exp()}, z, (vectors(),))
    assert {id(t) for t in (linear.weight, linear.bias)} <= {id(t) for t in tensors}
    out = graph(z, tensors)
    torch.testing.assert_close(out, {"b": linear(z["a"]) + vectors(), "a": z["b"].exp()})


def test_no_graph_without_the_unknowns_or_of_what_changes_its_tensors() -> None:
    z, counter = torch.ones(N), torch.zeros(N)
    for function, why in (
        (lambda z: torch.ones(N) * 2, "not use all of z"),
        (lambda z: z + counter.add_(1), "changes a tensor"),
        (lambda z: (z * 2, 1.0), "returns some"),
        (lambda z: z if bool(z.sum() > 0) else -z, "data-dependent"),
    ):
        with pytest.raises(NoGraph, match=why):
            graph_of(function, z, ())


@pytest.mark.parametrize("scale", [1e-170, 1e200])
def test_residuals_whose_squares_vanish_or_overflow_are_left_to_the_loop(scale: float) -> None:
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    z, info = ti.root(lambda z: scale * (z**3 + z - x), torch.zeros_like(x), atol=0.0, compile=True)
    assert info.converged
    torch.testing.assert_close(z**3 + z, x, rtol=1e-7, atol=0)


def test_a_module_that_keeps_tensors_is_no_graph_and_keeps_the_right_ones() -> None:
    class Keeps(nn.Module):
        last: Tensor | None = None

        def __init__(self, what: str) -> None:
            super().__init__()
            self.what = what

        def forward(self, z: Tensor) -> Tensor:
            inner = torch.tanh(z)
            out = 2 * inner
            self.last = out if self.what == "what it returns" else inner
            return out

    for what in ("what it returns", "another"):
        module = Keeps(what)
        for z in (torch.ones(N), torch.zeros(N)):
            with pytest.raises(NoGraph, match="keeps"):
                graph_of(module, z, ())
            assert module.last is not None
            torch.testing.assert_close(module.last.detach(), torch.tanh(z) * (2 if what == "what it returns" else 1))


def test_a_parametrised_module_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(N, N).double())
    b = vectors(1)[0].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        z = ti.root(lambda z: z - torch.tanh(linear(z)) / 2 - b, torch.zeros_like(b), compile=True).value
    plain = ti.root(lambda z: z - torch.tanh(linear(z)) / 2 - b, torch.zeros_like(b)).value
    torch.testing.assert_close(z, plain, rtol=1e-6, atol=1e-6)  # a power iteration goes on in it


def test_a_function_that_differentiates_is_seen_as_where_it_is_differentiated() -> None:
    v = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)

    def g(z: Tensor) -> Tensor:
        energy = (z**4 / 4 + z**2 / 2 - z * v).sum()
        return torch.autograd.grad(energy, z, create_graph=True)[0] if z.requires_grad else z

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        z, info = ti.root(g, torch.tensor([0.5], dtype=torch.float64), solver="newton", compile=True, rtol=1e-12)
    assert info.converged
    torch.testing.assert_close(z**3 + z, v)
    torch.testing.assert_close(torch.autograd.grad(z.sum(), v)[0], 1 / (3 * z.detach() ** 2 + 1))


def test_a_graph_with_a_transform_inside() -> None:
    v = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)

    def g(z: Tensor) -> Tensor:
        return torch.func.grad(lambda y: (y**4 / 4 + y**2 / 2 - y * v).sum())(z)

    graph, tensors = graph_of(g, torch.zeros(2, dtype=torch.float64), ())
    z = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(graph(z, tensors), z**3 + z - v)
    assert graph_of(lambda z: z - v, z, ())[1]  # and whatever is read next
