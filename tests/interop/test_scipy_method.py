"""SciPy's methods as forward solvers: the right value, the gradient of the condition, clear refusals."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.interop import SciPy
from torchimplicit.interop.scipy_method import MINIMUM, ROOT

D = torch.float64


def data() -> Tensor:
    return torch.randn(3, 2, dtype=D, generator=torch.Generator().manual_seed(0))


def phi(z: Tensor, b: Tensor) -> Tensor:
    return (z - b).cosh().sum(-1) + z.square().sum(-1) / 2 + z[..., 0] * z[..., 1] / 3


def g(z: Tensor, b: Tensor) -> Tensor:
    return z + 0.3 * torch.sin(z.flip(-1)) - b


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", [m for m in MINIMUM if m not in ("COBYLA", "COBYQA")])
def test_minima_and_their_gradients(method: str) -> None:
    b = data().requires_grad_()
    rtol = 1e-3 if method in ("Nelder-Mead", "Powell") else 1e-6
    z, info = ti.minimize(phi, torch.zeros(3, 2, dtype=D), (b,), batch_ndim=1, solver=SciPy(method), rtol=rtol)
    assert info.converged.all()
    exact = ti.minimize(phi, torch.zeros(3, 2, dtype=D), (b,), batch_ndim=1, rtol=1e-13).value
    (gradient,), (expected,) = (torch.autograd.grad(v.square().sum(), b) for v in (z, exact))
    torch.testing.assert_close(gradient, expected, rtol=10 * rtol, atol=10 * rtol)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", [m for m in ROOT if m not in ("linearmixing", "diagbroyden", "excitingmixing")])
def test_roots_and_their_gradients(method: str) -> None:
    b = data().requires_grad_()
    z, info = ti.root(g, torch.zeros(3, 2, dtype=D), (b,), batch_ndim=1, solver=SciPy(method, tol=1e-9), rtol=1e-6)
    assert info.converged.all()
    exact = ti.root(g, torch.zeros(3, 2, dtype=D), (b,), batch_ndim=1, rtol=1e-13).value
    (gradient,), (expected,) = (torch.autograd.grad(v.square().sum(), b) for v in (z, exact))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm", "BFGS"])
def test_fits(method: str) -> None:
    t = torch.linspace(0, 1, 10, dtype=D)
    y = (2 * torch.exp(-1.5 * t) + 0.01 * torch.cos(9 * t)).requires_grad_()
    r = lambda z: z[0] * torch.exp(-z[1] * t) - y  # noqa: E731
    z, info = ti.least_squares(r, torch.ones(2, dtype=D), solver=SciPy(method, tol=1e-10), rtol=1e-6)
    assert info.converged
    exact = ti.least_squares(r, torch.ones(2, dtype=D), rtol=1e-13).value
    (gradient,), (expected,) = (torch.autograd.grad(v[1], y) for v in (z, exact))
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["brentq", "bisect", "toms748", "ridder"])
def test_roots_of_one_unknown_in_a_bracket(method: str) -> None:
    a = torch.tensor([1.0, 5.0, 20.0], dtype=D, requires_grad=True)
    z, info = ti.root(
        lambda z: z**3 + z - a, torch.zeros(3, dtype=D), batch_ndim=1, solver=SciPy(method, bracket=(0.0, 10.0))
    )
    assert info.converged.all()
    torch.testing.assert_close(z**3 + z, a, rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(z.sum(), a)
    torch.testing.assert_close(gradient, 1 / (3 * z**2 + 1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("method", ["L-BFGS-B", "TNC", "SLSQP", "trust-constr"])
def test_minima_within_bounds(method: str) -> None:
    b, lower = (2 * data()).requires_grad_(), torch.tensor([-0.3, -torch.inf], dtype=D, requires_grad=True)
    options = {"batch_ndim": 1, "bounds": (lower, 0.4)}
    loose = 1e-3 if method == "trust-constr" else 1e-6  # an interior-point method ends next to the bound
    z, info = ti.minimize(phi, torch.zeros(3, 2, dtype=D), (b,), solver=SciPy(method), rtol=loose, **options)
    assert info.converged.all()
    exact = ti.minimize(phi, torch.zeros(3, 2, dtype=D), (b,), rtol=1e-13, **options).value
    assert ((exact == 0.4) | (exact == lower)).any()
    gradients, expected = (torch.autograd.grad(v.square().sum(), (b, lower)) for v in (z, exact))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * loose, atol=10 * loose)


def test_fits_within_bounds() -> None:
    t = torch.linspace(0, 1, 10, dtype=D)
    r = lambda z: z[0] * torch.exp(-z[1] * t) - 2 * torch.exp(-1.5 * t)  # noqa: E731
    z, info = ti.least_squares(r, torch.ones(2, dtype=D), solver=SciPy("dogbox"), bounds=(0, 1.8), rtol=1e-6)
    assert info.converged
    torch.testing.assert_close(
        z, ti.least_squares(r, torch.ones(2, dtype=D), bounds=(0, 1.8), rtol=1e-12).value, rtol=1e-6, atol=0
    )


def test_a_bad_system_does_not_disturb_its_neighbours() -> None:
    z0 = torch.zeros(3, 2, dtype=D)
    z0[1] = torch.nan
    info = ti.minimize(phi, z0, (data(),), batch_ndim=1, solver=SciPy("BFGS"), on_failure="ignore", rtol=1e-6).info
    assert info.converged.tolist() == [True, False, True]


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    z0 = torch.zeros(2, dtype=D)
    with pytest.raises(ValueError, match=r"no method 'bfsg'.*BFGS"):
        SciPy("bfsg")
    with pytest.raises(ValueError, match=r"BFGS does not find a root.*hybr"):
        ti.root(lambda z: z - 1, z0, solver=SciPy("BFGS"))
    with pytest.raises(ValueError, match=r"hybr does not find a minimum.*L-BFGS-B"):
        ti.minimize(lambda z: (z**2).sum(), z0, solver=SciPy("hybr"))
    with pytest.raises(ValueError, match=r"BFGS does not know of bounds.*L-BFGS-B"):
        ti.minimize(lambda z: (z**2).sum(), z0, solver=SciPy("BFGS"), bounds=(0, 1))
    with pytest.raises(TypeError, match="least_squares"):
        ti.minimize(lambda z: (z**2).sum() - z[0], z0, solver=SciPy("trf"))
    with pytest.raises(ValueError, match="one unknown; here are 2"):
        ti.root(lambda z: z - 1, z0, solver=SciPy("brentq", bracket=(0, 2)))
    b = torch.ones(2, dtype=D, requires_grad=True)
    with pytest.raises(TypeError, match="cannot be unrolled"):
        ti.root(lambda z: z - b, z0, solver=SciPy("hybr"), adjoint=ti.Unrolled())
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        ti.root(lambda z: z - 1, z0, solver=SciPy("hybr"))


def shifted(z: Tensor) -> Tensor:
    return z - 1


REFUSED = {
    "an option of the method": (ti.minimize, SciPy("BFGS", maxiter=10), TypeError, r"minimize .*maxiter.*options=\{"),
    "an unknown option": (ti.root, SciPy("brentq", brackets=(0, 2)), TypeError, r"root_scalar.*brackets"),
    "no bracket": (ti.root, SciPy("brentq"), ValueError, r"root_scalar.*SciPy\('brentq', tol=1e-12\).*xtol"),
    "a wrong value": (ti.least_squares, SciPy("trf", loss="hubert"), ValueError, r"least_squares.*loss='hubert'"),
    "a wrong type": (ti.root, SciPy("hybr", options=3), TypeError, r"scipy.optimize.root .*options=3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_scipy_refuses_is_told_with_what_it_was_given(name: str) -> None:
    solve, method, error, message = REFUSED[name]
    function = (lambda z: shifted(z).square().sum()) if solve is ti.minimize else shifted
    with pytest.raises(error, match=message):
        solve(function, torch.zeros(1, dtype=D), solver=method)


def test_an_error_of_the_users_own_function_goes_through_scipy_as_it_is() -> None:
    def g(z: Tensor) -> Tensor:
        if float(z[0]) != 0:
            raise TypeError("of my own")
        return z - 1

    with pytest.raises(TypeError, match=r"^of my own$"):
        ti.root(g, torch.zeros(1, dtype=D), solver=SciPy("hybr"))
