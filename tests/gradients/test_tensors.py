"""However a tensor reaches g, and whatever its shape and dtype, the gradient is that of dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchimplicit as ti

from ..every_solver import GENERAL
from .problems import TIGHT, randn, well

N = 3
ZERO = torch.zeros(N, dtype=torch.float64)
GLOBAL = torch.zeros(N, dtype=torch.float64)


def g(z: Tensor, W: Tensor, x: Tensor) -> Tensor:
    return W @ z + (z**3).flip(0) / 9 - x.sin()


def dense_ift(W: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """−(∂g/∂z)⁻ᵀ v pulled back to W and x, at a root from a hand-written Newton iteration."""
    W, x = W.detach().requires_grad_(), x.detach().requires_grad_()
    z = torch.zeros_like(x)
    for _ in range(50):
        z = (z - torch.linalg.solve(torch.func.jacrev(g)(z, W, x), g(z, W, x))).detach()
    u = torch.linalg.solve(torch.func.jacrev(g)(z, W, x).detach().T, v)
    grads: tuple[Tensor, Tensor] = torch.autograd.grad(g(z, W, x), (W, x), -u)
    return grads


def by_args(W: Tensor, x: Tensor) -> Tensor:
    return ti.root(g, ZERO, (W, x), **TIGHT).value


def by_nested_args(W: Tensor, x: Tensor) -> Tensor:
    args = ({"weights": [W, None], "scale": 2.0}, (x, "a string"))
    return ti.root(lambda z, p, q: p["scale"] * g(z, p["weights"][0], q[0]), ZERO, args, **TIGHT).value


def by_closure(W: Tensor, x: Tensor) -> Tensor:
    return ti.root(lambda z: g(z, W, x), ZERO, **TIGHT).value


def by_view(W: Tensor, x: Tensor) -> Tensor:
    """What is closed over is not a leaf, and W also appears as its transpose and as one of its rows."""
    V, first = W.T, W[0]
    return ti.root(
        lambda z: torch.cat([first @ z.unsqueeze(1), V.T[1:] @ z]) + (g(z, W, x) - W @ z), ZERO, **TIGHT
    ).value


def by_default(W: Tensor, x: Tensor) -> Tensor:
    def f(z: Tensor, W: Tensor = W, *, x: Tensor = x) -> Tensor:
        return g(z, W, x)

    return ti.root(f, ZERO, **TIGHT).value


def by_object(W: Tensor, x: Tensor) -> Tensor:
    class Layer:
        def __call__(self, z: Tensor) -> Tensor:
            return g(z, self.held["W"], self.x)

    layer = Layer()
    layer.held, layer.x = {"W": W}, x
    return ti.root(layer, ZERO, **TIGHT).value


def by_global(W: Tensor, x: Tensor) -> Tensor:
    global GLOBAL
    GLOBAL = x * 1
    return ti.root(lambda z: g(z, W, GLOBAL), ZERO, **TIGHT).value


def by_parameters(W: Tensor, x: Tensor) -> Tensor:
    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = torch.nn.Parameter(torch.zeros(N, N))

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return g(z, self.W, x)

    return torch.func.functional_call(ti.nn.Root(Cell(), batch_ndim=0, **TIGHT), {"module.W": W}, (x,))


def by_tree(W: Tensor, x: Tensor) -> Tensor:
    def f(z: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        out = g(torch.cat([z["a"][1].unsqueeze(0), z["a"][0].flatten()]), W, x)
        return {"a": (out[1:].reshape(1, 2), out[0])}

    z0 = {"a": (torch.zeros(1, 2, dtype=x.dtype), torch.zeros((), dtype=x.dtype))}
    z = ti.root(f, z0, **TIGHT).value["a"]
    return torch.cat([z[1].unsqueeze(0), z[0].flatten()])


WAYS = [by_args, by_nested_args, by_closure, by_view, by_default, by_object, by_global, by_parameters, by_tree]
in_every_way = pytest.mark.parametrize("layer", WAYS, ids=lambda f: f.__name__)
Layer = Callable[[Tensor, Tensor], Tensor]


@in_every_way
def test_plain_gradients(layer: Layer) -> None:
    W, x, v = well(N).requires_grad_(), randn(N, seed=5).requires_grad_(), randn(N, seed=6)
    found = torch.autograd.grad(layer(W, x) @ v, (W, x))
    for one, other in zip(found, dense_ift(W, x, v), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.sampled(3)
@in_every_way
def test_gradients_inside_transforms_and_nested_vmaps(layer: Layer) -> None:
    W, x, v = well(N), randn(N, seed=5), randn(N, seed=6)
    grad = torch.func.grad(lambda W, x: layer(W, x) @ v, (0, 1))
    for one, other in zip(grad(W, x), dense_ift(W, x, v), strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    Ws, xs = torch.stack([W, W.T]), torch.stack([x, -x, 2 * x])
    found = torch.vmap(torch.vmap(grad, (None, 0)), (0, None))(Ws, xs)
    for i in range(2):
        for k in range(3):
            for one, other in zip(found, dense_ift(Ws[i], xs[k], v), strict=True):
                assert torch.allclose(one[i, k], other, atol=1e-10)


@pytest.mark.sampled(5)
@in_every_way
def test_hessians_inside_vmap_and_third_derivatives(layer: Layer) -> None:
    W, x, v = well(N), randn(N, seed=5), randn(N, seed=6)
    grad = torch.func.grad(lambda x: layer(W, x) @ v)
    xs, h = torch.stack([x, x / 2]), 1e-5
    steps = h * torch.eye(N, dtype=torch.float64)
    exact = torch.stack(
        [torch.stack([dense_ift(W, y + e, v)[1] - dense_ift(W, y - e, v)[1] for e in steps]) for y in xs]
    )
    hessians = torch.vmap(torch.func.hessian(lambda x: layer(W, x) @ v))(xs)
    assert torch.allclose(hessians, exact / (2 * h), atol=1e-8)
    hessian = torch.func.jacrev(grad)
    third = torch.func.jacrev(hessian)(x)
    differences = torch.stack([hessian(x + e) - hessian(x - e) for e in steps], -1) / (2 * h)
    assert torch.allclose(third, differences, atol=1e-7)
    y = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(layer(W, y) @ v, y, create_graph=True)
    (second,) = torch.autograd.grad(first @ v, y, create_graph=True)
    (plain,) = torch.autograd.grad(second @ v, y)
    assert torch.allclose(plain, third @ v @ v, atol=1e-8)


def test_three_derivatives_of_a_scalar_equal_closed_forms() -> None:
    """z = eˣ is the root of log z − x (plain and transformed) and a 0-d tensor."""
    x = torch.tensor(0.3, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return ti.root(lambda z: z.log() - x, torch.ones((), dtype=torch.float64), **TIGHT).value

    reverse = torch.func.grad(torch.func.grad(torch.func.grad(f)))
    assert torch.allclose(reverse(x), x.exp(), rtol=1e-9)
    mixed = torch.func.jacrev(torch.func.jacfwd(torch.func.jacrev(f)))
    assert torch.allclose(mixed(x), x.exp(), rtol=1e-9)
    assert torch.allclose(torch.vmap(reverse)(x.expand(4)), x.exp(), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half_weights", [False, True])
def test_half_precision_gradients_have_its_accuracy(dtype: torch.dtype, half_weights: bool) -> None:
    W, x, v = well(N), randn(N, seed=5) / 2, randn(N, seed=6)
    exact = dense_ift(W, x, v)
    weights = dtype if half_weights else torch.float32
    W, x = W.to(weights).requires_grad_(), x.to(weights).requires_grad_()
    z = ti.root(g, ZERO.to(dtype), (W, x)).value
    assert z.dtype == dtype
    z.to(torch.float64).mul(v).sum().backward()
    eps = torch.finfo(dtype).eps
    for leaf, other in zip((W, x), exact, strict=True):
        assert leaf.grad.dtype == weights
        assert torch.allclose(leaf.grad.double(), other, atol=30 * eps)


@pytest.mark.parametrize("transform", ["plain", "func"])
def test_the_start_has_no_gradient_but_as_an_argument_of_g_it_has(transform: str) -> None:
    W, x = well(N), randn(N, seed=5)

    def only_start(x: Tensor) -> Tensor:
        return ti.root(lambda z: g(z, W, torch.ones_like(ZERO)), x * 0.1, **TIGHT).value.sum()

    def both(x: Tensor) -> Tensor:
        return ti.root(lambda z: g(z, W, x), x, **TIGHT).value.sum()

    expected = dense_ift(W, x, torch.ones_like(x))[1]
    if transform == "func":
        assert torch.equal(torch.func.grad(only_start)(x), torch.zeros(N, dtype=torch.float64))
        assert torch.equal(torch.func.jvp(only_start, (x,), (x,))[1], torch.zeros((), dtype=torch.float64))
        assert torch.allclose(torch.func.grad(both)(x), expected)
        return
    x.requires_grad_()
    assert not only_start(x).requires_grad
    W.requires_grad_()
    (grad,) = torch.autograd.grad(only_start(x), x, allow_unused=True)
    assert grad is None
    assert torch.allclose(torch.autograd.grad(both(x), x)[0], expected)


BATCHES = [((N,), 0), ((2, N), 0), ((2, N), 1), ((2, N), 2), ((2, 3, N), 2), ((2, 3, N), 3), ((), 0), ((4,), 1)]


@pytest.mark.parametrize(("shape", "batch_ndim"), BATCHES)
@pytest.mark.parametrize("problem", ["root", "fixed_point", "minimize", "least_squares"])
def test_every_batch_ndim_gives_the_same_gradient(shape: tuple[int, ...], batch_ndim: int, problem: str) -> None:
    """z³ + 3 z = x entry by entry, whatever the dimensions mean."""
    x = randn(*shape, seed=3).requires_grad_()

    def per_system(t: Tensor) -> Tensor:
        return t.flatten(batch_ndim).sum(-1) if t.ndim > batch_ndim else t

    f = {
        "root": lambda z: z**3 + 3 * z - x,
        "fixed_point": lambda z: (x - z**3) / 3,
        "minimize": lambda z: per_system(z**4 / 4 + 1.5 * z**2 - x * z),
        "least_squares": lambda z: (z**3 + 3 * z - x).reshape(*z.shape[:batch_ndim], -1),
    }[problem]
    solver = "newton"
    z, info = getattr(ti, problem)(f, torch.zeros_like(x), batch_ndim=batch_ndim, solver=solver, **TIGHT)
    assert info.converged.shape == shape[:batch_ndim]
    v = randn(*shape, seed=4)
    (grad,) = torch.autograd.grad((z * v).sum(), x)
    assert torch.allclose(grad, (v / (3 * z**2 + 3)).detach(), atol=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    n=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128]),
    problem=st.sampled_from(["root", "fixed_point"]),
    solver=st.sampled_from(GENERAL),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_shapes_and_dtypes_against_dense_linear_algebra(
    batch: list[int], n: int, dtype: torch.dtype, problem: str, solver: str, shared: bool, seed: int
) -> None:
    """g(z) = z − tanh(W z + x), not holomorphic (it conjugates); the Jacobian is taken over the reals."""
    W = (randn(n, n, seed=seed, dtype=dtype) / (4 * n**0.5)).requires_grad_()
    x = randn(*(() if shared else batch), n, seed=seed + 1, dtype=dtype).requires_grad_()
    z0 = torch.zeros(*batch, n, dtype=dtype)

    def f(z: Tensor, W: Tensor, x: Tensor) -> Tensor:
        out = (z @ W.T + x) * 0.5
        return out / (1 + out.abs() ** 2) + (z.conj() / 8 if dtype.is_complex else 0)

    fn = f if problem == "fixed_point" else (lambda z, W, x: z - f(z, W, x))
    double = dtype in (torch.float64, torch.complex128)
    tight = {"rtol": 1e-12, "atol": 1e-13} if double else {"rtol": 1e-5, "atol": 1e-6}
    z = getattr(ti, problem)(fn, z0, (W, x), batch_ndim=len(batch), solver=solver, **tight).value
    v = randn(*z.shape, seed=seed + 2, dtype=dtype)
    found = torch.autograd.grad((z * v.conj()).real.sum() if dtype.is_complex else (z * v).sum(), (W, x))

    def real(t: Tensor) -> Tensor:
        return torch.view_as_real(t.resolve_conj()).flatten() if t.is_complex() else t.flatten()

    def g_of_reals(flat: Tensor) -> Tensor:
        whole = torch.view_as_complex(flat.reshape(*z.shape, 2)) if dtype.is_complex else flat.reshape(z.shape)
        return real(whole - f(whole, W, x))

    J = torch.autograd.functional.jacobian(g_of_reals, real(z.detach()))
    u = torch.linalg.solve(J.T, real(v)) if J.numel() else real(v)
    expected = torch.autograd.grad(real(f(z.detach(), W, x)), (W, x), u)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9 if double else 1e-3)
