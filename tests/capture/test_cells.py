"""Cells of every make: the gradient in all their parameters is that of the loop unrolled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import torchimplicit as ti

N, ROWS = 4, 3
INDEX = torch.tensor([0, 3, 3])


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X = randn(ROWS, N, seed=1)
WEIGHTS = randn(ROWS, N, seed=2)  # of the loss
Step = Callable[[nn.Module, Tensor], Tensor]


def hooked() -> nn.Module:
    linear = nn.Linear(N, N)
    linear.register_forward_pre_hook(lambda module, inputs: (0.5 * inputs[0],))
    linear.register_forward_hook(lambda module, inputs, output: output * module.bias)
    return linear


def rows_written(m: nn.Module, z: Tensor) -> Tensor:
    y = z.clone()
    y[:, INDEX[:1]] = 0.5 * m.bias[:1]
    y[0] = m.weight[1]
    return torch.tanh(0.5 * y + X)


def in_place(m: nn.Module, z: Tensor) -> Tensor:
    return (X @ m.weight.T).add_(0.3 * m(z)).mul_(0.5).tanh_()


def factories(m: nn.Module, z: Tensor) -> Tensor:
    shift = torch.arange(N, dtype=z.dtype) / 10 + torch.tensor(0.2) + torch.zeros_like(z)
    return torch.tanh(0.3 * m(z) * nn.Parameter(torch.full((N,), 0.3)) + shift)


def containers(m: nn.Module, z: Tensor) -> Tensor:
    kept = {"weight": m.weight, "rest": [m.bias, z]}
    return torch.tanh(0.4 * torch.cat(tensors=[kept["weight"][:2], kept["rest"][0][None]]) + 0.4 * kept["rest"][1])


def branch(m: nn.Module, z: Tensor) -> Tensor:
    y = 0.3 * m(z) + X
    return torch.tanh(y) if bool(y.detach().abs().sum() > 0) else y


# What it is: how it is made, what it computes, and whether torch can vmap it.
CELLS: dict[str, tuple[Callable[[], nn.Module], Step, bool]] = {
    "RNN cell": (lambda: nn.RNNCell(N, N), lambda m, z: 0.7 * m(X, 0.5 * z), True),
    "GRU cell": (lambda: nn.GRUCell(N, N), lambda m, z: 0.7 * m(X, z), True),
    "LSTM cell": (lambda: nn.LSTMCell(N, N), lambda m, z: 0.7 * m(X, (z, X))[0], False),
    "attention": (
        lambda: nn.MultiheadAttention(N, 2, batch_first=True),
        lambda m, z: 0.3 * m(*3 * [(z + X)[None]])[0][0] + X,
        True,
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(N, 2, 8, dropout=0.0, batch_first=True),
        lambda m, z: 0.3 * m((0.3 * z + X)[None])[0],
        True,
    ),
    "group norm": (lambda: nn.GroupNorm(2, N), lambda m, z: 0.3 * m(z + X) + X, True),
    "batch norm, evaluating": (lambda: nn.BatchNorm1d(N).eval(), lambda m, z: 0.3 * m(z) + X, True),
    "embedding": (lambda: nn.Embedding(5, N), lambda m, z: torch.tanh(0.4 * z + m(INDEX)), True),
    "captured index": (lambda: nn.Linear(N, N), lambda m, z: torch.tanh(0.4 * z + m.weight[INDEX]), True),
    "einsum": (
        lambda: nn.Linear(N, N),
        lambda m, z: torch.tanh(0.3 * torch.einsum("bi,oi->bo", z, m.weight) + m.bias),
        True,
    ),
    "functional": (
        lambda: nn.Linear(N, N),
        lambda m, z: torch.tanh(0.3 * F.linear(z, m.weight, bias=m.bias) + X),
        True,
    ),
    "reversed operators": (
        lambda: nn.Linear(N, N),
        lambda m, z: torch.tanh(1 - 0.2 * m.bias + 0.3 / (2 + m.bias**2) + 0.2 * z),
        True,
    ),
    "hooks": (hooked, lambda m, z: torch.tanh(0.5 * m(z) + X), True),
    "written rows": (lambda: nn.Linear(N, N), rows_written, False),
    "in place": (lambda: nn.Linear(N, N), in_place, True),
    "containers": (lambda: nn.Linear(N, N), containers, True),
    "branch": (lambda: nn.Linear(N, N), branch, False),
}


class Model(nn.Module):
    """A loss through a cell's fixed point, solved by a named solver or by a loop."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        make, self.step, _ = CELLS[name]
        self.cell = make().double()

    def forward(self, solver: str | None) -> Tensor:
        z = torch.zeros(ROWS, N, dtype=torch.float64)
        if solver is None:
            for _ in range(120):
                z = self.step(self.cell, z)
        else:
            z = ti.fixed_point(lambda z: self.step(self.cell, z), z, solver=solver, rtol=1e-12, max_steps=400).value
        return (z.square() * WEIGHTS).sum()


every_cell = pytest.mark.parametrize("name", CELLS)


def gradients(model: Model, solver: str | None) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(model(solver), list(parameters.values()), materialize_grads=True, allow_unused=True)
    return dict(zip(parameters, grads, strict=True))


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in b:
        assert torch.allclose(a[name], b[name], atol=1e-9), name


@pytest.mark.sampled(3)
@every_cell
@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_in_plain_code(name: str, solver: str) -> None:
    model = Model(name)
    assert_same(gradients(model, solver), gradients(model, None))


@every_cell
def test_inside_grad_through_functional_call(name: str) -> None:
    model = Model(name)
    of = torch.func.grad(lambda p: functional_call(model, p, ("newton",)))
    assert_same(of({k: p.detach() for k, p in model.named_parameters()}), gradients(model, None))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [name for name, (_, _, can_be_vmapped) in CELLS.items() if can_be_vmapped])
def test_an_ensemble_of_them(name: str) -> None:
    model = Model(name)
    of = torch.vmap(torch.func.grad(lambda p: functional_call(model, p, ("anderson",))))
    pair = {k: torch.stack([p.detach() * 0.9, p.detach()]) for k, p in model.named_parameters()}
    assert_same({k: g[1] for k, g in of(pair).items()}, gradients(model, None))


def test_factories_and_parameters_made_inside() -> None:
    linear = nn.Linear(N, N).double()
    z = ti.fixed_point(lambda z: factories(linear, z), torch.zeros(ROWS, N, dtype=torch.float64), rtol=1e-12).value
    unrolled = torch.zeros(ROWS, N, dtype=torch.float64)
    for _ in range(100):
        unrolled = factories(linear, unrolled)
    found, truth = (torch.autograd.grad(y.square().sum(), list(linear.parameters())) for y in (z, unrolled))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, truth, strict=True))
