"""What goes wrong in silence elsewhere gives the right gradient here, or an error that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

import torchimplicit as ti
from torchimplicit.problem import KEEPS_GRAPH

N = 4
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def W() -> Tensor:
    return (randn(N, N, seed=0) / 4).requires_grad_()


ZERO = torch.zeros(N, dtype=torch.float64)


def dense_gradient(W: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """d(Σ z*²)/d(W, x) for z* = tanh(W z* + x), by dense linear algebra."""
    W, x = W.detach(), x.detach()
    z = ZERO
    for _ in range(500):
        z = torch.tanh(W @ z + x)
    s = 1 - z**2
    J = torch.eye(N, dtype=torch.float64) - s[:, None] * W
    u = s * torch.linalg.solve(J.T, 2 * z)
    return torch.outer(u, z), u


def test_a_closure_over_a_loop_variable_keeps_the_tensor_of_its_own_turn(W: Tensor) -> None:
    xs = [randn(N, seed=k) for k in range(1, 4)]
    loss = torch.zeros((), dtype=torch.float64)
    for x in xs:
        loss = loss + ti.fixed_point(lambda z: torch.tanh(W @ z + x), ZERO, **TIGHT).value.square().sum()  # noqa: B023
    loss.backward()
    expected = sum(dense_gradient(W, x)[0] for x in xs)
    assert torch.allclose(W.grad, expected, atol=1e-9)


@pytest.mark.parametrize("rows", [1, KEEPS_GRAPH // N, KEEPS_GRAPH // N + 1, 2 * KEEPS_GRAPH // N])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_number_that_was_rebound_since_the_forward_is_that_of_the_forward(
    W: Tensor, rows: int, create_graph: bool
) -> None:
    """On either side of the number of entries up to which the evaluation of the forward serves the backward too."""
    x = torch.ones(N, dtype=torch.float64)
    zs = []
    for k in (0.3, 0.7):
        start = torch.zeros(rows, N, dtype=torch.float64)
        zs.append(ti.fixed_point(lambda z: torch.tanh(k * (z @ W.T) + x), start, **TIGHT).value)  # noqa: B023
    for k, z in zip((0.3, 0.7), zs, strict=True):
        (found,) = torch.autograd.grad(z.square().sum(), W, create_graph=create_graph)
        torch.testing.assert_close(found, rows * k * dense_gradient(k * W, x)[0], atol=1e-9, rtol=1e-9)


def test_a_branch_on_what_was_rebound_since_the_forward_is_an_error_where_it_is_taken_again(W: Tensor) -> None:
    squared = False
    f = lambda z: torch.tanh(z @ W / 4) ** 2 if squared else torch.tanh(z @ W / 4 + 1)  # noqa: E731
    z = ti.fixed_point(f, torch.zeros(KEEPS_GRAPH, N, dtype=torch.float64)).value
    squared = True
    with pytest.raises(ti.CaptureError, match="another path"):
        z.sum().backward()


def test_an_array_that_is_changed_in_its_own_memory_is_an_error(W: Tensor) -> None:
    k = np.full(N, 0.3)
    z = ti.fixed_point(lambda z: torch.tanh(torch.as_tensor(k) * (W @ z) + 1), ZERO).value
    k *= 2
    with pytest.raises(ti.CaptureError, match="array"):
        z.sum().backward()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_numpy_array_that_was_rebound_since_the_forward_is_an_error(W: Tensor, dtype: str) -> None:
    k = np.full(N, 0.3, dtype)
    z = ti.fixed_point(lambda z: torch.tanh(torch.tensor(k) * (W @ z) + 1), ZERO).value
    k = np.full(N, 0.7, dtype)
    with pytest.raises(ti.CaptureError, match=r"tensor with an array.*late binding"):
        z.sum().backward()


def test_a_numpy_number_that_was_rebound_since_the_forward_is_an_error(W: Tensor) -> None:
    x = randn(3, N, seed=1)
    i = np.int64(0)
    z = ti.fixed_point(lambda z: torch.tanh(W @ z + x[i]), ZERO).value
    i = np.int64(1)
    with pytest.raises(ti.CaptureError, match="late binding"):
        z.sum().backward()


def test_a_buffer_overwritten_before_the_backward_is_an_error_that_names_it(W: Tensor) -> None:
    buffer = randn(N, seed=1)
    z = ti.fixed_point(lambda z: torch.tanh(W @ z + buffer), ZERO).value
    buffer.add_(1)
    with pytest.raises(RuntimeError, match="uses 'buffer', which has been modified by an inplace operation"):
        z.sum().backward()


def test_a_parameter_that_was_stepped_before_the_backward_is_an_error_that_names_it() -> None:
    cell = nn.Linear(N, N).double()
    z = ti.fixed_point(lambda z: 0.3 * torch.tanh(cell(z)), ZERO).value
    with torch.no_grad():
        cell.weight -= 0.1
    with pytest.raises(RuntimeError, match=r"uses cell\.weight, which has been modified"):
        z.sum().backward()


def test_an_argument_that_was_overwritten_before_the_backward_is_an_error_that_names_it(W: Tensor) -> None:
    x, both = randn(N, seed=1), {"x": randn(N, seed=2), "W": W}
    z = ti.fixed_point(lambda z, x: torch.tanh(W @ z + x), ZERO, (x,)).value
    x.add_(1)
    with pytest.raises(RuntimeError, match="uses 'x', which has been modified"):
        z.sum().backward()
    z = ti.fixed_point(lambda z, *args: torch.tanh(args[1]["W"] @ z + args[1]["x"]), ZERO, (2, both)).value
    both["x"].add_(1)
    with pytest.raises(RuntimeError, match=r"uses args\[1\], which has been modified"):
        z.sum().backward()


def test_a_buffer_overwritten_before_a_pullback_is_an_error_that_names_it(W: Tensor) -> None:
    buffer = randn(N, seed=1)
    z, pull = torch.func.vjp(lambda W: ti.fixed_point(lambda z: torch.tanh(W @ z + buffer), ZERO).value, W.detach())
    buffer.add_(1)
    with pytest.raises(RuntimeError, match="uses 'buffer', which has been modified"):
        pull(torch.ones_like(z))


def test_a_buffer_replaced_before_the_backward_does_not_matter(W: Tensor) -> None:
    cell = nn.Module()
    x = randn(N, seed=1)
    cell.register_buffer("x", x)
    z = ti.fixed_point(lambda z: torch.tanh(W @ z + cell.x), ZERO, **TIGHT).value
    cell.x = torch.zeros(N, dtype=torch.float64)
    z.square().sum().backward()
    assert torch.allclose(W.grad, dense_gradient(W, x)[0], atol=1e-9)


def test_torchscript_is_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Linear(N, N).double())
    with pytest.raises(ti.CaptureError, match=r"'scripted'.*TorchScript"):
        ti.fixed_point(lambda z: 0.1 * scripted(z).tanh(), ZERO)


def test_a_torchscript_function_is_refused_by_name(W: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.jit.trace(lambda z: torch.tanh(z), ZERO)
    with pytest.raises(ti.CaptureError, match=r"'compiled'.*TorchScript"):
        ti.fixed_point(lambda z: compiled(W @ z), ZERO)


def test_a_forward_mode_dual_in_a_closure_moves_the_solution(W: Tensor) -> None:
    x, dx = randn(N, seed=1), randn(N, seed=2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, dx)
        z = ti.fixed_point(lambda z: torch.tanh(W.detach() @ z + dual), ZERO, **TIGHT).value
        tangent = forward_ad.unpack_dual(z).tangent
    value, u = forward_ad.unpack_dual(z).primal, dense_gradient(W, x)[1]
    assert torch.allclose((2 * value * tangent).sum(), (u * dx).sum(), atol=1e-9)


def test_a_parameter_that_only_a_transform_inside_sees_is_an_error_that_names_it(W: Tensor) -> None:
    def f(z: Tensor) -> Tensor:
        return 0.1 * torch.func.grad(lambda W: (W @ z).sin().sum())(W).sum(0) + 1

    with pytest.raises(ti.CaptureError, match=r"'W'.*args"):
        ti.fixed_point(f, ZERO)


def test_in_place_operations_on_tensors_of_its_own_are_no_matter(W: Tensor) -> None:
    x = randn(N, seed=1).requires_grad_()
    V = torch.eye(N, dtype=torch.float64)
    z = ti.fixed_point(lambda z: (V @ x).add_(W @ z).tanh_(), ZERO, **TIGHT).value
    z.square().sum().backward()
    in_W, in_x = dense_gradient(W, x)
    assert torch.allclose(W.grad, in_W, atol=1e-9)
    assert torch.allclose(x.grad, in_x, atol=1e-9)


def test_changing_z_in_place_is_an_error(W: Tensor) -> None:
    with pytest.raises(RuntimeError, match="in place"):
        ti.fixed_point(lambda z: z.mul_(0.5) + 1, ZERO)


def test_autocast_around_the_forward_only_gives_the_gradient_of_the_autocast_function() -> None:
    W = (randn(N, N, seed=0) / 4).float().requires_grad_()
    x = randn(N, seed=1).float()

    def f(z: Tensor) -> Tensor:
        return torch.tanh(W @ z + x)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, info = ti.fixed_point(f, torch.zeros(N), rtol=1e-2)
        again = ti.fixed_point(f, torch.zeros(N), rtol=1e-2).value
        (inside,) = torch.autograd.grad(again.square().sum(), W)
    (outside,) = torch.autograd.grad(z.square().sum(), W)
    assert info.converged
    assert z.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.allclose(outside.double(), dense_gradient(W.double(), x.double())[0], rtol=0.1, atol=0.05)


def test_after_functional_call_has_returned_the_gradient_is_that_of_its_parameters() -> None:
    cell = nn.Linear(N, N, bias=False).double()
    W = (randn(N, N, seed=0) / 4).requires_grad_()
    x = randn(N, seed=1)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self) -> Tensor:
            return ti.fixed_point(lambda z: torch.tanh(self.cell(z) + x), ZERO, **TIGHT).value

    z = torch.func.functional_call(Layer(), {"cell.weight": W}, ())
    z.square().sum().backward()
    assert torch.allclose(W.grad, dense_gradient(W, x)[0], atol=1e-9)
    assert cell.weight.grad is None


def test_a_module_that_keeps_running_statistics_is_named() -> None:
    norm = nn.BatchNorm1d(N).double()
    x = randn(3, N, seed=0).requires_grad_()
    with pytest.raises(ti.CaptureError, match=r"norm\.num_batches_tracked.*eval"):
        ti.fixed_point(lambda z: 0.1 * norm(z) + x, torch.zeros(3, N, dtype=torch.float64))


def test_dropout_is_called_stochastic() -> None:
    torch.manual_seed(0)
    drop = nn.Dropout(0.5)
    with pytest.warns(ti.ConvergenceWarning, match=r"(?s)stochastic.*dropout"):
        info = ti.fixed_point(lambda z: drop(0.1 * z + 1), ZERO).info
    assert info.status == ti.Status.STOCHASTIC


def test_a_path_that_has_changed_since_the_forward_is_an_error(W: Tensor) -> None:
    class Cell(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(W @ z) if self.training else torch.sin(W @ z)

    layer = ti.nn.FixedPoint(Cell(), batch_ndim=0)
    z = layer(z0=ZERO + 1)
    layer.eval()
    with pytest.raises(ti.CaptureError, match="another path"):
        torch.autograd.grad(z.sum(), W, create_graph=True)


@pytest.mark.parametrize(
    "read", [lambda b: b.shape[0], len, lambda b: b.size(0), lambda b: b.numel() * (b.dtype == torch.float64)]
)
def test_a_tensor_of_which_only_the_shape_is_read_may_change(read: Callable[[Tensor], int]) -> None:
    b, x = torch.ones(5, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    z = ti.root(lambda z: read(b) * z - x, torch.zeros((), dtype=torch.float64)).value
    b.add_(1)
    (grad,) = torch.autograd.grad(z, x)
    assert abs(grad.item() - 0.2) < 1e-12


def test_a_shape_is_that_of_the_tensor_at_the_solve() -> None:
    x = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for n in (2, 5):
        b = torch.ones(n, dtype=torch.float64)

        def g(z: Tensor) -> Tensor:
            return b.shape[0] * z + 0 * torch.ones(b.shape, dtype=z.dtype).sum() - x  # noqa: B023

        total = total + ti.root(g, 0 * x.detach()).value
    (grad,) = torch.autograd.grad(total, x)
    assert abs(grad.item() - (1 / 2 + 1 / 5)) < 1e-12


def test_a_shape_is_that_of_each_sample_in_vmap() -> None:
    b, x = torch.ones(4, 5, dtype=torch.float64), torch.rand(4, dtype=torch.float64)

    def grad(x: Tensor, b: Tensor) -> Tensor:
        return torch.func.grad(
            lambda x: ti.root(lambda z: b.shape[0] * z - x, torch.zeros((), dtype=torch.float64)).value
        )(x)

    torch.testing.assert_close(torch.vmap(grad)(x, b), torch.full((4,), 0.2, dtype=torch.float64))


NAMED: dict[str, Callable[[Tensor, Tensor], Any]] = {  # b is used by what the user gave, and a too
    "equal": lambda a, b: ti.minimize(
        lambda z: (z - a).square().sum(), 0 * a.detach(), constraints=ti.Constraints(equal=lambda z: (z * b).sum() - 1)
    ),
    "objective": lambda a, b: ti.minimize(
        lambda z: (z - a * b).square().sum(), 0 * a.detach(), constraints=ti.Constraints(equal=lambda z: z.sum() - 1)
    ),
    "complementarity": lambda a, b: ti.complementarity(lambda z: z * b - a, 1 + 0 * a.detach(), (), 0.0, 5.0),
    "linear_solve": lambda a, b: ti.linear_solve(lambda z: z * b, a),
    "bounds": lambda a, b: ti.minimize(lambda z: (b * z - a).square().sum(), 0 * a.detach(), bounds=(0.0, 9.0)),
}


@pytest.mark.parametrize("problem", NAMED)
def test_what_was_overwritten_is_named_in_what_every_problem_is_given(problem: str) -> None:
    a, b = torch.ones(3, dtype=torch.float64, requires_grad=True), torch.ones(3, dtype=torch.float64)
    z = NAMED[problem](a, b).value
    b.add_(1)
    with pytest.raises(RuntimeError, match="uses 'b', which has been modified"):
        z.sum().backward()


def test_what_was_overwritten_of_the_data_of_a_program_is_named_as_it_is_given() -> None:
    p, Q = torch.ones(3, dtype=torch.float64, requires_grad=True), torch.eye(3, dtype=torch.float64)
    for solve, name in (
        (lambda: ti.quadratic_program(Q, p), "quadratic_program uses 'Q'"),
        (lambda: ti.linear_solve(Q, p), "linear_solve uses 'A'"),
    ):
        z = solve().value
        Q.add_(1)
        with pytest.raises(RuntimeError, match=name):
            z.sum().backward()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Implicit(ti.linear.Neumann(5)), ti.Phantom(), ti.Unrolled()])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tensor_changed_in_place_is_noticed_whatever_the_adjoint_and_named_by_the_implicit_ones(
    create_graph: bool, adjoint: Any, given: bool
) -> None:
    buffer, x = randn(N, seed=1), randn(N, seed=2).requires_grad_()
    f = lambda z, x, *rest: torch.tanh(0.3 * z * (rest[0] if rest else buffer) + x)  # noqa: E731
    z = ti.fixed_point(f, ZERO, (x, buffer) if given else (x,), adjoint=adjoint).value
    buffer.add_(1)
    names = r"uses (args\[1\]|'buffer'), which has been " if isinstance(adjoint, ti.Implicit) else ""
    with pytest.raises(RuntimeError, match=names + "modified by an inplace operation"):
        torch.autograd.grad(z.sum(), x, create_graph=create_graph)


def test_a_tensor_changed_between_a_gradient_and_its_derivative_is_noticed() -> None:
    buffer, x = randn(N, seed=1), randn(N, seed=2).requires_grad_()
    z = ti.fixed_point(lambda z: torch.tanh(0.3 * z * buffer + x), ZERO).value
    (gradient,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    buffer.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(gradient.sum(), x)
