"""Many systems with one pattern: their entries are assembled, and factorised, all together."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from scipy.sparse import csr_array, diags_array, eye_array, kron
from torch import Tensor

import torchimplicit as ti

D = torch.float64
BATCH, SIDES = 1000, (10, 20)


def mesh(z: Tensor, rate: Tensor) -> Tensor:
    """z / 100 − Δz + w z_x = rate e^(−z) / 100 on each of the meshes, (B, 10, 20), which are closed to rings both ways."""
    neighbours = z.roll(-1, 1) + z.roll(1, 1) + 1.2 * z.roll(-1, 2) + 0.8 * z.roll(1, 2)
    return 4.01 * z - neighbours - rate * (-z).exp() / 100


def by_hand(rate: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The solution of one system and the gradient of its product with c, by SciPy."""
    after = [csr_array(np.roll(np.eye(n), 1, 1)) for n in SIDES]
    ring = kron(after[0] + after[0].T, eye_array(20)) + kron(eye_array(10), 1.2 * after[1] + 0.8 * after[1].T)
    A = (4.01 * eye_array(200) - ring).tocsc()
    z, rate = np.zeros(200), rate.ravel() / 100
    for _ in range(12):
        J = (A + diags_array(rate * np.exp(-z))).tocsc()
        z = z - scipy.sparse.linalg.spsolve(J, A @ z - rate * np.exp(-z))
    u = scipy.sparse.linalg.spsolve(J.T.tocsc(), c.ravel())
    return z.reshape(SIDES), (u * np.exp(-z) / 100).reshape(SIDES)


def test_a_thousand_systems_take_the_products_and_factorisations_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    splu = scipy.sparse.linalg.splu
    monkeypatch.setattr(scipy.sparse.linalg, "splu", lambda *a, **k: (calls.append(a[0].shape), splu(*a, **k))[1])
    evaluations = []

    def g(z: Tensor, rate: Tensor) -> Tensor:
        evaluations.append(z.shape)
        return mesh(z, rate)

    rng = torch.Generator().manual_seed(0)
    rate = (0.5 + torch.rand(BATCH, *SIDES, generator=rng, dtype=D)).requires_grad_()
    c = torch.randn(BATCH, *SIDES, generator=rng, dtype=D)
    z, info = ti.root(
        g, torch.zeros(BATCH, *SIDES, dtype=D), (rate,), batch_ndim=1, sparsity="detect", rtol=1e-11, on_failure="raise"
    )
    forward = len(calls)
    (found,) = torch.autograd.grad(z, rate, c)
    assert 1 <= forward <= 3
    assert len(calls) == forward  # none for the backward
    assert set(calls) == {(BATCH * 200, BATCH * 200)}  # all as one
    assert len(evaluations) < 25
    assert set(evaluations) == {(BATCH, *SIDES)}
    assert info.products + info.adjoint.products < 120
    for i in (0, 7, 999):
        value, gradient = by_hand(rate[i].detach().numpy(), c[i].numpy())
        np.testing.assert_allclose(z[i].detach().numpy(), value, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(found[i].numpy(), gradient, rtol=1e-7, atol=1e-9)
