"""What a memory keeps serves all steps, the backward and the next calls."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import Memory

from .bratu import bratu, by_hand, rates, start


def test_one_factorisation_serves_all_steps_and_the_backward() -> None:
    memory, lam = Memory(), rates()
    z, info = ti.root(bratu, start(), (lam,), rtol=1e-11, sparsity=memory)
    assert memory.setups == 1
    z.sum().backward()
    assert memory.setups == 1
    assert info.steps > 1
    assert info.products < 60
    assert info.adjoint.products < 12
    assert info.adjoint.converged
    assert "CG, preconditioned by CHOLMOD" in info.adjoint.linear


def test_a_memory_that_is_kept_serves_the_next_call() -> None:
    memory = Memory()
    counts = []
    for shift in (0.0, 0.1, 0.2):
        lam = (rates().detach() + shift).requires_grad_()
        z, info = ti.root(bratu, start(), (lam,), rtol=1e-11, sparsity=memory)
        z.sum().backward()
        torch.testing.assert_close(lam.grad, by_hand(lam)[1], rtol=1e-9, atol=1e-12)
        counts.append(int(info.products))
    assert memory.setups == 1
    assert counts[1] < counts[0] / 1.5  # without a trial, and without colours


def test_a_pattern_that_was_given_keeps_its_colours_from_call_to_call() -> None:
    n = 300
    memory = Memory(ring_pattern(n))
    x = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    patterns = []
    for _ in range(2):
        _, info = ti.root(ring, x, (x,), sparsity=memory)
        assert info.converged
        patterns.append(memory._shared.assembly)  # which has the colours
    assert patterns[0] is not None
    assert patterns[0] is patterns[1]


def test_a_memory_of_symmetric_matrices_goes_on_to_others() -> None:
    """A law of conduction that does not depend on u has a symmetric Jacobian, and one that does has none; so has a start u = 0."""
    n = 300
    x = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1]

    def balance(law: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def g(u: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(u, (1, 1))
            return u - x.sin() - torch.diff(law((padded[1:] + padded[:-1]) / 2) * torch.diff(padded)) * 100

        return g

    memory = ti.linear.Memory()
    for law in (torch.ones_like, lambda u: 0.2 + u**2, lambda u: 1 / (1 + u)):
        u, info = ti.root(balance(law), torch.zeros(n, dtype=torch.float64), sparsity=memory, rtol=1e-11)
        alone = ti.root(
            balance(law), torch.zeros(n, dtype=torch.float64), sparsity="off", solver="newton", rtol=1e-11
        ).value
        torch.testing.assert_close(u, alone, rtol=1e-9, atol=1e-12)
        assert "pattern found" in info.linear
        assert info.products < 100


def ring(z: Tensor, x: Tensor) -> Tensor:
    return 3 * z - z.roll(1) - z.roll(-1) / 2 + z**3 / 10 - x


def ring_pattern(n: int) -> Tensor:
    return torch.eye(n).roll(1, 0) + torch.eye(n) + torch.eye(n).roll(-1, 0)


@pytest.mark.parametrize("given", [True, False])
def test_a_pattern_is_for_unknowns_on_the_cpu(given: bool) -> None:
    """Whether it was given, or learnt there: elsewhere nothing is made of it, and the reason is told."""
    n = 300
    x = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    memory = Memory(ring_pattern(n)) if given else Memory()
    ti.root(ring, x, (x,), sparsity=memory)
    here, there = (SimpleNamespace(z=torch.zeros(1, n, device=device)) for device in ("cpu", "meta"))
    assert memory.pattern(here) is not None
    assert memory.pattern(there) is None
    assert "SciPy factorises on the CPU, and this is on meta" in memory.description
    assert memory.pattern(here) is not None
    assert "meta" not in memory.description


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("sparsity", ["given", "given there", "detect"])
def test_a_memory_goes_between_the_cpu_and_a_gpu(sparsity: str) -> None:
    n = 300
    x = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    pattern = ring_pattern(n)
    memory = Memory("detect" if sparsity == "detect" else pattern.cuda() if sparsity == "given there" else pattern)
    gradients = []
    for device in ("cpu", "cuda", "cpu"):
        at = x.to(device, copy=True).requires_grad_()
        z, info = ti.root(ring, at.detach(), (at,), sparsity=memory, rtol=1e-11)
        assert info.converged
        gradients.append(torch.autograd.grad(z.square().sum(), at)[0].cpu())
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-8, atol=1e-9)


def test_a_memory_finds_that_a_later_function_has_more_entries() -> None:
    n = 300
    x = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    memory, reach = Memory(), 0.0

    def g(z: Tensor) -> Tensor:
        inner = torch.nn.functional.pad(z, (1, 1))
        out = 3 * z - inner[2:] - inner[:-2] / 2 + z**3 / 10 - x
        return out + reach * z.flip(0) if reach else out

    _, info = ti.root(g, x, sparsity=memory)
    assert info.converged
    assert "pattern found" in info.linear
    reach = 2.0
    z, info = ti.root(g, x, sparsity=memory)
    assert info.converged
    assert g(z).abs().max() < 1e-6
    assert "a product shows entries that detection has missed" in info.linear


def test_a_backward_by_factors_of_an_earlier_jacobian_still_sees_a_double_root() -> None:
    n = 300
    x = torch.linspace(0.5, 1.5, n, dtype=torch.float64, requires_grad=True)

    def g(z: Tensor, power: int) -> Tensor:
        inner = torch.nn.functional.pad(z, (1, 1))
        r = 3 * z - inner[2:] - inner[:-2] + z**3 / 10 - x
        return torch.cat([r[:1] ** power, r[1:]])

    for power, singular in ((1, False), (2, True)):
        z, info = ti.root(lambda z: g(z, power), torch.zeros_like(x), sparsity=Memory(), on_failure="ignore")  # noqa: B023
        z.sum().backward()
        assert (info.adjoint.status == ti.Status.SINGULAR) == singular
