"""A solve inside torch.compile is part of the graph: what test_matrix.py does not try by kinds and methods."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from scipy.optimize import fsolve
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import torchimplicit as ti
from torchimplicit.private.dynamo import AVAILABLE

from .graph_cases import black_box, cubes
from .graph_models import Cell, D, Model, compiled, fit, fixed_point, minimum, root, value_and_gradient

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch cannot have a loop around a function in a graph")


def gradient(model: Model) -> tuple[Tensor, Any, Tensor]:
    x = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    z, info = model(x)
    (grad,) = torch.autograd.grad((z * torch.tensor([1.0, 2.0], dtype=D)).sum(), x)
    return z.detach(), info, grad


@pytest.mark.slow
def test_systems_that_mix_after_plain_steps_take_the_steps_of_plain_code() -> None:
    """Of four contractions some are left to plain steps, some begin to mix at once, and one only when it has become slow."""
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=D, generator=torch.Generator().manual_seed(1))).Q
    rates = torch.tensor([0.1, 0.4, 0.8, 0.95], dtype=D).unsqueeze(-1)

    def model(x: Tensor) -> Any:
        f = lambda z: torch.tanh(rates * (z @ turn) + x.sum() * torch.linspace(-1, 1, 12, dtype=D))  # noqa: E731
        z, info = ti.fixed_point(f, torch.zeros(4, 12, dtype=D), batch_ndim=1, rtol=1e-10)
        return z[:, :2], info

    z, info, grad = gradient(model)
    z_graph, info_graph, grad_graph = gradient(compiled(model))
    torch.testing.assert_close(z_graph, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad_graph, grad, rtol=1e-8, atol=1e-8)
    assert torch.equal(info_graph.steps, info.steps)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [root, fixed_point, minimum, fit])
def test_the_same_by_the_default_backend(problem: Model) -> None:
    z, _, grad = gradient(problem)
    z_graph, info, grad_graph = gradient(compiled(problem, backend="inductor"))
    assert info.converged.all()
    torch.testing.assert_close(z_graph, z)
    torch.testing.assert_close(grad_graph, grad, rtol=1e-6, atol=1e-7)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rtol: float | None = None
        self.inner, self.outer, self.norm = nn.Linear(8, 8), nn.Linear(3, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        u = self.outer(x)
        z, self.info = ti.fixed_point(
            lambda z: self.norm(torch.tanh(0.3 * self.inner(z) + u)), torch.zeros_like(u), batch_ndim=1, rtol=self.rtol
        )
        return z


@pytest.mark.slow
def test_one_graph_serves_batches_of_any_size_and_a_closure_keeps_its_gradients() -> None:
    layer, counter = Layer().to(D), CompileCounterWithBackend("aot_eager")
    layer.rtol = 1e-10
    model = compiled(layer, backend=counter, dynamic=True)
    model(torch.randn(5, 3, dtype=D))
    graphs = counter.frame_count
    for batch in (7, 64, 3):
        x = torch.randn(batch, 3, dtype=D)
        expected = torch.autograd.grad(layer(x).square().sum(), layer.parameters())
        steps = layer.info.steps
        found = torch.autograd.grad(model(x).square().sum(), layer.parameters())
        assert torch.equal(layer.info.steps, steps)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)
    assert counter.frame_count == graphs


def operators(graph: torch.fx.GraphModule) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


@pytest.mark.slow
def test_a_product_in_a_loop_of_the_backward_does_not_evaluate_the_function_again() -> None:
    torch.manual_seed(0)
    W, x = 0.07 * torch.randn(64, 64), torch.randn(64, 64, requires_grad=True)
    bodies: list[set[str]] = []

    def kept(graph: torch.fx.GraphModule, _: Any) -> Any:
        bodies.extend(operators(part) for name, part in graph.named_children() if "body" in name)
        return graph

    def model(x: Tensor) -> Tensor:
        z: Tensor = ti.fixed_point(lambda z: torch.tanh(z @ W.T + x), torch.zeros(64, 64), batch_ndim=1, rtol=1e-5)[0]
        return z

    backend = aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=kept)
    found, expected = (
        torch.autograd.grad(each(x).square().sum(), x)[0] for each in (compiled(model, backend=backend), model)
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert bodies
    assert all("aten.tanh_backward.default" in body and "aten.tanh.default" not in body for body in bodies)


@pytest.mark.slow
def test_what_is_computed_before_a_loop_may_be_views_of_one_tensor() -> None:
    """Queries, keys and values are made by one product, as in every transformer."""
    torch.manual_seed(0)
    W, x = 0.3 * torch.randn(8, 24, dtype=D), torch.randn(2, 8, 8, dtype=D, requires_grad=True)

    def cell(z: Tensor) -> Tensor:
        q, k, v = (z @ W).view(2, 8, 3, 8).unbind(2)
        return torch.tanh((q @ k.mT).softmax(-1) @ v + x)

    def model(x: Tensor) -> Tensor:
        z: Tensor = ti.fixed_point(cell, torch.zeros_like(x), batch_ndim=1, rtol=1e-10)[0]
        return z

    found, expected = (torch.autograd.grad(each(x).square().sum(), x)[0] for each in (compiled(model), model))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_start_that_the_function_uses_too_is_no_unknown_there() -> None:
    x = torch.tensor([0.7, 1.3], dtype=D)
    model = lambda x: ti.fixed_point(lambda z: torch.cos(z) / 2 + x, x, solver="picard")[0]  # noqa: E731
    torch.testing.assert_close(compiled(model)(x), model(x))


def test_the_function_may_be_given_by_name() -> None:
    x = torch.ones(3)
    model = lambda x: ti.root(g=lambda z: z**3 + z - x, z0=torch.zeros(3))[0]  # noqa: E731
    torch.testing.assert_close(compiled(model, backend="eager")(x), model(x))


def by_values(x: Tensor) -> Tensor:
    return cubes(torch.tensor([float(number) for number in x.numpy()], dtype=D))


def scipys(x: Tensor) -> Tensor:
    return torch.from_numpy(fsolve(lambda z: z**3 + z - x.numpy(), x.numpy()))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("solve", [cubes, by_values, scipys])
def test_a_black_box_that_can_be_read_is_in_the_graph_and_another_breaks_it(solve: Model) -> None:
    x = torch.tensor([0.7, 1.3], dtype=D)
    solution = ti.implicit(lambda z, x: z**3 + z - x, batch_ndim=1)(solve)
    torch._dynamo.reset()
    model = torch.compile(lambda x: 2 * solution(x + 0), fullgraph=solve is cubes, backend="aot_eager")
    for found, value in zip(
        value_and_gradient(model, x), value_and_gradient(lambda x: black_box(x)[0], x), strict=True
    ):
        torch.testing.assert_close(found, 2 * value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_pytrees_complex_numbers_and_aux_come_back() -> None:
    def model(x: Tensor) -> Any:
        def g(z: Any) -> Any:
            return (z["a"] ** 3 + z["a"] - x, {"b": z["b"]})[0], z["b"] - z["a"].sum()

        start = {"a": torch.zeros(2, dtype=D), "b": torch.zeros(1, dtype=D)}
        pair, _ = ti.root(lambda z: dict(zip("ab", g(z), strict=True)), start)
        w, info = ti.fixed_point(
            lambda w: (torch.cos(w) / 2 + x, w * 2), torch.zeros(2, dtype=torch.complex128), has_aux=True
        )
        return pair["a"], pair["b"], w, info.aux

    x = torch.tensor([0.7, 1.3], dtype=D)
    for a, b in zip(compiled(model)(x), model(x), strict=True):
        torch.testing.assert_close(a, b)


DIVERGES = {"max_steps": 5, "solver": "picard"}


def diverging(x: Tensor, **options: Any) -> Tensor:
    z: Tensor = ti.fixed_point(lambda z: 2 * z + x, torch.ones(2, dtype=D), **DIVERGES, **options)[0]
    return z


@pytest.mark.parametrize("policy", ["warn", *(pytest.param(how, marks=pytest.mark.slow) for how in ("raise", "nan"))])
def test_failures_are_reported_when_the_graph_runs(policy: str) -> None:
    x, reported = torch.zeros(2, dtype=D), {"match": "fixed point was not found"}
    model = compiled(lambda x: diverging(x, on_failure=policy))
    if policy == "warn":
        with pytest.warns(ti.ConvergenceWarning, **reported):
            model(x)
    elif policy == "raise":
        with pytest.raises(ti.ConvergenceError, **reported):
            model(x)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ti.ConvergenceWarning)
            assert model(x).isnan().all()


def test_without_fullgraph_it_breaks_the_graph_and_is_solved_in_plain_code() -> None:
    seen: list[int] = []
    model = lambda x: 2 * root(2 * x, callback=lambda step, *_: seen.append(step))[0]  # noqa: E731
    x = torch.ones(2, dtype=D)
    expected = model(x)
    assert seen
    seen.clear()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), expected)
    assert seen


def test_a_function_that_is_no_graph_is_solved_in_plain_code_where_the_graph_may_break() -> None:
    def model(x: Tensor) -> Tensor:
        z: Tensor = ti.root(lambda z: z**3 + z - x if z.sum() < 9 else z, torch.zeros(2, dtype=D))[0]
        return 2 * z

    x = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    torch._dynamo.reset()
    found = torch.compile(model, backend="aot_eager")(x)
    torch.testing.assert_close(found, model(x))
    (grad,), (expected,) = (torch.autograd.grad(z.sum(), x) for z in (found, model(x)))
    torch.testing.assert_close(grad, expected)


def test_random_numbers_are_refused() -> None:
    model = lambda x: ti.root(lambda z: torch.dropout(z, 0.5, True) - x, torch.zeros(2, dtype=D))[0]  # noqa: E731
    with pytest.raises(RuntimeError, match="random numbers"):
        compiled(model)(torch.ones(2, dtype=D))


@pytest.mark.slow
def test_dropout_that_drops_nothing_is_no_random_number() -> None:
    attention = nn.MultiheadAttention(4, 2, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 4)

    def model(x: Tensor) -> Tensor:
        f = lambda z: 0.1 * attention(z, z, z, need_weights=False)[0] + x  # noqa: E731
        z: Tensor = ti.fixed_point(f, torch.zeros_like(x), batch_ndim=1)[0]
        return z

    torch.testing.assert_close(compiled(model)(x), model(x), rtol=1e-3, atol=1e-4)


def test_a_second_derivative_is_refused() -> None:
    x = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    (grad,) = torch.autograd.grad(
        compiled(lambda x: fixed_point(x, solver="picard")[0])(x).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(grad.sum(), x)


def test_a_layer_under_autocast_is_in_the_graph_and_keeps_its_info() -> None:
    layer, x = ti.nn.FixedPoint(Cell(), solver="picard"), torch.randn(4, 3)

    def model(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z: Tensor = layer(x)
            return z

    expected, info = model(x), layer.last_info
    found = compiled(model)(x)
    assert info is not None
    assert layer.last_info is not None
    assert layer.last_info is not info
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert torch.equal(layer.last_info.status, info.status)


@pytest.mark.slow
def test_a_training_step_is_one_graph_and_trains_as_plain_code_does() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 3), torch.randint(0, 2, (32,))

    def trained(compile: bool) -> list[float]:
        torch._dynamo.reset()
        layer = Layer()
        model = nn.Sequential(layer, nn.Linear(8, 2))
        torch.manual_seed(2)
        nn.init.normal_(model[1].weight, std=0.3)
        step = torch.compile(model, fullgraph=True) if compile else model
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(step(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        return losses

    plain = trained(compile=False)
    assert plain[-1] < plain[0]
    assert trained(compile=True) == pytest.approx(plain, rel=2e-2)


@pytest.mark.slow
def test_compile_finds_the_solution_by_a_graph_and_stays_exact_to_every_order() -> None:
    W = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=D)

    def solution(x: Tensor, compile: bool) -> Tensor:
        z: Tensor = ti.root(lambda z: z + torch.tanh(W @ z) - x, torch.zeros(2, dtype=D), rtol=1e-10, compile=compile)[
            0
        ]
        return z

    x = torch.tensor([0.3, 0.4], dtype=D, requires_grad=True)
    torch.testing.assert_close(solution(x, True), solution(x, False))
    for transform in (torch.func.jacrev, torch.func.hessian):
        found, expected = (transform(lambda x, c=c: solution(x, c))(x.detach()) for c in (True, False))
        torch.testing.assert_close(found, expected)
    (first,) = torch.autograd.grad(solution(x, True).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    (first,) = torch.autograd.grad(solution(x, False).sum(), x, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(first.sum(), x)[0])


def test_compile_says_what_it_cannot_read_and_solves_in_plain_code() -> None:
    torch._dynamo.reset()
    g = lambda z: z - 1 if z.sum() < 9 else z  # noqa: E731
    with pytest.warns(UserWarning, match="compile=True has no effect.*data-dependent"):
        z, _ = ti.root(g, torch.zeros(2, dtype=D), compile=True)
    torch.testing.assert_close(z, torch.ones(2, dtype=D))
