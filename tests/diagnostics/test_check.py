"""``check`` accepts what is right, and names what is wrong."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import torchimplicit as ti
from torchimplicit.diagnostics import check

torch.manual_seed(0)
W = torch.randn(6, 6, dtype=torch.float64) / 6**0.5
X = torch.randn(4, 6, dtype=torch.float64)
ZEROS = torch.zeros(4, 6, dtype=torch.float64)


def tanh(z, x):
    return torch.tanh(z @ (0.5 * W).mT + x)


def levels(report):
    return {verdict.name: verdict.level for verdict in report.verdicts}


def test_a_good_layer_is_well_and_its_numbers_are_true():
    report = check(tanh, ZEROS, (X,), batch_ndim=1)
    assert report.ok
    assert set(levels(report).values()) == {"ok"}
    z = ti.fixed_point(tanh, ZEROS, (X,), batch_ndim=1, rtol=1e-13, atol=1e-13).value
    J = (1 - z**2).unsqueeze(-1) * 0.5 * W
    assert report.spectral_radius == pytest.approx(torch.linalg.eigvals(J).abs().max().item(), rel=1e-5)
    sigma = torch.linalg.svdvals(torch.eye(6, dtype=torch.float64) - J)
    assert report.smallest_singular_value == pytest.approx(sigma.min().item(), rel=1e-5)
    assert report.condition_number == pytest.approx((sigma[:, 0] / sigma[:, -1]).max().item(), rel=1e-5)
    assert report.gradient_error < 1e-6
    assert report.explicit_error < 1e-5
    assert set(report.seconds) >= {"forward", "implicit backward", "explicit forward", "explicit backward"}
    assert "4 systems of 6 unknowns: all well" in str(report)


@pytest.mark.parametrize(
    ("f", "z0", "args", "kind"),
    [
        (lambda z, x: z + z**3 / 3 + z.flip(-1) / 4 - x, ZEROS, (X,), "root"),
        (lambda z, x: ((z - x) ** 2).sum() + (z[..., :-1] * z[..., 1:]).sum() / 2, ZEROS, (X,), "minimize"),
        (lambda z, x: torch.cat([z - x, z[..., :2] * z[..., 2:4] / 5], -1), ZEROS, (X,), "least_squares"),
        (
            lambda z, x: {"a": 0.3 * z["b"].sin() + x, "b": 0.4 * z["a"].cos()},
            {"a": ZEROS, "b": ZEROS},
            (X,),
            "fixed_point",
        ),
        (lambda z, x: 0.4 * (z * 1j).sin() + x, ZEROS.to(torch.complex128) / 9, (X * (1 + 0.5j) / 9,), "fixed_point"),
    ],
    ids=["root", "minimize", "least_squares", "pytree", "complex"],
)
def test_every_kind_of_problem(f, z0, args, kind):
    report = check(f, z0, args, kind)
    assert report.ok, str(report)
    assert report.gradient_error < 1e-5


def test_captured_tensors_are_differentiated_and_put_back():
    cell = torch.nn.Linear(6, 6, dtype=torch.float64)
    with torch.no_grad():
        cell.weight.mul_(0.5)
    before = [p.detach().clone() for p in cell.parameters()]
    report = check(lambda z: torch.tanh(cell(z)), ZEROS[0])
    assert report.ok, str(report)
    assert report.gradient_error < 1e-6
    assert all(torch.equal(p, old) for p, old in zip(cell.parameters(), before))
    assert all(p.grad is None for p in cell.parameters())


def test_arguments_are_left_as_they_were():
    x = X.clone().requires_grad_()
    check(tanh, ZEROS, (x,), batch_ndim=1)
    assert torch.equal(x, X)
    assert x._version == 0
    assert x.grad is None


def test_an_expanding_layer_is_noted_and_fails_only_if_its_solver_does():
    def f(z, x):
        return -2 * z + x

    fine = check(f, ZEROS, (X,), batch_ndim=1, solver="newton")
    assert fine.ok
    assert levels(fine)["contraction"] == "note"
    assert fine.spectral_radius == pytest.approx(2)
    plain = check(f, ZEROS, (X,), batch_ndim=1, solver="picard", max_steps=20)
    assert not plain.ok
    assert levels(plain)["convergence"] == "fail"


def test_detach_inside_the_function_is_a_wrong_derivative():
    report = check(lambda z, x: 0.5 * torch.sin(z) + x * x.detach(), ZEROS, (X,))
    assert levels(report)["derivative of f"] == "fail"
    assert levels(report)["implicit gradient"] == "fail"
    assert "wrong in the same way" in str(report)


def test_an_adjoint_that_is_not_exact_is_found_out():
    report = check(tanh, ZEROS, (X,), batch_ndim=1, adjoint=ti.OneStep())
    assert levels(report)["derivative of f"] == "ok"
    assert levels(report)["implicit gradient"] == "fail"
    assert "adjoint that is not exact" in str(report)


@pytest.mark.slow
def test_a_singular_jacobian_fails():
    def g(z, x):
        return torch.stack([z[0] ** 2 + z[1] / 2 - x, z[1] - z[0] ** 3 / 3])

    report = check(g, torch.zeros(2, dtype=torch.float64), (torch.zeros((), dtype=torch.float64),), "root")
    assert levels(report)["well-posedness"] == "fail"
    assert report.smallest_singular_value == 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_double_root_fails_though_the_jacobian_near_it_is_regular(n):
    x = torch.zeros(n, dtype=torch.float64)
    report = check(lambda z, x: z**2 - x, x + 0.5, (x,), "root", max_steps=50)
    assert report.info.converged
    assert report.condition_number < 1e3
    assert levels(report)["well-posedness"] == "fail"
    assert "multiple root" in str(report)


def energy(z, x):
    return ((z - x) ** 2 + (z - x) ** 4 / 4).sum(-1) + (z[..., :-1] * z[..., 1:]).sum(-1) / 2


def residuals(z, x):
    return torch.cat([z - x, z[..., :2] * z[..., 2:4] / 5], -1)


@pytest.mark.parametrize(
    ("kind", "f", "objective"),
    [("minimize", energy, energy), ("least_squares", residuals, lambda z, x: residuals(z, x).square().sum() / 2)],
    ids=["minimize", "least_squares"],
)
def test_the_singular_values_are_those_of_the_hessian_whatever_the_function_uses(kind, f, objective):
    """Activation checkpointing, for one, which torch.func does not take."""
    recomputed = partial(checkpoint, f, use_reentrant=False)
    report = check(recomputed, ZEROS, (X,), kind, batch_ndim=1)
    assert report.ok, str(report)
    zs = getattr(ti, kind)(f, ZEROS, (X,), batch_ndim=1, rtol=1e-12).value
    sigma = torch.linalg.svdvals(torch.stack([torch.func.hessian(objective)(z, x) for z, x in zip(zs, X)]))
    assert report.smallest_singular_value == pytest.approx(sigma.min().item(), rel=1e-5)
    assert report.condition_number == pytest.approx((sigma[:, 0] / sigma[:, -1]).max().item(), rel=1e-5)


def test_a_solution_that_is_not_finite_ends_the_check():
    report = check(lambda z, x: z.log() - 1 + 0 * x, -torch.ones(2), (torch.ones(2),), "root")
    assert not report.ok
    assert [verdict.name for verdict in report.verdicts] == ["convergence"]


def test_float32_passes_within_its_own_precision():
    report = check(lambda z, x: torch.tanh(z @ W.float().mT / 2 + x), ZEROS.float(), (X.float(),), batch_ndim=1)
    assert report.ok, str(report)


def test_without_anything_to_differentiate_in_that_is_noted():
    report = check(lambda z: z.cos(), torch.tensor(0.5))
    assert report.ok
    assert levels(report)["gradient"] == "note"


def test_one_argument_without_a_tuple_is_refused():
    with pytest.raises(TypeError, match=r"args=\(x,\)"):
        check(tanh, ZEROS, X)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="fixed_point"):
        check(tanh, ZEROS, (X,), "equation")
