"""Spectral radius and singular values, dense and matrix-free, against dense linear algebra."""

import pytest
import torch

from torchimplicit.diagnostics import spectrum
from torchimplicit.linear import Dense


def matrices(*shape):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
    return A + 2 * torch.eye(shape[-1], dtype=torch.float64)


@pytest.fixture(params=["dense", "products"])
def regime(request, monkeypatch):
    if request.param == "products":
        monkeypatch.setattr(spectrum, "DENSE_UNKNOWNS", 0)
    return request.param


def test_spectral_radius(regime):
    A = matrices(3, 12, 12)
    found = spectrum.spectral_radius(Dense(A))
    torch.testing.assert_close(found.value, torch.linalg.eigvals(A).abs().amax(-1))
    assert found.exact == (regime == "dense")


def test_a_rotation_has_radius_one_though_power_iteration_would_never_settle(regime):
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    A = torch.block_diag(turn, torch.tensor([[0.5]], dtype=torch.float64))
    torch.testing.assert_close(spectrum.spectral_radius(Dense(A)).value, torch.tensor(1.0, dtype=torch.float64))


def test_arnoldi_survives_an_exhausted_space(regime):
    A = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0], dtype=torch.float64)).expand(2, 4, 4)
    torch.testing.assert_close(spectrum.spectral_radius(Dense(A)).value, torch.full((2,), 3.0, dtype=torch.float64))
    zero = torch.zeros(2, 4, 4, dtype=torch.float64)
    assert spectrum.spectral_radius(Dense(zero)).value.abs().max() == 0


def test_singular_values_bound_from_the_right_side(regime):
    A = matrices(2, 10, 10)
    truth = torch.linalg.svdvals(A)
    smallest = spectrum.smallest_singular_value(Dense(A)).value
    largest = spectrum.largest_singular_value(Dense(A)).value
    assert (smallest >= truth[:, -1] * (1 - 1e-9)).all()
    assert (largest <= truth[:, 0] * (1 + 1e-9)).all()
    torch.testing.assert_close(smallest, truth[:, -1], rtol=0.1, atol=0)
    torch.testing.assert_close(largest, truth[:, 0], rtol=0.1, atol=0)


def test_a_singular_matrix_is_seen(regime):
    A = matrices(5, 5)
    A[3] = A[1] + A[2]
    assert spectrum.smallest_singular_value(Dense(A)).value < 1e-6
