"""The demo's instruments measure what they say, seen on cases whose answers are known."""

import gc

import pytest
import torch

from torchimplicit.demo.instruments import LiveStorage, finite_difference, measure, relative_error


def test_live_storage_counts_what_is_kept_and_nothing_else():
    kept = []
    with LiveStorage() as live:
        kept.append(torch.zeros(100, dtype=torch.float64))
        kept.append(kept[0][10:20])  # a view has no storage of its own
        torch.zeros(1000) + 1  # gone at once
    assert live.bytes() == 800
    kept.clear()
    gc.collect()
    assert live.bytes() == 0


def test_live_storage_sees_what_autograd_saves():
    x = torch.ones(50, requires_grad=True)
    with LiveStorage() as live:
        y = x.exp().sum()  # exp keeps its result; the sum keeps nothing but is itself alive
    assert live.bytes() == 50 * 4 + 4
    del y
    assert live.bytes() == 0


def test_storage_of_an_unrolled_product_grows_linearly():
    def saved(steps):
        z = torch.ones(50, requires_grad=True)
        with LiveStorage() as live:
            for _ in range(steps):
                z = z.sin()
        return live.bytes()

    assert saved(20) == 2 * saved(10)


def test_finite_differences_accept_the_gradient_and_refuse_another():
    A = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    x = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)

    def loss():
        return (A @ x).sin().sum()

    (gradient,) = torch.autograd.grad(loss(), x)
    before = x.detach().clone()
    assert finite_difference(loss, [x], gradient, 1e-5) < 1e-9
    assert finite_difference(loss, [x], 1.1 * gradient, 1e-5) > 0.05
    assert torch.equal(x, before)


def test_measure_reports_the_gradient_it_was_given():
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    measured = measure(7, lambda: (x**2).sum() / 2, [x], torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert measured.steps == 7
    assert measured.error == 0
    assert measured.norm == pytest.approx(5)
    assert relative_error(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0], dtype=torch.float64)) == pytest.approx(1)
