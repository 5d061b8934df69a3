"""Where a pattern is wrong, is not found or does not help, a solve is right all the same, and says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import scipy.sparse as sparse
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import Memory, PatternWarning

from .bratu import M, bratu, by_hand, rates, start


def test_a_pattern_that_lacks_entries_is_reported_and_changes_nothing() -> None:
    lam = rates()
    with pytest.warns(PatternWarning, match=r"pattern that was given is wrong: .* outside of it, in column \d+"):
        z, info = ti.root(bratu, start(), (lam,), rtol=1e-11, sparsity=sparse.eye_array(M * M))
    torch.testing.assert_close(z.detach(), by_hand(lam)[0], rtol=1e-9, atol=1e-12)
    assert "given is wrong" in info.linear


def test_where_factors_would_be_large_the_entries_are_multiplied() -> None:
    """In space: few products with the Jacobian itself, though conjugate gradients take many steps."""
    m = 12
    lam = torch.full((m, m, m), 5.0, dtype=torch.float64, requires_grad=True)

    def g(u: Tensor, lam: Tensor) -> Tensor:
        p = torch.nn.functional.pad(u, (1,) * 6)
        near = p[2:, 1:-1, 1:-1] + p[:-2, 1:-1, 1:-1] + p[1:-1, 2:, 1:-1] + p[1:-1, :-2, 1:-1]
        return 6 * u - near - p[1:-1, 1:-1, 2:] - p[1:-1, 1:-1, :-2] - lam * u.exp() / (m + 1) ** 2

    def solved(**options: Any) -> tuple[Tensor, Tensor, Any]:
        z, info = ti.root(g, torch.zeros_like(lam), (lam,), rtol=1e-11, **options)
        (gradient,) = torch.autograd.grad(z.sum(), lam)
        return z.detach(), gradient, info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchimplicit.linear.memory.WIDE", 10)
        z, gradient, info = solved()
    expected, of_expected, plain = solved(sparsity="off")
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, of_expected, rtol=1e-8, atol=1e-12)
    assert info.linear.startswith("CG; pattern found")
    assert info.adjoint.steps > 2 * info.adjoint.products
    assert plain.linear == ""


class Hidden(torch.autograd.Function):
    """Its derivative is not that of what it computes: that of z + z.roll(1)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return v + v.roll(-1)


def test_what_detection_cannot_see_a_product_does() -> None:
    c = torch.linspace(0, 1, 400, dtype=torch.float64)
    coupled = torch.diag(torch.full((399,), 0.25, dtype=torch.float64), 1)

    def g(z: Tensor) -> Tensor:
        return 4 * z - Hidden.apply(z) - z.square() / 8 - c + 0 * (coupled.to_sparse_coo() @ z)

    z, info = ti.root(g, torch.zeros(400, dtype=torch.float64), sparsity="detect", max_steps=200)
    assert info.converged
    assert float(g(z).abs().max()) < 1e-6


@pytest.mark.parametrize("g", [lambda z: torch.linalg.solve(torch.eye(300).double() * 2, z) + z**3 - 1])
def test_where_no_pattern_is_found_products_do(g: Callable[[Tensor], Tensor]) -> None:
    z, info = ti.root(g, torch.zeros(300, dtype=torch.float64))
    assert info.converged
    assert float(g(z).abs().max()) < 1e-7


def test_without_scipy_there_are_products_and_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchimplicit.linear.memory.available", lambda: False)
    lam = rates()
    z, info = ti.root(bratu, start(), (lam,), rtol=1e-11)
    z.sum().backward()
    torch.testing.assert_close(lam.grad, by_hand(lam)[1], rtol=1e-8, atol=1e-12)
    assert "pip install torchimplicit[scipy]" in info.linear


def test_what_sparsity_may_be() -> None:
    with pytest.raises(ValueError, match="must be 'detect', 'off', a pattern or a Memory"):
        ti.root(lambda z: z, torch.zeros(3), sparsity="dense")
    memory = Memory()
    ti.root(bratu, start(), (rates().detach(),), sparsity=memory)
    with pytest.raises(ValueError, match="a Memory of systems with 400 unknowns; these have 3"):
        ti.root(lambda z: z, torch.zeros(3), sparsity=memory)
    with pytest.raises(ValueError, match=r"shape \(2, 2\); expected \(3, 3\)"):
        ti.root(lambda z: z, torch.zeros(3), sparsity=torch.eye(2))


def test_defaults_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ti.root(bratu, start(), (rates().detach(),)).info.converged
