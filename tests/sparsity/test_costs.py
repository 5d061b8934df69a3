"""How many products a solve by factors of a narrow band takes, and that nothing is missed for that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.linear import Banded
from torchimplicit.solvers import newton_krylov

N = 600
D = torch.float64


def diffusion(u: Tensor, c: Tensor) -> Tensor:
    flow = torch.nn.functional.pad(u[1:] - u[:-1], (1, 1))
    return u - 50 * flow.diff() + 0.1 * u**3 - c


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_the_size_of_the_inverse_is_asked_for_only_where_the_solve_may_end(
    start: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    least = newton_krylov._least_gain
    monkeypatch.setattr(newton_krylov, "_least_gain", lambda *args: asked.append(1) or least(*args))
    c = torch.linspace(1, 2, N, dtype=D)
    z, info = ti.root(diffusion, torch.full((N,), start, dtype=D), (c,), rtol=1e-11)
    assert info.steps > 3
    assert len(asked) == (1 if start else 2)  # and where a first step from zero may be along a gauge
    truth = ti.root(diffusion, z.detach(), (c,), rtol=1e-14, sparsity="off", solver=ti.solvers.Newton()).value
    assert float((z - truth).abs().max()) <= 1e-10 * float(truth.abs().max())
    assert float((z - truth).abs().max()) <= 2 * float(info.error) + 1e-14


def test_the_first_step_confirms_the_entries_that_were_found() -> None:
    def g(u: Tensor) -> Tensor:
        pad = torch.nn.functional.pad
        return 3 * u - pad(u[1:], (0, 1)) - pad(u[:-1], (1, 0)) - 1

    z, info = ti.root(g, torch.zeros(N, dtype=D))
    assert info.converged
    assert info.products == 3 + 1 + 1  # the diagonals, one step, and the size of the inverse
    assert float(g(z).abs().max()) < 1e-12


class Hidden(torch.autograd.Function):
    """A sum of neighbours of which what is detected sees one, while its derivative has both."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return u + weight * torch.from_numpy(u.detach().numpy().copy()).roll(7)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return v + ctx.weight * v.roll(-7), None


@pytest.mark.parametrize("weight", [0.05, 0.5])
def test_entries_that_were_missed_are_still_seen_and_do_no_harm(weight: float) -> None:
    c = torch.linspace(1, 2, N, dtype=D, requires_grad=True)
    z, info = ti.root(
        lambda u, c: 4 * u - Hidden.apply(u, weight) + 0.1 * u**3 - c, torch.zeros(N, dtype=D), (c,), rtol=1e-11
    )
    assert info.converged
    assert "detection has missed" in info.linear
    z.sum().backward()
    J = torch.diag(3 + 0.3 * z.detach() ** 2) - weight * torch.eye(N, dtype=D).roll(7, 0)
    torch.testing.assert_close(c.grad, torch.linalg.solve(J.T, torch.ones(N, dtype=D)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [D, torch.complex128])
def test_the_sign_of_a_band(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    above = torch.randn(2, 4, dtype=dtype)
    rows = [torch.nn.functional.pad(above, (1, 0)), torch.full((2, 5), 9.0, dtype=dtype), above.conj()]
    bands = torch.stack([*rows[:2], torch.nn.functional.pad(rows[2], (0, 1))], -2)
    dense = Banded(bands, 1, 1).to_dense()
    assert torch.equal(dense, dense.mH)
    assert Banded(bands, 1, 1).sign == 1
    assert Banded(-bands, 1, 1).sign == -1
    other, mixed = bands.clone(), bands.clone()
    other[1, 2, 0] += 1
    mixed[1, 1, 3] = -9
    assert Banded(other, 1, 1).sign == Banded(mixed, 1, 1).sign == Banded(bands[:, :2], 0, 1).sign == 0
    turned = bands.to(torch.complex128)
    assert Banded(turned, 1, 1).sign == 1
    turned[..., 1, :] += 0.5j
    assert Banded(turned, 1, 1).sign == 0
