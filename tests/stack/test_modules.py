"""Layers are copied, pickled, loaded, cast and shared like any module."""

from __future__ import annotations

import copy
import pickle
import threading

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from .layers import Cell, N, assert_same, batch, gradients, layer


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


def spectral_cell() -> Cell:
    cell = Cell()
    torch.manual_seed(3)
    cell.linear = spectral_norm(cell.linear)
    return cell


def unrolled(cell: nn.Module, x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(80):
        z = cell(z, x)
    return z


def test_spectral_normalisation_in_evaluation_mode() -> None:
    module = layer(cell=spectral_cell().eval())
    module.eval()
    assert_same(gradients(module, batch()), gradients(module, batch(), lambda x: unrolled(module.cell, x)))


def test_spectral_normalisation_in_training_mode() -> None:
    module = layer(cell=spectral_cell())
    for _ in range(50):
        module.cell(
            torch.zeros(1, N, dtype=torch.float64), torch.zeros(1, N, dtype=torch.float64)
        )  # lets its power iteration settle
    assert_same(gradients(module, batch()), gradients(module, batch(), lambda x: unrolled(module.cell, x)))


def test_a_parametrisation_cached_around_the_layer_loses_no_gradient() -> None:
    module = layer(cell=spectral_cell())
    module.eval()

    def cached(x: Tensor) -> Tensor:
        with parametrize.cached():
            z: Tensor = module(x)
        return z

    assert_same(gradients(module, batch(), cached), gradients(module, batch()))


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
