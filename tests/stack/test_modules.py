"""Layers are copied, pickled, loaded, cast and shared like any module."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from torchimplicit.nn import FixedPoint

from .layers import Cell, assert_same, batch, gradients, layer


def test_copies_and_pickles_are_the_same_layer_without_its_last_facts() -> None:
    module = layer()
    expected = gradients(module, batch())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.last_info is None
        assert_same(gradients(twin, batch()), expected)
    assert module.last_info is not None


def test_a_state_dict_makes_another_layer_the_same() -> None:
    module, other = layer(), layer()
    with torch.no_grad():
        other.cell.linear.weight.mul_(0.1)
    other.load_state_dict(module.state_dict())
    assert_same(gradients(other, batch()), gradients(module, batch()))


def test_a_layer_that_is_cast_computes_in_its_new_dtype() -> None:
    module = layer().to(torch.float32)
    module.options["rtol"] = 1e-5
    assert module(batch().float()).dtype == torch.float32


def test_two_threads_share_a_module() -> None:
    module = layer()
    expected = [gradients(copy.deepcopy(module), batch(seed=k)) for k in range(6)]
    found: dict[int, list[Tensor]] = {}

    def work(ks: range) -> None:
        for k in ks:
            x = batch(seed=k).requires_grad_()
            found[k] = list(torch.autograd.grad(module(x).square().sum(), [*module.parameters(), x]))

    threads = [threading.Thread(target=work, args=(range(i, 6, 2),)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(6):
        assert_same(found[k], expected[k])


def unrolled(cell: nn.Module, x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(80):
        z = cell(z, x)
    return z


def parametrised(kind: str, training: bool) -> nn.Module:
    cell = Cell()
    torch.manual_seed(3)
    cell.linear = {"spectral": spectral_norm, "weight": weight_norm, "orthogonal": orthogonal}[kind](cell.linear)
    for _ in range(200):
        cell(batch(), batch())  # lets a power iteration settle
    return layer(cell=cell).train(training)


def cached(module: nn.Module, x: Tensor) -> Tensor:
    with parametrize.cached():
        z: Tensor = module(x)
    return z


def cached_and_used_again(module: nn.Module, x: Tensor) -> Tensor:
    with parametrize.cached():
        return module.cell(module(x), x)  # z* again, from the weights that the solve has left in the cache


def cached_before(module: nn.Module, x: Tensor) -> Tensor:
    with parametrize.cached():
        module.cell(x, x)
        z: Tensor = module(x)
    return z


def recomputed(module: nn.Module, x: Tensor) -> Tensor:
    z: Tensor = checkpoint(module, x, use_reentrant=False)
    return z


@pytest.mark.sampled(4)
@pytest.mark.parametrize("use", [nn.Module.__call__, cached, cached_and_used_again, cached_before, recomputed])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["spectral", "weight", "orthogonal"])
def test_parametrised_weights(kind: str, training: bool, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
    module = parametrised(kind, training)
    truth = gradients(module, batch(), lambda x: unrolled(module.cell, x))
    if use is cached_and_used_again:
        truth = gradients(module, batch(), lambda x: module.cell(unrolled(module.cell, x), x))
    assert_same(gradients(module, batch(), lambda x: use(module, x)), truth)


@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_gradients_of_every_sample_through_functional_call(solver: str) -> None:
    module = layer(solver)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x[None],)).square().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, batch())
    for i in range(3):
        assert_same([g[i] for g in found.values()], gradients(module, batch()[i : i + 1])[:-1])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_training_takes_the_path_of_the_unrolled_loop(optimizer: Any) -> None:
    paths = []
    for explicit in (False, True):
        module = layer("newton")
        steps = optimizer(module.parameters(), lr=0.01)

        def loss(module: Any = module, steps: Any = steps, explicit: bool = explicit) -> Tensor:
            steps.zero_grad()
            z = unrolled(module.cell, batch()) if explicit else module(batch())
            value = (z - 0.3).square().mean()
            value.backward()
            return value

        for _ in range(3):
            steps.step(loss)
        paths.append([p.detach() for p in module.parameters()])
    assert_same(*paths)


def test_a_penalty_on_the_gradient() -> None:
    module = layer("newton")
    penalties = []
    for call in (module, lambda x: unrolled(module.cell, x)):
        x = batch().requires_grad_()
        (grad,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
        penalties.append(list(torch.autograd.grad(grad.square().sum(), list(module.parameters()))))
    assert_same(*penalties)


def test_gradients_accumulate_and_graphs_are_retained() -> None:
    module = layer()
    once = gradients(module, batch())[:-1]
    module.zero_grad()
    loss = module(batch()).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same([p.grad / 2 for p in module.parameters()], once)


def test_without_gradients_nothing_is_recorded() -> None:
    module = layer()
    with torch.no_grad():
        assert not module(batch()).requires_grad
    with torch.inference_mode():
        value = module(batch())
    assert torch.allclose(value.clone(), module(batch()).detach())


def test_gradients_flow_in_evaluation_mode_too() -> None:
    module = layer()
    assert_same(gradients(module.eval(), batch()), gradients(module.train(), batch()))


class Wide(nn.Module):
    """A cell whose state is wider than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.of_state, self.of_input = nn.Linear(6, 6), nn.Linear(3, 6)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * self.of_state(z) + self.of_input(x))


def test_a_start_that_does_not_fit_says_where_it_came_from() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(
        RuntimeError, match=r"(?s)shapes cannot be multiplied.*zeros like the first tensor.*z0=, or init="
    ):
        FixedPoint(Wide())(x)
    assert FixedPoint(Wide(), init=lambda x: x.new_zeros(len(x), 6))(x).shape == (4, 6)
    assert FixedPoint(Wide())(x, z0=torch.zeros(4, 6)).shape == (4, 6)
